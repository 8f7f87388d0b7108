"""Handing a caller on: to another number (cold), or with somebody called into the room (warm).

Both are for tools of a persona. What goes wrong is a ToolError, which the model reads, so that the
conversation goes on. While a phone rings, the deadline of the tool does not count.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, NoReturn, TypeVar

import aiohttp
from livekit import api
from livekit.agents import (
    AgentSession,
    AudioConfig,
    BackgroundAudioPlayer,
    BuiltinAudioClip,
    StopResponse,
    ToolError,
)
from livekit.protocol import sip

from agent import one_line
from agent.conversation.agent import say_within
from agent.conversation.speech import say_known
from agent.lifecycle import Call, Reason
from agent.telephony.numbers import NotANumber, NumberRefused, check_allowed, e164
from agent.telephony.outbound import NotAnswered, dial
from agent.telephony.sip import RINGING, TRANSFERS, reason_of, sentence_of, status_of
from agent.transport.room import can_be_spoken_to

log = logging.getLogger("agent.call")
T = TypeVar("T")

INTRODUCTION_SECONDS = 30.0
START_MUSIC_SECONDS = 2.0
STOP_MUSIC_SECONDS = 1.0  # its end may hang where the caller has just left
LEAVE_SECONDS = 2.0
ALONE_POLL_SECONDS = 2.0
# what a model can make of it
SENTENCES = {
    Reason.BUSY: "The line is busy.",
    Reason.NO_ANSWER: "Nobody answers.",
    Reason.DECLINED: "The call was declined.",
    Reason.INVALID_NUMBER: "There is no such number.",
    Reason.NOT_ALLOWED: "This number must not be called.",
    Reason.UNREACHABLE: "Nobody can be reached there at the moment.",
    Reason.TRUNK_FAILED: "It does not work at the moment.",
}


async def transfer(
    call: Call, to: str, *, saying: str = "One moment, I am connecting you."
) -> None:
    """Have the caller's carrier connect them to another number; then the call is over.

    Raises ToolError if it does not: the caller is still there, and the model is told why.
    """
    number = _allowed(call, to)
    caller, server, session = call.caller, call.api, call.session
    if caller is None or caller.kind != "sip" or server is None:
        raise ToolError("Only a caller on the telephone can be transferred.")
    asked = api.TransferSIPParticipantRequest(
        room_name=call.transport.room_name,
        participant_identity=caller.identity,
        transfer_to=f"tel:{number}",
        # the caller hears it ring
        play_dialtone=True,
    )
    asked.ringing_timeout.FromMilliseconds(round(call.settings.ring_seconds * 1000))
    with call.tools.waiting():
        await _say(call, session, saying)
        await _while_it_lasts(call, _refer(call, server, asked))
    # a caller who hangs up while it rings looks like a success
    await call.wait_for_room_event()
    call.end(Reason.TRANSFERRED)
    raise StopResponse


async def _refer(
    call: Call, server: api.LiveKitAPI, asked: api.TransferSIPParticipantRequest
) -> None:
    began = time.time_ns()
    try:
        answer = await server.sip.transfer_sip_participant(asked)
    except (api.ServerError, aiohttp.ClientError, TimeoutError) as error:
        # of a caller who has hung up meanwhile, the room's event is a moment behind
        await call.wait_for_room_event()
        _stop_if_over(call)
        reason = reason_of(error, RINGING)
        said, status = sentence_of(error), status_of(error)
        _failed(call, "transfer", NotAnswered(reason, said, status), began)
    # a server that does not say leaves it at 0, "ongoing"
    if answer.status == sip.SIPTransferStatus.STS_TRANSFER_FAILED:
        why = sip.SIPTransferReason.Name(answer.reason)
        reason = TRANSFERS.get(why, Reason.TRUNK_FAILED)
        _failed(call, "transfer", NotAnswered(reason, why), began)
    call.journal.took("transfer", began, outcome="ok")


async def bring_in(
    call: Call,
    to: str,
    *,
    introduction: str,
    saying: str = "One moment, I am asking somebody to join us.",
    music: bool = True,
) -> None:
    """Call somebody into the room, introduce them to the caller, and leave the two alone.

    Raises ToolError if nobody answers: the caller is still there, and the model is told why. When
    one of them hangs up, so does the worker on the other.
    """
    number = _allowed(call, to)
    # not the identity of a caller with this number, whom it would replace
    identity, session = f"joined_{number}", call.session
    if call.room is None or session is None:
        raise ToolError("Nobody can be called from here.")
    with call.tools.waiting():
        await _say(call, session, saying)
        began = time.time_ns()
        async with _leaves_unless_kept(call, identity) as kept:
            try:
                async with _music(call, wanted=music):
                    dialing = dial(call, number, identity, call.settings.sip_trunk)
                    await _while_it_lasts(call, dialing)
            except NotAnswered as error:
                _failed(call, "bring in", error, began)
            call.journal.took("bring in", began, outcome="ok")
            introducing = say_within(session, introduction, INTRODUCTION_SECONDS)
            await _while_it_lasts(call, introducing)
            if identity not in call.room.remote_participants:
                raise ToolError("Whoever was called has hung up again. Tell the caller, and go on.")
            call.end(Reason.TRANSFERRED)
            kept.set()
    raise StopResponse


def _allowed(call: Call, to: str) -> str:
    """The number, if it may be called; raises ToolError."""
    try:
        number = e164(to)
        check_allowed(number, call.settings.calls_to)
    except NumberRefused as error:
        log.warning("a number was not called: %s", error, extra=call.journal.fields())
        # which numbers are allowed is nothing for a caller
        is_none = isinstance(error, NotANumber)
        raise ToolError(str(error) if is_none else SENTENCES[Reason.NOT_ALLOWED]) from error
    return number


def _failed(call: Call, what: str, error: NotAnswered, began: int) -> NoReturn:
    call.journal.took(what, began, outcome=error.reason, sip=error.status or 0)
    extra = call.journal.fields(sip=error.status)
    log.warning("%s: %s", what, error, extra=extra)
    raise ToolError(f"{SENTENCES[error.reason]} Tell the caller, and go on with the conversation.")


async def _say(call: Call, session: AgentSession[None] | None, sentence: str) -> None:
    """Say to the caller what comes; nothing comes when the call ends meanwhile."""
    if session is not None and sentence:
        await say_known(session, sentence).wait_for_playout()
    _stop_if_over(call)


def _stop_if_over(call: Call) -> None:
    if call.reason is not None:
        raise StopResponse


async def _while_it_lasts(call: Call, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the call ends; then StopResponse is raised."""
    working = asyncio.ensure_future(work)
    ended = asyncio.create_task(call.wait_ended())
    try:
        await asyncio.wait([working, ended], return_when=asyncio.FIRST_COMPLETED)
        # also where both are done at once
        if call.reason is not None:
            raise StopResponse
        return working.result()
    finally:
        ended.cancel()
        working.cancel()
        await asyncio.wait([working, ended])


