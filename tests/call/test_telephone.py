"""A project that nobody has edited answers a real telephone, behind a real livekit-sip."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from livekit import api

from agent.models import local
from tests.call.scene import ALL_STEPS, Scene, scene, troubled
from tests.support.ends import End, ends
from tests.support.phone import PATIENCE, Phone, loud_seconds
from tests.support.projects import PAIRS, Answers, Project, render
from tests.support.sip import Network, require_sip, telephone_network
from tests.support.speech import need_speech, plain, voice
from tests.support.templates import Template

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    # one network and one project for all of them
    pytest.mark.xdist_group("telephone"),
]

NUMBER = "+4930555100"
GREETING = "Hello! How can I help you?"
QUESTION = "How far is the railway station on foot?"
TIMES, AT_ONCE = 10, 4
# somebody who calls is remembered
REMEMBERS: dict[str, Any] = {"AGENT_REMEMBER_PHONE_NUMBERS": "true"}
# of a room whose agent opens its resources slowly: see tests/support/troubled
SLOW = "open-is-slow--"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def network(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Network]:
    async with telephone_network(tmp_path_factory.mktemp("telephones")) as running:
        yield running


@pytest.fixture(scope="module")
def project(projects: dict[Answers, Project]) -> Project:
    require_sip()
    return projects[PAIRS[0]]


@pytest.fixture(scope="module")
def troubled_project(template: Template, tmp_path_factory: pytest.TempPathFactory) -> Project:
    require_sip()
    return troubled(template, tmp_path_factory.mktemp("troubled"))


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def stage(network: Network, project: Project) -> AsyncIterator[Scene]:
    """A worker that answers NUMBER, and remembers who calls."""
    async with scene(project, network.livekit, **REMEMBERS) as started:
        await network.inbound(NUMBER, started.agent)
        yield started


def command_of(project: Project) -> list[str]:
    """Without `uv run`, which a killed worker would outlive."""
    return [str(project.path / ".venv" / "bin" / "agent")]


async def connected(stage: Scene, phone: Phone, number: str = NUMBER) -> str:
    """Call, be answered and hear the greeting; the call's room."""
    phone.call(number)
    try:
        await phone.wait(phone.answered)
    except TimeoutError:
        last = [*stage.running.records[-15:], *stage.livekit.log.read_text().splitlines()[-15:]]
        said = "\n".join(map(str, last))
        raise AssertionError(f"nobody answered; worker and server logged last:\n{said}") from None
    await phone.wait(phone.sound.sound)
    room = await stage.room_of(phone.number)
    await stage.step(room, 6)
    return room


async def over(stage: Scene, end: End, room: str) -> None:
    """The call has ended as the table says, in log, trace and memory alike, and left nothing."""
    record = await stage.running.ended(room)
    assert record["reason"] == end.reason
    assert {outcome for _, outcome in stage.running.closed(room)} == {"ok"}
    assert (await stage.spans.call(room)).attributes["reason"] == end.reason
    # whoever gave up before was nobody yet
    if 5 in stage.running.steps(room):
        assert stage.remembered_call(record["call"]) == (end.reason, record["turns"])
    await gone(stage, room)


async def free(stage: Scene, end: End, room: str) -> None:
    """It is over, for the worker too."""
    await over(stage, end, room)
    await stage.running.free()
    await stage.counted(end)


async def gone(stage: Scene, room: str) -> None:
    """Wait until the server has no such room."""
    async with asyncio.timeout(PATIENCE):
        # another process: there is no event to await
        while await stage.is_there(room):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


# the one that `make test` has too
@ends("in-leaves")
async def test_a_phone_is_answered_greeted_and_remembered(
    network: Network, stage: Scene, end: End
) -> None:
    async with Phone(network, number="+4930555200") as phone:
        room = await connected(stage, phone)
        phone.hang_up()
        await free(stage, end, room)
    assert stage.running.steps(room) == ALL_STEPS
    forgotten = await asyncio.to_thread(
        stage.project.run, *stage.project.agent, "forget", "+49 30 555 200"
    )
    assert "deleted" in forgotten.stdout + forgotten.stderr


