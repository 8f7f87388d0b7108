"""An event loop whose time passes only when it is idle: a close that hangs for seconds is free."""

from __future__ import annotations

import asyncio
import contextvars
import selectors
import time
from collections.abc import Coroutine, Generator, Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from agent.lifecycle import call, closing, resource

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike

T = TypeVar("T")


class Stuck(Exception):
    """All tasks wait, and no timer will ever wake one."""


class _NoWaiting(selectors.BaseSelector):
    """Watches files, such as the loop's own; instead of waiting for them it advances the clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self._files = selectors.DefaultSelector()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Stuck("nothing will ever happen again")
        self.now += max(timeout, 0.0)
        return []

    def register(
        self, fileobj: FileDescriptorLike, events: int, data: Any = None
    ) -> selectors.SelectorKey:
        return self._files.register(fileobj, events, data)

    def unregister(self, fileobj: FileDescriptorLike) -> selectors.SelectorKey:
        return self._files.unregister(fileobj)

    def get_map(self) -> Mapping[FileDescriptorLike, selectors.SelectorKey]:
        return self._files.get_map()

    def close(self) -> None:
        self._files.close()


class VirtualClock(asyncio.SelectorEventLoop):
    """A loop for code that needs neither files nor threads.

    It keeps its tasks in the order of their beginning, and the errors that it would have logged.
    """

    def __init__(self) -> None:
        self._idle = _NoWaiting()
        self.born: list[asyncio.Task[Any]] = []
        self.complaints: list[str] = []
        super().__init__(self._idle)
        self.set_exception_handler(lambda _, context: self.complaints.append(str(context)))

    def time(self) -> float:
        return self._idle.now

    def create_task(
        self,
        coro: Generator[Any, None, T] | Coroutine[Any, Any, T],
        *,
        name: object = None,
        context: contextvars.Context | None = None,
    ) -> asyncio.Task[T]:
        task = super().create_task(coro, name=name, context=context)
        self.born.append(task)
        return task

    def alive(self) -> list[asyncio.Task[Any]]:
        """Every task that is not done, the oldest first; `asyncio.all_tasks` has a random order."""
        return [task for task in self.born if not task.done()]


def run_virtually(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` and `agent.lifecycle` on their own clock; Stuck is raised instead of a hang."""
    loop = VirtualClock()
    stopped_watch = SimpleNamespace(**{**vars(time), "monotonic": loop.time})
    try:
        with pytest.MonkeyPatch.context() as patch:
            for module in (call, closing, resource):
                patch.setattr(module, "time", stopped_watch)
            return loop.run_until_complete(main)
    finally:
        loop.close()
