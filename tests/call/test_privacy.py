"""A caller tells a real worker name, number and card: all that it leaves is searched for them."""

from __future__ import annotations

import asyncio
import json
import shutil
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.call.scene import Scene, scene
from tests.support.openai_server import MODELS, openai_server
from tests.support.projects import PAIRS, Answers, Project, render
from tests.support.secrets import NAME, PHONE, ROOM, SAID, WORD, files_with_secrets, found_in
from tests.support.server import LiveKit, free_port
from tests.support.templates import ROOT as REPOSITORY
from tests.support.templates import Template
from tests.support.worker import PATIENCE

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.xdist_group("privacy")]

# what is to keep it, in AGENT_DATA_DIR
KEEPERS = ["memory.db", "memory.db-wal", "calls.db", "calls.db-wal", "reports"]


@dataclass
class Receiver:
    """Takes reports."""

    url: str
    bodies: asyncio.Queue[str] = field(default_factory=asyncio.Queue)

    async def receive(self, request: web.Request) -> web.Response:
        """Take one."""
        self.bodies.put_nowait(await request.text())
        return web.Response()


@asynccontextmanager
async def receiver() -> AsyncIterator[Receiver]:
    """A receiver of webhooks on loopback, ended on exit."""
    port = free_port()
    receiving = Receiver(f"http://127.0.0.1:{port}/calls")
    app = web.Application()
    app.router.add_post("/calls", receiving.receive)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield receiving
    finally:
        await runner.cleanup()


@pytest.fixture(scope="module")
def indiscreet(template: Template, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with documents and memory, whose owner's code says in errors what it was given."""
    project = render(template, tmp_path_factory.mktemp("indiscreet") / "front-desk", PAIRS[0])
    persona = REPOSITORY / "tests" / "support" / "indiscreet" / "persona.py"
    shutil.copy(persona, project.path / "src" / "agent" / "persona.py")
    project.install()
    return project


async def metrics_of(stage: Scene) -> str:
    async with (
        aiohttp.ClientSession() as http,
        http.get(f"http://127.0.0.1:{stage.metrics_port}/metrics") as answer,
    ):
        return await answer.text()


def output_of(stage: Scene) -> list[str]:
    """Each line that the worker and its jobs have written, on either of their outputs."""
    return [*(json.dumps(record) for record in stage.running.records), *stage.running.other]


def leaks(lines: list[str]) -> dict[str, set[str]]:
    return {line: found for line in lines if (found := found_in(line))}


@pytest.mark.parametrize(("verb", "keeps"), [("start", True), ("start", False), ("dev", True)])
async def test_what_a_caller_says_is_nowhere_but_where_it_is_to_be_kept(
    indiscreet: Project,
    livekit: LiveKit,
    tmp_path: Path,
    verb: str,
    keeps: bool,
) -> None:
    home, room = indiscreet.path, f"{ROOM}{uuid.uuid4().hex[:6]}"
    async with receiver() as webhook:
        settings: dict[str, Any] = {
            "AGENT_LOG_LEVEL": "DEBUG",
            "AGENT_DATA_DIR": str(tmp_path),
            "AGENT_KEEP_TRANSCRIPTS": str(keeps).lower(),
            "AGENT_KEEP_STRANGERS_WORDS": "true",
            "AGENT_WEBHOOK_URL": webhook.url,
            "AGENT_WEBHOOK_SECRET": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        }
        async with scene(indiscreet, livekit, verb, **settings) as stage:
            async with stage.caller(room, identity=f"sip_{PHONE}", kind="sip") as caller:
                await caller.hear_text()
                await caller.write(SAID)
                await caller.hear_text()
                await caller.ask(f'/tool find {{"name": "{NAME}"}}', "is a customer")
                await caller.write(f'/tool miss {{"name": "{NAME}"}}')
                await caller.hear_text()
            await stage.running.wait_for(lambda record: "call ended" in str(record.get("message")))
            async with asyncio.timeout(PATIENCE):
                sent = await webhook.bodies.get()
            await stage.running.wait_for(
                lambda record: "later delivery (after_call)" in str(record.get("message"))
            )
            await stage.running.free()
            metrics = await metrics_of(stage)
        spans = stage.spans.text

    assert len(output_of(stage)) > 20
    assert leaks(output_of(stage)) == {}
    assert found_in(metrics) == set()
    assert "agent_calls_total" in metrics
    assert found_in(spans) == set()
    assert "job_entrypoint" in spans
    assert "agent_turn" in spans
    everything = files_with_secrets(tmp_path)
    assert files_with_secrets(tmp_path, KEEPERS if keeps else []) == {}
    # not even with words where they are to be kept, without what was kept there
    if keeps:
        assert everything != {}
        assert found_in(sent) >= {NAME, WORD}
    else:
        assert found_in(sent) == set()
    written = [file for file in home.rglob("*.log")]
    assert written == []
    for folder in ("src", "tests", "knowledge"):
        assert files_with_secrets(home / folder) == {}


def of_own_servers() -> Answers:
    """The cheapest project whose models are on servers of one's own."""
    return next(
        one
        for one in PAIRS
        if (one.models, one.knowledge, one.memory) == ("selfhosted", "none", "none")
    )


async def test_no_client_of_a_model_logs_what_it_sends(
    projects: dict[Answers, Project], livekit: LiveKit, tmp_path: Path
) -> None:
    parts = {"LLM": "chat", "STT": "transcriptions", "TTS": "speech"}
    async with openai_server() as server:
        settings: dict[str, Any] = {
            **{f"AGENT_{part}_URL": server.url for part in parts},
            **{f"AGENT_{part}_MODEL": MODELS[endpoint] for part, endpoint in parts.items()},  # type: ignore[index]
            "AGENT_MODELS": "selfhosted",
            "AGENT_LOG_LEVEL": "DEBUG",
            "AGENT_DATA_DIR": str(tmp_path),
        }
        room = f"{ROOM}{uuid.uuid4().hex[:6]}"
        async with scene(projects[of_own_servers()], livekit, **settings) as stage:
            async with stage.caller(room, identity=f"sip_{PHONE}", kind="sip") as caller:
                await caller.hear_text()
                await caller.ask(SAID, WORD)
            await stage.running.wait_for(lambda record: "call ended" in str(record.get("message")))
            await stage.running.free()

    assert leaks(output_of(stage)) == {}
    assert found_in(stage.spans.text) == set()
