"""The background tasks of a call: what an owner's code has spawned."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from agent.errors import one_line
from agent.lifecycle import timeouts
from agent.lifecycle.journal import CallJournal

log = logging.getLogger("agent.call")
T = TypeVar("T")


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
