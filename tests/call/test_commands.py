"""The owner's commands against a real server: `agent call`, and a successful `agent doctor`."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.support.projects import Project, clean_environment
from tests.support.server import LiveKit
from tests.support.worker import worker

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


async def test_doctor_finds_nothing_wrong_with_a_fresh_project(
    default_project: Project, livekit: LiveKit
) -> None:
    environment = {**livekit.environment, "AGENT_MODELS": "scripted"}
    default_project.run("uv", "run", "agent", "ingest", env=environment)
    done = default_project.run("uv", "run", "agent", "doctor", "--json", env=environment)
    report = json.loads(done.stdout)
    assert [finding for finding in report["findings"] if finding["level"] != "ok"] == []
