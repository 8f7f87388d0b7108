"""What a call holds: resources, each in a task of its own, background tasks, running tools."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from agent import is_own_cancellation, one_line
from agent.lifecycle import timeouts
from agent.lifecycle.journal import CallJournal

log = logging.getLogger("agent.call")
T = TypeVar("T")


class OpenFailed(Exception):
    """A resource did not open: which, and why or after how long."""


class Holder(Protocol):
    """What resources ask of the call that holds them."""

    @property
    def journal(self) -> CallJournal:
        """The call's."""
        ...

    def is_dying(self) -> bool:
        """Whether the whole process is ending, so that nothing closes the resources in order."""
        ...

    def die(self) -> None:
        """Do in a dying process what closing the call would have done."""
        ...


class ManagedResource(Generic[T]):
    """Enters, holds and leaves one resource.

    The task that entered is the one that leaves (anyio insists on it). A dying process, in which
    the SDK runs no callback at all, still unwinds: there each resource first waits for those that
    were opened after it.
    """

    def __init__(
        self,
        name: str,
        manager: AbstractAsyncContextManager[T],
        open_seconds: float,
        close_seconds: float,
        stack: ResourceStack,
    ) -> None:
        self.name, self.open_seconds, self.close_seconds = name, open_seconds, close_seconds
        self._stack, self._holder = stack, stack.holder
        # then "open", and in the end: ok, error, timeout, cut, or "never opened"
        self.outcome = "opening"
        self.problem = ""  # what the resource raised
        loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[T] = loop.create_future()
        # whether anybody waits for it or not
        self.ready.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._deadline = loop.call_later(open_seconds, self._give_up)
        self._released = asyncio.Event()
        self.task = asyncio.create_task(self._run(manager), name=f"resource:{name}")

    @property
    def has_opened(self) -> bool:
        """Whether it opened in time; it may have been closed since."""
        return self.ready.done() and not self.ready.cancelled() and not self.ready.exception()

    def _give_up(self) -> None:
        """The deadline for opening has passed: nobody waits any longer, even if it clings."""
        if not self.ready.done():
            seconds = f"within {self.open_seconds:g} s"
            self.ready.set_exception(OpenFailed(f"{self.name} did not open {seconds}"))
            self._released.set()
            self.task.cancel()

    async def _run(self, manager: AbstractAsyncContextManager[T]) -> None:
        try:
            async with manager as value:
                self.outcome = "open"
                if not self.ready.done():
                    self.ready.set_result(value)
                await self._hold()
            if self.outcome == "open":
                self.outcome = "ok"
        except (Exception, BaseExceptionGroup, asyncio.CancelledError) as error:
            self._failed(error)
        finally:
            self._deadline.cancel()
            if not self.ready.done():  # it failed after it had been given up
                self.ready.set_exception(OpenFailed(f"{self.name} did not open: {self.problem}"))

    def _failed(self, error: BaseException) -> None:
        self.problem = one_line(error)
        if self.outcome == "opening":
            self.outcome = "never opened"
            if not self.ready.done():
                self.ready.set_exception(OpenFailed(f"{self.name} did not open: {self.problem}"))
        elif self.outcome == "open":
            cut = isinstance(error, asyncio.CancelledError) and is_own_cancellation()
            self.outcome = "cut" if cut else "error"
        if self.outcome == "error" and not self._released.is_set():
            sentence = "%s broke, and the call goes on without it: %s"
            extra = self._holder.journal.fields()
            log.warning(sentence, self.name, self.problem, exc_info=error, extra=extra)

    async def _hold(self) -> None:
        """Until the call lets go, the process ends, or the resource itself breaks."""
        if self._released.is_set():
            return
        # it may have opened although it was cancelled
        if not (self.task.cancelling() and self._holder.is_dying()):
            try:
                await self._released.wait()
                return
            except asyncio.CancelledError:
                # anyio cancels the task that holds a task group which has failed
                if not self._holder.is_dying():
                    self.outcome = "error"
                    raise
        self.outcome = "cut"
        self._holder.die()
        younger = self._stack.opened_after(self)
        for resource in younger:
            resource._released.set()  # one that was opened since then has not been cancelled
        if rest := [resource.task for resource in younger if not resource.task.done()]:
            # each has its turn
            turns = timeouts.LAST_CHANCE_SECONDS * len(rest)
            await asyncio.wait(rest, timeout=timeouts.CLOSE_SECONDS + turns)

    async def close(self, within: float) -> float:
        """Let go of the resource and wait at most `within` seconds; how many seconds it took."""
        began = time.monotonic()
        self._released.set()
        if self.outcome == "opening":
            self.task.cancel()
        done, _ = await asyncio.wait([self.task], timeout=max(within, timeouts.LAST_CHANCE_SECONDS))
        if not done:
            self.outcome = "timeout"
            self.task.cancel()
        return time.monotonic() - began


