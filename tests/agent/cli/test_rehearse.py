"""`agent rehearse` plays whole calls, grades what was done and written, and says what is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from livekit.agents import function_tool, llm

from agent.__main__ import main
from agent.cli.scenarios import CRITERIA, scenarios_in
from agent.conversation import CallAgent
from agent.lifecycle import Call
from agent.persona import Persona
from agent.settings import SettingsError, load_settings
from tests.support.openai_server import MODELS, OpenAIServer, in_background
from tests.support.openai_server.script import scripted
from tests.support.templates import ROOT

YOURS = ROOT / "template" / "tests" / "yours"
ALL_RIGHT = """
[[scenario]]
name = "whoever is known is greeted by name"
says = ['/tool remember_caller {"fact": "Rides a red Larkspur."}', "/tool current_time {}"]
caller = { identity = "customer-1042", attributes = { tier = "gold" } }
metadata = { order = 1042 }
known = { name = "Ada", facts = ["Likes tea."] }
tools = { current_time = { hour = 12 } }

[scenario.expect]
reason = "caller left"
said = ["welcome back, ada", '{"hour": 12}']
never_said = ["goodbye"]
tools = [
  "current_time",
  { name = "remember_caller", arguments = { fact = "Rides a red Larkspur." } },
]
never_tools = ["end_call"]
remembers = { facts = ["red larkspur"] }

[[scenario]]
name = "the next one is a stranger"
says = ['/tool remember_caller {"name": "Bob"}', "Goodbye."]
caller = { identity = "customer-1042" }

[scenario.expect]
reason = "agent hung up"
said = ["Hello! How can I help you?", "Goodbye!"]
never_said = ["Ada"]
remembers = { name = "Bob" }
"""
ALL_WRONG = """
[[scenario]]
name = "everything is otherwise"
says = ["Goodbye.", "One more thing."]
caller = { identity = "guest-17" }
known = { name = "Ada" }
tools = { nothing = 1 }

[scenario.expect]
reason = "caller left"
said = ["Saturday"]
never_said = ["goodbye"]
tools = [{ name = "end_call", arguments = { slowly = true } }, "book"]
never_tools = ["end_call"]
remembers = { name = "Ada", facts = ["tea"] }
"""


class Ended:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err
        self.lines = out.splitlines()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    (home / "knowledge").mkdir(parents=True)
    monkeypatch.setenv("AGENT_HOME", str(home))
    monkeypatch.setenv("AGENT_KNOWLEDGE", "none")
    return home


class Rehearse:
    """Run the command in this process."""

    def __init__(self, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.home, self._capsys = home, capsys

    def __call__(self, text: str, *options: str) -> Ended:
        file = self.home / "calls.toml"
        file.write_text(text, encoding="utf-8")
        return self.of(file, *options)

    def of(self, file: Path, *options: str) -> Ended:
        load_settings.cache_clear()
        with pytest.raises(SystemExit) as ended:
            main(["rehearse", str(file), *options])
        return Ended(int(ended.value.code or 0), *self._capsys.readouterr())


@pytest.fixture
def rehearse(home: Path, capsys: pytest.CaptureFixture[str]) -> Rehearse:
    return Rehearse(home, capsys)


# ---------------------------------------------------------------------- by a script


def test_calls_that_go_as_expected_are_right(rehearse: Rehearse) -> None:
    ended = rehearse(ALL_RIGHT)

    assert ended.lines == [
        "ok   whoever is known is greeted by name",
        "ok   the next one is a stranger",
        "2 right, 0 wrong, 0 not played",
    ]
    assert ended.code == 0
    # the owner's own memory
    assert not list(load_settings().data.glob("memory*"))


def test_nobody_is_told_of_a_call_that_nobody_made(
    rehearse: Rehearse, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENT_DATA_DIR", str(home / "data"))
    monkeypatch.setenv("AGENT_WEBHOOK_URL", "http://127.0.0.1:1/calls")
    monkeypatch.setenv("AGENT_WEBHOOK_SECRET", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")

    assert rehearse(ALL_RIGHT).code == 0
    assert list((home / "data").glob("reports/*/*")) == []


def test_everything_that_is_otherwise_is_said_with_the_conversation(rehearse: Rehearse) -> None:
    ended = rehearse(ALL_WRONG)

    assert [line.strip() for line in ended.lines] == [
        "fail everything is otherwise",
        "there is no tool nothing to stand in for",
        "the caller is a stranger to the agent, so nothing was known of them",
        "the call was over before the caller said 'One more thing.'",
        "the call ended: agent hung up, and not: caller left",
        'the tool end_call was not called with {"slowly": true}; it was with {}',
        "the tool book was not called",
        "the tool end_call was called",
        "'Saturday' was not said",
        "'goodbye' was said",
        "the name 'Ada' was not kept, but nothing",
        "no fact with 'tea' was kept, but nothing",
        "| agent   Hello! How can I help you?",
        "| caller  Goodbye.",
        "| tool    end_call {}",
        "| agent   Goodbye!",
        "0 right, 1 wrong, 0 not played",
    ]
    assert ended.code == 1


def test_only_those_that_are_named_are_played(rehearse: Rehearse) -> None:
    ended = rehearse(ALL_RIGHT + ALL_WRONG, "--only", "stranger")
    assert ended.lines == ["ok   the next one is a stranger", "1 right, 0 wrong, 0 not played"]
    assert rehearse(ALL_RIGHT, "--only", "nobody").code == 2


def test_a_call_that_an_error_ends_is_wrong_whatever_is_expected(
    rehearse: Rehearse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.persona.Persona.greeting", lambda self, profile: 1 / 0)
    ended = rehearse('[[scenario]]\nname = "a"\nsays = ["Hello."]\nexpect = {}\n')
    assert "the call ended: error in step 6 (load the caller's data and greet)" in ended.out
    assert ended.code == 1


class Orders(CallAgent):
    def __init__(self, call: Call) -> None:
        super().__init__(call, instructions="")

    @function_tool
    async def cancel_order(self, order: int) -> str:
        """Cancel an order."""
        raise AssertionError("a rehearsal has acted")


class Reception(Persona):
    @function_tool
    async def to_the_order_desk(self) -> CallAgent:
        """Hand over."""
        return Orders(self.call)


def test_a_tool_of_who_takes_over_has_its_stand_in(
    rehearse: Rehearse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.persona.Persona", Reception)
    ended = rehearse("""
