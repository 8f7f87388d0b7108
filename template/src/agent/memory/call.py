"""What a call uses of a memory: a store that is down, slow or broken never delays or ends it."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TypeVar

from agent.memory.store import CallRecord, Memory, MemoryUnavailable, Profile, Turn, open_memory_of
from agent.settings import Settings

T = TypeVar("T")

log = logging.getLogger("agent.memory")

ATTEMPT_SECONDS = 5.0  # for a store that keeps none of its own deadlines
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0  # between attempts to write, while the call goes on
LAST_SECONDS = 2.0  # for what is still unwritten when the call is closed
LAST_SECONDS_IN_OUTAGE = 0.5  # then waiting longer would only hold the worker's slot
MOST_WAITING = 1000


class CallMemory:
    """The memory of one call. Until `know` names the caller nothing is recalled or written.

    No method raises anything of the store's. Whatever goes wrong in a call is one warning, without the caller's words.
    """

    def __init__(self, store: Memory | None, recall_seconds: float) -> None:
        self._store, self._recall_seconds = store, recall_seconds
        self._caller: str | None = None
        self._waiting: deque[tuple[str, Turn | CallRecord]] = deque()
        self._arrived, self._written, self._hurried = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._written.set()
        self._failing, self._warned = False, False
        self._dropped = 0

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: Settings) -> AsyncIterator[CallMemory]:
        """Yield the call's memory, with a store or without; on exit write what is left, for two seconds at most."""
        async with AsyncExitStack() as stack:
            memory = cls(None, settings.memory_seconds)
            try:
                memory._store = await stack.enter_async_context(open_memory_of(settings))
            except Exception as error:
                memory._warn(_sentence(error))
            writer = asyncio.create_task(memory._write_all(), name="memory writer")
            try:
                yield memory
                if writer.done() or writer.cancelling():  # with everything else: the worker was killed
                    writer = asyncio.create_task(memory._write_all(), name="memory writer")
                await memory.flush(LAST_SECONDS_IN_OUTAGE if memory._failing else LAST_SECONDS)
            finally:
                writer.cancel()
                await asyncio.wait([writer], timeout=1)
                memory._tell_what_is_lost()

    @property
    def lost(self) -> int:
        """How many turns and records are not in the store: given up, or still to be written."""
        return self._dropped + len(self._waiting)

    def know(self, caller: str | None) -> None:
        """From here on the caller is this key of `remembered_as`; None is a stranger who leaves no trace."""
        self._caller = caller

    async def recall(self) -> Profile | None:
        """What is known of the caller; None as well if the store does not say so within `memory_seconds`."""
        if self._store is None or self._caller is None:
            return None
        try:
            profile = await _within(self._recall_seconds, self._store.recall(self._caller))
            self._failing = False
            return profile
        except Exception as error:
            self._failing = True
            self._warn(f"{_sentence(error)}; the caller is taken for an unknown one")
            return None

    def remember(self, turn: Turn) -> None:
        """Have a finished turn written, now if the store can, else as soon as it can; returns at once."""
        self._write(turn)

    def record(self, call: CallRecord) -> None:
        """Have the call's record written after its turns; returns at once."""
        self._write(call)

    async def flush(self, seconds: float) -> bool:
        """Wait until everything is written, at most so long; whether it is."""
        self._hurried.set()
        try:
            async with asyncio.timeout(seconds):
                await self._written.wait()
        except TimeoutError:
            pass
        finally:
            self._hurried.clear()
        return self._written.is_set()

    def _write(self, item: Turn | CallRecord) -> None:
        if self._store is None or self._caller is None:
            return
        if len(self._waiting) >= MOST_WAITING:
            self._dropped += 1
            return
        self._waiting.append((self._caller, item))
        self._written.clear()
        self._arrived.set()

    async def _write_all(self) -> None:
        while True:
            await self._arrived.wait()
            while self._waiting:
                await self._write_one(*self._waiting[0])
                self._waiting.popleft()
            self._arrived.clear()
            self._written.set()

    async def _write_one(self, caller: str, item: Turn | CallRecord) -> None:
        """Return when the item is written, or when it never can be; an outage is waited out, so order is kept."""
        assert self._store is not None
        pause = FIRST_PAUSE
        while True:
            try:
                if isinstance(item, Turn):
                    await _within(ATTEMPT_SECONDS, self._store.remember(caller, item))
                else:
                    await _within(ATTEMPT_SECONDS, self._store.record(caller, item))
                self._failing = False
                return
            except MemoryUnavailable as error:
                self._failing = True
                self._warn(f"{_sentence(error)}; writing is tried again while the call goes on")
            except Exception as error:  # of the item, not of the store: it must not hold up the others
                self._dropped += 1
                self._warn(f"a turn cannot be written ({_sentence(error)})")
                return
            if self._hurried.is_set():
                await asyncio.sleep(FIRST_PAUSE)
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._hurried.wait()
            pause = min(2 * pause, LONGEST_PAUSE)

    def _warn(self, sentence: str) -> None:
        log.log(logging.DEBUG if self._warned else logging.WARNING, "memory: %s", sentence)
        self._warned = True

    def _tell_what_is_lost(self) -> None:
        if not self.lost:
            return
        sentence = f"{self.lost} turns and records could not be written before the call was closed"
        # the outage has had its warning; this is how it went out
        log.log(logging.INFO if self._warned else logging.WARNING, "memory: %s", sentence, extra={"lost": self.lost})
        self._warned = True


async def _within(seconds: float, asked: Awaitable[T]) -> T:
    try:
        async with asyncio.timeout(seconds):
            return await asked
    except TimeoutError as error:
        raise MemoryUnavailable(f"no answer from the store within {seconds:g} s") from error
    except asyncio.CancelledError as error:
        if (task := asyncio.current_task()) is None or task.cancelling():
            raise
        raise MemoryUnavailable("the store cancelled its own answer") from error


def _sentence(error: Exception) -> str:
    """Only our own errors are known to hold no password and none of the caller's words."""
    return str(error) if isinstance(error, MemoryUnavailable) else type(error).__name__
