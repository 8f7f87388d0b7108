"""A call in which everything may fail, as a script says, and the record of all that happened."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, ParamSpec

from agent.lifecycle import Call, Reason, Step, timeouts
from agent.lifecycle.journal import CallOver
from agent.lifecycle.resource import OpenFailed
from agent.settings import Settings
from tests.agent.lifecycle.clock import VirtualClock
from tests.agent.lifecycle.hand_transport import HandTransport

P = ParamSpec("P")

# times nearer to each other than this are the same
INSTANT = 1e-6
# seconds of the virtual clock, within which everything that can end has ended
PATIENCE = 60.0
# not a sum of a script's times, so that nobody comes back at the last instant
REJOIN_SECONDS = 0.73
CAUSES = (
    "leaves",
    "room closed",
    "removed",
    "hangs up",
    "fails",
    "stops",
    "finishes",
    "shuts down",
)
INTERRUPTIONS = ("drops", "is back", "blinks")


class Broken(Exception):
    """The error that a script raises."""


# ---------------------------------------------------------------------- scripts


@dataclass(frozen=True)
class Deed:
    """So many turns of the loop, so many seconds, and an end; stubborn ones ignore cancellation."""

    turns: int = 0
    seconds: float = 0.0
    then: Literal["done", "raises", "is cancelled", "hangs"] = "done"
    stubborn: bool = False


@dataclass(frozen=True)
class Part:
    """A resource: its opening and closing, and whether a step that opens it fails with it."""

    opening: Deed = Deed()
    closing: Deed = Deed()
    open_seconds: float = 5.0
    close_seconds: float = 2.0
    needed: bool = False


@dataclass(frozen=True)
class Open:
    """A task opens a resource."""

    part: Part


@dataclass(frozen=True)
class CancelOpener:
    """The task that opens a resource, or has opened it, is cancelled."""

    which: int


@dataclass(frozen=True)
class Spawn:
    """A background task; some wait for the end of the call before they begin."""

    deed: Deed
    at_the_end: bool = False


@dataclass(frozen=True)
class Tool:
    """A tool with a deadline."""

    deed: Deed
    seconds: float = 20.0


@dataclass(frozen=True)
class Happens:
    """An event that ends the call, if it has not ended."""

    what: str


@dataclass(frozen=True)
class Arrive:
    """The caller joins."""


@dataclass(frozen=True)
class CancelEntrypoint:
    """The SDK cancels an entrypoint that takes too long."""


@dataclass(frozen=True)
class Kill:
    """The worker was killed: the SDK cancels all tasks of the job, the newest or oldest first."""

    newest_first: bool = False


Act = Open | CancelOpener | Spawn | Tool | Happens | Arrive | CancelEntrypoint | Kill


@dataclass(frozen=True)
class Script:
    """A whole call: its parts, its steps and its events, each so many turns and seconds later."""

    room: Part = Part()
    # opened in the first step, one by one or all at once
    early: tuple[Part, ...] = ()
    at_once: bool = False
    session: Part | None = None
    # then the steps stay for the conversation
    greeting: Deed = Deed()
    # opened after the greeting
    late: Part | None = None
    # the steps do not stay
    returns: bool = False
    phone: bool = False
    end_room: Deed = Deed()
    close_seconds: float = 3.0
    acts: tuple[tuple[int, float, Act], ...] = ()
    # the caller is there from the beginning
    arrives: bool = False


# ---------------------------------------------------------------------- records


@dataclass
class Moment:
    """The time of an event, and its number in the order of events."""

    time: float
    number: int


@dataclass(eq=False)
class Resource:
    """One context manager, and everything that happened to it."""

    world: World = field(repr=False)
    name: str
    part: Part
    # when call.open was called during the call
    asked: Moment | None = None
    # whether it was called after the call
    refused: bool = False
    begun: Moment | None = None
    # when the opening ended, in whatever way
    opened: Moment | None = None
    # the same, if it was open then
    entered: Moment | None = None
    leaving: Moment | None = None
    left: Moment | None = None
    enters: int = 0
    leaves: int = 0
    # how the close ended
    close: str = ""
    # the task that enters
    task: asyncio.Task[Any] | None = None
    left_by: asyncio.Task[Any] | None = None
    opener: asyncio.Task[Any] | None = None
    # the opener's result
    told: str = ""
    # the outcome in call.closed, and since when it is there
    recorded: str | None = None
    told_of: Moment | None = None

    async def __aenter__(self) -> Any:
        self.begun, self.task = self.world.now(), asyncio.current_task()
        try:
            await self.world.do(self.part.opening)
        finally:
            self.opened = self.world.now()
        self.entered = self.opened
        self.enters += 1
        return self.name

    async def __aexit__(self, *exc: object) -> None:
        self.leaving, self.left_by = self.world.now(), asyncio.current_task()
        self.leaves += 1
        try:
            # as in CallSession.aclose, which is the sign of a stopping worker
            if self.name == "session":
                await self.world.stop(self.world.call.on_job_stopped)
            await self.world.do(self.part.closing)
            self.close = "ok"
        except Broken:
            self.close = "error"
            raise
        except asyncio.CancelledError:
            task = asyncio.current_task()
            self.close = "cut" if task is not None and task.cancelling() else "error"
            raise
        finally:
            self.left = self.world.now()

    @property
    def late(self) -> bool:
        """Whether it opened after its opener had stopped waiting."""
        if self.asked is None or self.entered is None:
            return False
        passed_over = self.told_of is not None and self.told_of.number < self.entered.number
        return (
            passed_over or self.entered.time >= self.asked.time + self.part.open_seconds - INSTANT
        )


@dataclass(eq=False)
class Work:
    """A background task or a tool."""

    deed: Deed
    task: asyncio.Task[Any] | None = None
    begun: Moment | None = None
    ended: Moment | None = None
    outcome: str = ""
    refused: bool = False


@dataclass(eq=False)
class Cause:
    """A cause of a call's end; one by a timer has no order among others of the same instant."""

    when: Moment
    reason: str
    by_timer: bool = False


