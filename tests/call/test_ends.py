"""Every way a call can end, on a real server: the reason is right, everything is closed, the slot is free."""

from __future__ import annotations

import asyncio
import signal
import uuid
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from livekit import api

from tests.support.caller import Caller
from tests.support.projects import PAIRS, Project, render
from tests.support.server import LiveKit
from tests.support.templates import Template
from tests.support.worker import SDK_WARNINGS, Worker, worker

pytestmark = pytest.mark.asyncio(loop_scope="session")

AGENT = "front-desk"
EVERYTHING = {"session", "http", "knowledge", "memory", "room"}
SLOW_TOOL = '''
    @function_tool
    async def slow(self) -> str:
        """Take eight seconds."""
        logging.getLogger("agent.mine").info("the slow tool began")
        try:
            await asyncio.sleep(8)
        except asyncio.CancelledError:
            logging.getLogger("agent.mine").info("the slow tool was cancelled")
            raise
        return "done"
'''
STUCK_TOOL = '''
    @function_tool
    async def stuck(self) -> str:
        """Hang in a thread that nothing can stop."""
        logging.getLogger("agent.mine").info("the stuck tool began")
        await asyncio.to_thread(time.sleep, 120)
        return "done"
'''
BROKEN_RESOURCE = """
    if call.line.room_name.startswith("broken"):
        raise ConnectionError("the database is down")
"""


