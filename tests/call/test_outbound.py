"""Calls that the agent makes, by a real livekit-sip to a real phone."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from livekit import api

from agent.reasons import Reason
from tests.call.scene import Scene, new_room, scene
from tests.support.ends import End
from tests.support.phone import Phone, loud_seconds
from tests.support.projects import Answers, Project, clean_environment, render
from tests.support.server import free_port
from tests.support.sip import Network, telephone_network
from tests.support.telephoned.persona import GREETING
from tests.support.templates import ROOT, Template
from tests.support.worker import Record

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.slow]

NUMBER = "+4930555001"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def network(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Network]:
    async with telephone_network(tmp_path_factory.mktemp("telephones")) as running:
        yield running


@pytest.fixture(scope="module")
def project(template: Template, tmp_path_factory: pytest.TempPathFactory) -> Project:
    folder = tmp_path_factory.mktemp("telephoned")
    made = render(template, folder / "front-desk", Answers(telephony="yes"))
    persona = ROOT / "tests" / "support" / "telephoned" / "persona.py"
    (made.path / "src" / "agent" / "persona.py").write_bytes(persona.read_bytes())
    made.install()
    return made


@pytest.fixture(scope="module")
def phone_port() -> int:
    return free_port(socket.SOCK_DGRAM)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def stage(network: Network, project: Project, phone_port: int) -> AsyncIterator[Scene]:
    """A worker whose trunk leads to `phone_port`."""
    settings = {
        "AGENT_SIP_TRUNK": await network.outbound(phone_port),
        "AGENT_CALLS_TO": "+4930",
        "AGENT_RING_SECONDS": "4",
        "AGENT_REMEMBER_PHONE_NUMBERS": "true",
    }
    async with scene(project, network.livekit, **settings) as started:
        yield started


async def send(stage: Scene, room: str, number: str = NUMBER, **told: object) -> None:
    """Have the agent call a number."""
    metadata = json.dumps({"call": number, **told})
    asked = api.CreateAgentDispatchRequest(agent_name=stage.agent, room=room, metadata=metadata)
    async with stage.livekit.api() as server:
        await server.agent_dispatch.create_dispatch(asked)


async def called(stage: Scene, room: str, reason: str) -> Record:
    """The call in `room` has ended for this reason; in log, trace, metric and memory alike."""
    record = await stage.running.ended(room)
    assert record["reason"] == reason
    await stage.running.free()
    assert (await stage.spans.call(room)).attributes["reason"] == reason
    await stage.counted(End("", "", reason, "", "", frozenset()))
    kept = stage.remembered_call(record["call"])
    assert kept == (reason, record["turns"])
    assert not await stage.is_there(room)
    return record


async def test_the_greeting_is_heard_whole_by_who_answers(
    network: Network, stage: Scene, phone_port: int
) -> None:
    room = new_room("out")
    async with Phone(network, port=phone_port, rings=2.5) as phone:
        await send(stage, room)
        await phone.wait(phone.answered)
        await stage.step(room, 6)
        assert phone.sound.loud_seconds == pytest.approx(loud_seconds(GREETING), abs=0.06)
        phone.hang_up()
        await called(stage, room, Reason.CALLER_LEFT)


REFUSED = [
    (486, Reason.BUSY),
    (603, Reason.DECLINED),
    (404, Reason.INVALID_NUMBER),
    (480, Reason.UNREACHABLE),
    (403, Reason.TRUNK_FAILED),
    (500, Reason.TRUNK_FAILED),
    (503, Reason.TRUNK_FAILED),
    (None, Reason.NO_ANSWER),
]


@pytest.mark.parametrize(("status", "reason"), REFUSED)
async def test_who_does_not_answer_has_a_reason_and_is_a_stranger_still(
    network: Network, stage: Scene, phone_port: int, status: int | None, reason: str
) -> None:
    room, number = new_room("out"), f"+49305551{status or 0:03}"
    async with Phone(network, port=phone_port, answer=status) as phone:
        await send(stage, room, number)
        await phone.wait(phone.over)
        assert phone.how == (str(status) if status else "CANCEL")
        record = await called(stage, room, reason)
    assert stage.running.steps(room) == [1, 2, 3, 4, 8]
    assert record["turns"] == 0
    room = new_room("out")
    async with Phone(network, port=phone_port) as phone:
        await send(stage, room, number)
        await phone.wait(phone.answered)
        await stage.step(room, 6)
        # the greeting of somebody who is known is shorter
        assert phone.sound.loud_seconds == pytest.approx(loud_seconds(GREETING), abs=0.06)


@pytest.mark.parametrize("trunk", ["nobody listens", "nobody listens, tcp", "there is none"])
async def test_a_trunk_that_leads_nowhere_has_failed(
    network: Network, stage: Scene, trunk: str
) -> None:
    room, nowhere = new_room("out"), free_port(socket.SOCK_DGRAM)
    known = {
        "nobody listens": lambda: network.outbound(nowhere),
        "nobody listens, tcp": lambda: network.outbound(nowhere, tcp=True),
    }
    await send(stage, room, trunk=await known[trunk]() if trunk in known else "ST_none")
    await called(stage, room, Reason.TRUNK_FAILED)


@pytest.mark.parametrize("number", ["+4315551234", "+49112", "+499001234567"])
async def test_what_may_not_be_called_does_not_ring(
    network: Network, stage: Scene, phone_port: int, number: str
) -> None:
    room = new_room("out")
    async with Phone(network, port=phone_port) as phone:
        await send(stage, room, number)
        await called(stage, room, Reason.NOT_ALLOWED)
        assert not phone.ringing.is_set()


async def test_a_room_that_is_deleted_while_it_rings_stops_ringing(
    network: Network, stage: Scene, phone_port: int
) -> None:
    room = new_room("out")
    async with Phone(network, port=phone_port, answer=None) as phone:
        await send(stage, room)
        await phone.wait(phone.ringing)
        async with stage.livekit.api() as server:
            await server.room.delete_room(api.DeleteRoomRequest(room=room))
        await phone.wait(phone.over)
        assert phone.how == "CANCEL"
        assert (await stage.running.ended(room))["reason"] == Reason.ROOM_CLOSED
        await stage.running.free()


@pytest.mark.parametrize("killed", ["job", "dev stopped", "worker"])
async def test_a_phone_does_not_go_on_ringing_for_an_agent_that_is_gone(
    network: Network, project: Project, phone_port: int, killed: str
) -> None:
    room = new_room("out")
    settings = {
        "AGENT_SIP_TRUNK": await network.outbound(phone_port),
        "AGENT_CALLS_TO": "+",
        "AGENT_RING_SECONDS": "60",
    }
    async with (
        scene(project, network.livekit, "dev", **settings) as stage,
        Phone(network, port=phone_port, answer=None) as phone,
    ):
        await send(stage, room)
        await phone.wait(phone.ringing)
        step = await stage.step(room, 3)
        match killed:
            case "job":
                os.kill(step["pid"], signal.SIGKILL)
                assert (await stage.running.ended(room))["reason"] == Reason.JOB_DIED
            case "dev stopped":
                assert await stage.running.stop() == 0
                assert (await stage.running.ended(room))["reason"] == Reason.WORKER_STOPPED
            case "worker":
                await stage.running.stop(signal.SIGKILL)
        await phone.wait(phone.over)
        assert phone.how == "CANCEL"
        assert not await stage.is_there(room)


# ---------------------------------------------------------------------- agent call


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (200, 0, "caller left"),
        (486, 3, "busy"),
        (None, 4, "no answer"),
        (603, 5, "declined"),
        (404, 6, "invalid number"),
        (480, 7, "unreachable"),
        (503, 8, "trunk failed"),
    ],
)
async def test_agent_call_exits_with_what_came_of_the_call(
    network: Network, stage: Scene, phone_port: int, status: int | None, code: int, said: str
) -> None:
    async with Phone(network, port=phone_port, answer=status) as phone:
        calling = asyncio.create_task(agent_call(stage, NUMBER))
        await phone.wait(phone.ringing)
        if status == 200:
            await phone.wait(phone.sound.sound)
            phone.hang_up()
        returned, words = await calling
    assert f"The call is over: {said}." in words
    assert returned == code
    assert ("Answered." in words) == (status == 200)


async def test_agent_call_refuses_what_may_not_be_called(stage: Scene) -> None:
    for number in ("+4315551234", "0305551234"):
        returned, words = await agent_call(stage, number)
        assert (returned, number in words) == (2, True)


async def agent_call(stage: Scene, number: str) -> tuple[int, str]:
    """`agent call NUMBER`: its exit code, and what it says."""
    settings = {"AGENT_NAME": stage.agent, "AGENT_CALLS_TO": "+4930", "AGENT_SIP_TRUNK": "ST_any"}
    process = await asyncio.create_subprocess_exec(
        *stage.project.agent,
        "call",
        number,
        cwd=stage.project.path,
        env=clean_environment(**stage.livekit.environment, **settings),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, said.decode()
