"""What a call gives to be kept is written in order, tried again, and in the end spooled."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from agent.circuit_breaker import Unanswered, within
from agent.memory import Item, Memory, MemoryUnavailable, spool
from agent.outbox import in_a_thread
from agent.settings import Settings
from agent.telemetry import Journal

log = logging.getLogger("agent.memory")

# for a store that keeps none of its own deadlines
ATTEMPT_SECONDS = 5.0
# between attempts to write, while the call goes on
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
# When the call is closed, together less than a resource may take for it (lifecycle/timeouts.py):
# for what is still unwritten, less in an outage, in which waiting would only hold the worker's slot
LAST_SECONDS, LAST_SECONDS_IN_OUTAGE = 1.2, 0.5
# for the file of what is unwritten even then
SPOOL_SECONDS = 0.6
MOST_WAITING = 1000


class WriteQueue:
    """The turns, notes and record of one call on their way into the store.

    Nothing that goes wrong is raised. An outage is one warning, without the caller's words.
    """

    def __init__(self, store: Memory | None, settings: Settings, journal: Journal) -> None:
        self._store, self.journal = store, journal
        self._folder = spool.folder_of(settings)
        self._same_disk = settings.memory == "sqlite"
        # which reading and writing share: what one finds out, the other relies on
        self.breaker = spool.breaker_of(settings)
        self._waiting: deque[spool.Entry] = deque()
        self._arrived, self._written = asyncio.Event(), asyncio.Event()
        self._written.set()
        self._hurried = asyncio.Event()
        self._failing = False
        self._dropped = 0

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[WriteQueue]:
        """Write while this is open; on exit for a second or so more, and spool what is left."""
        writer = self._start_writing()
        try:
            yield self
            if writer.done() or writer.cancelling():
                # with all other tasks, because the worker was killed: the record is yet to come
                writer = self._start_writing()
            if self._store is not None:
                await self.flush(LAST_SECONDS_IN_OUTAGE if self._failing else LAST_SECONDS)
        finally:
            writer.cancel()
            await self._spool_what_is_left()
            await asyncio.wait([writer], timeout=1)

    @property
    def lost(self) -> int:
        """How many items are neither in the store nor spooled: given up, or still waiting."""
        return self._dropped + len(self._waiting)

    def put(self, caller: str, item: Item) -> bool:
        """Have the item written as soon as the store can; False if too many are waiting."""
        if len(self._waiting) >= MOST_WAITING:
            self._drop(f"{MOST_WAITING} turns are waiting to be written, and more are lost")
            return False
        self._waiting.append((caller, item))
        self._written.clear()
        self._arrived.set()
        return True

    async def flush(self, seconds: float) -> bool:
        """Wait until everything is written, at most so long; whether it is."""
        self._hurried.set()
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._written.wait()
        finally:
            self._hurried.clear()
        return self._written.is_set()

    def store_failed(self, sentence: str) -> None:
        """The call goes on without its memory, or some of it."""
        self._failing = True
        self.journal.warn_once("memory", log, f"memory: {sentence}")

    def store_answered(self) -> None:
        """The store works, for this call and for those that leave it alone."""
        if self._failing:
            log.info("memory: the store answers again", extra=self.journal.fields())
        self._failing = False
        self.breaker.worked()

    def _start_writing(self) -> asyncio.Task[None]:
        return asyncio.create_task(self._write_all(), name="memory writer")

    async def _write_all(self) -> None:
        while self._store is not None:
            await self._arrived.wait()
            while self._waiting:
                await self._write_one(self._store, *self._waiting[0])
                # unless they were spooled meanwhile
                if self._waiting:
                    self._waiting.popleft()
            self._arrived.clear()
            self._written.set()

    async def _write_one(self, store: Memory, caller: str, item: Item) -> None:
        """Return when the item is written, or never can be; waiting for the store keeps order."""
        pause = FIRST_PAUSE
        while True:
            try:
                await within(ATTEMPT_SECONDS, store.write(caller, item), "the store")
                self.store_answered()
                return
            except (MemoryUnavailable, Unanswered) as error:
                # the breaker stays closed: a full store or a locked file can still be read
                self.store_failed(f"{error}; writing is tried again while the call goes on")
            except Exception as error:
                # of this item, which must not hold up the others
                self._drop(f"a turn cannot be written ({reason_of(error)})")
                return
            if self._hurried.is_set():
                await asyncio.sleep(FIRST_PAUSE)
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._hurried.wait()
            pause = min(2 * pause, LONGEST_PAUSE)

    def _drop(self, sentence: str) -> None:
        self._dropped += 1
        self.journal.warn_once("memory", log, f"memory: {sentence}")

    async def _spool_what_is_left(self) -> None:
        left = len(self._waiting)
        if left:
            try:
                entries = list(self._waiting)
                await in_a_thread(
                    lambda: spool.keep(self._folder, entries), SPOOL_SECONDS, "memory spool"
                )
            except OSError as error:
                self._not_spooled(error)
            else:
                self._waiting.clear()
                log.info(
                    "memory: %d turns and records are kept in %s until the store takes them",
                    *(left, self._folder),
                    extra=self.journal.fields(spooled=left),
                )
        if self.lost:
            sentence = "memory: %d turns and records are lost"
            log.info(sentence, self.lost, extra=self.journal.fields(lost=self.lost))

    def _not_spooled(self, error: OSError) -> None:
        sentence = (
            f"memory: {self.lost} turns and records are lost, because {self._folder} cannot be "
            f"written ({error.strerror or 'it takes too long'}): let this user write there, and "
            "make room"
        )
        if self._same_disk:
            # then the store has failed for the same reason, and has had its warning
            self.journal.warn_once("memory", log, sentence)
        else:
            log.warning("%s", sentence, extra=self.journal.fields())


def reason_of(error: Exception) -> str:
    """An error for the log: only our own are known to hold no password and no caller's words."""
    return str(error) if isinstance(error, MemoryUnavailable | Unanswered) else type(error).__name__
