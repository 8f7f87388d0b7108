"""The owner's commands against a real server: `agent call`, and a successful `agent doctor`."""

from __future__ import annotations

import asyncio
import json
import uuid
from pathlib import Path

import aiohttp
import pytest
import typer

from agent.cli import call
from agent.settings import load_settings
from tests.support.projects import Project, clean_environment
from tests.support.server import LiveKit, free_port, livekit_server
from tests.support.worker import PATIENCE, worker

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_agent_call_talks_to_a_running_worker(
    default_project: Project, livekit: LiveKit
) -> None:
    async with worker(default_project.path, default_project.agent, livekit) as running:
        process = await asyncio.create_subprocess_exec(
            *default_project.agent,
            "call",
            cwd=default_project.path,
            env=clean_environment(**livekit.environment),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(60):
            out, err = await process.communicate(b"Where can I park my bicycle?\n")
        assert process.returncode == 0, err.decode()
        (answer,) = out.decode().splitlines()
        assert "bicycle" in answer
        assert "https://meet.livekit.io/custom?liveKitUrl=" in err.decode()
        end = await running.wait_for(lambda record: "reason" in record and "turns" in record)
        assert end["reason"] == "caller left"


def caller_of_a_new_agent(livekit: LiveKit, monkeypatch: pytest.MonkeyPatch) -> call.RoomCaller:
    """The caller of `agent call`, whose agent has no worker yet."""
    for name, value in livekit.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AGENT_NAME", f"agent-{uuid.uuid4().hex[:8]}")
    load_settings.cache_clear()
    return call.RoomCaller(load_settings(), "ann", '{"order": 1042}')


async def test_agent_call_says_that_no_worker_has_taken_the_call(
    livekit: LiveKit, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(call, "AGENT_SECONDS", 2.0)
    monkeypatch.setattr(call, "ASK_SECONDS", 1.0)
    caller = caller_of_a_new_agent(livekit, monkeypatch)
    await caller.make_room()
    with pytest.raises(typer.Exit):
        await caller.start()
    await caller.close()
    said = capsys.readouterr().err
    assert said.count("asking again") == 1
    assert "no worker has taken the call" in said


async def test_agent_call_is_taken_by_a_worker_that_registers_later(
    default_project: Project, livekit: LiveKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call, "AGENT_SECONDS", PATIENCE)
    caller = caller_of_a_new_agent(livekit, monkeypatch)
    await caller.make_room()
    name = load_settings().name
    project = default_project
    async with worker(project.path, project.agent, livekit, AGENT_NAME=name) as running:
        assert "help" in await caller.start()
        await caller.close()
        await running.free()


async def test_a_worker_is_healthy_when_it_is_registered(
    default_project: Project, tmp_path: Path
) -> None:
    """Who calls before would get no agent, so a deployment must not stop the old worker before."""
    port = free_port()

    async def health() -> int:
        try:
            async with (
                aiohttp.ClientSession() as http,
                http.get(f"http://127.0.0.1:{port}/") as answer,
            ):
                return answer.status
        except aiohttp.ClientConnectionError:
            return 0

    async def until(wanted: int) -> None:
        async with asyncio.timeout(PATIENCE):
            # another process: there is no event to await
            while await health() != wanted:  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    async with livekit_server(tmp_path) as server:
        await server.kill()

        async def server_comes() -> None:
            await until(503)
            await server.start()

        coming = asyncio.create_task(server_comes())
        project = default_project
        async with worker(project.path, project.agent, server, AGENT_PORT=str(port)):
            await coming
            await until(200)


async def test_doctor_finds_nothing_wrong_with_a_fresh_project(
    default_project: Project, livekit: LiveKit
) -> None:
    environment = {**livekit.environment, "AGENT_MODELS": "scripted"}
    default_project.run("uv", "run", "agent", "ingest", env=environment)
    done = default_project.run("uv", "run", "agent", "doctor", "--json", env=environment)
    report = json.loads(done.stdout)
    # of the server: it is connected with no telephone network
    assert [finding["what"] for finding in report["findings"] if finding["level"] != "ok"] == [
        "the server has no telephone: its trunks cannot be read"
    ]
