"""A LiveKit room as the transport of a call."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

from livekit import api, rtc
from livekit.agents import Agent, AgentSession, JobContext, JobExecutorType, room_io
from livekit.agents.job import DEFAULT_PARTICIPANT_KINDS
from livekit.protocol import models

from agent import one_line
from agent.reasons import CALLER_IS_GONE
from agent.transport import Caller, CallEvents
from agent.transport.preconnect import PreConnectBuffer, heard_as

log = logging.getLogger("agent.call")

Kind = rtc.ParticipantKind
Why = rtc.DisconnectReason

KINDS = {Kind.PARTICIPANT_KIND_SIP: "sip", Kind.PARTICIPANT_KIND_CONNECTOR: "connector"}
ROOM_ENDED = {Why.ROOM_DELETED, Why.ROOM_CLOSED}
ON_PURPOSE = {
    Why.CLIENT_INITIATED,
    Why.USER_REJECTED,
    Why.USER_UNAVAILABLE,
    Why.PARTICIPANT_REMOVED,
}
# who waits, unseen, for what comes of a call that the agent makes, and the attribute that says it
WATCHER, REASON = "agent.watcher", "agent.reason"
TELL_SECONDS = 0.5
# a phone's attribute, of livekit-sip
CALL_STATUS = "sip.callStatus"
ACTIVE = rtc.ParticipantState.PARTICIPANT_STATE_ACTIVE
# after these somebody may be the caller who was not before
NEWS: tuple[rtc.room.EventTypes, ...] = (
    "participant_connected",
    "participant_active",
    "participant_attributes_changed",
    "participant_permissions_changed",
)
PEOPLE = {
    models.ParticipantInfo.STANDARD,
    models.ParticipantInfo.SIP,
    models.ParticipantInfo.CONNECTOR,
}


class RoomTransport:
    """The room of a LiveKit job."""

    limited = True

    def __init__(self, ctx: JobContext) -> None:
        self._ctx, self._room = ctx, ctx.room
        self.call_id, self.room_name = ctx.job.id, ctx.job.room.name
        self.began, self.metadata = time.monotonic(), ctx.job.metadata
        self._fake = ctx.is_fake_job()  # the console's: it has no room, no participants
        self._caller: Caller | None = None
        self._connected = False
        # whether the agent calls somebody: who waits in the room for what comes of it is told
        self.outbound = False
        self._reads_texts = True
        self._typing: asyncio.Task[None] | None = None
        self._early = None if self._fake else PreConnectBuffer(ctx.room)
        # the SDK's own; `listen` puts another in its place for owners' code
        self._end_job = ctx.shutdown

    @property
    def livekit_room(self) -> rtc.Room | None:
        return None if self._fake else self._room

    @property
    def livekit_api(self) -> api.LiveKitAPI | None:
        return None if self._fake else self._ctx.api

    def listen(self, events: CallEvents) -> None:
        self._events = events
        # before the SDK's own handlers, which are registered later: causes before consequences
        self._room.on("participant_disconnected", self._left)
        self._room.on("participant_connected", self._joined)
        self._room.on("disconnected", self._disconnected)

        # the SDK tells an owner's shutdown from a stopping worker, but too late
        def shut_down(reason: str = "") -> None:
            events.shut_down()

        self._ctx.shutdown = shut_down  # type: ignore[method-assign]

        # a plain function: the SDK reads its __code__
        async def job_is_ending() -> None:
            await events.on_job_ending()

        self._ctx.add_shutdown_callback(job_is_ending)

    def _left(self, participant: rtc.RemoteParticipant) -> None:
        reason = participant.disconnect_reason
        if self._caller is None:
            # a phone that did not wait to be answered; a browser may only be reloading
            if participant.kind == Kind.PARTICIPANT_KIND_SIP and not self._speakers():
                self._events.caller_gone(on_purpose=True)
        elif participant.identity != self._caller.identity:
            return
        elif reason in ROOM_ENDED:
            self._events.room_gone(removed=False)
        elif reason != Why.DUPLICATE_IDENTITY:  # the same caller, who has joined again
            self._events.caller_gone(on_purpose=reason in ON_PURPOSE)

    def _joined(self, participant: rtc.RemoteParticipant) -> None:
        if self._caller is not None and participant.identity == self._caller.identity:
            self._events.caller_back()

    def _disconnected(self, reason: Any = None) -> None:
        # where only the agent's own connection broke, the room lives on
        self._events.room_gone(removed=reason not in ROOM_ENDED)

    def _people(self) -> list[rtc.RemoteParticipant]:
        """Everybody in the room who could be a caller, phones first."""
        present = self._room.remote_participants.values()
        people = [person for person in present if person.kind in DEFAULT_PARTICIPANT_KINDS]
        return sorted(people, key=lambda person: person.kind != Kind.PARTICIPANT_KIND_SIP)

    def _speakers(self) -> list[rtc.RemoteParticipant]:
        return [person for person in self._people() if person.permissions.can_publish]

    @asynccontextmanager
    async def room(self) -> AsyncIterator[None]:
        try:
            await self._ctx.connect()
            self._connected = True
            yield
        finally:
            try:
                if self._typing is not None:
                    self._typing.cancel()
                if self._early is not None:
                    await self._early.close()
            finally:
                await self._room.disconnect()

    async def wait_for_caller(self, is_caller: Callable[[Caller], bool]) -> Caller:
        if self._fake:
            participant = await self._ctx.wait_for_participant()
            self._caller = Caller(identity=participant.identity, name=participant.name)
            return self._caller
        found: asyncio.Future[Caller] = asyncio.get_running_loop().create_future()

        # at the event itself: somebody may be gone again a moment later
        def look(*_: object) -> None:
            try:
                for person in self._people():
                    caller = _caller_of(person)
                    if not found.done() and person.state == ACTIVE and is_caller(caller):
                        found.set_result(caller)
            except Exception as error:
                # an error in a handler of the room would only be logged
                found.set_exception(error)

        for event in NEWS:
            self._room.on(event, look)
        try:
            look()
            self._caller = await found
        finally:
            for event in NEWS:
                self._room.off(event, look)
        if self._caller.identity not in self._room.remote_participants:
            # left before `_left` knew whom to look for
            self._events.caller_gone(on_purpose=True)
        return self._caller

    async def start(
        self,
        session: AgentSession[None],
        agent: Agent,
        caller: Caller,
        options: room_io.RoomOptions,
    ) -> None:
        if self._early is None:
            await session.start(agent)
            return
        # an owner's own way of taking texts, or none
        own = isinstance(options.text_input, room_io.TextInputOptions)
        self._reads_texts = options.text_input is not False
        options = replace(
            options,
            participant_identity=caller.identity,
            audio_input=heard_as(options.audio_input),
            # without an owner's it is the PreConnectBuffer's, to the end
            text_input=options.text_input if own else False,
            # the call closes the session; the time for coming back is the call's too
            close_on_disconnect=False,
            delete_room_on_close=False,
        )
        with self._early.handed_over(session, caller.identity, texts=not own):
            await session.start(agent, room=self._room, room_options=options)
        if self._reads_texts and not own:
            self._typing = asyncio.create_task(self._answer(self._early.typed(caller.identity)))

    async def _answer(self, texts: AsyncIterator[str]) -> None:
        async for text in texts:
            try:
                await self._events.answer(text)
            except Exception as error:
                log.warning("a typed line was not answered: %s", one_line(error), exc_info=error)

    async def early_texts(self) -> list[str]:
        if self._early is None or self._caller is None or not self._reads_texts:
            return []
        return await self._early.texts(self._caller.identity)

    async def end_room(self, caller: Caller | None) -> None:
        if self._fake:
            return
        job = self._ctx.job
        # a restarted server gives the room another one than the job has
        sid = await self._room.sid if self._connected else job.room.sid
        me, identity = self._ctx.local_participant_identity, caller.identity if caller else None
        again = None
        # nor is anybody called twice
        if self._events.reason in CALLER_IS_GONE and not self.outbound:
            again = api.CreateAgentDispatchRequest(
                agent_name=job.agent_name,
                room=self.room_name,
                metadata=job.metadata,
                deployment=job.deployment,
                attributes=job.attributes,
            )
        if self.outbound:
            await self._tell_reason()
        if await end_room(self.room_name, sid, me, identity, again):
            fields = {"call": self.call_id, "room": self.room_name}
            sentence = "the caller came back while the call was closing: an agent was sent again"
            log.info(sentence, extra={"fields": fields})

    async def _tell_reason(self) -> None:
        # by an attribute of their own: one of the agent's, which has published nothing, would be
        # announced up to three seconds later, and the room is gone by then
        told = api.UpdateParticipantRequest(
            room=self.room_name, identity=WATCHER, attributes={REASON: self._events.reason or ""}
        )
        # mostly nobody waits; who does also sees that it does not come
        with suppress(Exception):
            async with asyncio.timeout(TELL_SECONDS), api.LiveKitAPI() as server:
                await server.room.update_participant(told)

    def finish(self, reason: str) -> None:
        self._end_job(reason)

    def guard_exit(self, seconds: float) -> None:
        """The SDK ends no job that is stuck in its exit, such as in a thread that never ends."""
        if self._ctx.proc.executor_type is not JobExecutorType.PROCESS:
            return

        def end_process() -> None:
            sentence = "the process did not exit within %g s of its call's end: ended by force"
            log.error(sentence, seconds)
            time.sleep(0.2)  # the record's way to the worker
            os._exit(1)

        timer = threading.Timer(seconds, end_process)
        timer.daemon = True
        timer.start()


def _caller_of(person: rtc.RemoteParticipant) -> Caller:
    return Caller(
        identity=person.identity,
        name=person.name,
        kind=KINDS.get(person.kind, "standard"),
        attributes=dict(person.attributes),
        can_publish=person.permissions.can_publish,
    )


async def end_room(
    room: str,
    sid: str,
    agent: str,
    caller: str | None,
    again: api.CreateAgentDispatchRequest | None = None,
) -> bool:
    """Delete the room, unless somebody besides the caller is in it who could be spoken to.

    Those who only listen do not count: nobody is left to listen to. Nor does a phone that rings:
    whoever answered it would hear nobody. Without a caller, unless more than one person is. A newer
    room of the same name is another call's: it has another `sid`, and this `agent` (an identity) is
    not in it. A `sid` alone does not tell: for seconds after a restart of the server the SDK goes
    on giving that of the room which is gone.
    `again` is for a caller who had left and is there nevertheless; True if it was needed.
    Asks the server over a connection of its own: in a dying job the SDK's is closed already.
    Raises api.TwirpError.
    """
    async with api.LiveKitAPI() as server:
        try:
            named = (await server.room.list_rooms(api.ListRoomsRequest(names=[room]))).rooms
            asked = api.ListParticipantsRequest(room=room)
            present = (await server.room.list_participants(asked)).participants
            newer = any(found.sid != sid for found in named)
            if newer and all(person.identity != agent for person in present):
                return False
            others = [
                person.identity
                for person in present
                if can_be_spoken_to(person) and (person.identity == caller or not rings(person))
            ]
            if caller in others and again is not None:
                # no token does it: those are for a new room
                await server.agent_dispatch.create_dispatch(again)
                return True
            if caller in others:
                others.remove(caller)
            elif caller is None:
                others = others[1:]
            if not others:
                await server.room.delete_room(api.DeleteRoomRequest(room=room))
        except api.TwirpError as error:
            # a room that is gone already is as good as deleted
            if error.code != api.TwirpErrorCode.NOT_FOUND:
                raise
    return False


def can_be_spoken_to(person: models.ParticipantInfo) -> bool:
    """Whether somebody is there who hears and answers, and not a recorder or a viewer."""
    permission = person.permission
    return person.kind in PEOPLE and permission.can_publish and not permission.hidden


def rings(person: models.ParticipantInfo) -> bool:
    """Whether it is a phone that was called into the room, and that nobody has answered yet."""
    return person.attributes.get(CALL_STATUS) in {"dialing", "ringing"}
