"""What is decided about a caller in a call: who they are, what is known, what is kept of them."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

from agent.memory import CallRecord, Item, Memory, Note, Profile, Turn, open_store
from agent.memory.identity import key_of
from agent.memory.write_queue import WriteQueue, reason_of
from agent.redaction import redacted
from agent.settings import Settings
from agent.telemetry import Journal

log = logging.getLogger("agent.memory")


@asynccontextmanager
async def opened(settings: Settings, journal: Journal) -> AsyncIterator[StoredCallMemory]:
    """Yield the memory of a call, also where the store cannot be opened.

    Leaving it takes a second or two, in which what is left is written or spooled.
    """
    async with AsyncExitStack() as stack:
        store = None
        try:
            store = await stack.enter_async_context(open_store(settings))
        except Exception as error:
            journal.warn_once("memory", log, f"memory: {reason_of(error)}")
        queue = await stack.enter_async_context(WriteQueue(store, settings, journal).writing())
        yield StoredCallMemory(store, queue, settings)


class StoredCallMemory:
    """A `CallMemory` on a store."""

    def __init__(self, store: Memory | None, queue: WriteQueue, settings: Settings) -> None:
        self._store, self.queue, self._settings = store, queue, settings
        self._caller: str | None = None

    def key_of(self, identity: str, kind: str, attributes: Mapping[str, str]) -> str | None:
        phones = self._settings.remember_phone_numbers
        return key_of(identity, kind, attributes, phones=phones)

    def identify(self, key: str | None) -> None:
        self._caller = key or None

    async def recall(self) -> Profile | None:
        if (store := self._store) is None or (caller := self._caller) is None:
            return None
        try:
            profile = await self.queue.breaker.ask(
                lambda: store.recall(caller), self._settings.memory_seconds
            )
        except Exception as error:
            self.queue.store_failed(f"{reason_of(error)}; the caller is taken for an unknown one")
            self._recalled("error")
            return None
        self.queue.store_answered()
        self._recalled("unknown" if profile is None else "known")
        if profile is None or self._settings.keep_transcripts:
            return profile
        return replace(profile, turns=[])

    def _recalled(self, outcome: str) -> None:
        log.info("asked the memory", extra=self.queue.journal.fields(recall=outcome))

    def add_turn(self, turn: Turn) -> None:
        if self._settings.keep_transcripts:
            self._add(replace(turn, text=redacted(turn.text, self._settings.redact)))

    def add_note(self, note: Note) -> bool:
        fact = note.fact and redacted(note.fact, self._settings.redact)
        return self._add(replace(note, fact=fact))

    def add_call(self, record: CallRecord) -> None:
        self._add(record)

    def _add(self, item: Item) -> bool:
        return self._caller is not None and self.queue.put(self._caller, item)
