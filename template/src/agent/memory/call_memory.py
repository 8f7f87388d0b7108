"""What a call uses of a memory: a store that is down, slow or broken never delays or ends it."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from agent.circuit_breaker import CircuitBreaker
from agent.memory import spool
from agent.memory.store import (
    CallRecord,
    Memory,
    MemoryUnavailable,
    Note,
    Profile,
    Turn,
    open_memory_of,
)
from agent.settings import Settings

T = TypeVar("T")

log = logging.getLogger("agent.memory")

ATTEMPT_SECONDS = 5.0  # for a store that keeps none of its own deadlines
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0  # between attempts to write, while the call goes on
# When the call is closed, together less than a resource may take for it (agent.lifecycle.CLOSE_SECONDS):
LAST_SECONDS = 1.2  # for what is still unwritten
LAST_SECONDS_IN_OUTAGE = 0.5  # then waiting longer would only hold the worker's slot
SPOOL_SECONDS = 0.6  # for the file of what is unwritten even then
MOST_WAITING = 1000


def breaker_of(settings: Settings) -> CircuitBreaker:
    """What tells the calls of this machine that the store did not answer a moment ago."""
    return CircuitBreaker(settings.data / "memory.outage")


class CallMemory:
    """The memory of one call. Until `identify` names the caller nothing is recalled or written.

    No method raises anything of the store's. Whatever goes wrong in a call is one warning, without the caller's words.
    """

    def __init__(
        self, store: Memory | None, recall_seconds: float, settings: Settings | None = None
    ) -> None:
        self._store, self._recall_seconds = store, recall_seconds
        self._spool: Path | None = None
        self._breaker: CircuitBreaker | None = None
        self._wanted, self._transcripts, self._on_disk = store is not None, True, False
        if settings is not None:
            self._spool = spool.folder_of(settings)
            # a file of this machine's own may be late for one call and none of the others
            self._breaker = None if settings.memory == "sqlite" else breaker_of(settings)
            self._wanted, self._transcripts = settings.memory != "none", settings.keep_transcripts
            self._on_disk = settings.memory == "sqlite"  # the same as the spool's
        self._caller: str | None = None
        self._waiting: deque[spool.Item] = deque()
        self._arrived, self._written, self._hurried = (
            asyncio.Event(),
            asyncio.Event(),
            asyncio.Event(),
        )
        self._written.set()
        self._failing, self._degraded, self._warned = False, False, False
        self._dropped = 0

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: Settings) -> AsyncIterator[CallMemory]:
        """Yield the call's memory, with a store or without.

        On exit write what is left, for a second or so; what the store does not take by then goes to the spool.
        """
        async with AsyncExitStack() as stack:
            memory = cls(None, settings.memory_seconds, settings)
            try:
                memory._store = await stack.enter_async_context(open_memory_of(settings))
            except Exception as error:
                memory._miss(_sentence(error))
            writer = asyncio.create_task(memory._write_all(), name="memory writer")
            try:
                yield memory
                if (
                    writer.done() or writer.cancelling()
                ):  # with everything else: the worker was killed
                    writer = asyncio.create_task(memory._write_all(), name="memory writer")
                if memory._store is not None:
                    await memory.flush(LAST_SECONDS_IN_OUTAGE if memory._failing else LAST_SECONDS)
            finally:
                writer.cancel()
                await memory._keep_what_is_left()
                await asyncio.wait([writer], timeout=1)

    @property
    def lost(self) -> int:
        """How many turns, notes and records are neither in the store nor kept for it: given up, or still waiting."""
        return self._dropped + len(self._waiting)

    def identify(self, caller: str | None) -> None:
        """From here on the caller is this key of `remembered_as`; None is a stranger who leaves no trace."""
        self._caller = caller

    async def recall(self) -> Profile | None:
        """What is known of the caller; None as well if the store does not say so within `memory_seconds`.

        A store that has just failed another call is not asked: nobody waits for it in vain again and again.
        """
        if self._store is None or self._caller is None:
            return None
        if self._breaker is not None and self._breaker.open:
            self._failing = True
            self._miss(
                "the store did not answer a moment ago; the caller is taken for an unknown one"
            )
            return None
        try:
            profile = await _within(self._recall_seconds, self._store.recall(self._caller))
        except Exception as error:
            self._failing = True
            if self._breaker is not None and isinstance(error, MemoryUnavailable):
                self._breaker.failed()
            self._miss(f"{_sentence(error)}; the caller is taken for an unknown one")
            return None
        self._answered()
        return profile if self._transcripts or profile is None else replace(profile, turns=[])

    def add_turn(self, turn: Turn) -> None:
        """Have a finished turn written, now if the store can, else as soon as it can; returns at once."""
        if self._transcripts:
            self._write(turn)

    def add_note(self, note: Note) -> bool:
        """Have a name or a fact written likewise; False of a caller who is not remembered."""
        return self._write(note)

    def add_call(self, call: CallRecord) -> None:
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

    def _write(self, item: Turn | CallRecord | Note) -> bool:
        if not self._wanted or self._caller is None:
            return False
        if len(self._waiting) >= MOST_WAITING:
            self._dropped += 1
            return False
        self._waiting.append((self._caller, item))
        self._written.clear()
        self._arrived.set()
        return True

    async def _write_all(self) -> None:
        while self._store is not None:
            await self._arrived.wait()
            while self._waiting:
                await self._write_one(self._store, *self._waiting[0])
                if self._waiting:  # else they have gone to the spool meanwhile
                    self._waiting.popleft()
            self._arrived.clear()
            self._written.set()

    async def _write_one(self, store: Memory, caller: str, item: Turn | CallRecord | Note) -> None:
        """Return when the item is written, or when it never can be; an outage is waited out, so order is kept."""
        pause = FIRST_PAUSE
        while True:
            try:
                await _within(ATTEMPT_SECONDS, _writing(store, caller, item))
                self._answered()
                return
            except (
                MemoryUnavailable
            ) as error:  # no reason to stop recalling: a full store, a locked file can be read
                self._failing = True
                self._miss(f"{_sentence(error)}; writing is tried again while the call goes on")
            except (
                Exception
            ) as error:  # of the item, not of the store: it must not hold up the others
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

    async def _keep_what_is_left(self) -> None:
        """Put what the store did not take into a file, which a worker delivers when the store is back."""
        if self._waiting and self._spool is not None:
            try:
                await _in_thread(
                    spool.keep, self._spool, list(self._waiting), seconds=SPOOL_SECONDS
                )
            except OSError as error:
                log.log(
                    logging.INFO
                    if self._degraded and self._on_disk
                    else logging.WARNING,  # else it has been said
                    "memory: %d turns and records are lost, because %s cannot be written (%s): "
                    "let this user write there, and make room",
                    *(self.lost, self._spool, error.strerror or "it takes too long"),
                    extra={"lost": self.lost},
                )
                return
            kept = "memory: %d turns and records are kept in %s until the store takes them"
            log.info(kept, len(self._waiting), self._spool, extra={"spooled": len(self._waiting)})
            self._waiting.clear()
        if self.lost:
            self._warn(
                f"{self.lost} turns and records are lost: the store did not take them",
                lost=self.lost,
            )

    def _answered(self) -> None:
        """The store works, for this call and for those that leave it alone."""
        if self._failing:
            log.info("memory: the store answers again")
        self._failing = False
        if self._breaker is not None:
            self._breaker.worked()

    def _miss(self, sentence: str) -> None:
        """Tell that the call goes on without its memory, or some of it; only the first time is counted."""
        if self._degraded:
            log.debug("memory: %s", sentence)
        else:
            log.warning("memory: %s", sentence, extra={"fields": {"degraded": "memory"}})
        self._degraded = True

    def _warn(self, sentence: str, **fields: object) -> None:
        """The outage has had its warning; this is how it went out."""
        quiet = logging.INFO if fields else logging.DEBUG
        log.log(
            quiet if self._warned or self._degraded else logging.WARNING,
            "memory: %s",
            sentence,
            extra=fields,
        )
        self._warned = True


def _writing(store: Memory, caller: str, item: Turn | CallRecord | Note) -> Awaitable[None]:
    match item:
        case Turn():
            return store.remember(caller, item)
        case Note():
            return store.note(caller, item)
        case _:
            return store.record(caller, item)


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


async def _in_thread(
    keep: Callable[[Path, list[spool.Item]], Path],
    folder: Path,
    items: list[spool.Item],
    *,
    seconds: float,
) -> None:
    """Do it in a thread of its own, which a hanging disk may keep: the loop's are waited for when the process ends."""
    done: Future[Path] = Future()

    def work() -> None:
        try:
            done.set_result(keep(folder, items))
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=work, name="memory spool", daemon=True).start()
    async with asyncio.timeout(seconds):
        await asyncio.shield(asyncio.wrap_future(done))


def _sentence(error: Exception) -> str:
    """Only our own errors are known to hold no password and none of the caller's words."""
    return str(error) if isinstance(error, MemoryUnavailable) else type(error).__name__
