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
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from agent import is_own_cancellation, one_line
from agent.lifecycle import timeouts
from agent.lifecycle.closing import ClosingSequence, warn_of_cut_tasks, warn_of_long_close
from agent.lifecycle.journal import CallJournal, CallOver, usage_of
from agent.lifecycle.resource import (
    BackgroundTasks,
    ManagedResource,
    ResourceStack,
    RunningTools,
)
from agent.lifecycle.steps import Steps
from agent.lifecycle.timeouts import Step
from agent.lifecycle.typed_lines import TypedLines
from agent.memory import Profile, Turn
from agent.memory.identity import key_of
from agent.reasons import NOBODY_LISTENS, Reason
from agent.reports import Cost, Report
from agent.reports.cost import cost_of, load_prices
from agent.reports.privacy import as_kept
from agent.settings import Settings, SettingsError
from agent.telemetry import without_number
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

    Owners use `caller`, `called`, `profile`, `metadata`, `room`, `api`, `settings`, `resources`,
    `memory`, `knowledge`, `open`, `spawn` and `hang_up`; docs/agent/ownership.md promises these
    names.
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
        self.called: str | None = None  # the number, of a call that the agent makes
        self.ringing = False  # while a phone is called that has not answered yet
        self.remembered_as: str | None = None  # the caller's key; None for a stranger
        self.profile: Profile | None = None  # what is known of the caller; None for a stranger
        self.reason: str | None = None  # why it ended; None while it goes on
        self.recording: str | None = None  # the file, once it is recorded
        self.turns = 0  # finished turns of either side
        self.memory: CallMemory | None = None
        self.knowledge: CallKnowledge | None = None
        self.session: AgentSession[None] | None = None
        # when the caller was there, until they hear the first word
        self._came: float | None = None
        self.persona: Any = None  # the first agent of the call; others may take over
        self.configs: dict[Any, Any] = {}  # what `per_call` has read
        # how to ask each open resource whether it works
        self.pings: dict[str, Callable[[], Awaitable[object]] | None] = {}
        self._sequence = ClosingSequence(self)
        self.opened = ResourceStack(self._sequence)
        self.session_resource: ManagedResource[AgentSession[None]] | None = None
        self.background = BackgroundTasks(self.journal)
        self.tools = RunningTools()
        self.steps, self.typed = Steps(self.journal), TypedLines(self)
        self.running_steps: asyncio.Task[None] | None = None
        self._rejoin_timer: asyncio.TimerHandle | None = None
        self._length_timer: asyncio.TimerHandle | None = None
        self._ended = asyncio.Event()

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
        self._sequence.note()
        self.transport.listen(self)
        seconds = Step.CONNECT.seconds or 0
        self._room = self.opened.add("room", self._connected(), seconds, timeouts.CLOSE_SECONDS)
        self.running_steps = asyncio.create_task(self._run(steps), name="call_steps")
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
            await self.wait_for_room_event()
            self.fail(error)
        else:
            self.end(Reason.AGENT_HUNG_UP)

    def step(self, step: Step) -> AbstractAsyncContextManager[None]:
        """One of the eight steps, within its deadline."""
        return self.steps.take(step)

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
        self._came = time.monotonic()
        if self.transport.limited:
            self._length_timer = self._end_in(self.settings.max_call_seconds, Reason.TOO_LONG)
        return self.caller

    def identify(self, key: str | None) -> None:
        """The caller is remembered under this key; None for a stranger."""
        self.remembered_as = key
        if self.memory is not None:
            self.memory.identify(key)
        self._sequence.note()

    def first_word(self) -> None:
        """The agent is heard; only the first time counts."""
        if self._came is not None:
            self.journal.first_word(time.monotonic() - self._came)
            self._came = None

    async def wait_greeted(self) -> bool:
        """Wait until the greeting has been said; False when the call ended before."""
        return await self.until(self.steps.greeted)

    async def wait_for_turn(self) -> bool:
        """Wait until the caller has been greeted, or asked something before the greeting."""
        return await self.until(self.steps.greeted, self.steps.asking)

    async def until(self, *events: asyncio.Event) -> bool:
        """Wait for one of the events; False when the call ended before."""
        waits = [asyncio.create_task(event.wait()) for event in (*events, self._ended)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        return self.reason is None

    async def wait_ended(self) -> None:
        """Stay for the whole conversation: return when the call has ended, whatever the reason."""
        await self._ended.wait()

    async def wait_closed(self) -> None:
        """Wait until everything is closed; ends the call if nothing else did."""
        await self.on_job_stopped()
        await self._sequence.wait()

    # what a call holds

    async def open(
        self,
        name: str,
        manager: AbstractAsyncContextManager[T],
        *,
        open_seconds: float = timeouts.OPEN_SECONDS,
        close_seconds: float = timeouts.CLOSE_SECONDS,
        ping: Callable[[T], Awaitable[object]] | None = None,
    ) -> T:
        """Enter `manager` and hold it until the call is over; what it yields.

        `ping` asks what was yielded whether it works, and raises if it does not. No call does so:
        it is for `/ready` of the worker, and for `agent doctor`.

        It is closed for you, once, in reverse order of opening, in the task that entered it. It
        has `close_seconds` for that, or what is left of the AGENT_CLOSE_SECONDS (8 at most) that
        everything the call opened has together; then it is cancelled, with a warning.
        Raises OpenFailed when it fails or takes longer than `open_seconds`, CallOver when the call
        has ended.
        """
        if self.reason is not None:
            raise CallOver(f"{name} was not opened: the call is over ({self.reason})")
        warn_of_long_close(self, name, close_seconds)
        resource = self.opened.add(name, manager, open_seconds, close_seconds)
        value = await asyncio.shield(resource.ready)
        self.pings[name] = None if ping is None else partial(ping, value)
        return value

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

    def add_turn(
        self, item: str, role: str, text: str, *, moment: float | None = None, **times: Any
    ) -> None:
        """Count a finished turn of either side, begun at `moment`, and have it remembered.

        `times` are those of a `Said` in the report.
        """
        now = time.time()
        self.turns += 1
        self.journal.draft.add_said(role, text, moment or now, **times)
        if self.memory is not None:
            self.memory.add_turn(Turn(self.transport.call_id, item, role, text, at=now))

    @property
    def caller_keys(self) -> set[str]:
        """All that the caller is known by, for those who have to find them again to forget."""
        if (caller := self.caller) is None:
            return set()
        number = key_of(caller.identity, caller.kind, caller.attributes, phones=True)
        return {key for key in (caller.identity, self.remembered_as, number) if key}

    def cost(self) -> Cost | None:
        """What the call has cost until now; None where the table of prices cannot be read."""
        try:
            prices = load_prices(self.settings.home)
        except SettingsError as error:
            self.journal.warn_once("prices", log, f"no cost is known: {one_line(error)}")
            return None
        usage = getattr(getattr(self.session, "usage", None), "model_usage", [])
        phone = self.caller is not None and self.caller.kind == "sip"
        seconds = self.journal.age_seconds if self.transport.limited else 0.0
        return cost_of(usage, {"room": seconds, "phone": seconds if phone else 0.0}, prices)

    def check_cost(self) -> None:
        """End the call if it has cost too much, as far as its cost is known."""
        most = self.settings.max_call_cost
        if not most or self.reason is not None or (cost := self.cost()) is None:
            return
        if cost.unpriced:
            missing = ", ".join(cost.unpriced)
            sentence = (
                f"AGENT_MAX_CALL_COST does not count what has no price in prices.toml: {missing}"
            )
            self.journal.warn_once("prices", log, sentence)
        if cost.total >= most:
            self.end(Reason.TOO_EXPENSIVE)

    def report(self) -> Report:
        """What has happened until now: the final report once everything is closed.

        It has no words, cards or numbers that the settings leave out of what is kept.
        """
        draft, caller = self.journal.draft, self.caller
        made = Report(
            call=self.transport.call_id,
            room=without_number(self.transport.room_name),
            agent=self.settings.name,
            began=draft.began,
            seconds=self.journal.age_seconds,
            reason=self.reason or "",
            caller=self.remembered_as,
            kind=caller.kind if caller is not None else "",
            said=list(draft.said),
            tools=list(draft.tools),
            lookups=list(draft.lookups),
            failures=list(draft.failures),
            steps=list(draft.steps),
            closes=list(draft.closes),
            usage=usage_of(self.session),
            cost=self.cost(),
            recording=self.recording,
        )
        return as_kept(made, self.settings)

    async def answer(self, text: str) -> None:
        """Answer a line that the caller has typed, in its turn."""
        await self.typed.answer(text)

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
        self._sequence.begin()
        self.transport.finish(reason)

    def died(self) -> None:
        """The process is ending, which is why the call does, unless it had ended already."""
        if self.reason is None:
            self.reason = Reason.WORKER_DIED
            self._ended.set()
            # for the trace: the log went to the worker
            self.journal.call_ended(self.reason, self.turns)

    def _end_in(self, seconds: float, reason: str) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(seconds, self.end, reason)

    def fail(self, error: BaseException) -> None:
        """End the call because its step failed; after the end an error is only a consequence."""
        if self.reason is None:
            step = self.steps.current
            sentence = f"step {step.number} ({step.title}) failed: {one_line(error)}"
            log.error("%s", sentence, exc_info=error, extra=self.journal.fields())
            self.journal.draft.add_failure(step.title, one_line(error), "the call ended")
            self.end(Reason.error(step.number, step.title))

    async def hang_up(self) -> None:
        """Say goodbye and end the call for everybody in it; returns at once."""
        self.end(Reason.AGENT_HUNG_UP)

    def shut_down(self) -> None:
        """The owner's code, or a tool of the SDK's, ended the job: `ctx.shutdown()`."""
        self.end(Reason.AGENT_HUNG_UP)

    def caller_gone(self, *, on_purpose: bool) -> None:
        """The caller left the room; a broken connection has `rejoin_seconds`, a phone has none.

        A phone that is still ringing has not hung up: whoever called it is told why it left.
        """
        if self.reason is not None or self.ringing:
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
        await self.wait_for_room_event()
        self.end(Reason.WORKER_STOPPED)

    async def wait_for_room_event(self) -> None:
        """A moment in which the room may name the cause of what looks like another end."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeouts.ROOM_EVENT_SECONDS):
                await self._ended.wait()

    async def on_job_ending(self) -> None:
        """The SDK is done with the job, uploads included, and is about to leave the process."""
        await self.on_job_stopped()
        warn_of_cut_tasks(self)
        self._sequence.guard_exit()

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
