"""A project that nobody has edited answers a real telephone, behind a real livekit-sip."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from livekit import api

from agent.models import local
from tests.call.scene import ALL_STEPS, Scene, scene
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


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def network(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Network]:
    async with telephone_network(tmp_path_factory.mktemp("telephones")) as running:
        yield running


@pytest.fixture(scope="module")
def project(projects: dict[Answers, Project]) -> Project:
    require_sip()
    return projects[PAIRS[0]]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def stage(network: Network, project: Project) -> AsyncIterator[Scene]:
    """A worker that answers NUMBER, and remembers who calls."""
    async with scene(project, network.livekit, AGENT_REMEMBER_PHONE_NUMBERS="true") as started:
        await network.inbound(NUMBER, started.agent)
        yield started


async def connected(stage: Scene, phone: Phone, number: str = NUMBER) -> str:
    """Call, be answered and hear the greeting; the call's room."""
    phone.call(number)
    await phone.wait(phone.answered)
    await phone.wait(phone.sound.sound)
    room = await room_of(stage, phone)
    await stage.step(room, 6)
    return room


async def room_of(stage: Scene, phone: Phone) -> str:
    """The room of the newest call from this phone."""
    ended = {r.get("room") for r in stage.running.records if "turns" in r}
    record = await stage.running.wait_for(
        lambda r: f"_{phone.number}_" in str(r.get("room")) and r["room"] not in ended
    )
    return str(record["room"])


async def expect_end(stage: Scene, room: str, reason: str) -> None:
    """The call has ended for this reason; its slot is free and its room gone."""
    assert (await stage.running.ended(room))["reason"] == reason
    await stage.running.free()
    assert not await stage.is_there(room)


async def gone(stage: Scene, room: str) -> None:
    """Wait until the server has no such room."""
    async with asyncio.timeout(PATIENCE):
        # another process: there is no event to await
        while await stage.is_there(room):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_a_phone_is_answered_greeted_and_remembered(network: Network, stage: Scene) -> None:
    async with Phone(network, number="+4930555200") as phone:
        room = await connected(stage, phone)
        phone.hang_up()
        await expect_end(stage, room, "caller left")
    assert stage.running.steps(room) == ALL_STEPS
    forgotten = await asyncio.to_thread(
        stage.project.run, *stage.project.agent, "forget", "+49 30 555 200"
    )
    assert "deleted" in forgotten.stdout + forgotten.stderr


@pytest.mark.slow
async def test_the_first_word_is_heard_whole_ten_times_in_a_row(
    network: Network, stage: Scene
) -> None:
    for caller in range(TIMES):
        async with Phone(network, number=f"+493055530{caller}") as phone:
            room = await connected(stage, phone)
            # a packet is loud or not by chance, at a sound's edges
            assert phone.sound.loud_seconds == pytest.approx(loud_seconds(GREETING), rel=0.1)
            phone.hang_up()
            await expect_end(stage, room, "caller left")


@pytest.mark.slow
async def test_four_phones_are_answered_and_greeted_at_once(network: Network, stage: Scene) -> None:
    async def call(caller: int) -> None:
        async with Phone(network, number=f"+493055540{caller}") as phone:
            room = await connected(stage, phone)
            phone.hang_up()
            assert (await stage.running.ended(room))["reason"] == "caller left"

    await asyncio.gather(*map(call, range(AT_ONCE)))
    await stage.running.free()


# ---------------------------------------------------------------------- who hangs the phone up


async def room_deleted(stage: Scene, phone: Phone, room: str) -> None:
    async with stage.livekit.api() as server:
        await server.room.delete_room(api.DeleteRoomRequest(room=room))


async def caller_removed(stage: Scene, phone: Phone, room: str) -> None:
    (caller,) = await stage.present(room)
    async with stage.livekit.api() as server:
        await server.room.remove_participant(
            api.RoomParticipantIdentity(room=room, identity=caller)
        )


async def agent_removed(stage: Scene, phone: Phone, room: str) -> None:
    async with stage.livekit.api() as server:
        listed = await server.room.list_participants(api.ListParticipantsRequest(room=room))
        (agent,) = (
            p.identity for p in listed.participants if p.kind == api.ParticipantInfo.Kind.AGENT
        )
        await server.room.remove_participant(api.RoomParticipantIdentity(room=room, identity=agent))


async def transferred(stage: Scene, phone: Phone, room: str) -> None:
    (caller,) = await stage.present(room)
    elsewhere = "tel:+4930555999"
    asked = api.TransferSIPParticipantRequest(
        room_name=room, participant_identity=caller, transfer_to=elsewhere
    )
    async with stage.livekit.api() as server:
        await server.sip.transfer_sip_participant(asked)
    assert elsewhere in phone.refer_to


