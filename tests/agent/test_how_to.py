"""The code on the pages for owners works."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock, Mock

import pytest
from google.protobuf.json_format import ParseDict
from livekit import api
from livekit.agents import function_tool
from livekit.agents.llm import Toolset
from markdown_it import MarkdownIt

import template.tests.talk
from agent import persona
from agent.cli.scenarios import Expected, Scenario, scenarios_in
from agent.conversation import CallAgent
from agent.lifecycle import Call
from agent.memory import Profile
from agent.settings import load_settings
from agent.transport import Caller
from template.tests.talk import FakeTransport, talk
from tests.support import quick
from tests.support.room_service import room_service
from tests.support.templates import ROOT

YOURS = ROOT / "template" / "tests" / "yours"


def blocks(page: str, section: str, language: str) -> list[str]:
    """The code of a section of a page, in that language."""
    if page in quick.TEMPLATES:
        whole = quick.render(page, agent_name="front-desk")[page]
    else:
        whole = (ROOT / "template" / page).read_text(encoding="utf-8")
    text = whole.split(f"\n## {section}\n")[1]
    tokens = MarkdownIt().parse(text.split("\n## ")[0])
    return [token.content for token in tokens if token.type == "fence" and token.info == language]


def run(code: str, **names: object) -> dict[str, Any]:
    """The definitions of a module with this code, in which these names are known."""
    module = dict(names)
    exec(compile(code, "how-to.md", "exec"), module)
    return module


async def test_the_tool_that_is_shown_passes_the_test_that_is_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tool, test = blocks("docs/agent/how-to.md", "Add a tool", "python")
    monkeypatch.setattr(persona, "Persona", run(tool, CallAgent=persona.Persona)["Persona"])
    (name,) = {name for name in run(test) if name.startswith("test_")}
    await run(test, talk=talk)[name]()


async def test_what_a_call_is_about_reaches_the_agent_and_the_tests_that_are_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown, *tests = blocks("docs/agent/how-to.md", "Know what a call is about", "python")
    module = run(shown, CallAgent=persona.Persona, Profile=Profile)
    monkeypatch.setattr(persona, "Persona", module["Persona"])
    known = {"talk": talk, "Caller": Caller, "AsyncMock": AsyncMock, "Mock": Mock}
    ran = 0
    for code in tests:
        for name, test in run(code, **known).items():
            if name.startswith("test_"):
                await test()
                ran += 1
    assert ran == 2


async def test_the_agent_that_is_sent_again_is_one_that_nobody_has_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (shown,) = blocks("docs/agent/how-to.md", "When no agent comes", "python")
    taken = api.AgentDispatch(id="AD_1", agent_name="front-desk", room="a-room", metadata="1042")
    async with room_service() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        server.dispatches = [api.AgentDispatch(id="AD_0", room="a-room"), taken]
        await run(shown)["send_agent_again"]("a-room")
        (made,) = server.made
        assert (made.agent_name, made.room, made.metadata) == ("front-desk", "a-room", "1042")
        server.dispatches[-1].state.jobs.add(id="AJ_1")
        await run(shown)["send_agent_again"]("a-room")
        assert len(server.made) == 1


async def test_what_is_done_after_a_call_passes_the_test_that_is_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown, test = blocks("docs/agent/how-to.md", "Do something after a call", "python")
    mine = type("Persona", (run(shown, CallAgent=CallAgent)["Persona"], persona.Persona), {})
    monkeypatch.setattr(persona, "Persona", mine)
    await run(test)["test_a_call_is_entered_elsewhere"](monkeypatch)


# joins three rooms: with an agent, with one that comes later, and with none
FRONT_END = """
import { EventEmitter } from "node:events";
class Room extends EventEmitter { name = "a-room"; remoteParticipants = new Map(); }
const agent = { isAgent: true };
const there = new Room(), late = new Room(), empty = new Room();
there.remoteParticipants.set("agent", agent);
const soon = agentIn(late, 60);
late.remoteParticipants.set("agent", agent);
late.emit("participantConnected", agent);
const asked = [];
globalThis.fetch = async (url) => { asked.push(url); };
const patience = globalThis.setTimeout;
const found = [await agentIn(there, 60) === agent, await soon === agent];
globalThis.setTimeout = (work) => patience(work, 0);
let said = "";
found.push(await waitForAgent(empty, (sentence) => { said = sentence; }));
console.log(JSON.stringify([found, asked, said, late.listenerCount("participantConnected")]));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_the_front_end_that_is_shown_waits_asks_again_and_says_a_sentence() -> None:
    (shown,) = blocks("docs/agent/how-to.md", "When no agent comes", "js")
    done = subprocess.run(
        ["node", "--input-type=module", "--eval", shown + FRONT_END],
        capture_output=True,
        text=True,
        check=True,
    )
    found, asked, said, listening = json.loads(done.stdout)
    assert found == [True, True, False]
    assert asked == ["/agent?room=a-room"]
    assert "try again" in said
    assert listening == 0