[[scenario]]
name = "an order is cancelled"
says = ["/tool to_the_order_desk {}", '/tool cancel_order {"order": 7}', "Goodbye."]
tools = { cancel_order = "It is cancelled." }

[scenario.expect]
reason = "agent hung up"
said = ["It is cancelled."]
tools = [{ name = "cancel_order", arguments = { order = 7 } }]
""")
    assert ended.lines[0] == "ok   an order is cancelled", ended.out


def test_a_project_without_a_memory_keeps_nothing_of_a_caller(
    rehearse: Rehearse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENT_MEMORY_URL", "none")
    ended = rehearse(SCENARIO + 'expect = { remembers = { name = "Ada" } }')
    assert "nothing was kept of the caller: this project remembers nobody" in ended.out
    assert rehearse(SCENARIO + "expect = {}").code == 0


def test_what_takes_a_language_model_is_not_played_or_not_judged_without_one(
    rehearse: Rehearse,
) -> None:
    ended = rehearse("""
[[scenario]]
name = "a goal"
goal = "You want to know when it opens."
expect = {}

[[scenario]]
name = "a judge"
says = ["Hello."]
expect = { judge = ["It is polite."] }
""")
    why = "a script answers, and it takes a language model"
    assert ended.lines == [
        f"skip a goal: its caller has a goal, but {why}",
        "ok   a judge",
        f"     not judged: {why}",
        "1 right, 0 wrong, 1 not played",
    ]
    assert ended.code == 0


def test_the_scenarios_that_every_project_begins_with_are_right(rehearse: Rehearse) -> None:
    ended = rehearse.of(YOURS / "scenarios.toml")
    assert ended.lines[-1] == "3 right, 0 wrong, 1 not played"
    assert ended.code == 0


# ---------------------------------------------------------------------- a file that is wrong

SCENARIO = '[[scenario]]\nname = "a"\nsays = ["Hello."]\n'


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[[scenario", "is no TOML: Expected ']]'"),
        ("", "calls.toml: there is no scenario: begin one with [[scenario]]"),
        ("a = 1\n" + SCENARIO + "expect = {}", "a: Extra inputs"),
        (SCENARIO, "scenario 1 (a), expect: Field required"),
        (SCENARIO + "expect = { say = [] }", "scenario 1 (a), expect.say: there is no such key"),
        (SCENARIO + 'expect = { reason = "left" }', "(a), expect: no call ends by 'left'"),
        (SCENARIO + 'goal = "b"\nexpect = {}', "scenario 1 (a): write either `says`"),
        (SCENARIO + "expect = {}\n" + SCENARIO + "expect = {}", "two scenarios are called 'a'"),
        ('[[scenario]]\nname = " "\n', "scenario 1 ( ), name:"),
        ('[[scenario]]\nname = "a"\nsays = [" "]\n', "scenario 1 (a), says.0:"),
        (SCENARIO + "expect = { tools = [1] }", "scenario 1 (a), expect.tools.0:"),
    ],
)
def test_a_wrong_file_is_refused_with_the_place(
    rehearse: Rehearse, text: str, problem: str
) -> None:
    ended = rehearse(text)
    assert (ended.code, ended.out) == (2, "")
    assert problem in ended.err
    assert "calls.toml" in ended.err


def test_a_file_that_is_not_there_is_said(rehearse: Rehearse) -> None:
    ended = rehearse.of(rehearse.home / "none.toml")
    assert ended.code == 2
    assert "none.toml cannot be read (No such file or directory)" in ended.err


def test_all_mistakes_are_said_at_once(tmp_path: Path) -> None:
    file = tmp_path / "calls.toml"
    file.write_text(SCENARIO + "expect = {}\n[[scenario]]\nname = 'b'\n", encoding="utf-8")
    with pytest.raises(SettingsError) as error:
        scenarios_in(file)
    assert len(error.value.problems) == 1
    assert "scenario 2 (b)" in error.value.problems[0]


# ---------------------------------------------------------------------- by a language model


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenAIServer]:
    """A server in another thread, whose language model is the agent's."""
    with in_background() as server:
        for part in ("LLM", "STT", "TTS"):
            monkeypatch.setenv(f"AGENT_{part}_URL", server.url)
        monkeypatch.setenv("AGENT_MODELS", "selfhosted")
        monkeypatch.setenv("AGENT_LLM_MODEL", MODELS["chat"])
        yield server


