"""Calls that the agent makes, by a real livekit-sip to a real phone."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import pytest_asyncio
from livekit import api

from agent.models import local
from tests.call.scene import Scene, new_room, scene
from tests.support.ends import End, ends
from tests.support.phone import Phone, loud_seconds
from tests.support.projects import Answers, Project, clean_environment, render
from tests.support.server import free_port
from tests.support.sip import Network, require_sip, telephone_network
from tests.support.speech import need_speech, plain, voice
from tests.support.telephoned.persona import GREETING
from tests.support.templates import ROOT, Template
from tests.support.worker import Record

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.slow,
    # one network and one project for all of them
    pytest.mark.xdist_group("outbound"),
]

NUMBER = "+4930555001"
MACHINE = "You have reached Ann. I am not at home. Please leave a message after the tone."


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def network(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Network]:
    async with telephone_network(tmp_path_factory.mktemp("telephones")) as running:
        yield running


def telephoned(template: Template, folder: Path) -> Project:
    """A project whose persona does what its metadata says; not installed yet."""
    require_sip()
    made = render(template, folder / "front-desk", Answers(telephony="yes"))
    persona = ROOT / "tests" / "support" / "telephoned" / "persona.py"
    (made.path / "src" / "agent" / "persona.py").write_bytes(persona.read_bytes())
    return made


@pytest.fixture(scope="module")
def project(template: Template, tmp_path_factory: pytest.TempPathFactory) -> Project:
    made = telephoned(template, tmp_path_factory.mktemp("telephoned"))
    made.install()
    return made


@pytest.fixture(scope="module")
def phone_port() -> int:
    return free_port(socket.SOCK_DGRAM)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def stage(network: Network, project: Project, phone_port: int) -> AsyncIterator[Scene]:
    """A worker whose trunk leads to `phone_port`."""
    settings: dict[str, Any] = {
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


async def called(stage: Scene, end: End, room: str, *, remembered: bool = True) -> Record:
    """The call in `room` has ended as the table says, in log, trace, metric and memory alike."""
    record = await stage.running.ended(room)
    assert record["reason"] == end.reason
    await stage.running.free()
    assert (await stage.spans.call(room)).attributes["reason"] == end.reason
    await stage.counted(end)
    if remembered:
        assert stage.remembered_call(record["call"]) == (end.reason, record["turns"])
    if end.room != "gone":
        assert await stage.is_there(room) == (end.room == "kept")
    return record


async def greeted(stage: Scene, phone: Phone, room: str) -> None:
    """The phone has answered, and has heard the greeting of a stranger, whole and once."""
    await phone.wait(phone.answered)
    await stage.step(room, 6)
    # the last of it is still on its way; a packet is loud or not by chance, at a sound's edges
    whole = loud_seconds(GREETING)
    await phone.sound.until(lambda: phone.sound.loud_seconds > 0.9 * whole)
    assert phone.sound.loud_seconds < 1.1 * whole


@ends("out-answered")
async def test_who_answers_hears_the_greeting_whole(
    network: Network, stage: Scene, phone_port: int, end: End
) -> None:
    room = new_room("out")
    async with Phone(network, port=phone_port, rings=2.5) as phone:
        await send(stage, room)
        await greeted(stage, phone, room)
        phone.hang_up()
        await called(stage, end, room)


REFUSED: dict[str, list[int | None]] = {
    "out-busy": [486],
    "out-declined": [603],
    "out-invalid": [404],
    "out-unreachable": [480],
    "out-trunk-failed": [403, 500, 503],
    "out-no-answer": [None],
}


@ends(
    "out-busy",
    "out-declined",
    "out-invalid",
    "out-unreachable",
    "out-trunk-failed",
    "out-no-answer",
)
async def test_who_does_not_answer_is_a_stranger_still(
    network: Network, stage: Scene, phone_port: int, end: End
) -> None:
    for status in REFUSED[end.name]:
        room, number = new_room("out"), f"+49305551{status or 0:03}"
        async with Phone(network, port=phone_port, answer=status) as phone:
            await send(stage, room, number)
            await phone.wait(phone.over)
            assert phone.how == (str(status) if status else "CANCEL")
            record = await called(stage, end, room)
        assert (stage.running.steps(room), record["turns"]) == ([1, 2, 3, 4, 8], 0)
        room = new_room("out")
        async with Phone(network, port=phone_port) as phone:
            await send(stage, room, number)
            # that of somebody who is known is shorter
            await greeted(stage, phone, room)
        await stage.running.ended(room)


@ends("out-trunk-failed")
async def test_a_trunk_that_leads_nowhere_has_failed(
    network: Network, stage: Scene, end: End
) -> None:
    nowhere = free_port(socket.SOCK_DGRAM)
    udp, tcp = await network.outbound(nowhere), await network.outbound(nowhere, tcp=True)
    for trunk in (udp, tcp, "ST_none"):
        room = new_room("out")
        await send(stage, room, trunk=trunk)
        await called(stage, end, room)


@ends("out-not-allowed")
async def test_what_may_not_be_called_does_not_ring(
    network: Network, stage: Scene, phone_port: int, end: End
) -> None:
    for number in ("+4315551234", "+49112", "+499001234567"):
        room = new_room("out")
        async with Phone(network, port=phone_port) as phone:
            await send(stage, room, number)
            # a number of so few digits is nobody's
            await called(stage, end, room, remembered=len(number) > 7)
            assert not phone.ringing.is_set()


@ends("out-room-deleted")
async def test_a_room_that_is_deleted_stops_ringing(
    network: Network, stage: Scene, phone_port: int, end: End
) -> None:
    room = new_room("out")
    async with Phone(network, port=phone_port, answer=None) as phone:
        await send(stage, room)
        await phone.wait(phone.ringing)
        async with stage.livekit.api() as server:
            await server.room.delete_room(api.DeleteRoomRequest(room=room))
        await phone.wait(phone.over)
        assert phone.how == "CANCEL"
        assert (await stage.running.ended(room))["reason"] == end.reason
        await stage.running.free()


@ends("out-dev-stop", "out-job-killed")
async def test_a_phone_does_not_ring_for_an_agent_that_is_gone(
    network: Network, project: Project, phone_port: int, end: End
) -> None:
    room = new_room("out")
    settings: dict[str, Any] = {
        "AGENT_SIP_TRUNK": await network.outbound(phone_port),
        "AGENT_CALLS_TO": "+4930",
        "AGENT_RING_SECONDS": "60",
    }
    async with (
        scene(project, network.livekit, "dev", **settings) as stage,
        Phone(network, port=phone_port, answer=None) as phone,
    ):
        await send(stage, room)
        await phone.wait(phone.ringing)
        step = await stage.step(room, 3)
        if end.name == "out-job-killed":
            os.kill(step["pid"], signal.SIGKILL)
        else:
            stage.running.process.send_signal(signal.SIGTERM)
        await phone.wait(phone.over)
        assert phone.how == "CANCEL"
        assert (await stage.running.ended(room))["reason"] == end.reason
        assert not await stage.is_there(room)


# ---------------------------------------------------------------------- a caller is handed on


def tone() -> npt.NDArray[np.int16]:
    """A second of 1 kHz, at 8 kHz."""
    return (8000 * np.sin(np.arange(8000) * np.pi / 4)).astype(np.int16)


async def calls_in(network: Network, stage: Scene, phone: Phone, number: str, then: str) -> str:
    """Somebody calls a number whose agent does this after its greeting; the call's room."""
    await network.inbound(number, stage.agent, json.dumps({"then": then}))
    phone.call(number)
    await phone.wait(phone.answered)
    room = await stage.room_of(phone.number)
    await stage.step(room, 6)
    return room