@asynccontextmanager
async def _leaves_unless_kept(call: Call, identity: str) -> AsyncIterator[asyncio.Event]:
    """A phone that is called into the room stops ringing, unless what is yielded is set."""
    kept = asyncio.Event()
    try:
        yield kept
    finally:
        if not kept.is_set() and call.api is not None:
            gone = api.RoomParticipantIdentity(room=call.transport.room_name, identity=identity)
            # mostly it has left by itself
            with suppress(api.ServerError, aiohttp.ClientError, TimeoutError):
                async with asyncio.timeout(LEAVE_SECONDS):
                    await call.api.room.remove_participant(gone)


@asynccontextmanager
async def _music(call: Call, *, wanted: bool) -> AsyncIterator[None]:
    """Music for who waits."""
    if not wanted or call.room is None:
        yield
        return
    player = BackgroundAudioPlayer()
    try:
        try:
            async with asyncio.timeout(START_MUSIC_SECONDS):
                await player.start(room=call.room)
            player.play(AudioConfig(BuiltinAudioClip.HOLD_MUSIC, volume=0.5), loop=True)
        except Exception as error:
            extra = call.journal.fields()
            log.warning("no music while it rings: %s", one_line(error), extra=extra)
        yield
    finally:
        with suppress(TimeoutError):
            async with asyncio.timeout(STOP_MUSIC_SECONDS):
                await player.aclose()


async def hang_up_when_alone(room: str, sid: str) -> None:
    """Delete a room that an agent has left to two people, when one of them has left it too.

    The worker runs this when the call's job is gone: nothing else hangs up on who is alone.
    """
    warned = False
    async with api.LiveKitAPI() as server:
        while True:
            try:
                if await _is_over(server, room, sid):
                    return
            except (api.ServerError, aiohttp.ClientError, TimeoutError) as error:
                if not warned:
                    sentence = "a room whose people talk without the agent cannot be looked at: %s"
                    log.warning(sentence, one_line(error), extra={"fields": {"room": room}})
                warned = True
            # a server's room: there is no event to await
            await asyncio.sleep(ALONE_POLL_SECONDS)


async def _is_over(server: api.LiveKitAPI, room: str, sid: str) -> bool:
    """Whether nobody, or at most one, is left to talk; who is left is hung up then."""
    try:
        found = (await server.room.list_rooms(api.ListRoomsRequest(names=[room]))).rooms
        if sid not in [one.sid for one in found]:
            return True
        asked = api.ListParticipantsRequest(room=room)
        present = (await server.room.list_participants(asked)).participants
        if sum(map(can_be_spoken_to, present)) > 1:
            return False
        await server.room.delete_room(api.DeleteRoomRequest(room=room))
    except api.ServerError as error:
        if error.code != api.TwirpErrorCode.NOT_FOUND:
            raise
    return True
