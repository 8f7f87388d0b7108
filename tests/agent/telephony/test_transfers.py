"""A caller is handed on, or is told why not and goes on talking with the agent."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from livekit import rtc
from livekit.agents import StopResponse, ToolError
from livekit.protocol import models, sip

from agent.conversation.session import CallSession, build_session
from agent.lifecycle import Reason
from agent.lifecycle.resource import RunningTools
from agent.models import Models
from agent.models.scripted import ScriptedLLM, ScriptedTTS
from agent.telephony import transfers
from agent.telephony.outbound import callee
from agent.telephony.transfers import (
    _while_it_lasts,
    bring_in,
    hang_up_when_alone,
    transfer,
)
from tests.agent.telephony.phones import BERLIN, Calling, calling
from tests.agent.transport.test_end_room import person
from tests.support.room_service import RoomService, busy_with, room_service
from tests.support.server import free_port

WORKSHOP = "+493055512345"
JOINED = f"joined_{WORKSHOP}"
LEFT = rtc.DisconnectReason.CLIENT_INITIATED


@asynccontextmanager
async def talking(
    server: RoomService, monkeypatch: pytest.MonkeyPatch, **changes: object
) -> AsyncIterator[tuple[Calling, CallSession]]:
    """A phone call in step 7."""
    async with calling(server, monkeypatch, "", **changes) as made:
        call = made.call
        voices = Models(ScriptedLLM(), None, ScriptedTTS(), None, {})
        call.session = session = build_session(call, voices, made.persona)
        await session.start(made.persona)
        made.line.ring("active")
        call.caller = made.line._caller = callee(BERLIN)
        try:
            yield made, session
        finally:
            await session.close()
            call.end(Reason.AGENT_HUNG_UP)
            await call.wait_closed()


def said(session: CallSession) -> list[str]:
    return [one.text_content or "" for one in session.history.messages() if one.role == "assistant"]


def answers(made: Calling) -> None:
    """Whoever was called is in the room."""
    made.line.job.join(JOINED, phone=True)
    made.server.pick_up.set()


# ---------------------------------------------------------------------- cold


async def test_a_caller_who_is_transferred_has_left_to_somebody_else(
    server: RoomService, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.pick_up.set()
    async with talking(server, monkeypatch) as (made, session):
        with pytest.raises(StopResponse):
            await transfer(made.call, WORKSHOP, saying="One moment.")
        assert made.call.reason == Reason.TRANSFERRED
        assert said(session) == ["One moment."]
    (asked,) = server.transferred
    assert (asked.transfer_to, asked.participant_identity) == (f"tel:{WORKSHOP}", f"sip_{BERLIN}")
    # nobody waits in silence
    assert asked.play_dialtone


async def test_a_transfer_that_is_refused_goes_back_to_the_conversation(
    server: RoomService, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.refusal = busy_with(486, "Busy Here")
    server.pick_up.set()
    async with talking(server, monkeypatch) as (made, _):
        with pytest.raises(ToolError, match="busy"):
            await transfer(made.call, WORKSHOP)
        assert made.call.reason is None


async def test_a_transfer_that_fails_without_an_error_has_failed(
    server: RoomService, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = sip.SIPTransferStatus.STS_TRANSFER_FAILED
    rang = sip.SIPTransferReason.STR_RINGING_TIMEOUT
    server.transfer = sip.TransferSIPParticipantResponse(status=failed, reason=rang)
    server.pick_up.set()
    async with talking(server, monkeypatch) as (made, _):
        with pytest.raises(ToolError, match="Nobody answers"):
            await transfer(made.call, WORKSHOP)
        assert made.call.reason is None


async def test_a_caller_who_hangs_up_while_it_rings_was_not_transferred(
    server: RoomService, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with talking(server, monkeypatch) as (made, _):
        handing = asyncio.create_task(transfer(made.call, WORKSHOP))
        await server.rings.wait()
        # the server's answer may come first, and is that of a success
        server.pick_up.set()
        asyncio.get_running_loop().call_later(0.05, made.line.leave, LEFT)
        with pytest.raises(StopResponse):
            await handing
        assert made.call.reason == Reason.CALLER_LEFT


async def test_a_number_that_is_none_can_be_put_right(
    server: RoomService, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with talking(server, monkeypatch) as (made, _):
        with pytest.raises(ToolError, match="international form"):
            await transfer(made.call, "030 23125000")
    assert server.transferred == []


@pytest.mark.parametrize("number", ["+4315551234", "+49112", "+499001234567"])
async def test_no_caller_has_a_number_called_that_is_not_on_the_list(
    server: RoomService, monkeypatch: pytest.MonkeyPatch, number: str
) -> None:
    async with talking(server, monkeypatch) as (made, session):
        for hand_on in (
            transfer(made.call, number),
            bring_in(made.call, number, introduction="Here is somebody."),
        ):
            with pytest.raises(ToolError, match="must not be called"):
                await hand_on
        assert said(session) == []
    assert (server.transferred, server.dialed) == ([], [])


# ---------------------------------------------------------------------- warm


async def test_who_is_called_in_is_introduced_and_the_agent_leaves(
    server: RoomService, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with talking(server, monkeypatch) as (made, session):
        bringing = asyncio.create_task(
            bring_in(made.call, WORKSHOP, introduction="Ann, here is a caller.", music=False)
        )
        await server.rings.wait()
        answers(made)
        with pytest.raises(StopResponse):
            await bringing
        assert made.call.reason == Reason.TRANSFERRED
        assert said(session)[-1] == "Ann, here is a caller."
    (asked,) = server.dialed
    assert (asked.sip_call_to, asked.participant_identity) == (WORKSHOP, JOINED)
    assert server.removed == []


async def test_nobody_who_answers_is_a_sentence_for_the_model(
    server: RoomService, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.refusal = busy_with(603, "Decline")
    server.pick_up.set()
    async with talking(server, monkeypatch) as (made, _):
        with pytest.raises(ToolError, match="declined"):
            await bring_in(made.call, WORKSHOP, introduction="Hello.", music=False)
        assert made.call.reason is None


@pytest.mark.parametrize("answered", [False, True])
async def test_who_was_called_in_is_not_left_alone_by_a_caller_who_hangs_up(
    server: RoomService, monkeypatch: pytest.MonkeyPatch, answered: bool
) -> None:
    async with talking(server, monkeypatch) as (made, session):
        bringing = asyncio.create_task(
            bring_in(made.call, WORKSHOP, introduction="Ann, here is a caller.", music=False)
        )
        await server.rings.wait()
        if answered:
            saying = asyncio.Event()
            session.on("speech_created", lambda _: saying.set())
            answers(made)
            await saying.wait()
        made.line.leave(LEFT)
        with pytest.raises(StopResponse):
            await bringing
        assert made.call.reason == Reason.CALLER_LEFT
    assert server.removed == [JOINED]


async def test_who_hangs_up_during_the_introduction_leaves_the_caller_to_the_agent(
    server: RoomService, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.pick_up.set()
    async with talking(server, monkeypatch) as (made, _):
        with pytest.raises(ToolError, match="hung up"):
            await bring_in(made.call, WORKSHOP, introduction="Hello.", music=False)
        assert made.call.reason is None


async def test_a_call_that_ends_with_the_introduction_was_not_handed_on(
    server: RoomService, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with talking(server, monkeypatch) as (made, _):

        async def introduce() -> None:
            made.line.leave(LEFT)

        with pytest.raises(StopResponse):
            await _while_it_lasts(made.call, introduce())
        assert made.call.reason == Reason.CALLER_LEFT


async def test_music_that_cannot_be_played_costs_no_call(
    server: RoomService, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with talking(server, monkeypatch) as (made, _):
        bringing = asyncio.create_task(bring_in(made.call, WORKSHOP, introduction="Hello."))
        await server.rings.wait()
        answers(made)
        with pytest.raises(StopResponse):
            await bringing
        assert made.call.reason == Reason.TRANSFERRED


async def test_a_tool_that_hands_a_caller_on_has_no_deadline_while_it_rings(
    server: RoomService, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with talking(server, monkeypatch) as (made, _), asyncio.timeout(60) as deadline:

        async def tool() -> None:
            with made.call.tools.running(deadline, 30):
                await transfer(made.call, WORKSHOP)

        handing = asyncio.create_task(tool())
        await server.rings.wait()
        assert deadline.when() is None
        server.pick_up.set()
        with pytest.raises(StopResponse):
            await handing


async def test_the_deadline_of_a_tool_does_not_count_while_a_phone_rings() -> None:
    tools, now = RunningTools(), asyncio.get_running_loop().time
    async with asyncio.timeout(60) as deadline:
        with tools.running(deadline, 0):
            before, began = deadline.when(), now()
            with tools.waiting():
                assert deadline.when() is None
                rings = now()
                await asyncio.sleep(0.1)
                rang = now() - rings
            after = deadline.when()
            waited = now() - began
    assert before is not None
    assert after is not None
    assert rang <= after - before <= waited


# ---------------------------------------------------------------------- who is left alone


async def test_who_is_left_alone_after_a_transfer_is_hung_up(
    server: RoomService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfers, "ALONE_POLL_SECONDS", 0.01)
    server.rooms = [models.Room(name="room", sid="RM_1")]
    server.present = [
        person("sip_1", models.ParticipantInfo.SIP),
        person(JOINED, models.ParticipantInfo.SIP),
        person("recorder", listens=True),
    ]
    watching = asyncio.create_task(hang_up_when_alone("room", "RM_1"))
    await asyncio.sleep(0.1)
    assert server.deleted == []
    server.present.pop(0)
    await asyncio.wait_for(watching, 5)
    assert server.deleted == ["room"]


async def test_a_server_that_is_away_for_a_while_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(transfers, "ALONE_POLL_SECONDS", 0.01)
    port, warned = free_port(), asyncio.Event()
    for name, value in RoomService(port=port).environment.items():
        monkeypatch.setenv(name, value)

    def look(record: logging.LogRecord) -> bool:
        warned.set()
        return True

    caplog.handler.addFilter(look)
    watching = asyncio.create_task(hang_up_when_alone("room", "RM_1"))
    await asyncio.wait_for(warned.wait(), 5)
    async with room_service(port) as server:
        server.rooms = [models.Room(name="room", sid="RM_1")]
        server.present = [person("sip_1", models.ParticipantInfo.SIP)]
        await asyncio.wait_for(watching, 5)
    assert server.deleted == ["room"]
    assert len(caplog.records) == 1


async def test_a_room_that_is_gone_or_anothers_is_left_alone(
    server: RoomService, monkeypatch: pytest.MonkeyPatch
) -> None:
    await hang_up_when_alone("room", "RM_1")
    server.rooms = [models.Room(name="room", sid="RM_2")]
    await hang_up_when_alone("room", "RM_1")
    assert server.deleted == []