async def silent(stage: Scene, phone: Phone, room: str) -> None:
    phone.sound.stop()


async def job_killed(stage: Scene, phone: Phone, room: str) -> None:
    told = await stage.step(room, 6)
    os.kill(told["pid"], signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (room_deleted, "room closed"),
        (caller_removed, "caller left"),
        (agent_removed, "removed"),
        (transferred, "caller left"),
        (silent, "caller left"),
        (job_killed, "job died"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
async def test_the_phone_is_hung_up(
    network: Network,
    stage: Scene,
    end: Callable[[Scene, Phone, str], Awaitable[None]],
    reason: str,
) -> None:
    async with Phone(network, number="+4930555500") as phone:
        room = await connected(stage, phone)
        await end(stage, phone, room)
        await phone.wait(phone.over)
        assert phone.how == "BYE"
        await expect_end(stage, room, reason)


@pytest.mark.slow
async def test_a_phone_that_gives_up_while_it_rings_leaves_no_room(
    network: Network, stage: Scene
) -> None:
    async with Phone(network, number="+4930555600") as phone:
        phone.call(NUMBER)
        await phone.wait(phone.ringing)
        phone.cancel()
        await phone.wait(phone.over)
        assert phone.how == "487"
        # the agent may come after they have left
        record = await stage.running.ended(await room_of(stage, phone))
        assert record["reason"] in {"caller left", "room closed"}
        await stage.running.free()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "verb", "settings", "signal_", "reason"),
    [
        ("+4930555101", "start", {"AGENT_MAX_CALL_SECONDS": "8"}, None, "too long"),
        ("+4930555102", "start", {"AGENT_MAX_SILENCE_SECONDS": "2"}, None, "too silent"),
        ("+4930555103", "dev", {}, signal.SIGTERM, "worker stopped"),
        ("+4930555104", "start", {"AGENT_DRAIN_SECONDS": "1"}, signal.SIGTERM, "worker stopped"),
        ("+4930555105", "start", {}, signal.SIGKILL, "worker died"),
    ],
    ids=["too long", "too silent", "dev stopped", "drain deadline", "worker killed"],
)
async def test_the_phone_is_hung_up_by_a_worker_of_its_own(
    network: Network,
    project: Project,
    number: str,
    verb: str,
    settings: dict[str, Any],
    signal_: signal.Signals | None,
    reason: str,
) -> None:
    # without `uv run`, which a killed worker would outlive
    command = [str(project.path / ".venv" / "bin" / "agent")]
    async with scene(project, network.livekit, verb, command, **settings) as stage:
        await network.inbound(number, stage.agent)
        async with Phone(network, number="+4930555700") as phone:
            room = await connected(stage, phone, number)
            greeted = phone.sound.loud_seconds
            if signal_ is not None:
                stage.running.process.send_signal(signal_)
            await phone.wait(phone.over)
            assert phone.how == "BYE"
            if signal_ != signal.SIGKILL:
                # goodbye, or a word of it
                assert phone.sound.loud_seconds > greeted
                assert (await stage.running.ended(room))["reason"] == reason
        await gone(stage, room)


@pytest.mark.slow
async def test_a_worker_in_production_lets_the_phone_talk_on(
    network: Network, project: Project
) -> None:
    number = "+4930555106"
    async with scene(project, network.livekit) as stage:
        await network.inbound(number, stage.agent)
        async with Phone(network, number="+4930555700") as phone:
            room = await connected(stage, phone, number)
            stage.running.process.send_signal(signal.SIGTERM)
            await stage.running.wait_for(lambda record: "draining" in str(record.get("message")))
            assert not phone.over.is_set()
            phone.hang_up()
            assert (await stage.running.ended(room))["reason"] == "caller left"
        assert await stage.running.process.wait() == 0


# ---------------------------------------------------------------------- what is said


@pytest.mark.slow
async def test_a_phone_is_understood_answered_and_told_goodbye(
    network: Network, template: Template, tmp_path: Path
) -> None:
    need_speech()
    number, spoken = "+4930555107", local.SPOKEN_RATE
    await asyncio.to_thread(local.load)
    project = render(template, tmp_path / "front-desk", PAIRS[0])
    project.install("--group", "speech")
    settings: dict[str, Any] = {
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
            await expect_end(stage, room, "agent hung up")
    assert {"12", "minutes"} <= {*plain(await asyncio.to_thread(local.transcribe, heard))}