@pytest.mark.slow
@ends("in-leaves")
async def test_the_first_word_is_heard_whole_ten_times_in_a_row(
    network: Network, stage: Scene, end: End
) -> None:
    for caller in range(TIMES):
        async with Phone(network, number=f"+493055530{caller}") as phone:
            room = await connected(stage, phone)
            # a packet is loud or not by chance, at a sound's edges
            assert phone.sound.loud_seconds == pytest.approx(loud_seconds(GREETING), rel=0.1)
            phone.hang_up()
            await free(stage, end, room)


@pytest.mark.slow
@ends("in-leaves")
async def test_four_phones_are_answered_and_greeted_at_once(
    network: Network, stage: Scene, end: End
) -> None:
    async def call(caller: int) -> None:
        async with Phone(network, number=f"+493055540{caller}") as phone:
            room = await connected(stage, phone)
            phone.hang_up()
            await over(stage, end, room)

    await asyncio.gather(*map(call, range(AT_ONCE)))
    await stage.running.free()


# ---------------------------------------------------------------------- who hangs the phone up


async def room_deleted(stage: Scene, phone: Phone, room: str) -> None:
    async with stage.livekit.api() as server:
        await server.room.delete_room(api.DeleteRoomRequest(room=room))


async def removed(stage: Scene, phone: Phone, room: str) -> None:
    (caller,) = await stage.present(room)
    async with stage.livekit.api() as server:
        await server.room.remove_participant(
            api.RoomParticipantIdentity(room=room, identity=caller)
        )


async def agent_removed(stage: Scene, phone: Phone, room: str) -> None:
    agent = await agent_in(stage, room)
    async with stage.livekit.api() as server:
        await server.room.remove_participant(api.RoomParticipantIdentity(room=room, identity=agent))


async def agent_in(stage: Scene, room: str) -> str:
    """Wait for the agent to be in the room; its identity."""
    asked = api.ListParticipantsRequest(room=room)
    async with asyncio.timeout(PATIENCE), stage.livekit.api() as server:
        while True:
            for person in (await server.room.list_participants(asked)).participants:
                if person.kind == api.ParticipantInfo.Kind.AGENT:
                    return person.identity
            # another process: there is no event to await
            await asyncio.sleep(0.05)


async def referred(stage: Scene, phone: Phone, room: str) -> None:
    (caller,) = await stage.present(room)
    elsewhere = "tel:+4930555999"
    asked = api.TransferSIPParticipantRequest(
        room_name=room, participant_identity=caller, transfer_to=elsewhere
    )
    async with stage.livekit.api() as server:
        await server.sip.transfer_sip_participant(asked)
    assert elsewhere in phone.refer_to


async def goes_silent(stage: Scene, phone: Phone, room: str) -> None:
    phone.sound.stop()


FROM_OUTSIDE: dict[str, Callable[[Scene, Phone, str], Awaitable[None]]] = {
    "in-room-deleted": room_deleted,
    "in-removed": removed,
    "in-agent-removed": agent_removed,
    "in-referred": referred,
    "in-goes-silent": goes_silent,
}


@pytest.mark.slow
@ends("in-room-deleted", "in-removed", "in-agent-removed", "in-referred", "in-goes-silent")
async def test_the_phone_is_hung_up(network: Network, stage: Scene, end: End) -> None:
    async with Phone(network, number="+4930555500") as phone:
        room = await connected(stage, phone)
        await FROM_OUTSIDE[end.name](stage, phone, room)
        await phone.wait(phone.over)
        assert phone.how == "BYE"
        await free(stage, end, room)


@pytest.mark.slow
@ends("in-job-killed")
async def test_the_phone_of_a_killed_job_is_hung_up(
    network: Network, stage: Scene, end: End
) -> None:
    async with Phone(network, number="+4930555500") as phone:
        room = await connected(stage, phone)
        os.kill((await stage.step(room, 6))["pid"], signal.SIGKILL)
        await phone.wait(phone.over)
        assert phone.how == "BYE"
        assert (await stage.running.ended(room))["reason"] == end.reason
        await stage.running.free()
        await stage.counted(end)
        await gone(stage, room)