class ResourceStack:
    """The resources of one call, in the order of opening."""

    def __init__(self, holder: Holder) -> None:
        self.holder = holder
        # resource and outcome, in the order of closing
        self.closed: list[tuple[str, str]] = []
        self._opened: list[ManagedResource[Any]] = []

    def add(
        self,
        name: str,
        manager: AbstractAsyncContextManager[T],
        open_seconds: float,
        close_seconds: float,
    ) -> ManagedResource[T]:
        """Begin to enter `manager`; `ready` of what is returned says when it is open."""
        resource = ManagedResource(name, manager, open_seconds, close_seconds, self)
        self._opened.append(resource)
        return resource

    def opened_after(self, resource: ManagedResource[Any]) -> list[ManagedResource[Any]]:
        """The resources that were opened after this one."""
        return self._opened[self._opened.index(resource) + 1 :]

    async def close(self, resource: ManagedResource[Any], allowed: float, until: float) -> None:
        """Close one within `allowed` seconds, and by `until` (time.monotonic), and record it."""
        began, left = time.time_ns(), until - time.monotonic()
        seconds = await resource.close(min(allowed, left))
        journal = self.holder.journal
        if resource.outcome != "never opened":
            self.closed.append((resource.name, resource.outcome))
            journal.resource_closed(resource.name, resource.outcome, began, seconds)
        if resource.outcome == "error":
            sentence, extra = "%s failed to close: %s", journal.fields()
            log.warning(sentence, resource.name, resource.problem, extra=extra)
        elif resource.outcome == "timeout":
            spent = (
                "its close_seconds" if allowed <= left else "AGENT_CLOSE_SECONDS, of all together,"
            )
            sentence, extra = "%s was cut after %.1f s of closing: %s had passed", journal.fields()
            log.warning(sentence, resource.name, seconds, spent, extra=extra)

    async def close_all(self, until: float, *, but: ManagedResource[Any] | None) -> None:
        """Close all others in reverse order of opening, each within its own time."""
        for resource in reversed(self._opened):
            if resource is not but:
                await self.close(resource, resource.close_seconds, until)


class BackgroundTasks:
    """Tasks that belong to one call: an error is logged, and none outlives the call."""

    def __init__(self, journal: CallJournal) -> None:
        self._journal = journal
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, T], name: str | None) -> asyncio.Task[T]:
        """Run `work` in a task of its own."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    async def settle(self, until: float) -> None:
        """Let them finish for a while, by `until` (time.monotonic) at the latest, then cancel."""
        if not (tasks := list(self._tasks)):
            return
        seconds = min(timeouts.CLOSE_SECONDS, until - time.monotonic())
        _, late = await asyncio.wait(tasks, timeout=max(seconds, timeouts.LAST_CHANCE_SECONDS))
        for task in late:
            sentence = "background task %s was cancelled"
            log.warning(sentence, task.get_name(), extra=self._journal.fields())
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=timeouts.LAST_CHANCE_SECONDS)
        self._tasks -= late

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            sentence, extra = "background task %s: %s", self._journal.fields()
            log.error(sentence, task.get_name(), one_line(error), exc_info=error, extra=extra)


@dataclass(eq=False)
class RunningTool:
    """One tool that is running: its deadline, and what the end of the call leaves of it."""

    deadline: asyncio.Timeout
    grace: float
    agent: object = None
    left: float | None = None  # seconds, while the caller is asked something inside the tool
    held: bool = False
    task: asyncio.Task[Any] | None = field(default_factory=asyncio.current_task)


class RunningTools:
    """The tools that are running: what one has begun it may finish when the call has ended."""

    def __init__(self) -> None:
        self._running: set[RunningTool] = set()
        self._over = False
        self.connecting: set[asyncio.Task[None]] = set()  # tool sets
        self._idle = asyncio.Event()
        self._idle.set()

    @contextmanager
    def running(
        self, deadline: asyncio.Timeout, grace: float, agent: object = None
    ) -> Iterator[None]:
        """While inside, the end of the call leaves `grace` seconds until `deadline`.

        The deadline does not count while another agent than the tool's asks the caller something.
        """
        tool = RunningTool(deadline, grace, agent)
        self._running.add(tool)
        self._idle.clear()
        if self._over:
            _shorten(deadline, grace)
        try:
            yield
        finally:
            self._running.discard(tool)
            if not self._running:
                self._idle.set()

    def agent_changed(self, agent: object, *, asking: bool) -> None:
        """Another agent speaks now, and asks the caller something, or has the answer."""
        now = asyncio.get_running_loop().time()
        for tool in self._running:
            if tool.deadline.expired() or self._over:
                continue
            if tool.agent is agent and tool.held:
                tool.held = False
                tool.deadline.reschedule(None if tool.left is None else now + tool.left)
            elif tool.agent not in (None, agent) and asking and not tool.held:
                when = tool.deadline.when()
                tool.held, tool.left = True, None if when is None else when - now
                tool.deadline.reschedule(None)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """While inside, the deadline of the tool that runs in this task does not count.

        It waits for what has a limit of its own, such as a phone that rings.
        """
        task, now = asyncio.current_task(), asyncio.get_running_loop().time
        deadlines = [tool.deadline for tool in self._running if tool.task is task]
        left = [when and when - now() for when in (deadline.when() for deadline in deadlines)]
        for deadline in deadlines:
            deadline.reschedule(None)
        try:
            yield
        finally:
            if not self._over:
                for deadline, seconds in zip(deadlines, left, strict=True):
                    deadline.reschedule(None if seconds is None else now() + seconds)

    def call_ended(self) -> None:
        """From now on each has its grace, and no more: the SDK itself ends none."""
        self._over = True
        for connecting in self.connecting:
            connecting.cancel()
        for tool in self._running:
            if tool.held:  # nobody will answer any more
                tool.grace = 0.0
            _shorten(tool.deadline, tool.grace)

    async def wait_connected(self) -> None:
        """Wait until every tool set has connected, or failed to; for tests and the terminal."""
        if self.connecting:
            await asyncio.wait(self.connecting)

    async def settle(self) -> None:
        """Wait for those that have a grace; one that does not heed its deadline is left behind."""
        if longest := max((tool.grace for tool in self._running), default=0.0):
            with suppress(TimeoutError):
                async with asyncio.timeout(longest + timeouts.LAST_CHANCE_SECONDS):
                    await self._idle.wait()


def _shorten(deadline: asyncio.Timeout, seconds: float) -> None:
    until = asyncio.get_running_loop().time() + seconds
    when = deadline.when()
    if not deadline.expired() and (when is None or when > until):
        deadline.reschedule(until)