@pytest.mark.parametrize(
    "section", ["Hand over to another agent", "Ask something before the greeting"]
)
async def test_the_agents_that_are_shown_pass_the_test_that_is_shown(
    section: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, test = blocks("docs/agent/how-to.md", section, "python")
    # what persona.py has imported already
    known = {"Call": Call, "Profile": Profile, "function_tool": function_tool}
    shown = run(code, CallAgent=CallAgent, **known)["Persona"]
    # what is there already
    mine = type("Persona", (shown, persona.Persona), {})
    monkeypatch.setattr(persona, "Persona", mine)
    (name,) = {name for name in run(test) if name.startswith("test_")}
    await run(test, talk=talk)[name]()


async def test_the_mcp_server_that_is_shown_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = blocks("docs/agent/how-to.md", "Use the tools of an MCP server", "python")
    known = {"Call": Call, "INSTRUCTIONS": persona.INSTRUCTIONS}
    shown = run(code, CallAgent=CallAgent, **known)["Persona"]
    call = Call(FakeTransport(), load_settings())
    tools = {tool.id for tool in shown(call).tools if isinstance(tool, Toolset)}
    assert tools == shown.must_have_tools == {"orders"}


async def test_the_tests_of_behaviour_that_are_shown_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = blocks("docs/agent/behaviour.md", "Tests without a model", "python")
    # this repository has a package `tests` of its own
    monkeypatch.setitem(sys.modules, "tests.talk", template.tests.talk)
    tests = [test for name, test in run(code).items() if name.startswith("test_")]
    assert len(tests) == 2
    for test in tests:
        await test()


def test_the_scenario_that_is_shown_is_one_and_every_key_has_its_row(tmp_path: Path) -> None:
    (shown,) = blocks("docs/agent/behaviour.md", "Scenarios", "toml")
    file = tmp_path / "shown.toml"
    file.write_text(shown, encoding="utf-8")
    (scenario,) = scenarios_in(file)
    assert scenario.expect.tools[0].arguments == {"order": 1042}
    page = (ROOT / "template/docs/agent/behaviour.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", page.split("| key |")[1], re.MULTILINE)
    told = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    keys = [*Scenario.model_fields, *Expected.model_fields]
    keys.remove("expect")
    assert sorted(told) == sorted(keys)


def test_the_token_that_is_shown_sends_the_agent_into_the_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    token, _ = blocks("docs/agent/how-to.md", "Go live", "python")
    secret = "a secret of this test, as long as they are"
    monkeypatch.setenv("LIVEKIT_API_KEY", "key")
    monkeypatch.setenv("LIVEKIT_API_SECRET", secret)
    made = run(token)["token_for"]("customer-1042", "a-room")
    claims = api.TokenVerifier("key", secret).verify(made)
    assert claims.identity == "customer-1042"
    assert claims.video
    assert (claims.video.room_join, claims.video.room) == (True, "a-room")
    assert claims.room_config
    assert [agent.agent_name for agent in claims.room_config.agents] == ["front-desk"]


def test_the_dispatch_rule_that_is_shown_is_one_that_livekit_reads() -> None:
    (shown,) = blocks("docs/agent/how-to.md", "Go live", "json")
    wanted = ParseDict(json.loads(shown), api.CreateSIPDispatchRuleRequest()).dispatch_rule
    # not after the caller, whose number would be in every line of the log
    callee = wanted.rule.dispatch_rule_callee
    assert (callee.room_prefix, callee.randomize) == ("call-", True)
    assert [agent.agent_name for agent in wanted.room_config.agents] == ["front-desk"]


def test_the_first_test_is_one_of_those_that_every_project_begins_with() -> None:
    (shown,) = blocks("README.md", "Your first test", "python")
    assert textwrap.dedent(shown) in (YOURS / "test_persona.py").read_text(encoding="utf-8")
