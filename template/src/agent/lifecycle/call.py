"""One owner for one call: what is open, why the call ended, and the one door everything leaves through.

Whatever opens registers here and gets a keeper; whatever ends the call goes through `Call.end`; the door then closes
everything once, in reverse order, within one budget, and nothing that fails or hangs on its way stops the others.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from livekit.agents.telemetry import tracer
from opentelemetry import trace

from agent.lifecycle.usage import usage_of
from agent.memory import CallRecord
from agent.reasons import NOBODY_LISTENS, Reason
from agent.settings import Settings
from agent.transport.room import Caller, Transport

if TYPE_CHECKING:
    from collections.abc import Iterator

    from livekit.agents import AgentSession

    from agent.knowledge import CallKnowledge
    from agent.memory import CallMemory

log = logging.getLogger("agent.call")
T = TypeVar("T")

# The SDK's own deadlines (livekit-agents 1.8, ipc/job_proc_lazy_main.py and worker.py), known in this one place.
SDK_CONNECT_WARNING_SECONDS = 10.0  # "The room connection was not established within 10 seconds"
SDK_ENTRYPOINT_SECONDS = 15.0  # a running entrypoint is cancelled after this
SDK_ACLOSE_SECONDS = 60.0  # session.aclose()
SDK_SESSION_END_SECONDS = 300.0  # on_session_end
SDK_KILL_SECONDS = 10.0  # from ShuttingDown until the worker kills the job

# Ours, each below the SDK deadline it would run into.
STEP_SECONDS = {1: 8.0, 2: 8.5, 3: 5.0, 5: 15.0, 6: 20.0}  # 4 waits for the caller, 7 for the end
OPEN_SECONDS = 5.0  # one resource, unless it says otherwise
CLOSE_SECONDS = 2.0  # one resource, unless it says otherwise
ROOM_EVENT_SECONDS = 0.25  # how far the room's own word may come behind what it leads to
HANG_UP_SECONDS = 2.0  # deleting the room
UNWIND_SECONDS = 1.0  # steps that were cancelled
LAST_CHANCE_SECONDS = 0.1  # what a resource gets when the budget is spent
EXIT_SECONDS = (
    8.0  # from the SDK's last callback until the process has to be gone; below SDK_KILL_SECONDS
)
SESSION_SECONDS, SESSION_CLOSE_SECONDS = (
    14.0,
    3.0,
)  # to start; to close, the goodbye aside, which has its own time


class CallOver(Exception):
    """Something was asked of a call that has already ended."""


class OpenFailed(Exception):
    """A resource did not open: which, and why or after how long."""


class ManagedResource(Generic[T]):
    """Enters, holds and leaves one resource in one task of its own.

    The task that entered is the one that leaves (anyio insists on it), and a dying process, in which the SDK runs no
    callback at all, still unwinds it: there the keeper first waits for those that were opened after it.
    """

    def __init__(
        self,
        name: str,
        manager: AbstractAsyncContextManager[T],
        open_seconds: float,
        close_seconds: float,
        call: Call,
    ) -> None:
        self.name, self.open_seconds, self.close_seconds = name, open_seconds, close_seconds
        self._call = call
        self.outcome = (
            "opening"  # then "open", and in the end: ok, error, timeout, cut, or "never opened"
        )
        self.problem = ""  # what the resource raised
        self.younger: list[ManagedResource[Any]] = []
        loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[T] = loop.create_future()
        self.ready.add_done_callback(
            lambda done: done.cancelled() or done.exception()
        )  # asked for or not
        self._patience = loop.call_later(open_seconds, self._give_up)
        self._release = asyncio.Event()
        self.task = asyncio.create_task(self._keep(manager), name=f"keeper:{name}")

    def _give_up(self) -> None:
        """The deadline for opening: nobody waits any longer, whatever the manager makes of its cancellation."""
        if not self.ready.done():
            self.ready.set_exception(
                OpenFailed(f"{self.name} did not open within {self.open_seconds:g} s")
            )
            self._release.set()
            self.task.cancel()

    async def _keep(self, manager: AbstractAsyncContextManager[T]) -> None:
        try:
            async with manager as value:
                self.outcome = "open"
                if not self.ready.done():
                    self.ready.set_result(value)
                await self._hold()
            if self.outcome == "open":
                self.outcome = "ok"
        except (Exception, BaseExceptionGroup, asyncio.CancelledError) as error:
            if self.outcome == "opening":
                self.outcome = "never opened"
                if not self.ready.done():
                    self.ready.set_exception(
                        OpenFailed(f"{self.name} did not open: {describe(error)}")
                    )
            elif self.outcome == "open":
                cut = (
                    isinstance(error, asyncio.CancelledError) and self.task.cancelling()
                )  # else a library's future
                self.outcome = "cut" if cut else "error"
            self.problem = describe(error)
            if self.outcome == "error" and not self._release.is_set():
                sentence = "%s broke, and the call goes on without it: %s"
                log.warning(
                    sentence, self.name, self.problem, exc_info=error, extra=self._call.about()
                )
        finally:
            self._patience.cancel()
            if not self.ready.done():  # it failed after the door had given it up
                self.ready.set_exception(OpenFailed(f"{self.name} did not open: {self.problem}"))

    async def _hold(self) -> None:
        """Until it is time to leave: the door says so, the process ends, or the resource itself breaks."""
        if self._release.is_set():
            return
        if not (
            self.task.cancelling() and self._call.dying()
        ):  # else it has opened although it was cancelled
            try:
                await self._release.wait()
                return
            except asyncio.CancelledError:
                if (
                    not self._call.dying()
                ):  # anyio tells the task that holds a task group of a failure by cancelling it
                    self.outcome = "error"
                    raise
        self.outcome = "cut"
        for keeper in self.younger:
            keeper._release.set()  # one that was opened since then has not been cancelled
        if rest := [keeper.task for keeper in self.younger if not keeper.task.done()]:
            await asyncio.wait(
                rest, timeout=CLOSE_SECONDS + LAST_CHANCE_SECONDS * len(rest)
            )  # each has its turn

    async def leave(self, within: float) -> float:
        """Let go of the resource and wait at most `within` seconds; how many seconds it took."""
        began = time.monotonic()
        self._release.set()
        if self.outcome == "opening":
            self.task.cancel()
        done, _ = await asyncio.wait([self.task], timeout=max(within, LAST_CHANCE_SECONDS))
        if not done:
            self.outcome = "timeout"
            self.task.cancel()
        return time.monotonic() - began


class Call:
    """One call, from the job to the closed door. Users meet `open`, `spawn`, `hang_up` and what is public below."""

    def __init__(self, line: Transport, settings: Settings) -> None:
        self.line, self.settings = line, settings
        self.caller: Caller | None = None
        self.reason: str | None = None  # why it ended; None while it goes on
        self.turns = 0  # finished turns of either side
        self.resources: Any = None  # what resources.py opened
        self.knowledge: CallKnowledge | None = None
        self._degraded: set[str] = set()  # parts that this call has been warned of
        self.memory: CallMemory | None = None
        self.session: AgentSession[None] | None = None
        self.closed: list[
            tuple[str, str]
        ] = []  # resource and outcome, in the order they were closed
        self.began_at = time.time()
        self._step = (1, "open infrastructure")
        self._keepers: list[ManagedResource[Any]] = []
        self._talk: ManagedResource[Any] | None = None  # the session's
        self._tasks: set[asyncio.Task[Any]] = set()
        self._tools: set[asyncio.Timeout] = set()
        self._window: asyncio.TimerHandle | None = None
        self._limit: asyncio.TimerHandle | None = None
        self._recorded, self._taken_along, self._guarded = False, False, False
        self._span: trace.Span = trace.INVALID_SPAN
        self._over, self._talking = asyncio.Event(), asyncio.Event()
        self._steps: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None

    # ------------------------------------------------------------------ the beginning

    async def begin(self, steps: Callable[[Call], Awaitable[None]]) -> None:
        """Start connecting and the steps, each in its own task; return once the room is connected, or the call over.

        The job's entrypoint has to return early: while it runs, the SDK holds every end of the call back for 15 s.
        """
        self._span = tracer.start_span(
            "call", attributes={"call": self.line.call_id, "room": self.line.room_name}
        )
        self.line.listen(self)
        room = self._register("room", self._room(), STEP_SECONDS[2], CLOSE_SECONDS)
        self._steps = asyncio.create_task(self._walk(steps), name="call_steps")
        over = asyncio.create_task(self._over.wait(), name="call_over")
        either: list[asyncio.Future[Any]] = [room.ready, over]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not room.ready.done() or room.ready.cancelled() or room.ready.exception():
            await over
        over.cancel()

    @asynccontextmanager
    async def _room(self) -> AsyncIterator[None]:
        async with self.line.room():
            try:
                yield
            finally:  # the door has done it; here it is for a dying worker, which runs no door
                await self._take_along(time.monotonic() + HANG_UP_SECONDS)

    async def _walk(self, steps: Callable[[Call], Awaitable[None]]) -> None:
        try:
            await steps(self)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():  # the door, or the whole process is ending
                raise
            await self._hear_the_room()
            self.fail(error)  # a library's cancelled future would otherwise end the call in silence
        except Exception as error:
            await self._hear_the_room()
            self.fail(error)
        else:
            self.end(Reason.AGENT_HUNG_UP)

    @asynccontextmanager
    async def step(self, number: int, name: str) -> AsyncIterator[None]:
        """One of the eight steps: named, within its deadline, and one record in the log when it is done."""
        self._step, outcome = (number, name), "ok"
        span = self._start_span(f"step {number}: {name}", step=number)
        if number == 7:
            self._talking.set()
        try:
            async with asyncio.timeout(STEP_SECONDS.get(number)) as deadline:
                yield
        except TimeoutError as error:
            outcome = "error"
            if deadline.expired():
                raise TimeoutError(f"no answer within {STEP_SECONDS[number]:g} s") from error
            raise
        except asyncio.CancelledError:
            outcome = "cut"
            raise
        except CallOver:
            outcome = "over"
            raise
        except Exception:
            outcome = "error"
            raise
        finally:
            span.set_attribute("outcome", outcome)
            span.end()
            self._log_step(number, name, outcome)

    def _log_step(self, number: int, name: str, outcome: str) -> None:
        self._record(
            f"step {number}: {name}", step=number, name=name, outcome=outcome, ms=self._age_ms()
        )

    async def open(
        self,
        name: str,
        manager: AbstractAsyncContextManager[T],
        *,
        open_seconds: float = OPEN_SECONDS,
        close_seconds: float = CLOSE_SECONDS,
    ) -> T:
        """Enter `manager` and keep it until the call is over; what it yields.

        It is closed for you, once, in reverse order of opening, in the task that entered it.
        Raises OpenFailed when it fails or takes longer than `open_seconds`, CallOver when the call has ended.
        """
        if self.reason is not None:
            raise CallOver(f"{name} was not opened: the call is over ({self.reason})")
        return await asyncio.shield(
            self._register(name, manager, open_seconds, close_seconds).ready
        )

    def _register(
        self,
        name: str,
        manager: AbstractAsyncContextManager[T],
        open_seconds: float,
        close_seconds: float,
    ) -> ManagedResource[T]:
        keeper = ManagedResource(name, manager, open_seconds, close_seconds, self)
        for older in self._keepers:
            older.younger.append(keeper)
        self._keepers.append(keeper)
        return keeper

    async def converse(self, talk: AbstractAsyncContextManager[T]) -> T:
        """Open the session, the one resource that speaks while it closes, and after which the caller is taken along."""
        if self.reason is not None:
            raise CallOver(f"the session was not started: the call is over ({self.reason})")
        self._talk = keeper = self._register(
            "session", talk, SESSION_SECONDS, SESSION_CLOSE_SECONDS
        )
        return await asyncio.shield(keeper.ready)

    async def connected(self) -> None:
        """Wait until the room is connected; it has been connecting since the call began."""
        await asyncio.shield(self._keepers[0].ready)

    async def wait_for_caller(self) -> Caller:
        """The caller, whom an empty room waits for `caller_wait_seconds`; a no-show ends the call."""
        try:
            async with asyncio.timeout(self.settings.caller_wait_seconds) as deadline:
                self.caller = await self.line.wait_for_caller()
        except TimeoutError:
            if not deadline.expired():
                raise
            self.end(Reason.NO_SHOW)
            raise CallOver(Reason.NO_SHOW) from None
        if self.line.limited:
            loop = asyncio.get_running_loop()
            self._limit = loop.call_later(self.settings.max_call_seconds, self.end, Reason.TOO_LONG)
        return self.caller

    async def talking(self) -> bool:
        """Wait until the greeting has been said; False when the call ended before."""
        waits = [asyncio.create_task(event.wait()) for event in (self._talking, self._over)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        return self.reason is None

    async def over(self) -> None:
        """Stay for the whole conversation: return when the call has ended, for whatever reason."""
        await self._over.wait()

    def spawn(self, work: Coroutine[Any, Any, T], *, name: str | None = None) -> asyncio.Task[T]:
        """Run `work` in the background of this call.

        When the call ends it is awaited within the close budget, then cancelled; an error it raises is logged.
        """
        if self.reason is not None:
            work.close()
            raise CallOver(
                f"{name or 'a background task'} was not started: the call is over ({self.reason})"
            )
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)
        return task

    def _task_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error(
                "background task %s: %s",
                task.get_name(),
                describe(error),
                exc_info=error,
                extra=self.about(),
            )

    @contextmanager
    def tool_scope(self, deadline: asyncio.Timeout) -> Iterator[None]:
        """While inside, the end of the call ends `deadline` at once: the SDK itself cancels no tool."""
        if self.reason is not None:
            deadline.reschedule(0)
        self._tools.add(deadline)
        try:
            yield
        finally:
            self._tools.discard(deadline)

    # ------------------------------------------------------------------ the ends, heard at their sources

    def end(self, reason: str) -> None:
        """End the call. The first reason wins; a later one is a consequence, not the cause."""
        if self.reason is not None:
            return
        self.reason = reason
        self._record(f"ending: {reason}", ending=reason, ms=self._age_ms())
        self._span.add_event("ending", {"reason": reason})
        for timer in (self._window, self._limit):
            if timer is not None:
                timer.cancel()
        self._over.set()
        now = asyncio.get_running_loop().time()
        for deadline in self._tools:
            if not deadline.expired():
                deadline.reschedule(now)
        self._closing = asyncio.create_task(self._close(), name="call_close")
        self.line.finish(reason)

    def fail(self, error: BaseException) -> None:
        """End the call because the step it is in failed; after the end an error is only a consequence."""
        if self.reason is None:
            number, name = self._step
            log.error(
                "step %d (%s) failed: %s",
                number,
                name,
                describe(error),
                exc_info=error,
                extra=self.about(),
            )
            self.end(Reason.error(number, name))

    async def hang_up(self) -> None:
        """Say goodbye and end the call for everybody in it; returns at once, the door does the rest."""
        self.end(Reason.AGENT_HUNG_UP)

    def shut_down(self) -> None:
        """The owner's code, or a tool of the SDK's, ended the job: `ctx.shutdown()`."""
        self.end(Reason.AGENT_HUNG_UP)

    def caller_gone(self, *, on_purpose: bool) -> None:
        """The caller left the room. One whose connection broke has `rejoin_seconds` to come back, a phone has none."""
        if self.reason is not None:
            return
        if on_purpose or self.caller is None or self.caller.kind == "sip":
            self.end(Reason.CALLER_LEFT)
        elif self._window is None:
            loop = asyncio.get_running_loop()
            self._window = loop.call_later(
                self.settings.rejoin_seconds, self.end, Reason.CALLER_DROPPED
            )
            log.info(
                "the caller's connection broke",
                extra=self.about(window_seconds=self.settings.rejoin_seconds),
            )

    def caller_back(self) -> None:
        """The caller whose connection broke came back in time."""
        if self._window is not None and self.reason is None:
            self._window.cancel()
            self._window = None
            log.info("the caller is back", extra=self.about())

    def room_gone(self, *, removed: bool) -> None:
        """The agent is no longer in the room."""
        self.end(Reason.REMOVED if removed else Reason.ROOM_CLOSED)

    async def stopped(self) -> None:
        """The job is being ended from outside: the worker stops, or its drain deadline has passed.

        A server that deletes the room, or removes the agent, ends the job too, a moment before it says so in the room.
        """
        await self._hear_the_room()
        self.end(Reason.WORKER_STOPPED)

    async def _hear_the_room(self) -> None:
        """Before anything else is taken for the cause: what a lost room leads to may come before its own word."""
        if self.reason is None:
            with suppress(TimeoutError):
                async with asyncio.timeout(ROOM_EVENT_SECONDS):
                    await self._over.wait()

    async def job_ending(self) -> None:
        """The SDK has done with the job, its uploads included, and is about to leave the process."""
        await self.stopped()
        self._guarded = True
        self.line.guard_exit(EXIT_SECONDS)

    # ------------------------------------------------------------------ the door

    async def finished(self) -> None:
        """Wait until the door has closed behind the call; ends the call if nothing else did."""
        await self.stopped()
        if self._closing is not None:  # a dying process has no door, and is not waited for
            await asyncio.shield(self._closing)

    async def _close(self) -> None:
        try:
            await self._leave_all()
        except Exception as error:
            log.error("the door: %s", describe(error), exc_info=error, extra=self.about())

    async def _leave_all(self) -> None:
        """Steps and tools stop, the session says goodbye, the caller is taken along, then the rest in reverse order."""
        door = self._start_span("step 8: clean up and exit", step=8)
        if self._steps is not None and self._steps is not asyncio.current_task():
            if self._step[0] != 7:
                self._steps.cancel()
            await asyncio.wait([self._steps], timeout=UNWIND_SECONDS)
        goodbye = self.goodbye_seconds if self.can_speak else 0
        until = time.monotonic() + self.settings.close_seconds + goodbye
        settling = asyncio.create_task(self._settle_tasks(until), name="call_settle")
        if self._talk is None:
            await self._take_along(until)
        for keeper in reversed(self._keepers):
            if keeper is not self._talk:
                await settling
                self._write_record()
            allowed = keeper.close_seconds + (goodbye if keeper is self._talk else 0)
            began = time.time_ns()
            seconds = await keeper.leave(min(allowed, until - time.monotonic()))
            if keeper.outcome != "never opened":
                self._start_span(f"close {keeper.name}", door, began, outcome=keeper.outcome).end()
                self.closed.append((keeper.name, keeper.outcome))
                what = f"closed {keeper.name}"
                self._record(
                    what, resource=keeper.name, outcome=keeper.outcome, ms=round(seconds * 1000)
                )
            if keeper.outcome == "error":
                log.warning(
                    "%s failed to close: %s", keeper.name, keeper.problem, extra=self.about()
                )
            if keeper is self._talk:  # the goodbye has been said
                await self._take_along(until)
        door.end()
        self._log_step(8, "clean up and exit", "ok")
        self._end_record()

    def _end_record(self) -> None:
        """The last word on the call, in its log and its trace."""
        seconds = round(self._age_ms() / 1000, 3)
        self._record(
            f"call ended: {self.reason}", reason=self.reason, seconds=seconds, turns=self.turns
        )
        self._span.set_attributes(
            {"reason": self.reason or "", "seconds": seconds, "turns": self.turns}
        )
        self._span.end()

    def dying(self) -> bool:
        """Whether the whole process is ending, as when the worker was killed; if so, do what the door no longer can.

        There the SDK cancels every task at once and runs no callback, so each keeper unwinds by itself.
        """
        task = self._closing or self._steps
        if task is not None and not task.done() and not task.cancelling():
            return False
        if self.reason is None:
            self.reason = Reason.WORKER_DIED
            self._over.set()
            self._end_record()  # for the trace: the log went to the worker
        if not self._guarded:
            self._guarded = True
            self.line.guard_exit(EXIT_SECONDS)
        self._write_record()
        return True

    def _write_record(self) -> None:
        """Have memory keep the call, once: when its last sentence has been said, and before anything else is closed."""
        if self.memory is None or self._recorded:
            return
        self._recorded = True
        seconds = round(self._age_ms() / 1000, 3)
        record = CallRecord(
            call=self.line.call_id,
            room=self.line.room_name,
            reason=self.reason or "",
            seconds=seconds,
            turns=self.turns,
            at=self.began_at,
            usage=usage_of(self.session),
        )
        self.memory.add_call(record)

    async def _take_along(self, until: float) -> None:
        """An end the caller did not cause ends the room too: an agent that merely leaves strands a phone in silence."""
        if self._taken_along or self.reason in {Reason.CALLER_LEFT, Reason.ROOM_CLOSED}:
            return
        try:
            async with asyncio.timeout(
                max(min(HANG_UP_SECONDS, until - time.monotonic()), LAST_CHANCE_SECONDS)
            ):
                await self.line.take_along(self.caller)
        except (Exception, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise  # the whole process is ending, and the room's keeper is next to try; else a library's own future
            log.warning("the caller could not be hung up: %s", describe(error), extra=self.about())
        self._taken_along = True

    async def _settle_tasks(self, until: float) -> None:
        """Background tasks may finish while what they use is still open; those that do not are cancelled."""
        if tasks := list(self._tasks):
            patience = min(CLOSE_SECONDS, until - time.monotonic())
            _, late = await asyncio.wait(tasks, timeout=max(patience, LAST_CHANCE_SECONDS))
            for task in late:
                log.warning("background task %s was cancelled", task.get_name(), extra=self.about())
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=LAST_CHANCE_SECONDS)
            self._tasks -= late

    @property
    def can_speak(self) -> bool:
        """Whether somebody is there to hear a last sentence."""
        return (
            self.caller is not None and self._window is None and self.reason not in NOBODY_LISTENS
        )

    @property
    def goodbye_seconds(self) -> float:
        """How long a last sentence may take."""
        stopped = self.reason == Reason.WORKER_STOPPED
        return self.settings.stop_goodbye_seconds if stopped else self.settings.goodbye_seconds

    # ------------------------------------------------------------------ records

    def _age_ms(self) -> int:
        return round((time.monotonic() - self.line.began) * 1000)

    @property
    def journal(self) -> Call:
        """An `agent.telemetry.Journal`."""
        return self

    def fields(self, **fields: object) -> dict[str, Any]:
        """`extra=` of a record about this call."""
        return self.about(**fields)

    def about(self, **fields: object) -> dict[str, Any]:
        """`extra=` of a record about this call."""
        return {"fields": {**fields, "call": self.line.call_id, "room": self.line.room_name}}

    def took(self, name: str, began: int, **attributes: str | int) -> None:
        """Add to the call's trace what began at `began` (time.time_ns) and ends now."""
        self._start_span(name, None, began, **attributes).end()

    def warn_once(self, part: str, log: logging.Logger, sentence: str) -> None:
        """Tell, and count, that the call goes on without a part of it; what follows of that part is for debugging."""
        level = logging.DEBUG if part in self._degraded else logging.WARNING
        log.log(
            level,
            "%s",
            sentence,
            extra=self.about() if part in self._degraded else self.about(degraded=part),
        )
        self._degraded.add(part)

    def _start_span(
        self,
        name: str,
        within: trace.Span | None = None,
        began: int | None = None,
        **attributes: str | int,
    ) -> trace.Span:
        """A span in the SDK's own trace; never the current one, or each task that begins in it would hang on it."""
        context = trace.set_span_in_context(within or self._span)
        return tracer.start_span(name, context=context, start_time=began, attributes=attributes)

    def _record(self, message: str, **fields: object) -> None:
        log.info(message, extra=self.about(**fields))


def describe(error: BaseException) -> str:
    """An error as one line, its kind first: `ValueError: no such voice`."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
