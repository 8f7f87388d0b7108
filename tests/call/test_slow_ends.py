"""Ends that take their time: the server tells of a broken connection after 20 s, and a drain deadline has to pass."""

from __future__ import annotations

import asyncio
import signal
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.support.caller import Caller
from tests.support.projects import Project
from tests.support.server import LiveKit
from tests.support.templates import ROOT
from tests.support.worker import Worker, worker

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.slow]


@asynccontextmanager
async def alone(project: Project, livekit: LiveKit, **environment: str) -> AsyncIterator[tuple[Worker, str, str]]:
    """A worker with an agent name of its own; that name, and a room nobody has been in."""
    room, agent = f"room-{uuid.uuid4().hex[:8]}", f"agent-{uuid.uuid4().hex[:8]}"
    async with worker(project.path, project.agent, livekit, AGENT_NAME=agent, **environment) as running:
        yield running, agent, room


async def vanish(running: Worker, livekit: LiveKit, room: str, agent: str) -> None:
    """A caller joins and is greeted; then their process is killed, without a goodbye to the server."""
    token = livekit.token(room, "ann", agent_name=agent)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.support.caller", livekit.url, token), cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"joined\n"
    await running.wait_for(lambda record: record.get("room") == room and record.get("step") == 6)
    process.kill()
    await process.wait()


async def test_a_caller_whose_process_dies_and_who_never_comes_back(default_project: Project, livekit: LiveKit) -> None:
    async with alone(default_project, livekit, AGENT_REJOIN_SECONDS="1") as (running, agent, room):
        await vanish(running, livekit, room, agent)
        end = await running.wait_for(lambda r: r.get("room") == room and "reason" in r and "turns" in r, seconds=90)
        assert end["reason"] == "caller dropped"
        assert {outcome for _, outcome in running.closed(room)} == {"ok"}
        await running.free()


async def test_a_caller_who_comes_back_in_time_goes_on_without_a_second_greeting(
    default_project: Project, livekit: LiveKit
) -> None:
    async with alone(default_project, livekit, AGENT_REJOIN_SECONDS="60") as (running, agent, room):
        await vanish(running, livekit, room, agent)
        await running.wait_for(lambda r: "connection broke" in str(r.get("message")), seconds=90)
        async with Caller(livekit, room, identity="ann") as caller:
            await running.wait_for(lambda r: "the caller is back" in str(r.get("message")))
            assert "bicycle" in await caller.ask("Where can I park my bicycle?", "bicycle")
        assert (await running.ended(room))["reason"] == "caller left"
        assert running.steps(room) == [1, 2, 3, 4, 5, 6, 7, 8]


async def test_a_drain_deadline_that_passes_ends_the_call_with_a_goodbye(
    default_project: Project, livekit: LiveKit
) -> None:
    async with alone(default_project, livekit, AGENT_DRAIN_SECONDS="2") as (running, agent, room):
        async with Caller(livekit, room, agent) as caller:
            await caller.hear_text_with("help")
            running.process.send_signal(signal.SIGTERM)
            await caller.hear_text_with("I have to go now")
            async with asyncio.timeout(20):
                await caller.cut_off.wait()
        assert (await running.ended(room))["reason"] == "worker stopped"
        async with asyncio.timeout(30):
            assert await running.process.wait() == 0
