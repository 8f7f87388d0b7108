"""What a store could not take before its call was over waits in files, and is delivered later.

A file holds what one call left unwritten, one JSON object a line. Writing is idempotent in every
store, so a file that is delivered twice, because a worker died in between, doubles nothing; a file
is deleted only when all of it is written. Delivering and forgetting hold a lock: otherwise a worker
could write what it read just before it was forgotten.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from agent.circuit_breaker import CircuitBreaker, Unanswered
from agent.memory import CallRecord, Item, Memory, MemoryUnavailable, Note, Turn, open_store
from agent.outbox import Locked, locked, oldest_first, write_whole
from agent.settings import Settings

log = logging.getLogger("agent.memory")

# a caller's key, and what belongs to them
Entry = tuple[str, Item]
ITEM_TYPES: dict[str, type[Turn] | type[CallRecord] | type[Note]] = {
    "turn": Turn,
    "record": CallRecord,
    "note": Note,
}

# of all files together; a call rarely has more than a hundred thousand
MOST_BYTES = 64_000_000
DAY = 86_400.0
# after which no process is still writing an unfinished file
UNFINISHED_SECONDS = 60.0
# how long forgetting waits for a delivery
FORGET_LOCK_SECONDS = 10.0
# between two looks into the folder; while it is empty, the store is not asked
DELIVERY_SECONDS = 5.0


def folder_of(settings: Settings) -> Path:
    """Where the files are."""
    return settings.data / "spool"


def breaker_of(settings: Settings) -> CircuitBreaker:
    """What lets the calls of this machine leave the store alone after one has waited in vain."""
    shared = settings.memory != "sqlite"
    file = settings.data / "memory.outage" if shared else None
    return CircuitBreaker("the store", file, opened_by=(MemoryUnavailable, Unanswered))


def keep(folder: Path, entries: Iterable[Entry]) -> Path:
    """Write the entries to a file of their own, readable by this user only, whole or not at all.

    Raises OSError, also when the files together would exceed MOST_BYTES.
    """
    name = f"{uuid.uuid4().hex}.jsonl"
    return write_whole(folder, _lines(entries), name=name, most_bytes=MOST_BYTES)


def waiting(settings: Settings) -> list[Path]:
    """The files that wait, oldest first. Raises OSError."""
    return oldest_first(folder_of(settings), "*.jsonl")


async def keep_delivering(settings: Settings) -> None:
    """Deliver what waits, now and whenever the store may be back, until cancelled; raises nothing.

    An outage is one warning.
    """
    level = logging.WARNING
    while True:
        try:
            await deliver(settings)
            level = logging.WARNING
        except Exception as error:
            known = isinstance(error, MemoryUnavailable | OSError)
            why = error if known else type(error).__name__
            log.log(level, "memory: what earlier calls left is not delivered yet: %s", why)
            level = logging.DEBUG
        await asyncio.sleep(DELIVERY_SECONDS)


async def deliver(settings: Settings) -> int:
    """Write what waits to the store; how many turns, notes and records that were.

    Calls ask the store again if it takes them. What another worker is delivering is left to it.
    Raises MemoryUnavailable, OSError.
    """
    written = 0
    if not (files := _tidied(settings)):
        return written
    async with open_store(settings) as store:
        if store is None:
            return written
        with suppress(Locked):
            for file in files:
                with locked(_lock_of(settings), seconds=0):
                    written += await _write(file, store, settings.keep_transcripts)
                    file.unlink(missing_ok=True)
    if written:
        breaker_of(settings).worked()
        log.info("memory: %d turns and records of earlier calls have been delivered", written)
    return written


def forget(settings: Settings, callers: Iterable[str]) -> int:
    """Delete what waits for a caller, by every key of theirs; how many items that were.

    Raises OSError, a TimeoutError if a delivery takes too long.
    """
    if not folder_of(settings).is_dir():
        return 0
    keys, gone = set(callers), 0
    with locked(_lock_of(settings), FORGET_LOCK_SECONDS):
        for file in _tidied(settings):
            entries = list(entries_of(file))
            others = [entry for entry in entries if entry[0] not in keys]
            if len(others) < len(entries):
                _replace(file, others)
                gone += len(entries) - len(others)
    return gone


def entries_of(file: Path) -> Iterator[Entry]:
    """The entries of a file; a damaged line is left out and reported, without its words."""
    try:
        lines = file.read_bytes().splitlines()
    except FileNotFoundError:
        return
    for number, line in enumerate(lines, 1):
        try:
            fields = json.loads(line)
            (kind,) = fields.keys() & ITEM_TYPES.keys()
            item = ITEM_TYPES[kind](**fields[kind])
            caller = fields["caller"]
        except (ValueError, TypeError, KeyError, AttributeError):
            log.warning("memory: line %d of %s is damaged and was left out", number, file.name)
            continue
        yield caller, item


def _lock_of(settings: Settings) -> Path:
    return folder_of(settings) / ".lock"


async def _write(file: Path, store: Memory, transcripts: bool) -> int:
    written = 0
    for caller, item in entries_of(file):
        # transcripts may have been switched off since
        if isinstance(item, Turn) and not transcripts:
            continue
        try:
            await store.write(caller, item)
            written += 1
        except MemoryUnavailable:
            raise
        except Exception as error:
            # of this item, which must not hold up the others
            log.warning("memory: a spooled turn cannot be written (%s)", type(error).__name__)
    return written


def _tidied(settings: Settings) -> list[Path]:
    """What waits; files older than `memory_days`, and of processes that died writing, are gone."""
    now = time.time()
    for pattern, oldest in ("*.jsonl", settings.memory_days * DAY), ("*.part", UNFINISHED_SECONDS):
        for file in folder_of(settings).glob(pattern):
            with suppress(FileNotFoundError):
                if now - file.stat().st_mtime > oldest:
                    file.unlink()
    return waiting(settings)


def _replace(file: Path, entries: list[Entry]) -> None:
    """Leave these in the file, which keeps its age."""
    if not entries:
        file.unlink(missing_ok=True)
        return
    age = file.stat()
    unfinished = file.with_suffix(".part")
    unfinished.touch(mode=0o600)
    unfinished.write_bytes(_lines(entries))
    os.replace(unfinished, file)
    os.utime(file, ns=(age.st_atime_ns, age.st_mtime_ns))


def _lines(entries: Iterable[Entry]) -> bytes:
    lines = [json.dumps({"caller": caller, _kind(item): asdict(item)}) for caller, item in entries]
    return ("\n".join(lines) + "\n").encode("ascii")


def _kind(item: Item) -> str:
    return next(name for name, kind in ITEM_TYPES.items() if isinstance(item, kind))
