"""Calls that the agent makes: who is called, and why nobody answered."""

from __future__ import annotations

import asyncio
import logging
from functools import partial

import pytest
from livekit import rtc
from livekit.protocol import models

from agent.lifecycle import Call, Reason, Step
from agent.lifecycle.journal import CallOver
from agent.telephony.outbound import callee, place_call, wanted_call
from agent.transport.room import REASON, WATCHER, RoomTransport
from tests.agent.telephony.phones import BERLIN, PHONE, Calling, calling, phone
from tests.agent.transport.test_end_room import person as participant
from tests.support.room_service import Refusal, RoomService, busy_with

Why = rtc.DisconnectReason


async def placed(made: Calling) -> asyncio.Task[object]:
    """The call is being made, and the phone rings."""
    placing = asyncio.ensure_future(place_call(made.call, made.persona))
    await made.server.rings.wait()
    made.line.ring()
    return placing


@pytest.mark.parametrize(
    ("metadata", "number"),
    [
        ("", None),
        ('{"call": null}', None),
        ("order 1042", None),
        ("[1]", None),
        ('{"order": 1042}', None),
        ('{"call": "+49 30 23125000", "order": 1042}', "+49 30 23125000"),
    ],
)
def test_the_metadata_says_whom_to_call(metadata: str, number: str | None) -> None:
    assert wanted_call(metadata).get("call") == number


def test_metadata_that_is_no_json_by_mistake_is_named(caplog: pytest.LogCaptureFixture) -> None:
    assert wanted_call(f"{{'call': '{BERLIN}'}}") == {}
    (warned,) = caplog.records
    assert "no JSON" in warned.message
    assert BERLIN not in warned.message


async def test_a_phone_that_answers_is_the_caller(
    server: RoomService, monkeypatch: pytest.MonkeyPatch
) -> None:
    # not the SDK's own limit
    async with calling(server, monkeypatch, ring_seconds=12) as made:
        made.line.job.join("supervisor")
        made.line.job.join("sip_1", phone=True)
        placing = await placed(made)
        server.pick_up.set()
        is_caller = await placing
        caller = await made.call.wait_for_caller(is_caller)  # type: ignore[arg-type]
    assert (caller.identity, caller.kind, made.call.called) == (PHONE, "sip", BERLIN)
    (asked,) = server.dialed
    assert (asked.sip_call_to, asked.sip_trunk_id, asked.room_name) == (BERLIN, "ST_1", "room")
    assert (asked.wait_until_answered, asked.ringing_timeout.seconds) == (True, 12)