@pytest.fixture(scope="module")
def laboured(template: Template, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose owner has added a slow tool, and a resource that is down in some rooms."""
    project = render(template, tmp_path_factory.mktemp("laboured") / "front-desk", PAIRS[0])
    persona = project.read("src/agent/persona.py").replace(
        "from datetime", "import asyncio\nimport logging\nimport time\nfrom datetime", 1
    )
    project.write("src/agent/persona.py", persona + SLOW_TOOL + STUCK_TOOL)
    resources = project.read("src/agent/resources.py")
    last = "    return Resources("
    project.write("src/agent/resources.py", resources.replace(last, BROKEN_RESOURCE.lstrip("\n") + last))
    project.install()
    return project


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def running(laboured: Project, livekit: LiveKit) -> AsyncIterator[Worker]:
    """A worker for every end that needs no settings of its own."""
    async with worker(laboured.path, laboured.agent, livekit, AGENT_CALLER_WAIT_SECONDS="2") as started:
        yield started
        assert [r for r in started.records if any(said in str(r.get("message")) for said in SDK_WARNINGS)] == []


def new_room(prefix: str = "room") -> str:
    """A room nobody has been in."""
    return f"{prefix}-{uuid.uuid4().hex[:8]}"


async def expect(running: Worker, room: str, reason: str, *, steps: list[int] | None = None) -> None:
    """The call in `room` has ended as it should have: reason, steps, closes, and a free slot."""
    end = await running.ended(room)
    assert end["reason"] == reason
    closed = running.closed(room)
    assert {outcome for _, outcome in closed} == {"ok"}
    names = [name for name, _ in closed]
    assert len(names) == len(set(names))
    assert running.steps(room) == (steps or [1, 2, 3, 4, 5, 6, 7, 8])
    if steps is None:
        assert set(names) == EVERYTHING
        assert (names[0], names[-1]) == ("session", "room")
    await running.free()


async def test_the_caller_hangs_up_while_the_agent_speaks(running: Worker, livekit: LiveKit) -> None:
    room = new_room()
    async with Caller(livekit, room, AGENT) as caller:
        await caller.hear_sound()
    end = await running.ended(room)
    assert end["reason"] == "caller left"
    assert {outcome for _, outcome in running.closed(room)} == {"ok"}
    await running.free()


async def test_the_caller_hangs_up_while_the_agent_listens(running: Worker, livekit: LiveKit) -> None:
    room = new_room()
    async with Caller(livekit, room, AGENT):
        await running.wait_for(lambda record: record.get("room") == room and record.get("step") == 6)
    await expect(running, room, "caller left")


async def test_a_hang_up_inside_a_slow_tool_does_not_wait_for_the_tool(running: Worker, livekit: LiveKit) -> None:
    room = new_room()
    async with Caller(livekit, room, AGENT) as caller:
        await caller.hear_text_with("help")
        await caller.write("/tool slow {}")
        await running.wait_for(lambda record: record.get("room") == room and record["message"] == "the slow tool began")
    await expect(running, room, "caller left")
    assert "the slow tool was cancelled" in [record["message"] for record in running.of(room)]


async def test_a_thread_that_nothing_can_stop_does_not_hold_the_slot(running: Worker, livekit: LiveKit) -> None:
    room = new_room()
    async with Caller(livekit, room, AGENT) as caller:
        await caller.hear_text_with("help")
        await caller.write("/tool stuck {}")
        await running.wait_for(lambda record: record.get("room") == room and "stuck tool" in record["message"])
    await expect(running, room, "caller left")  # and the slot is free, long before the thread would end
    assert any("ended by force" in record["message"] for record in running.of(room))


async def test_the_room_is_deleted(running: Worker, livekit: LiveKit) -> None:
    room = new_room()
    async with Caller(livekit, room, AGENT) as caller, livekit.api() as server:
        await running.wait_for(lambda record: record.get("room") == room and record.get("step") == 6)
        await server.room.delete_room(api.DeleteRoomRequest(room=room))
        await expect(running, room, "room closed")
        await caller.cut_off.wait()


async def test_the_agent_is_removed_and_takes_its_caller_along(running: Worker, livekit: LiveKit) -> None:
    room = new_room()
    async with Caller(livekit, room, AGENT) as caller, livekit.api() as server:
        await running.wait_for(lambda record: record.get("room") == room and record.get("step") == 6)
        (agent,) = caller.room.remote_participants
        await server.room.remove_participant(api.RoomParticipantIdentity(room=room, identity=agent))
        await expect(running, room, "removed")
        async with asyncio.timeout(10):
            await caller.cut_off.wait()


async def test_the_agent_hangs_up_after_a_goodbye_that_is_heard_to_its_end(running: Worker, livekit: LiveKit) -> None:
    room = new_room()
    async with Caller(livekit, room, AGENT) as caller:
        await running.wait_for(lambda record: record.get("room") == room and record.get("step") == 6)
        before = caller.loud_seconds
        await caller.ask("goodbye", "Goodbye!")
        async with asyncio.timeout(10):
            await caller.cut_off.wait()
        assert caller.loud_seconds > before
        assert await present(livekit, room) == []
    await expect(running, room, "agent hung up")


async def test_somebody_else_in_the_room_keeps_it_when_the_agent_hangs_up(running: Worker, livekit: LiveKit) -> None:
    room = new_room()
    async with Caller(livekit, room, AGENT) as caller:
        await caller.hear_text_with("help")
        async with Caller(livekit, room, identity="supervisor"):
            await caller.write("goodbye")
            await expect(running, room, "agent hung up")
            assert sorted(await present(livekit, room)) == ["ann", "supervisor"]


async def test_nobody_comes(running: Worker, livekit: LiveKit) -> None:
    room = new_room()
    async with livekit.api() as server:
        await server.agent_dispatch.create_dispatch(api.CreateAgentDispatchRequest(agent_name=AGENT, room=room))
    await expect(running, room, "no-show", steps=[1, 2, 3, 4, 8])


async def test_a_resource_that_is_down_ends_the_call_before_the_greeting(running: Worker, livekit: LiveKit) -> None:
    room = new_room("broken")
    async with Caller(livekit, room, AGENT) as caller:
        await expect(running, room, "error in step 1 (open infrastructure)", steps=[1, 8])
        async with asyncio.timeout(10):
            await caller.cut_off.wait()  # nobody is left waiting for an agent that will not speak


async def test_a_call_that_is_too_long_ends_with_a_goodbye(laboured: Project, livekit: LiveKit) -> None:
    room, agent = new_room(), new_room("agent")  # an agent of its own: workers of one name share its calls
    async with worker(laboured.path, laboured.agent, livekit, AGENT_NAME=agent, AGENT_MAX_CALL_SECONDS="4") as running:
        async with Caller(livekit, room, agent) as caller:
            await caller.hear_text_with("as long as I can")
            async with asyncio.timeout(10):
                await caller.cut_off.wait()
        await expect(running, room, "too long")


async def test_silence_is_asked_about_once_and_then_ends_the_call(laboured: Project, livekit: LiveKit) -> None:
    room, agent = new_room(), new_room("agent")  # an agent of its own: workers of one name share its calls
    async with worker(
        laboured.path, laboured.agent, livekit, AGENT_NAME=agent, AGENT_MAX_SILENCE_SECONDS="2"
    ) as running:
        async with Caller(livekit, room, agent) as caller:
            await caller.hear_text_with("still there")
            await caller.hear_text_with("cannot hear you")
        await expect(running, room, "too silent")


@pytest.mark.parametrize("phase", ["waiting", "greeting", "listening"])
async def test_a_dev_worker_that_is_stopped_ends_its_call_in_order(
    phase: str, laboured: Project, livekit: LiveKit
) -> None:
    room, agent = new_room(), new_room("agent")  # an agent of its own: workers of one name share its calls
    async with worker(
        laboured.path, laboured.agent, livekit, AGENT_NAME=agent, verb="dev", AGENT_LOG_FORMAT="json"
    ) as running:
        if phase == "waiting":
            async with livekit.api() as server:
                await server.agent_dispatch.create_dispatch(api.CreateAgentDispatchRequest(agent_name=agent, room=room))
            await running.wait_for(lambda record: record.get("room") == room and record.get("step") == 3)
            assert await running.stop(signal.SIGTERM) == 0
            await expect_closed(running, room, [1, 2, 3, 4, 8])
            return
        async with Caller(livekit, room, agent) as caller:
            await caller.hear_sound()
            if phase == "listening":
                await running.wait_for(lambda record: record.get("room") == room and record.get("step") == 6)
            assert await running.stop(signal.SIGTERM) == 0
            await caller.hear_text_with("I have to go now")
            async with asyncio.timeout(10):
                await caller.cut_off.wait()
        await expect_closed(running, room, [1, 2, 3, 4, 5, 6, *([7] if phase == "listening" else []), 8])


async def expect_closed(running: Worker, room: str, steps: list[int]) -> None:
    """A call that its worker did not outlive."""
    assert (await running.ended(room))["reason"] == "worker stopped"
    assert running.steps(room) == steps
    assert {outcome for _, outcome in running.closed(room)} == {"ok"}


async def test_a_worker_in_production_lets_its_live_call_go_on(laboured: Project, livekit: LiveKit) -> None:
    room, agent = new_room(), new_room("agent")  # an agent of its own: workers of one name share its calls
    async with worker(laboured.path, laboured.agent, livekit, AGENT_NAME=agent) as running:
        async with Caller(livekit, room, agent) as caller:
            await caller.hear_text_with("help")
            running.process.send_signal(signal.SIGTERM)
            await running.wait_for(lambda record: "draining" in str(record.get("message")))
            await caller.ask("Where can I park my bicycle?", "bicycle")
        async with asyncio.timeout(30):
            assert await running.process.wait() == 0
        assert (await running.ended(room))["reason"] == "caller left"


async def present(livekit: LiveKit, room: str) -> list[str]:
    """Who is in a room, agents aside."""
    async with livekit.api() as server:
        try:
            listed = await server.room.list_participants(api.ListParticipantsRequest(room=room))
        except api.TwirpError:
            return []
    return [p.identity for p in listed.participants if p.kind != api.ParticipantInfo.Kind.AGENT]