ON_ITS_OWN: dict[str, tuple[str, dict[str, Any], signal.Signals | None]] = {
    "in-too-long": ("start", {"AGENT_MAX_CALL_SECONDS": "8"}, None),
    "in-too-silent": ("start", {"AGENT_MAX_SILENCE_SECONDS": "2"}, None),
    "in-dev-stop": ("dev", {}, signal.SIGTERM),
    "in-drain-deadline": ("start", {"AGENT_DRAIN_SECONDS": "1"}, signal.SIGTERM),
}


@pytest.mark.slow
@ends("in-too-long", "in-too-silent", "in-dev-stop", "in-drain-deadline")
async def test_the_phone_is_hung_up_with_a_word(
    network: Network, project: Project, end: End
) -> None:
    verb, settings, signal_ = ON_ITS_OWN[end.name]
    number = f"+4930555{101 + [*ON_ITS_OWN].index(end.name)}"
    settings = {**REMEMBERS, **settings}
    async with scene(project, network.livekit, verb, command_of(project), **settings) as stage:
        await network.inbound(number, stage.agent)
        async with Phone(network, number="+4930555700") as phone:
            room = await connected(stage, phone, number)
            greeted = phone.sound.loud_seconds
            if signal_ is not None:
                stage.running.process.send_signal(signal_)
            await phone.wait(phone.over)
            assert phone.how == "BYE"
            # goodbye, or a word of it
            assert phone.sound.loud_seconds > greeted
            await over(stage, end, room)


@pytest.mark.slow
@ends("in-worker-killed")
async def test_the_phones_of_a_killed_worker_are_hung_up(
    network: Network, project: Project, end: End
) -> None:
    number = "+4930555110"
    async with scene(project, network.livekit, "start", command_of(project), **REMEMBERS) as stage:
        await network.inbound(number, stage.agent)
        async with Phone(network, number="+4930555700") as phone:
            room = await connected(stage, phone, number)
            call = (await stage.step(room, 6))["call"]
            stage.running.process.kill()
            await phone.wait(phone.over)
            assert phone.how == "BYE"
            await gone(stage, room)
        # its log went with it
        await remembered(stage, call)
        assert stage.remembered_call(call)[0] == end.reason


