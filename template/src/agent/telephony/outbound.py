"""Calls that the agent makes: the number in the call's metadata is called in step 4."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import aiohttp
from livekit import api, rtc

from agent.conversation import CallAgent
from agent.lifecycle import Call, Reason
from agent.lifecycle.journal import CallOver
from agent.telephony.numbers import NotANumber, NumberRefused, check_allowed, e164
from agent.telephony.sip import reason_of, sentence_of, status_of
from agent.transport import Caller
from agent.transport.room import CALL_STATUS, RoomTransport

log = logging.getLogger("agent.call")

# not the other end's doing, so somebody has to do something
OURS = {Reason.TRUNK_FAILED, Reason.NOT_ALLOWED, Reason.INVALID_NUMBER}


class NotAnswered(Exception):
    """A phone that was called, and that nobody answered: why, as a Reason, and what was said."""

    def __init__(self, reason: str, said: str, status: int | None = None) -> None:
        super().__init__(f"{reason} ({said})")
        self.reason, self.status = reason, status


async def place_call(call: Call, persona: CallAgent) -> Callable[[Caller], bool] | None:
    """Call the number that the call's metadata has, and wait until somebody answers.

    Who is the caller then; None where no number is to be called, and where there is no telephone:
    at a terminal and in tests, whoever is there plays who was called. If nobody answers the call
    ends, and CallOver is raised.
    """
    told = wanted_call(call.metadata)
    if told.get("call") is None:
        return None
    if isinstance(call.transport, RoomTransport):
        call.transport.outbound = True
    try:
        call.called, trunk = number_and_trunk(told)
    except NotAnswered as error:
        _give_up(call, persona, error)
    if not isinstance(call.transport, RoomTransport):
        return None
    identity = callee(call.called).identity
    call.ringing = True
    try:
        await dial(call, call.called, identity, trunk or call.settings.sip_trunk)
    except NotAnswered as error:
        if error.status is None:
            # a room that is deleted meanwhile fails it in no words of its own
            await call.wait_for_room_event()
        if call.reason is not None:
            raise CallOver(call.reason) from error
        _give_up(call, persona, error)
    finally:
        call.ringing = False
    room = call.room
    if room is not None and identity not in room.remote_participants:
        # who has hung up again already; or the room's news of them are still on their way
        await call.wait_for_room_event()
        if identity not in room.remote_participants:
            call.end(Reason.CALLER_LEFT)
    return lambda somebody: somebody.identity == identity


def wanted_call(metadata: str) -> dict[str, Any]:
    """What the metadata says: `call` is the number, `trunk` another trunk than the settings'."""
    try:
        told = json.loads(metadata or "{}")
    except (ValueError, RecursionError) as error:
        # other metadata is the owner's, and may be anything
        if metadata.lstrip().startswith("{"):
            log.warning("the metadata is no JSON, so nobody is called by it: %s", error)
        return {}
    return told if isinstance(told, dict) else {}


def number_and_trunk(told: dict[str, Any]) -> tuple[str, str]:
    """The number and the trunk of `wanted_call`, "" for the settings' trunk; raises NotAnswered."""
    number, trunk = told["call"], told.get("trunk") or ""
    if not isinstance(number, str):
        # as a number in JSON it has lost its plus
        said = '`call` in the metadata is no text: write it in quotes, such as "+493023125000"'
        raise NotAnswered(Reason.INVALID_NUMBER, said)
    if not isinstance(trunk, str):
        said = "`trunk` in the metadata is no text: write the id of an outbound trunk, ST_…"
        raise NotAnswered(Reason.TRUNK_FAILED, said)
    try:
        return e164(number), trunk
    except NotANumber as error:
        raise NotAnswered(Reason.INVALID_NUMBER, str(error)) from error


def callee(number: str) -> Caller:
    """Whoever has this number, as if they were in the room."""
    return Caller(f"sip_{number}", kind="sip", attributes={"sip.phoneNumber": number})


async def dial(call: Call, number: str, identity: str, trunk: str) -> None:
    """Call a number into the call's room, as `identity`, and return when it is answered.

    The one place from which anybody is called. Raises NotAnswered, also for a number that may not
    be called.
    """
    settings, room, server = call.settings, call.room, call.api
    if room is None or server is None:
        raise NotAnswered(Reason.TRUNK_FAILED, "there is no telephone here")
    try:
        check_allowed(number, settings.calls_to)
    except NumberRefused as error:
        raise NotAnswered(Reason.NOT_ALLOWED, str(error)) from error
    if not trunk:
        said = "AGENT_SIP_TRUNK is not set: write the id of an outbound trunk there"
        raise NotAnswered(Reason.TRUNK_FAILED, said)
    request = api.CreateSIPParticipantRequest(
        sip_trunk_id=trunk,
        sip_call_to=number,
        room_name=call.transport.room_name,
        participant_identity=identity,
        wait_until_answered=True,
    )
    request.ringing_timeout.FromMilliseconds(round(settings.ring_seconds * 1000))
    began = time.time_ns()
    with _statuses(room, identity) as statuses:
        try:
            await server.sip.create_sip_participant(request)
        except (api.ServerError, aiohttp.ClientError, TimeoutError) as error:
            reason = reason_of(error, statuses[-1])
            status = status_of(error)
            call.journal.took("dial", began, outcome=reason, sip=status or 0)
            raise NotAnswered(reason, sentence_of(error), status) from error
    call.journal.took("dial", began, outcome="answered", sip=200)
    call.journal.record("the call was answered", ms=call.journal.age_ms)


@contextmanager
def _statuses(room: rtc.Room, identity: str) -> Iterator[list[str]]:
    """The statuses of a phone that is called, in their order, as far as they are known yet."""
    statuses = [""]

    def look(person: rtc.Participant) -> None:
        status = person.attributes.get(CALL_STATUS, "")
        # the last one, "hangup", says nothing about what was before
        if person.identity == identity and status != "hangup":
            statuses.append(status)

    def changed(_: dict[str, str], person: rtc.Participant) -> None:
        look(person)

    room.on("participant_connected", look)
    room.on("participant_attributes_changed", changed)
    try:
        yield statuses
    finally:
        room.off("participant_connected", look)
        room.off("participant_attributes_changed", changed)


def _give_up(call: Call, persona: CallAgent, error: NotAnswered) -> NoReturn:
    """End the call, which is remembered of who was called, but not as one that they have had."""
    level = logging.WARNING if error.reason in OURS else logging.INFO
    fields = call.journal.fields(sip=error.status)
    log.log(level, "nobody was reached: %s", error, extra=fields)
    if call.called is not None:
        call.identify(persona.remembered_as(callee(call.called)))
    call.end(error.reason)
    raise CallOver(error.reason)