async def hears_more(phone: Phone) -> None:
    """The phone hears something, which is not only the rest of what was said before."""
    before = phone.sound.loud_seconds
    await phone.sound.until(lambda: phone.sound.loud_seconds > before + 0.7)


@ends("transferred", "transfer-refused", "transfer-hang-up")
async def test_a_caller_is_transferred_by_their_carrier(
    network: Network, stage: Scene, end: End
) -> None:
    own = {"transferred": 1, "transfer-refused": 2, "transfer-hang-up": 3}[end.name]
    then = '/tool connect_with {"number": "+49 30 555999"}'
    async with Phone(network, f"+493055580{own}", refer=None) as phone:
        room = await calls_in(network, stage, phone, f"+493055590{own}", then)
        await phone.wait(phone.referred)
        assert "tel:+4930555999" in phone.refer_to
        # while it rings there
        await hears_more(phone)
        if end.name == "transferred":
            phone.notify("200 OK")
            await phone.wait(phone.over)
        elif end.name == "transfer-refused":
            phone.notify("486 Busy Here")
            await hears_more(phone)
            phone.hang_up()
        else:
            phone.hang_up()
        await called(stage, end, room)


@ends("brought-in", "bring-in-refused", "bring-in-hang-up")
async def test_somebody_is_called_in_for_a_caller(
    network: Network, stage: Scene, phone_port: int, end: End
) -> None:
    own = {"brought-in": 4, "bring-in-refused": 5, "bring-in-hang-up": 6}[end.name]
    status = {"brought-in": 200, "bring-in-refused": 603, "bring-in-hang-up": None}[end.name]
    then = '/tool bring {"number": "+4930555999"}'
    async with (
        Phone(network, f"+493055580{own}") as phone,
        Phone(network, "+4930555999", port=phone_port, answer=status) as other,
    ):
        room = await calls_in(network, stage, phone, f"+493055590{own}", then)
        await other.wait(other.ringing)
        if end.name == "brought-in":
            await other.wait(other.sound.sound)
            await called(stage, end, room)
            assert not phone.over.is_set()
            # the two hear each other, without the agent
            other.sound.first_sound_at = None
            other.sound.sound.clear()
            phone.sound.say(tone(), 8000)
            await other.wait(other.sound.sound)
            other.hang_up()
            await phone.wait(phone.over)
            assert phone.how == "BYE"
            return
        if end.name == "bring-in-refused":
            await other.wait(other.over)
            await hears_more(phone)
        phone.hang_up()
        await other.wait(other.over)
        assert other.how == ("603" if end.name == "bring-in-refused" else "CANCEL")
        await called(stage, end, room)


