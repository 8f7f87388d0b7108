"""A call whose server is killed and restarted, or does not answer for a while."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.call.scene import Scene, new_room, scene, troubled
from tests.support.caller import Caller
from tests.support.ends import End, ends
from tests.support.projects import Project
from tests.support.server import LiveKit, livekit_server
from tests.support.templates import Template

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.fixture(scope="module")
def project(template: Template, tmp_path_factory: pytest.TempPathFactory) -> Project:
    return troubled(template, tmp_path_factory.mktemp("troubled"))


async def goes_on(end: End, stage: Scene, trouble: Callable[[LiveKit], Awaitable[None]]) -> None:
    """The server fails during a conversation; the call continues and ends like any other."""
    room = new_room()
    async with stage.caller(room) as caller:
        await caller.hear_text_with("help")
        await stage.step(room, 6)
        caller.agent_here.clear()
        await trouble(stage.livekit)
        # both join the new server's room; of who publishes nothing it tells every 3 s (findings/)
        if end.name == "server-restarts":
            async with asyncio.timeout(30):
                await caller.agent_here.wait()
            await stage.said(room, "the caller is back")
        before = caller.loud_seconds
        await ask_again(caller, "Where can I park my bicycle?", "bicycle")
        async with asyncio.timeout(10):
            while caller.loud_seconds == before:
                await caller.heard_more()
    await stage.expect(end, room)


async def ask_again(caller: Caller, question: str, expecting: str) -> None:
    """Repeat the question: text that is sent during a reconnection is lost."""
    for _ in range(6):
        await caller.write(question)
        with suppress(TimeoutError):
            async with asyncio.timeout(5):
                while expecting not in await caller.sentences.get():
                    pass
                return
    raise AssertionError(f"{expecting!r} was never said")


async def restart(server: LiveKit) -> None:
    await server.kill()
    await server.start()


def stall(seconds: float) -> Callable[[LiveKit], Awaitable[None]]:
    """Stop the server's process, and resume it after `seconds`."""

    async def stopped(server: LiveKit) -> None:
        server.process.send_signal(signal.SIGSTOP)
        # the length of the fault
        await asyncio.sleep(seconds)
        server.process.send_signal(signal.SIGCONT)

    return stopped


@ends("server-restarts")
async def test_a_server_that_is_killed_and_restarted(
    end: End, project: Project, tmp_path: Path
) -> None:
    async with livekit_server(tmp_path) as own, scene(project, own) as stage:
        await goes_on(end, stage, restart)


@ends("server-stalls")
async def test_a_server_that_does_not_answer_for_a_moment(
    end: End, project: Project, tmp_path: Path
) -> None:
    async with livekit_server(tmp_path) as own, scene(project, own) as stage:
        await goes_on(end, stage, stall(5))


@pytest.mark.slow
@ends("server-stalls-long")
async def test_a_server_that_does_not_answer_for_half_a_minute(
    end: End, project: Project, tmp_path: Path
) -> None:
    async with livekit_server(tmp_path) as own, scene(project, own) as stage:
        await goes_on(end, stage, stall(30))


@pytest.mark.slow
@ends("server-gone")
async def test_a_server_that_never_comes_back(end: End, project: Project, tmp_path: Path) -> None:
    room = new_room()
    async with (
        livekit_server(tmp_path) as own,
        scene(project, own) as stage,
        stage.caller(room) as caller,
    ):
        await caller.hear_text_with("help")
        await stage.step(room, 6)
        await own.kill()
        await stage.expect(end, room)
