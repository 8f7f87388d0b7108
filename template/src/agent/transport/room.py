"""The seam between a call and what carries it: LiveKit's job on one side, a terminal (or a test) on the other."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from livekit import rtc
    from livekit.agents import Agent, AgentSession, JobContext

    from agent.transport.preconnect import PreConnectBuffer

log = logging.getLogger("agent.call")


@dataclass(frozen=True)
class Caller:
    """Whoever the call is with. `identity` is the LiveKit token's; `kind` is standard, sip or connector."""

    identity: str
    name: str = ""
    kind: str = "standard"
    attributes: Mapping[str, str] = field(default_factory=dict)


class CallEvents(Protocol):
    """What a line reports, at the moment it knows: see `agent.lifecycle.Call`."""

    reason: str | None  # why the call ended; None while it goes on

    def caller_gone(self, *, on_purpose: bool) -> None: ...
    def caller_back(self) -> None: ...
    def room_gone(self, *, removed: bool) -> None: ...
    def shut_down(self) -> None: ...
    async def job_ending(self) -> None: ...


class Transport(Protocol):
    """What a call needs of the thing that carries it."""

    call_id: str  # the job's id
    room_name: str
    began: float  # time.monotonic() when the job began
    limited: bool  # whether length and silence have limits here

    def listen(self, listener: CallEvents) -> None:
        """Report to `listener` from now on; called before anything connects."""
        ...

    def room(self) -> AbstractAsyncContextManager[None]:
        """Connect on entering, leave on exit."""
        ...

    async def wait_for_caller(self) -> Caller: ...

    async def start(self, session: AgentSession[None], agent: Agent, caller: Caller) -> None:
        """Start the session with the caller linked; what they said before is not lost."""
        ...

    async def early_words(self) -> list[str]:
        """What the caller wrote before the session listened, to be answered after the greeting."""
        ...

    async def take_along(self, caller: Caller | None) -> None:
        """End the room, unless somebody other than the caller is in it."""
        ...

    def finish(self, reason: str) -> None:
        """Tell the job that it is over."""
        ...

    def guard_exit(self, seconds: float) -> None:
        """The job is done: should its process still live after `seconds`, end it."""
        ...