async def remembered(stage: Scene, call: str) -> None:
    """Wait until a call's record is in memory."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                stage.remembered_call(call)
            except ValueError:
                # another process: there is no event to await
                await asyncio.sleep(0.05)
            else:
                return


@pytest.mark.slow
@ends("in-drain")
async def test_a_worker_in_production_lets_the_phone_talk_on(
    network: Network, project: Project, end: End
) -> None:
    number = "+4930555111"
    async with scene(project, network.livekit, **REMEMBERS) as stage:
        await network.inbound(number, stage.agent)
        async with Phone(network, number="+4930555700") as phone:
            room = await connected(stage, phone, number)
            stage.running.process.send_signal(signal.SIGTERM)
            await stage.running.wait_for(lambda record: "draining" in str(record.get("message")))
            assert not phone.over.is_set()
            phone.hang_up()
            await over(stage, end, room)
        assert await stage.running.process.wait() == 0


# ---------------------------------------------------------------------- before it is answered


@pytest.mark.slow
@ends("in-gives-up")
async def test_who_gives_up_before_the_agent_comes_is_not_waited_for(
    network: Network, project: Project, end: End
) -> None:
    number = "+4930555112"
    async with scene(project, network.livekit, "start", command_of(project), **REMEMBERS) as stage:
        await network.inbound(number, stage.agent)
        # a worker that is slow to come
        stage.running.process.send_signal(signal.SIGSTOP)
        async with Phone(network, number="+4930555600") as phone:
            phone.call(number)
            await phone.wait(phone.ringing)
            room = await stage.room_of(phone.number)
            phone.cancel()
            await phone.wait(phone.over)
            assert phone.how == "487"
            async with asyncio.timeout(PATIENCE):
                # another process: there is no event to await
                while await stage.present(room):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            stage.running.process.send_signal(signal.SIGCONT)
            await free(stage, end, room)


@pytest.mark.slow
@ends("in-drain-ringing", "in-dev-stop-ringing")
async def test_a_worker_is_stopped_while_the_phone_rings(
    network: Network, troubled_project: Project, end: End
) -> None:
    drains = end.name == "in-drain-ringing"
    number, verb = ("+4930555113", "start") if drains else ("+4930555114", "dev")
    command = command_of(troubled_project)
    async with scene(troubled_project, network.livekit, verb, command, **REMEMBERS) as stage:
        await network.inbound(number, stage.agent, room=SLOW)
        async with Phone(network, number="+4930555700") as phone:
            phone.call(number)
            await phone.wait(phone.ringing)
            room = await stage.room_of(phone.number)
            await agent_in(stage, room)
            stage.running.process.send_signal(signal.SIGTERM)
            if drains:
                await phone.wait(phone.sound.sound)
                await stage.step(room, 6)
                phone.hang_up()
            else:
                await phone.wait(phone.over)
                assert not phone.answered.is_set()
            await over(stage, end, room)


# ---------------------------------------------------------------------- what is pressed and said


@pytest.mark.slow
@ends("in-hangs-up")
async def test_keys_are_heard_both_ways_and_are_in_no_log(
    network: Network, troubled_project: Project, end: End
) -> None:
    number, secret = "+4930555116", "4711862"
    settings = {**REMEMBERS, "AGENT_KEY_SECONDS": "1"}
    async with scene(troubled_project, network.livekit, **settings) as stage:
        await network.inbound(number, stage.agent)
        async with Phone(network, number="+4930555700") as phone:
            room = await connected(stage, phone, number)
            # up to a hash, and up to a pause
            phone.sound.press(f"{secret}#")
            await phone.sound.until(lambda: "".join(phone.sound.keys) == secret)
            phone.sound.press(secret)
            await phone.sound.until(lambda: "".join(phone.sound.keys) == 2 * secret)
            phone.sound.press("0#")
            await phone.wait(phone.over)
            assert phone.how == "BYE"
            await free(stage, end, room)
        assert secret not in json.dumps(stage.running.records) + "".join(stage.running.other)


@pytest.mark.slow
@ends("in-hangs-up")
async def test_a_phone_is_understood_answered_and_told_goodbye(
    network: Network, template: Template, tmp_path: Path, end: End
) -> None:
    need_speech()
    number, spoken = "+4930555115", local.SPOKEN_RATE
    await asyncio.to_thread(local.load)
    project = render(template, tmp_path / "front-desk", PAIRS[0])
    project.install("--group", "speech")
    settings: dict[str, Any] = {
        **REMEMBERS,
        "AGENT_MODELS": "local",
        "AGENT_IDLE_PROCESSES": "1",
        # a busy machine hears slowly
        "AGENT_MIN_ENDPOINTING_SECONDS": "1.5",
        "AGENT_REPLY_SECONDS": "60",
        "AGENT_GOODBYE_SECONDS": "15",
    }
    async with scene(project, network.livekit, **settings) as stage:
        await network.inbound(number, stage.agent)
        async with Phone(network, number="+4930555800") as phone:
            room = await connected(stage, phone, number)
            # one who speaks into the greeting's last word would interrupt it
            await phone.sound.until(lambda: phone.sound.is_quiet)
            phone.sound.say(voice(QUESTION), spoken)
            answer = await phone.sound.hear_out()
            heard = phone.sound.words_heard(local.HEARD_RATE, answer)
            phone.sound.say(voice("Goodbye."), spoken)
            await phone.wait(phone.over)
            assert phone.how == "BYE"
            await free(stage, end, room)
    assert {"12", "minutes"} <= {*plain(await asyncio.to_thread(local.transcribe, heard))}
