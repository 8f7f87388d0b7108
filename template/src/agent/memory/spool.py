"""What a store could not take before its call was over: kept in files, and delivered when the store is back.

A file holds what one call left unwritten, a JSON object a line. Writing is idempotent in every store, so a file that is
delivered twice because a worker died in between doubles nothing; a file goes only when all of it is written.
Whoever delivers or forgets holds a lock: else what is forgotten now could be written by a worker that has just read it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from agent.memory.store import CallRecord, Memory, MemoryUnavailable, Note, Turn, open_memory_of
from agent.settings import Settings

log = logging.getLogger("agent.memory")

Item = tuple[str, Turn | CallRecord | Note]  # the caller's key, and what belongs to them
KINDS: dict[str, type[Turn] | type[CallRecord] | type[Note]] = {
    "turn": Turn,
    "record": CallRecord,
    "note": Note,
}

MOST_BYTES = 64_000_000  # of all files together; a call is rarely more than a hundred thousand
DAY = 86_400.0  # seconds
UNFINISHED_SECONDS = 60.0  # after which nobody finishes an unfinished file any more
LOCK_SECONDS = 10.0  # how long forgetting waits for a delivery


def folder_of(settings: Settings) -> Path:
    """Where the files are."""
    return settings.data / "spool"


def keep(folder: Path, items: Iterable[Item]) -> Path:
    """Write the items to a file of their own, readable by nobody else, whole or not at all.

    Raises OSError, also when the files together would be more than MOST_BYTES.
    """
    content = _lines(items)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if sum(_size(file) for file in folder.iterdir()) + len(content) > MOST_BYTES:
        raise OSError(errno.ENOSPC, f"it holds {MOST_BYTES / 1e6:g} MB already")
    handle, unfinished = tempfile.mkstemp(dir=folder, suffix=".part")  # mode 0600
    kept = Path(unfinished).with_suffix(".jsonl")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(
                content
            )  # not synced: on a busy disk that takes longer than a call may; a power cut may cost it
        os.replace(unfinished, kept)
    except OSError:
        Path(unfinished).unlink(missing_ok=True)
        raise
    return kept


def waiting(settings: Settings) -> list[Path]:
    """The files that wait, oldest first. Raises OSError."""
    found = []
    for file in folder_of(settings).glob("*.jsonl"):
        with suppress(FileNotFoundError):  # delivered by another worker
            found.append((file.stat().st_mtime, file))
    return [file for _, file in sorted(found)]


async def deliver(settings: Settings) -> int:
    """Write what waits to the store; how many turns, facts and records that were.

    Another worker that is delivering is left to it. Raises MemoryUnavailable, OSError.
    """
    if not (files := _tidied(settings)):
        return 0
    written = 0
    async with open_memory_of(settings) as store:
        if store is None:
            return 0
        for file in files:
            with _locked(settings, seconds=0) as alone:
                if not alone:
                    break
                written += await _deliver(file, store, transcripts=settings.keep_transcripts)
                file.unlink(missing_ok=True)
    return written


def forget(settings: Settings, callers: Iterable[str]) -> int:
    """Delete what waits for a caller, by every key of theirs; how many turns, facts and records that were.

    Raises OSError, a TimeoutError if a delivery takes too long.
    """
    if not folder_of(settings).is_dir():
        return 0
    keys, gone = set(callers), 0
    with _locked(settings, seconds=LOCK_SECONDS) as alone:
        if not alone:
            raise TimeoutError(errno.ETIMEDOUT, f"{folder_of(settings)} is being delivered")
        for file in _tidied(settings):
            items = list(items_of(file))
            others = [item for item in items if item[0] not in keys]
            if len(others) < len(items):
                _replace(file, others)
                gone += len(items) - len(others)
    return gone


async def _deliver(file: Path, store: Memory, *, transcripts: bool) -> int:
    written = 0
    for caller, item in items_of(file):
        try:
            match item:
                case Turn() if transcripts:  # they may have been switched off since
                    await store.remember(caller, item)
                case CallRecord():
                    await store.record(caller, item)
                case Note():
                    await store.note(caller, item)
                case _:
                    continue
            written += 1
        except MemoryUnavailable:
            raise
        except Exception as error:  # of the item, not of the store: it must not hold up the others
            log.warning("memory: a turn that was kept cannot be written (%s)", type(error).__name__)
    return written


def _tidied(settings: Settings) -> list[Path]:
    """What waits, without what is older than `memory_days`, and without what a process that died was about to write."""
    now = time.time()
    for pattern, oldest in ("*.jsonl", settings.memory_days * DAY), ("*.part", UNFINISHED_SECONDS):
        for file in folder_of(settings).glob(pattern):
            with suppress(FileNotFoundError):
                if now - file.stat().st_mtime > oldest:
                    file.unlink()
    return waiting(settings)


def _replace(file: Path, items: list[Item]) -> None:
    """Leave these in the file, as old as it is."""
    if not items:
        file.unlink(missing_ok=True)
        return
    age = file.stat()
    unfinished = file.with_suffix(".part")
    unfinished.touch(mode=0o600)
    unfinished.write_bytes(_lines(items))
    os.replace(unfinished, file)
    os.utime(file, ns=(age.st_atime_ns, age.st_mtime_ns))


def _lines(items: Iterable[Item]) -> bytes:
    lines = [json.dumps({"caller": caller, _kind(item): asdict(item)}) for caller, item in items]
    return ("\n".join(lines) + "\n").encode("ascii")


def _kind(item: Turn | CallRecord | Note) -> str:
    return next(name for name, kind in KINDS.items() if isinstance(item, kind))


def items_of(file: Path) -> Iterator[Item]:
    """The items of a file; what is none is left out and told, without its words."""
    try:
        lines = file.read_bytes().splitlines()
    except FileNotFoundError:
        return
    for number, line in enumerate(lines, 1):
        try:
            fields = json.loads(line)
            (kind,) = fields.keys() & KINDS.keys()
            item = KINDS[kind](**fields[kind])
            caller = fields["caller"]
        except (ValueError, TypeError, KeyError, AttributeError):
            log.warning("memory: line %d of %s is damaged and was left out", number, file.name)
            continue
        yield caller, item


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


@contextmanager
def _locked(settings: Settings, seconds: float) -> Iterator[bool]:
    """Hold the folder's lock, if it is to be had within so many seconds; yields whether it is held."""
    until = time.monotonic() + seconds
    with (folder_of(settings) / ".lock").open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= until:
                    yield False
                    return
                time.sleep(0.05)
            else:
                yield True
                return