class RoomTransport:
    """The line of a LiveKit job: a room."""

    limited = True

    def __init__(self, ctx: JobContext) -> None:
        from agent.transport.preconnect import PreConnectBuffer

        self._ctx, self._room = ctx, ctx.room
        self.call_id, self.room_name = ctx.job.id, ctx.job.room.name
        self.began = time.monotonic()
        self._caller: Caller | None = None
        self._typed: list[str] = []  # while the session was being started
        self._early: PreConnectBuffer | None = (
            None if ctx.is_fake_job() else PreConnectBuffer(ctx.room)
        )

    def listen(self, listener: CallEvents) -> None:
        from livekit import rtc

        self._listener = listener
        on_purpose = {
            rtc.DisconnectReason.CLIENT_INITIATED,
            rtc.DisconnectReason.USER_REJECTED,
            rtc.DisconnectReason.USER_UNAVAILABLE,
            rtc.DisconnectReason.PARTICIPANT_REMOVED,
        }

        def left(participant: rtc.RemoteParticipant) -> None:
            reason = participant.disconnect_reason
            if (
                self._caller is None
            ):  # a phone that did not wait to be answered; a browser may only be reloading
                if (
                    participant.kind == rtc.ParticipantKind.PARTICIPANT_KIND_SIP
                    and not self._people()
                ):
                    listener.caller_gone(on_purpose=True)
                return
            if participant.identity != self._caller.identity:
                return
            if reason in ended:
                listener.room_gone(removed=False)
            elif reason != rtc.DisconnectReason.DUPLICATE_IDENTITY:  # the same caller, joined anew
                listener.caller_gone(on_purpose=reason in on_purpose)

        def joined(participant: rtc.RemoteParticipant) -> None:
            if self._caller is not None and participant.identity == self._caller.identity:
                listener.caller_back()

        def gone(reason: Any = None) -> None:
            listener.room_gone(
                removed=reason not in ended
            )  # a connection of ours that broke, too: the room lives on

        ended = {rtc.DisconnectReason.ROOM_DELETED, rtc.DisconnectReason.ROOM_CLOSED}

        # Heard before the SDK's own handlers, which are registered later: the cause comes before its consequences.
        self._room.on("participant_disconnected", left)
        self._room.on("participant_connected", joined)
        self._room.on("disconnected", gone)

        end_job = self._ctx.shutdown

        def shut_down(
            reason: str = "",
        ) -> None:  # owners' code; the SDK tells it from a stopping worker, but too late
            listener.shut_down()
            end_job(reason)

        self._ctx.shutdown = shut_down  # type: ignore[method-assign]

        async def job_is_ending() -> None:  # the SDK's last word to a job, after its uploads
            await listener.job_ending()

        self._ctx.add_shutdown_callback(job_is_ending)

    @asynccontextmanager
    async def room(self) -> AsyncIterator[None]:
        try:
            await self._ctx.connect()
            yield
        finally:
            try:
                if self._early is not None:
                    await self._early.close()
            finally:
                await self._room.disconnect()

    async def wait_for_caller(self) -> Caller:
        from livekit import rtc

        participant = await self._ctx.wait_for_participant()
        kinds = {
            rtc.ParticipantKind.PARTICIPANT_KIND_SIP: "sip",
            rtc.ParticipantKind.PARTICIPANT_KIND_CONNECTOR: "connector",
        }
        self._caller = Caller(
            identity=participant.identity,
            name=participant.name,
            kind=kinds.get(participant.kind, "standard"),
            attributes={} if self._ctx.is_fake_job() else dict(participant.attributes),
        )
        if (
            not self._ctx.is_fake_job()
            and participant.identity not in self._room.remote_participants
        ):
            self._listener.caller_gone(on_purpose=True)  # left before `left` knew whom to look for
        return self._caller

    def _people(self) -> list[rtc.RemoteParticipant]:
        """Everybody in the room who could be a caller."""
        from livekit.agents.job import DEFAULT_PARTICIPANT_KINDS

        return [
            p
            for p in self._room.remote_participants.values()
            if p.kind in DEFAULT_PARTICIPANT_KINDS
        ]

    async def start(self, session: AgentSession[None], agent: Agent, caller: Caller) -> None:
        from livekit.agents import room_io

        from agent.transport.preconnect import AUDIO

        if self._early is None:
            await session.start(agent)
            return
        listener, text_input = self._listener, room_io.TextInputOptions()
        answer = text_input.text_input_cb

        started = False

        def read(session: AgentSession[Any], event: room_io.TextInputEvent) -> Any:
            if not started:  # the session refuses it until it has been started
                self._typed.append(event.text)
                return None
            return (
                answer(session, event) if listener.reason is None else None
            )  # no answer after the goodbye

        text_input.text_input_cb = read
        options = room_io.RoomOptions(
            participant_identity=caller.identity,
            audio_input=AUDIO,
            text_input=text_input,
            close_on_disconnect=False,  # the door closes the session; the window for coming back is ours
        )
        with self._early.handed_over(session, caller.identity):
            await session.start(agent, room=self._room, room_options=options)
            started = True
        await self._early.settled(caller.identity)

    async def early_words(self) -> list[str]:
        if self._early is None or self._caller is None:
            return []
        return await self._early.texts(self._caller.identity) + self._typed

    async def take_along(self, caller: Caller | None) -> None:

        if not self._ctx.is_fake_job():
            await end_room(self.room_name, caller.identity if caller else None)

    def finish(self, reason: str) -> None:
        self._ctx.shutdown(reason)

    def guard_exit(self, seconds: float) -> None:
        """Nothing of the SDK's kills a job that is stuck in its exit, such as in a thread that never ends."""
        from livekit.agents import JobExecutorType

        if self._ctx.proc.executor_type is not JobExecutorType.PROCESS:
            return

        def end_process() -> None:
            log.error(
                "the process did not exit within %g s of its call's end: ended by force", seconds
            )
            time.sleep(0.2)  # the record's way to the worker
            os._exit(1)

        timer = threading.Timer(seconds, end_process)
        timer.daemon = True
        timer.start()


async def end_room(room: str, caller: str | None) -> None:
    """Delete the room, unless somebody besides the caller is in it; without a caller, besides whoever is alone there.

    Asks the server over a connection of its own: in a dying job the SDK's is closed already. Raises api.TwirpError.
    """
    from livekit import api
    from livekit.protocol import models

    people = {
        models.ParticipantInfo.STANDARD,
        models.ParticipantInfo.SIP,
        models.ParticipantInfo.CONNECTOR,
    }
    async with api.LiveKitAPI() as server:
        try:
            present = await server.room.list_participants(api.ListParticipantsRequest(room=room))
            here = [person.identity for person in present.participants if person.kind in people]
            if caller in here:
                here.remove(caller)
            elif caller is None:
                here = here[1:]
            if not here:
                await server.room.delete_room(api.DeleteRoomRequest(room=room))
        except api.TwirpError as error:
            if error.code != api.TwirpErrorCode.NOT_FOUND:  # already gone is as good as ended
                raise


class TerminalTransport:
    """The line of a conversation typed at a terminal, or in a test: no server, no audio."""

    def __init__(self, caller: Caller, *, limited: bool = False) -> None:
        self.call_id, self.room_name = f"chat-{os.getpid()}-{time.time_ns()}", "terminal"
        self.began, self.limited = time.monotonic(), limited
        self.ended = asyncio.Event()
        self._caller = caller

    def listen(self, listener: CallEvents) -> None:
        self._listener = listener

    @asynccontextmanager
    async def room(self) -> AsyncIterator[None]:
        yield

    async def wait_for_caller(self) -> Caller:
        return self._caller

    async def start(self, session: AgentSession[None], agent: Agent, caller: Caller) -> None:
        await session.start(agent)

    async def early_words(self) -> list[str]:
        return []

    async def take_along(self, caller: Caller | None) -> None:
        return

    def hang_up(self) -> None:
        """The person at the terminal has left."""
        self._listener.caller_gone(on_purpose=True)

    def finish(self, reason: str) -> None:
        self.ended.set()

    def guard_exit(self, seconds: float) -> None:
        return