async def test_a_call_may_name_a_trunk_of_its_own(
    server: RoomService, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = f'{{"call": "{BERLIN}", "trunk": "ST_2"}}'
    async with calling(server, monkeypatch, told) as made:
        placing = await placed(made)
        server.pick_up.set()
        await placing
    assert [asked.sip_trunk_id for asked in server.dialed] == ["ST_2"]


async def test_a_call_that_nobody_asked_for_is_not_made(
    server: RoomService, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with calling(server, monkeypatch, metadata='{"order": 1042}') as made:
        assert await place_call(made.call, made.persona) is None
        assert made.call.called is None
    assert not server.dialed


@pytest.mark.parametrize(
    ("refusal", "reason"),
    [
        (busy_with(486, "Busy Here"), Reason.BUSY),
        (busy_with(603, "Decline"), Reason.DECLINED),
        (busy_with(404, "Not Found"), Reason.INVALID_NUMBER),
        (busy_with(480, "Temporarily Unavailable"), Reason.UNREACHABLE),
        (busy_with(503, "Service Unavailable"), Reason.TRUNK_FAILED),
        (Refusal("canceled", 408, message="sip request timed out"), Reason.NO_ANSWER),
        (Refusal("not_found", 404, message="no such trunk"), Reason.TRUNK_FAILED),
    ],
)
async def test_a_call_that_nobody_answers_has_a_reason_and_a_record_without_a_turn(
    server: RoomService, monkeypatch: pytest.MonkeyPatch, refusal: Refusal, reason: str
) -> None:
    server.refusal = refusal
    async with calling(server, monkeypatch) as made:
        placing = await placed(made)
        # the room's news may come before the answer, and look like a caller who hangs up
        made.line.leave(Why.USER_REJECTED)
        server.pick_up.set()
        with pytest.raises(CallOver):
            await placing
        assert made.call.reason == reason
        await made.call.wait_closed()
    (kept,) = made.memory.records
    assert (kept.reason, kept.turns, made.memory.key) == (reason, 0, f"tel:{BERLIN}")
    assert made.line.rooms_ended == 1


async def test_a_trunk_that_never_rings_has_failed(
    server: RoomService, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.refusal = Refusal("canceled", 408, message="sip request timed out")
    server.pick_up.set()
    async with calling(server, monkeypatch) as made:
        with pytest.raises(CallOver):
            await place_call(made.call, made.persona)
    assert made.call.reason == Reason.TRUNK_FAILED


async def test_a_phone_that_rings_in_vain_has_rung_whatever_comes_last(
    server: RoomService, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.refusal = Refusal("canceled", 408, message="sip request timed out")
    async with calling(server, monkeypatch) as made:
        placing = asyncio.ensure_future(place_call(made.call, made.persona))
        await server.rings.wait()
        made.line.ring("dialing")
        for status in ("ringing", "hangup"):
            changes = {"sip.callStatus": status}
            made.line.job.room.emit("participant_attributes_changed", changes, phone(status))
        server.pick_up.set()
        with pytest.raises(CallOver):
            await placing
    assert made.call.reason == Reason.NO_ANSWER


@pytest.mark.parametrize(
    ("metadata", "changes", "reason", "cure"),
    [
        ('{"call": "+19005550123"}', {}, Reason.NOT_ALLOWED, "AGENT_CALLS_TO"),
        ('{"call": "+19005550123"}', {"calls_to": "+"}, Reason.NOT_ALLOWED, "write it whole"),
        (f'{{"call": "{BERLIN}"}}', {"calls_to": ""}, Reason.NOT_ALLOWED, "add one"),
        ('{"call": "my mother"}', {}, Reason.INVALID_NUMBER, "international form"),
        ('{"call": ""}', {}, Reason.INVALID_NUMBER, "international form"),
        ('{"call": 493023125000}', {}, Reason.INVALID_NUMBER, "in quotes"),
        (f'{{"call": "{BERLIN}", "trunk": 1}}', {}, Reason.TRUNK_FAILED, "`trunk`"),
        (f'{{"call": "{BERLIN}"}}', {"sip_trunk": ""}, Reason.TRUNK_FAILED, "AGENT_SIP_TRUNK"),
    ],
)
async def test_what_may_not_be_called_is_not(
    server: RoomService,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    metadata: str,
    changes: dict[str, object],
    reason: str,
    cure: str,
) -> None:
    async with calling(server, monkeypatch, metadata, **changes) as made:
        with pytest.raises(CallOver):
            await place_call(made.call, made.persona)
    assert made.call.reason == reason
    # `agent call` hears of it
    assert made.line.outbound
    assert not server.dialed
    (warned,) = [one for one in caplog.records if one.levelno == logging.WARNING]
    assert "nobody was reached" in warned.message
    assert cure in warned.message


async def test_no_number_is_logged(
    server: RoomService, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "agent")
    server.refusal = busy_with(486, f"{BERLIN} is busy")
    async with calling(server, monkeypatch) as made:
        placing = await placed(made)
        server.pick_up.set()
        with pytest.raises(CallOver):
            await placing
        await made.call.wait_closed()
    said = [f"{one.getMessage()} {getattr(one, 'fields', '')}" for one in caplog.records]
    assert said
    assert not [one for one in said if "3023125" in one]


async def test_a_phone_that_rings_while_the_room_is_deleted_is_no_failed_trunk(
    server: RoomService, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server.refusal = Refusal("not_found", 404, message="no such room")
    async with calling(server, monkeypatch) as made:
        placing = await placed(made)
        server.pick_up.set()
        # the room's event comes a moment after the server's answer
        await server.answered.wait()
        asyncio.get_running_loop().call_later(0.05, partial(made.call.room_gone, removed=False))
        with pytest.raises(CallOver):
            await placing
        await made.call.wait_closed()
    assert made.call.reason == Reason.ROOM_CLOSED
    assert "nobody was reached" not in caplog.text
    # whom nobody has called yet is not welcomed back
    assert made.memory.key is None


async def test_who_has_hung_up_is_not_called_again(
    server: RoomService, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the server's list may be a moment behind
    server.rooms = [models.Room(name="room", sid="RM_1")]
    server.present = [participant(PHONE, models.ParticipantInfo.SIP)]
    server.pick_up.set()
    async with calling(server, monkeypatch) as made:
        placing = await placed(made)
        await placing
        made.call.end(Reason.CALLER_LEFT)
        await RoomTransport.end_room(made.line, callee(BERLIN))
    assert (server.made, server.deleted) == ([], ["room"])
    # `agent call` waits for it
    assert server.attributes == {WATCHER: {REASON: Reason.CALLER_LEFT}}


async def test_who_answers_and_hangs_up_at_once_has_left(
    server: RoomService, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with calling(server, monkeypatch) as made:
        placing = await placed(made)
        made.line.leave(Why.CLIENT_INITIATED)
        assert made.call.reason is None
        server.pick_up.set()
        await placing
        assert made.call.reason == Reason.CALLER_LEFT


async def test_the_end_of_a_call_while_it_rings_ends_its_steps(
    server: RoomService, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with calling(server, monkeypatch) as made:

        async def steps(call: Call) -> None:
            async with call.step(Step.WAIT_FOR_CALLER):
                await place_call(call, made.persona)

        await made.call.start(steps)
        await server.rings.wait()
        made.call.end(Reason.WORKER_STOPPED)
        await made.call.wait_closed()
        assert made.call.running_steps is not None
        assert made.call.running_steps.cancelled()
    assert made.line.rooms_ended == 1
