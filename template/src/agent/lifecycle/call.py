"""One owner for one call: its steps, what it holds, and why it ended.

Everything that opens is a resource of the call (resource.py); everything that ends the call goes
through `Call.end`, and then everything is closed once, within one budget (closing.py).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

from agent import is_own_cancellation, one_line
from agent.lifecycle import timeouts
from agent.lifecycle.closing import ClosingSequence, warn_of_cut_tasks
from agent.lifecycle.journal import CallJournal, CallOver
from agent.lifecycle.resource import (
    BackgroundTasks,
    ManagedResource,
    ResourceStack,
    RunningTools,
)
from agent.lifecycle.timeouts import Step
from agent.memory import Profile, Turn
from agent.reasons import NOBODY_LISTENS, Reason
from agent.settings import Settings
from agent.transport import Caller, Transport, can_publish

if TYPE_CHECKING:
    from livekit import rtc
    from livekit.agents import AgentSession
    from livekit.api import LiveKitAPI

    from agent.knowledge import CallKnowledge
    from agent.memory import CallMemory

    # the owner's file, which may be missing
    from agent.resources import open_resources  # type: ignore[import, unused-ignore]

    def opened_by(open_: Callable[[Call], Awaitable[T]]) -> T:
        """The type of what a function opens."""


log = logging.getLogger("agent.call")
T = TypeVar("T")


class Call:
    """One call, from the job until it is closed.

    Owners use `caller`, `profile`, `metadata`, `room`, `api`, `settings`, `resources`, `memory`,
    `knowledge`, `open`, `spawn` and `hang_up`; docs/agent/ownership.md promises these names.
    """

    if TYPE_CHECKING:
        # what resources.py opened, of the type that its open_resources returns
        resources = opened_by(open_resources)
    else:
        resources = None

    def __init__(self, transport: Transport, settings: Settings) -> None:
        self.transport, self.settings = transport, settings
        self.journal = CallJournal(transport.call_id, transport.room_name, transport.began)
        self.caller: Caller | None = None
        self.profile: Profile | None = None  # what is known of the caller; None for a stranger
        self.reason: str | None = None  # why it ended; None while it goes on
        self.turns = 0  # finished turns of either side
        self.memory: CallMemory | None = None
        self.knowledge: CallKnowledge | None = None
        self.session: AgentSession[None] | None = None
        self.persona: Any = None  # the first agent of the call; others may take over
        self.opened = ResourceStack(self)
        self.session_resource: ManagedResource[AgentSession[None]] | None = None
        self.background = BackgroundTasks(self.journal)
        self.tools = RunningTools()
        self.connecting: set[asyncio.Task[None]] = set()  # tool sets
        self.current_step = Step.OPEN_INFRASTRUCTURE
        self.steps: asyncio.Task[None] | None = None
        self._rejoin_timer: asyncio.TimerHandle | None = None
        self._length_timer: asyncio.TimerHandle | None = None
        self._ended, self._greeted = asyncio.Event(), asyncio.Event()
        self._asking = asyncio.Event()  # while an AgentTask waits for the caller
        self._step_deadline: asyncio.Timeout | None = None
        self._typing = asyncio.Lock()  # those who wait for it get it in their order
        self._sequence = ClosingSequence(self)
        self._closing: asyncio.Task[None] | None = None
        self._exit_guarded = False

    @property
    def closed(self) -> list[tuple[str, str]]:
        """Resource and outcome of everything that has been closed, in that order."""
        return self.opened.closed

    # what LiveKit gives a call; the same in a worker, in `agent chat` and in tests

    @property
    def metadata(self) -> str:
        """What the call is about: the text that its dispatch came with, or none."""
        return self.transport.metadata

    @property
    def room(self) -> rtc.Room | None:
        """The room, connected from step 2 on; None in `agent chat`, and in tests that give none."""
        return self.transport.livekit_room

    @property
    def api(self) -> LiveKitAPI | None:
        """The server's API, with the agent's keys; None where there is no `room`."""
        return self.transport.livekit_api

    # the steps

    async def start(self, steps: Callable[[Call], Awaitable[None]]) -> None:
        """Begin connecting and the steps; return when the room is connected or the call is over.

        The job's entrypoint has to return early: while it runs, the SDK holds back every end that
        did not start in the session by 15 s. So the room and the steps have tasks of their own.
        """
        self.journal.call_begins()
        self.transport.listen(self)
        seconds = Step.CONNECT.seconds or 0
        self._room = self.opened.add("room", self._connected(), seconds, timeouts.CLOSE_SECONDS)
        self.steps = asyncio.create_task(self._run(steps), name="call_steps")
        ended = asyncio.create_task(self._ended.wait(), name="call_ended")
        either: list[asyncio.Future[Any]] = [self._room.ready, ended]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not self._room.has_opened:
            await ended
        ended.cancel()

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[None]:
        async with self.transport.room():
            try:
                yield
            finally:
                # normally already done; needed when a killed worker closes nothing
                await self._sequence.end_room(time.monotonic() + timeouts.END_ROOM_SECONDS)

    async def _run(self, steps: Callable[[Call], Awaitable[None]]) -> None:
        try:
            await steps(self)
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and is_own_cancellation():
                raise  # the call is closing, or the whole process is ending
            # a lost room fails the steps before its own event arrives
            await self._wait_for_room_event()
            self.fail(error)
        else:
            self.end(Reason.AGENT_HUNG_UP)

    @asynccontextmanager
    async def step(self, step: Step) -> AsyncIterator[None]:
        """One of the eight steps, within its deadline; one record and one span when it is done."""
        self.current_step = step
        if step is Step.STAY:
            self._greeted.set()
        with self.journal.step(step):
            try:
                async with asyncio.timeout(step.seconds) as deadline:
                    self._step_deadline = deadline
                    try:
                        yield
                    finally:
                        self._step_deadline = None
            except TimeoutError as error:
                if deadline.expired():
                    raise TimeoutError(f"no answer within {step.seconds:g} s") from error
                raise

    def heard(self, *, speaking: bool, asking: bool, has_asked: bool) -> None:
        """Whether somebody speaks now, and whether an AgentTask asks the caller something.

        The greeting's deadline counts silence: not while somebody speaks, and not while the
        caller thinks about an answer, which is what the limits of a call are for.
        """
        if has_asked and not speaking:
            self._asking.set()
        elif not asking:
            self._asking.clear()
        deadline = self._step_deadline
        if self.current_step is Step.GREET and deadline is not None and not deadline.expired():
            now = asyncio.get_running_loop().time()
            deadline.reschedule(None if speaking or asking else now + (Step.GREET.seconds or 0))

    async def wait_connected(self) -> None:
        """Wait until the room is connected; it has been connecting since the call began."""
        await asyncio.shield(self._room.ready)

    async def wait_for_caller(self, is_caller: Callable[[Caller], bool] = can_publish) -> Caller:
        """The caller; an empty room waits `caller_wait_seconds`, then the call is a no-show."""
        try:
            async with asyncio.timeout(self.settings.caller_wait_seconds) as deadline:
                self.caller = await self.transport.wait_for_caller(is_caller)
        except TimeoutError:
            if not deadline.expired():
                raise
            self.end(Reason.NO_SHOW)
            raise CallOver(Reason.NO_SHOW) from None
        if self.transport.limited:
            self._length_timer = self._end_in(self.settings.max_call_seconds, Reason.TOO_LONG)
        return self.caller

    async def wait_greeted(self) -> bool:
        """Wait until the greeting has been said; False when the call ended before."""
        return await self.until(self._greeted)

    async def wait_for_turn(self) -> bool:
        """Wait until the caller has been greeted, or asked something before the greeting."""
        return await self.until(self._greeted, self._asking)

    async def until(self, *events: asyncio.Event) -> bool:
        """Wait for one of the events; False when the call ended before."""
        waits = [asyncio.create_task(event.wait()) for event in (*events, self._ended)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        return self.reason is None

    async def wait_for_tools(self) -> None:
        """Wait until every tool set has connected, or failed to; for tests and the terminal."""
        if self.connecting:
            await asyncio.wait(self.connecting)

    async def wait_ended(self) -> None:
        """Stay for the whole conversation: return when the call has ended, whatever the reason."""
        await self._ended.wait()

    async def wait_closed(self) -> None:
        """Wait until everything is closed; ends the call if nothing else did."""
        await self.on_job_stopped()
        if self._closing is not None:  # a dying process closes nothing here, see `die`
            await asyncio.shield(self._closing)

    # what a call holds

    async def open(
        self,
        name: str,
        manager: AbstractAsyncContextManager[T],
        *,
        open_seconds: float = timeouts.OPEN_SECONDS,
        close_seconds: float = timeouts.CLOSE_SECONDS,
    ) -> T:
        """Enter `manager` and hold it until the call is over; what it yields.

        It is closed for you, once, in reverse order of opening, in the task that entered it. It
        has `close_seconds` for that, or what is left of the AGENT_CLOSE_SECONDS (8 at most) that
        everything the call opened has together; then it is cancelled, with a warning.
        Raises OpenFailed when it fails or takes longer than `open_seconds`, CallOver when the call
        has ended.
        """
        if self.reason is not None:
            raise CallOver(f"{name} was not opened: the call is over ({self.reason})")
        most = self.settings.close_seconds
        if close_seconds > max(most, timeouts.CLOSE_SECONDS):
            sentence = (
                "%s asks for %g s to close, but everything together has AGENT_CLOSE_SECONDS=%g"
            )
            log.warning(sentence, name, close_seconds, most, extra=self.journal.fields())
        resource = self.opened.add(name, manager, open_seconds, close_seconds)
        return await asyncio.shield(resource.ready)

    async def open_session(self, manager: AbstractAsyncContextManager[AgentSession[None]]) -> None:
        """Open the session: the one resource that speaks while it closes, and is closed first."""
        if self.reason is not None:
            raise CallOver(f"the session was not started: the call is over ({self.reason})")
        deadlines = timeouts.SESSION_OPEN_SECONDS, timeouts.SESSION_CLOSE_SECONDS
        self.session_resource = self.opened.add("session", manager, *deadlines)
        await asyncio.shield(self.session_resource.ready)

    def spawn(self, work: Coroutine[Any, Any, T], *, name: str | None = None) -> asyncio.Task[T]:
        """Run `work` in the background of this call.

        When the call ends it is awaited within the close budget, then cancelled; an error it raises
        is logged. Raises CallOver when the call has ended.
        """
        if self.reason is not None:
            work.close()
            task = name or "a background task"
            raise CallOver(f"{task} was not started: the call is over ({self.reason})")
        return self.background.spawn(work, name)

    def add_turn(self, item: str, role: str, text: str) -> None:
        """Count a finished turn of either side, and have it remembered."""
        self.turns += 1
        if self.memory is not None:
            self.memory.add_turn(Turn(self.transport.call_id, item, role, text, at=time.time()))

    async def answer(self, text: str) -> None:
        """Answer a line that the caller has typed.

        It cuts nothing off and is not lost: it has its turn when the answers to the lines before
        it are said, and nobody speaks.
        """
        if (session := self.session) is None or self.reason is not None:
            return
        session.reset_away_timer()
        async with self._typing:
            try:
                await session.wait_for_idle()
            except Exception:
                if self.reason is None:
                    raise
            if self.reason is not None:  # nobody is answered after the goodbye
                return
            said = asyncio.ensure_future(session.generate_reply(user_input=text).wait_for_playout())
            # a tool of this answer may take long, or ask the caller something
            asked = asyncio.create_task(self._asking.wait())
            seconds = timeouts.TYPED_SECONDS
            await asyncio.wait([said, asked], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            for wait in (said, asked):
                wait.cancel()

    # the ends, at their sources

    def end(self, reason: str) -> None:
        """End the call. The first reason wins; a later one is a consequence, not the cause."""
        if self.reason is not None:
            return
        self.reason = reason
        self.journal.call_ends(reason)
        for timer in (self._rejoin_timer, self._length_timer):
            if timer is not None:
                timer.cancel()
        self._ended.set()
        self.tools.call_ended()
        for connecting in self.connecting:
            connecting.cancel()
        self._closing = asyncio.create_task(self._sequence.run(), name="call_close")
        self.transport.finish(reason)

    def _end_in(self, seconds: float, reason: str) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(seconds, self.end, reason)

    def fail(self, error: BaseException) -> None:
        """End the call because its step failed; after the end an error is only a consequence."""
        if self.reason is None:
            number, title = self.current_step.number, self.current_step.title
            sentence = f"step {number} ({title}) failed: {one_line(error)}"
            log.error("%s", sentence, exc_info=error, extra=self.journal.fields())
            self.end(Reason.error(number, title))

    async def hang_up(self) -> None:
        """Say goodbye and end the call for everybody in it; returns at once."""
        self.end(Reason.AGENT_HUNG_UP)

    def shut_down(self) -> None:
        """The owner's code, or a tool of the SDK's, ended the job: `ctx.shutdown()`."""
        self.end(Reason.AGENT_HUNG_UP)

    def caller_gone(self, *, on_purpose: bool) -> None:
        """The caller left the room; a broken connection has `rejoin_seconds`, a phone has none."""
        if self.reason is not None:
            return
        if on_purpose or self.caller is None or self.caller.kind == "sip":
            self.end(Reason.CALLER_LEFT)
        elif self._rejoin_timer is None:
            seconds = self.settings.rejoin_seconds
            self._rejoin_timer = self._end_in(seconds, Reason.CALLER_DROPPED)
            self.journal.record("the caller's connection broke", window_seconds=seconds)

    def caller_back(self) -> None:
        """The caller whose connection broke came back in time."""
        if self._rejoin_timer is not None and self.reason is None:
            self._rejoin_timer.cancel()
            self._rejoin_timer = None
            self.journal.record("the caller is back")

    def room_gone(self, *, removed: bool) -> None:
        """The agent is no longer in the room."""
        self.end(Reason.REMOVED if removed else Reason.ROOM_CLOSED)

    async def on_job_stopped(self) -> None:
        """The job is being ended from outside: the worker stops, or its drain deadline has passed.

        A server that deletes the room, or removes the agent, ends the job too, a moment before its
        event arrives in the room.
        """
        await self._wait_for_room_event()
        self.end(Reason.WORKER_STOPPED)

    async def _wait_for_room_event(self) -> None:
        """A moment in which the room may name the cause of what looks like another end."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeouts.ROOM_EVENT_SECONDS):
                await self._ended.wait()

    async def on_job_ending(self) -> None:
        """The SDK is done with the job, uploads included, and is about to leave the process."""
        await self.on_job_stopped()
        warn_of_cut_tasks(self)
        self._exit_guarded = True
        self.transport.guard_exit(timeouts.EXIT_SECONDS)

    @property
    def can_speak(self) -> bool:
        """Whether somebody is there to hear a last sentence."""
        there = self.caller is not None and self._rejoin_timer is None
        return there and self.reason not in NOBODY_LISTENS

    @property
    def goodbye_seconds(self) -> float:
        """How long a last sentence may take."""
        stopped = self.reason == Reason.WORKER_STOPPED
        return self.settings.stop_goodbye_seconds if stopped else self.settings.goodbye_seconds

    def is_dying(self) -> bool:
        """Whether the process is ending: the SDK has cancelled every task and runs no callback."""
        task = self._closing or self.steps
        return task is None or task.done() or task.cancelling() > 0

    def die(self) -> None:
        """In a dying process, do what closing would have done; each resource leaves by itself."""
        if self.reason is None:
            self.reason = Reason.WORKER_DIED
            self._ended.set()
            # for the trace: the log went to the worker
            self.journal.call_ended(self.reason, self.turns)
        if not self._exit_guarded:
            self._exit_guarded = True
            self.transport.guard_exit(timeouts.EXIT_SECONDS)
        self._sequence.write_record()