@ends("bring-in-job-killed", "brought-in-job-killed")
async def test_nobody_is_left_in_silence_by_a_job_that_is_killed(
    network: Network, stage: Scene, phone_port: int, end: End
) -> None:
    answered = end.name == "brought-in-job-killed"
    then = '/tool bring {"number": "+4930555999"}'
    async with (
        Phone(network, f"+493055587{answered:d}") as phone,
        Phone(network, "+4930555999", port=phone_port, answer=200 if answered else None) as other,
    ):
        room = await calls_in(network, stage, phone, f"+493055597{answered:d}", then)
        await other.wait(other.sound.sound if answered else other.ringing)
        os.kill((await stage.step(room, 6))["pid"], signal.SIGKILL)
        assert (await stage.running.ended(room))["reason"] == end.reason
        assert await stage.is_there(room) == (end.room == "kept")
        if answered:
            other.hang_up()
        await phone.wait(phone.over)
        await other.wait(other.over)
        assert (phone.how, other.how) == ("BYE", "hung up" if answered else "CANCEL")


# ---------------------------------------------------------------------- voicemail


@pytest.fixture(scope="module")
def ears(template: Template, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The same project, which hears and speaks."""
    need_speech()
    local.load()
    made = telephoned(template, tmp_path_factory.mktemp("hearing"))
    made.install("--group", "speech")
    return made


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def listening(network: Network, ears: Project, phone_port: int) -> AsyncIterator[Scene]:
    settings: dict[str, Any] = {
        "AGENT_MODELS": "local",
        "AGENT_IDLE_PROCESSES": "1",
        "AGENT_SIP_TRUNK": await network.outbound(phone_port),
        "AGENT_CALLS_TO": "+4930",
        # a busy machine hears slowly
        "AGENT_MIN_ENDPOINTING_SECONDS": "1.5",
        "AGENT_REPLY_SECONDS": "60",
        "AGENT_REMEMBER_PHONE_NUMBERS": "true",
    }
    async with scene(ears, network.livekit, **settings) as started:
        yield started


async def answers_with(phone: Phone, words: str) -> set[str]:
    """Whoever has the phone answers with these words; what is said to them then."""
    await phone.wait(phone.answered)
    phone.sound.say(voice(words), local.SPOKEN_RATE)
    start = await phone.sound.hear_out()
    heard = phone.sound.words_heard(local.HEARD_RATE, start)
    return {*plain(await asyncio.to_thread(local.transcribe, heard))}


@ends("out-voicemail")
async def test_a_machine_gets_the_message_and_is_nobody(
    network: Network, listening: Scene, phone_port: int, end: End
) -> None:
    room = new_room("out")
    async with Phone(network, port=phone_port) as phone:
        await send(listening, room, detect=True, message=True)
        assert {"bicycle", "ready"} <= await answers_with(phone, MACHINE)
        await phone.wait(phone.over)
        assert phone.how == "BYE"
        record = await called(listening, end, room)
    # nothing that the machine has said, nor that was said to it
    assert listening.turns(record["call"]) == 0


async def test_a_person_is_heard_before_the_greeting(
    network: Network, listening: Scene, phone_port: int
) -> None:
    room = new_room("out")
    async with Phone(network, port=phone_port) as phone:
        await send(listening, room, first=True, detect=True)
        # a breath may be the end of what is listened to here
        assert "workshop" in await answers_with(phone, "Hello, this is Ann speaking.")
        await listening.step(room, 6)
        phone.hang_up()
        record = await listening.running.ended(room)
        await listening.running.free()
    # their words, and the greeting
    assert listening.turns(record["call"]) == 2


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
        (503, 8, "trunk failed: the worker's log says why"),
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


async def test_ctrl_c_hangs_up(network: Network, stage: Scene, phone_port: int) -> None:
    async with Phone(network, port=phone_port, answer=None) as phone:
        process = await asyncio.create_subprocess_exec(
            # without `uv run`, whose terminal would have sent the signal to both
            str(stage.project.path / ".venv" / "bin" / "agent"),
            "call",
            NUMBER,
            cwd=stage.project.path,
            env=call_environment(stage),
            stderr=asyncio.subprocess.DEVNULL,
        )
        await phone.wait(phone.ringing)
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 130
        await phone.wait(phone.over)
        assert phone.how == "CANCEL"
    await stage.running.free()


async def test_agent_call_refuses_what_may_not_be_called(stage: Scene) -> None:
    for number in ("+4315551234", "0305551234"):
        returned, words = await agent_call(stage, number)
        assert (returned, number in words) == (2, True)


async def agent_call(stage: Scene, number: str) -> tuple[int, str]:
    """`agent call NUMBER`: its exit code, and what it says."""
    process = await asyncio.create_subprocess_exec(
        *stage.project.agent,
        "call",
        number,
        cwd=stage.project.path,
        env=call_environment(stage),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, said.decode()


def call_environment(stage: Scene) -> dict[str, str]:
    """That of whoever runs `agent call`."""
    settings = {"AGENT_NAME": stage.agent, "AGENT_CALLS_TO": "+4930", "AGENT_SIP_TRUNK": "ST_any"}
    return clean_environment(**stage.livekit.environment, **settings)
