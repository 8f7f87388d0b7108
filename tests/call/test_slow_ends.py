"""Slow ends: the server reports a broken connection after 20 s, a watchdog waits for a minute."""

from __future__ import annotations

import asyncio
import signal
import sys

import pytest

from tests.call.scene import Scene, cut_off, new_room, scene, troubled
from tests.support.ends import ENDS, End, ends
from tests.support.projects import Project
from tests.support.server import LiveKit
from tests.support.templates import ROOT, Template

ANN = "ann"

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.slow]


@pytest.fixture(scope="module")
def project(template: Template, tmp_path_factory: pytest.TempPathFactory) -> Project:
    return troubled(template, tmp_path_factory.mktemp("troubled"))


async def vanish(stage: Scene, room: str) -> None:
    """A caller is greeted; then their process is killed, and the server is not informed."""
    token = stage.livekit.token(room, ANN, agent_name=stage.agent)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.support.caller", stage.livekit.url, token),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"joined\n"
    await stage.step(room, 6)
    process.kill()
    await process.wait()


@ends("dropped")
async def test_a_caller_whose_process_dies_and_who_never_comes_back(
    end: End, project: Project, livekit: LiveKit
) -> None:
    room = new_room()
    async with scene(project, livekit, AGENT_REJOIN_SECONDS="1") as stage:
        await vanish(stage, room)
        await stage.expect(end, room)


@ends("rejoins")
async def test_a_caller_who_comes_back_in_time_goes_on_without_a_second_greeting(
    end: End, project: Project, livekit: LiveKit
) -> None:
    room = new_room()
    async with scene(project, livekit, AGENT_REJOIN_SECONDS="60") as stage:
        await vanish(stage, room)
        await stage.running.wait_for(lambda r: "connection broke" in str(r.get("message")))
        async with stage.caller(room, identity=ANN) as caller:
            await stage.said(room, "the caller is back")
            assert "bicycle" in await caller.ask("Where can I park my bicycle?", "bicycle")
        record = await stage.expect(end, room)
        # one greeting, a question, its answer
        assert record["turns"] == 3


@pytest.mark.parametrize("seconds", ["2", "0"])
@ends("drain-deadline")
async def test_a_drain_deadline_that_passes_ends_the_call_with_a_goodbye(
    end: End, seconds: str, project: Project, livekit: LiveKit
) -> None:
    room = new_room()
    async with scene(project, livekit, AGENT_DRAIN_SECONDS=seconds) as stage:
        async with stage.caller(room) as caller:
            await caller.hear_text_with("help")
            stage.running.process.send_signal(signal.SIGTERM)
            await caller.hear_text_with("I have to go now")
            await cut_off(caller, 20)
        record = await stage.running.ended(room)
        assert record["reason"] == end.reason
        async with asyncio.timeout(30):
            assert await stage.running.process.wait() == 0
        stage.remembered(end, record)


@ends("loop-blocked-for-good")
async def test_a_job_that_blocks_for_more_than_a_minute_loses_the_turn_in_flight_only(
    end: End, project: Project, livekit: LiveKit
) -> None:
    room = new_room()
    async with scene(project, livekit, AGENT_RESUME_SECONDS="600") as stage:
        async with stage.caller(room, identity="dan") as caller:
            await caller.hear_text_with("help")
            await caller.ask("Where can I park my bicycle?", "bicycle")
            await caller.write('/tool block {"seconds": 600}')
            told = await stage.said(room, "the loop is blocked from now on")
            await cut_off(caller, 120)
        record = await stage.running.ended(room)
        assert record["reason"] == end.reason
        await stage.running.free()
        await stage.reported(end, record["call"])
        # with the question that blocked it
        assert stage.turns(told["call"] if "call" in told else record["call"]) == 4
        again = new_room()
        async with stage.caller(again, identity="dan") as caller:
            await caller.hear_text_with("cut off")
        await stage.expect(ENDS["leaves-listening"], again)