def call_of(name: str, **arguments: object) -> llm.FunctionToolCall:
    return llm.FunctionToolCall(name=name, arguments=json.dumps(arguments), call_id="call_1")


GOAL = """
[[scenario]]
name = "a goal"
goal = "You want to know whether they are there."
most_turns = 3
[scenario.expect]
reason = "caller left"
judge = ["The agent is polite.", "task_completion"]
"""


def test_a_model_plays_the_caller_and_the_sdks_judge_grades(
    rehearse: Rehearse, server: OpenAIServer
) -> None:
    heard: list[str] = []
    criteria: list[str] = []

    def script(chat: llm.ChatContext, tools: set[str]) -> str | llm.FunctionToolCall:
        messages = chat.messages()
        last = messages[-1].text_content or ""
        if "submit_verdict" in tools:
            criteria.append(last)
            verdict = "pass" if "polite" in last else "fail"
            return call_of("submit_verdict", verdict=verdict, reasoning="Nobody was there.")
        if "hang_up" in tools:
            assert "whether they are there" in (messages[0].text_content or "")
            heard.append(last)
            return "Hello." if len(heard) == 1 else call_of("hang_up")
        return scripted(chat, tools)

    server.script = script
    ended = rehearse(GOAL)

    assert heard == ["Hello! How can I help you?", "Hello! What would you like to know?"]
    assert ended.lines[:2] == [
        "fail a goal",
        "     judged fail (task_completion): Nobody was there.",
    ]
    assert ended.code == 1
    assert all("user: Hello." in one for one in criteria)


def test_a_caller_who_never_hangs_up_does_so_after_the_last_turn(
    rehearse: Rehearse, server: OpenAIServer
) -> None:
    said: list[str] = []

    def script(chat: llm.ChatContext, tools: set[str]) -> str | llm.FunctionToolCall:
        if "submit_verdict" in tools:
            return call_of("submit_verdict", verdict="pass", reasoning="Fine.")
        if "hang_up" in tools:
            said.append("Hello.")
            return said[-1]
        return scripted(chat, tools)

    server.script = script
    assert rehearse(GOAL).code == 0
    assert len(said) == 3


def test_a_judge_that_fails_is_no_verdict(rehearse: Rehearse, server: OpenAIServer) -> None:
    server.script = lambda chat, tools: "Nothing." if "submit_verdict" in tools else "Hello."
    ended = rehearse(SCENARIO + 'expect = { judge = ["It is polite."] }')
    assert "it could not be judged (It is polite.)" in ended.out
    assert ended.code == 1


def test_every_criterion_that_is_promised_is_one_of_the_sdks() -> None:
    from livekit.agents import evals

    assert {f"{name}_judge" for name in CRITERIA} == {
        name for name in evals.__all__ if name.endswith("_judge")
    }


def test_a_date_is_a_text_as_a_model_writes_it(tmp_path: Path) -> None:
    file = tmp_path / "dates.toml"
    tools = 'tools = [{ name = "book", arguments = { at = [2026-01-02T03:04:05] } }]'
    text = f"""
[[scenario]]
name = "a date"
says = ["Hello."]
metadata = {{ day = 2026-01-02 }}
tools = {{ free = {{ from = 03:04:05 }} }}
expect = {{ {tools} }}
"""
    file.write_text(text, encoding="utf-8-sig")  # as editors on Windows begin a file
    (scenario,) = scenarios_in(file)
    assert scenario.metadata == '{"day": "2026-01-02"}'
    assert scenario.tools == {"free": {"from": "03:04:05"}}
    assert scenario.expect.tools[0].arguments == {"at": ["2026-01-02T03:04:05"]}