@dataclass(eq=False)
class Attempt:
    """One attempt to end the room for everybody in it, and whether the kill cut it off."""

    begun: Moment
    cut: bool = False


class Closed(list[tuple[str, str]]):
    """The call's own list of closed resources; each entry is checked when it is added."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def append(self, item: tuple[str, str]) -> None:
        name, outcome = item
        resource = self._world.resources[name]
        truth = resource.close if resource.left else "timeout"
        if outcome != truth and not self._world.killed:
            self._world.wrong.append(f"{name} was {truth}, not {outcome}")
        if resource.recorded is not None:
            self._world.wrong.append(f"{name} was reported twice")
        if resource.enters == 0 and resource.task not in self._world.doing:
            self._world.wrong.append(f"{name} was reported as closed, but never opened")
        resource.recorded, resource.told_of = outcome, self._world.now()
        super().append(item)


@dataclass(eq=False, repr=False)
class World:
    """A running script, and the record of its events."""

    script: Script
    loop: VirtualClock
    resources: dict[str, Resource] = field(default_factory=dict)
    # in the order of opening
    asked: list[Resource] = field(default_factory=list)
    work: list[Work] = field(default_factory=list)
    tools: list[Work] = field(default_factory=list)
    causes: list[Cause] = field(default_factory=list)
    doing: dict[asyncio.Task[Any], Deed] = field(default_factory=dict)
    rooms_ended: list[Attempt] = field(default_factory=list)
    over: Moment | None = None
    door_closed: Moment | None = None
    killed: Moment | None = None
    open_when_killed: list[Resource] = field(default_factory=list)
    # failures that an assertion could not report: the closing survives every error
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._number = 0
        self._step = Step.OPEN_INFRASTRUCTURE
        self._rejoin_timer: Cause | None = None
        self._openers: list[asyncio.Task[None]] = []
        self.let_go = asyncio.Event()
        settings = Settings.model_validate(
            {
                "close_seconds": self.script.close_seconds,
                "goodbye_seconds": 0.5,
                "stop_goodbye_seconds": 0.5,
                "rejoin_seconds": REJOIN_SECONDS,
                "caller_wait_seconds": 7.0,
                "max_call_seconds": 11.0,
                # its file is written in a thread, which a virtual clock does not wait for
                "calls_kept": 0,
            }
        )
        room = replace(self.script.room, open_seconds=Step.CONNECT.seconds or 0)
        self.transport = HandTransport(self._room_of(self.resource("room", room)), self._end_room)
        self.transport.finish = self._finish  # type: ignore[method-assign]
        self.call = Call(self.transport, settings)
        self.call.opened.closed = Closed(self)

    def now(self) -> Moment:
        self._number += 1
        return Moment(self.loop.time(), self._number)

    def resource(self, name: str, part: Part) -> Resource:
        self.resources[name] = Resource(self, name, part)
        return self.resources[name]

    async def do(self, deed: Deed) -> None:
        """Do the deed in the task that calls."""
        task = asyncio.current_task()
        assert task is not None
        before, self.doing[task] = self.doing.get(task), deed
        turns, until = deed.turns, self.loop.time() + deed.seconds
        try:
            while True:
                try:
                    while turns:
                        turns -= 1
                        await asyncio.sleep(0)
                    if self.loop.time() < until - INSTANT:
                        await asyncio.sleep(until - self.loop.time())
                    if deed.then == "hangs":
                        await self.let_go.wait()
                    break
                except asyncio.CancelledError:
                    if not deed.stubborn:
                        raise
        finally:
            del self.doing[task]
            if before is not None:
                self.doing[task] = before
        if deed.then == "raises":
            raise Broken
        if deed.then == "is cancelled":
            raise asyncio.CancelledError

    # causes of the end

    def cause(self, reason: str, *, after: float | None = None) -> Cause:
        """From now on, or after so many seconds, the call has this reason to end."""
        when = self.now()
        cause = Cause(
            Moment(when.time + (after or 0.0), when.number), reason, by_timer=after is not None
        )
        if self.over is None:
            self.causes.append(cause)
        return cause

    def _no_longer(self, cause: Cause) -> None:
        if cause in self.causes:
            self.causes.remove(cause)

    async def stop(self, wait: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Call something that means a stopping worker, unless a room event comes in time."""
        self.cause(Reason.WORKER_STOPPED, after=timeouts.ROOM_EVENT_SECONDS)
        await wait()

    async def _hang_up(self) -> None:
        self.cause(Reason.AGENT_HUNG_UP)
        await self.call.hang_up()

    def _finish(self, reason: str) -> None:
        self.over = self.over or self.now()
        self.transport.finished_with.append(reason)

    def happen(self, what: str) -> None:
        """Cause one of CAUSES or INTERRUPTIONS."""
        match what:
            case "leaves":
                self.cause(Reason.CALLER_LEFT)
                self.transport.events.caller_gone(on_purpose=True)
            case "drops":
                if self.call.caller is None or self.script.phone:
                    self.cause(Reason.CALLER_LEFT)
                elif self._rejoin_timer is None:
                    self._rejoin_timer = self.cause(Reason.CALLER_DROPPED, after=REJOIN_SECONDS)
                self.transport.events.caller_gone(on_purpose=False)
            case "is back":
                if (
                    self._rejoin_timer is not None
                    and self._rejoin_timer.when.time > self.loop.time()
                ):
                    self._no_longer(self._rejoin_timer)
                    self._rejoin_timer = None
                self.transport.events.caller_back()
            # away for half a second
            case "blinks":
                self.happen("drops")
                self.loop.call_later(0.5, self.happen, "is back")
            case "room closed":
                self.cause(Reason.ROOM_CLOSED)
                self.transport.events.room_gone(removed=False)
            case "removed":
                self.cause(Reason.REMOVED)
                self.transport.events.room_gone(removed=True)
            case "hangs up":
                self.begin(self._hang_up)
            case "shuts down":
                self.cause(Reason.AGENT_HUNG_UP)
                self.transport.events.shut_down()
            case "fails":
                self.cause(Reason.error(self._step.number, self._step.title))
                self.call.fail(Broken())
            case "stops":
                self.begin(self.stop, self.call.on_job_stopped)
            case "finishes":
                self.begin(self.stop, self.call.wait_closed)

    def begin(
        self, work: Callable[P, Coroutine[Any, Any, None]], *a: P.args, **k: P.kwargs
    ) -> asyncio.Task[None]:
        """Run `work` in its own task, like the SDK or a tool."""

        # a task that is cancelled before it begins must not leave `work` behind
        async def apart() -> None:
            await work(*a, **k)

        return self.loop.create_task(apart())

    # the call

    @asynccontextmanager
    async def _room_of(self, room: Resource) -> AsyncIterator[None]:
        async with room:
            yield

    async def _end_room(self) -> None:
        attempt = Attempt(self.now())
        self.rooms_ended.append(attempt)
        try:
            await self.do(self.script.end_room)
        except asyncio.CancelledError:
            attempt.cut = self.killed is not None and attempt.begun.number < self.killed.number
            raise

    async def open(self, resource: Resource) -> None:
        """Open it, in the task that asks."""
        part, call = resource.part, self.call
        resource.opener = asyncio.current_task()
        if call.reason is None:
            resource.asked = self.now()
            self.asked.append(resource)
        else:
            resource.refused = True
        try:
            if resource.name == "session":
                await call.open_session(resource)
            else:
                seconds: dict[str, Any] = {
                    "open_seconds": part.open_seconds,
                    "close_seconds": part.close_seconds,
                }
                assert await call.open(resource.name, resource, **seconds) == resource.name
            resource.told = "opened"
        except CallOver:
            resource.told = "over"
            raise
        except OpenFailed:
            resource.told = "failed"
            raise

    async def _open_early(self, resource: Resource) -> None:
        try:
            await self.open(resource)
        except OpenFailed:
            if resource.part.needed:
                raise

    @asynccontextmanager
    async def _in_step(self, step: Step) -> AsyncIterator[None]:
        self._step = step
        try:
            async with self.call.step(step):
                yield
        except CallOver:
            raise
        except (Exception, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            if isinstance(error, Exception) or (task is not None and not task.cancelling()):
                # unless a room event comes first
                self.cause(Reason.error(step.number, step.title), after=timeouts.ROOM_EVENT_SECONDS)
            raise

    async def _steps(self, call: Call) -> None:
        script = self.script
        async with self._in_step(Step.OPEN_INFRASTRUCTURE):
            early = [
                self.resource(f"early {number}", part) for number, part in enumerate(script.early)
            ]
            if script.at_once:
                await asyncio.gather(*(self._open_early(resource) for resource in early))
            else:
                for resource in early:
                    await self._open_early(resource)
        async with self._in_step(Step.CONNECT):
            await call.wait_connected()
        async with self._in_step(Step.WAIT_FOR_CALLER):
            nobody = self.cause(Reason.NO_SHOW, after=call.settings.caller_wait_seconds)
            await call.wait_for_caller()
            self._no_longer(nobody)
        self.cause(Reason.TOO_LONG, after=call.settings.max_call_seconds)
        async with self._in_step(Step.START_SESSION):
            if script.session is not None:
                session = replace(script.session, open_seconds=timeouts.SESSION_OPEN_SECONDS)
                await self.open(self.resource("session", session))
        async with self._in_step(Step.GREET):
            await self.do(script.greeting)
            if script.late is not None:
                await self._open_early(self.resource("late", script.late))
        async with self._in_step(Step.STAY):
            if not script.returns:
                await call.wait_ended()
        self.cause(Reason.AGENT_HUNG_UP)

    async def _watch_door(self) -> None:
        await self.call.wait_ended()
        await self.call.wait_closed()
        self.door_closed = self.now()

    # acts

    def act(self, number: int, act: Act) -> None:
        """Do one line of the script."""
        match act:
            case Open(part):
                self._openers.append(self.begin(self.open, self.resource(f"part {number}", part)))
            case CancelOpener(which):
                if self._openers:
                    self._openers[which % len(self._openers)].cancel()
            case Spawn(deed, at_the_end):
                self._spawn(deed, at_the_end)
            case Tool(deed, seconds):
                work = Work(deed)
                self.tools.append(work)
                work.task = self.begin(self._tool, work, seconds)
            case Happens(what):
                self.happen(what)
            case Arrive():
                self.transport.arrive("sip" if self.script.phone else "standard")
            case CancelEntrypoint():
                self.entrypoint.cancel()
            case Kill(newest_first):
                self._kill(newest_first)

    def _spawn(self, deed: Deed, at_the_end: bool) -> None:
        work = Work(deed)
        self.work.append(work)

        async def background() -> None:
            work.begun = self.now()
            try:
                if at_the_end:
                    await self.call.wait_ended()
                await self.do(deed)
                work.outcome = "done"
            except Broken:
                work.outcome = "raised"
                raise
            except asyncio.CancelledError:
                work.outcome = "cut"
                raise
            finally:
                work.ended = self.now()

        try:
            work.task = self.call.spawn(background())
        except CallOver:
            work.refused = True

    async def _tool(self, tool: Work, seconds: float) -> None:
        tool.begun = self.now()
        try:
            async with asyncio.timeout(seconds) as deadline:
                with self.call.tools.running(deadline, 0):
                    await self.do(tool.deed)
        except (TimeoutError, Broken):
            pass
        finally:
            tool.ended = self.now()

    def _kill(self, newest_first: bool) -> None:
        self.killed = self.now()
        self.open_when_killed = [r for r in self.resources.values() if r.entered and not r.leaving]
        if self.open_when_killed:
            self.cause(Reason.WORKER_DIED, after=0.0)
        tasks = self._others()
        for task in reversed(tasks) if newest_first else tasks:
            task.cancel()

    def _others(self) -> list[asyncio.Task[Any]]:
        here = asyncio.current_task()
        return [task for task in self.loop.alive() if task is not here]

    async def play(self) -> None:
        """Run the whole script to the end of everything; `self` then has the record."""
        self.asked.append(self.resources["room"])
        self.resources["room"].asked = self.now()
        self.entrypoint = self.begin(self.call.start, self._steps)
        # it begins, and does not connect yet
        await asyncio.sleep(0)
        if self.script.arrives:
            self.act(-1, Arrive())
        watch = self.begin(self._watch_door)
        for number, (turns, seconds, act) in enumerate(self.script.acts):
            for _ in range(turns):
                await asyncio.sleep(0)
            if seconds:
                await asyncio.sleep(seconds)
            self.act(number, act)
            if self.killed:
                break
        else:
            self.happen("finishes")
            await asyncio.wait([watch], timeout=PATIENCE)
            # a task that was cancelled last may need a turn or two
            for _ in range(5):
                await asyncio.sleep(0)
        # a step that was about to fail may still begin a closing
        for _ in range(2 if self.killed else 0):
            if others := self._others():
                await asyncio.wait(others, timeout=PATIENCE)

    def left_over(self) -> list[asyncio.Task[Any]]:
        """The remaining tasks, without those that ignore cancellation and those that await them."""
        stubborn = {
            task
            for task, deed in self.doing.items()
            if deed.stubborn or (self.killed and deed.then == "hangs")
        }
        for resource in self.resources.values():
            if resource.task in stubborn and not resource.entered and resource.opener:
                stubborn.add(resource.opener)
            # it has had its only cancellation
            if resource.late and resource.part.opening.stubborn and resource.task:
                stubborn.add(resource.task)
        return [task for task in self._others() if task not in stubborn]

    async def let_them_go(self) -> None:
        """Let the stubborn tasks, and those that hang in a dying process, end."""
        self.let_go.set()
        if others := self._others():
            await asyncio.wait(others, timeout=PATIENCE)

    def unexpected(self) -> list[BaseException]:
        """Exceptions of tasks that the script did not ask for."""
        errors = [
            task.exception() for task in self.loop.born if task.done() and not task.cancelled()
        ]
        return [
            error
            for error in errors
            if error and not isinstance(error, Broken | CallOver | OpenFailed)
        ]
