"""Recordings of calls: one file each in `AGENT_DATA_DIR/recordings`, kept as long as reports.

Beside each is a file with digests of what its caller is known by, so that it can be forgotten.
With AGENT_RECORDINGS_URL a worker takes them to a bucket when their calls are over: first to where
their reports wait for that (`open_deliverer`), and what does not arrive then, later (`keep`).
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from agent.outbox import Locked, locked
from agent.reports import Failure, NotDelivered
from agent.reports.bucket import Bucket, url_of
from agent.reports.delivery import (
    DAY,
    FORGET_LOCK_SECONDS,
    RECORDINGS,
    Deliver,
    Waiting,
    key_digest,
    pass_on,
)
from agent.settings import Settings

log = logging.getLogger("agent.reports")

# between two looks for what is too old, and for what has not arrived
TIDY_SECONDS, RETRY_SECONDS = 3600.0, 60.0
# for one recording, while its report waits
UPLOAD_SECONDS = 60.0
# a file that is being written, or was when its process ended
UNFINISHED = ".part"


def is_in_bucket(settings: Settings) -> bool:
    """Whether recordings are made, and taken to a bucket."""
    return RECORDINGS.is_wanted(settings)


def folder_of(settings: Settings) -> Path:
    """Where the recordings are."""
    return settings.data / "recordings"


def file_of(settings: Settings, call: str) -> Path:
    """The recording of a call, on this machine."""
    return folder_of(settings) / f"{re.sub(r'[^A-Za-z0-9_-]', '_', call)}.ogg"


def address_of(settings: Settings, call: str) -> str:
    """Where the recording of a call will be."""
    file = file_of(settings, call)
    return url_of(settings, file.name) if is_in_bucket(settings) else str(file)


def prepare(settings: Settings, call: str, keys: Iterable[str]) -> Path:
    """The file that a call is to be recorded into, which nobody else may read. Raises OSError."""
    folder = folder_of(settings)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = file_of(settings, call).with_suffix(UNFINISHED)
    for made in (file, _digests_of(file)):
        made.touch(mode=0o600)
    digests = [key_digest(settings, key) for key in keys]
    _digests_of(file).write_text(json.dumps(digests), encoding="ascii")
    return file


def finish(file: Path) -> None:
    """The call is over: its recording is whole. Raises OSError."""
    os.replace(file, file.with_suffix(".ogg"))


async def forget(settings: Settings, keys: Iterable[str]) -> int:
    """Delete the recordings of a caller, by every key of theirs; how many.

    Raises OSError, NotDelivered.
    """
    digests, gone = {key_digest(settings, key) for key in keys}, 0
    with _on_their_way(settings, FORGET_LOCK_SECONDS):
        for file in _files(settings):
            with suppress(FileNotFoundError):
                if digests & set(_read_digests(file)):
                    _delete(file)
                    gone += 1
    if settings.recordings_url:
        gone += await Bucket(settings).forget(digests)
    return gone


async def keep(settings: Settings) -> None:
    """Delete what is too old, take to the bucket what waits, until cancelled; raises nothing."""
    level, tidied = logging.WARNING, -TIDY_SECONDS
    while True:
        try:
            if time.monotonic() - tidied >= TIDY_SECONDS:
                tidied = time.monotonic()
                await tidy(settings)
            if is_in_bucket(settings) and await take_waiting(settings):
                level = logging.WARNING
        except (OSError, NotDelivered) as error:
            log.log(level, "recordings wait, or are kept too long: %s", error)
            level = logging.DEBUG
        await asyncio.sleep(RETRY_SECONDS if is_in_bucket(settings) else TIDY_SECONDS)


async def tidy(settings: Settings) -> None:
    """Delete the recordings that are older than `memory_days`. Raises OSError, NotDelivered.

    What a killed call has left is a recording, as soon as no call can write it any more.
    """
    now = time.time()
    for file in _files(settings):
        with suppress(FileNotFoundError):
            age = now - file.stat().st_mtime
            if age > settings.memory_days * DAY:
                _delete(file)
            elif file.suffix == UNFINISHED and age > settings.max_call_seconds + TIDY_SECONDS:
                finish(file)
    if settings.recordings_url:
        await Bucket(settings).delete_older(settings.memory_days)


async def take_waiting(settings: Settings) -> int:
    """Take to the bucket what has not arrived; how many. Raises OSError, NotDelivered."""
    taken = 0
    # what another worker takes is left to it
    with suppress(Locked), _on_their_way(settings, 0):
        for file in _files(settings):
            if file.suffix == ".ogg":
                with suppress(FileNotFoundError):
                    await _take(settings, file)
                    taken += 1
    return taken


@asynccontextmanager
async def open_deliverer(settings: Settings) -> AsyncIterator[Deliver]:
    """Yield what takes a report's recording to the bucket, and passes the report on.

    That says if it did not arrive: the other places do not wait for it.
    """

    async def deliver(waiting: Waiting) -> None:
        report = waiting.report
        file = file_of(settings, report.call)
        try:
            async with asyncio.timeout(UPLOAD_SECONDS):
                await _take(settings, file)
        except (NotDelivered, OSError) as error:
            if not (file.exists() or file.with_suffix(UNFINISHED).exists()):
                # it has been taken, by `keep` or at an earlier try
                return pass_on(settings, waiting)
            why = str(error) or f"nothing within {UPLOAD_SECONDS:g} s"
            problem = f"the recording is not at {report.recording} yet: {why}"
            log.warning("%s", problem, extra={"fields": {"call": report.call}})
            failure = Failure(report.seconds, "recording", problem, "a worker tries again")
            report = replace(report, failures=[*report.failures, failure])
        pass_on(settings, replace(waiting, report=report))

    yield deliver


async def _take(settings: Settings, file: Path) -> None:
    digests = _read_digests(file)
    await Bucket(settings).put(file.name, file, digests)
    _delete(file)


@contextmanager
def _on_their_way(settings: Settings, seconds: float) -> Iterator[None]:
    """Nobody else takes recordings to the bucket meanwhile; raises Locked after so many seconds."""
    if not (folder := folder_of(settings)).is_dir():
        yield
        return
    with locked(folder / ".lock", seconds):
        yield


def _files(settings: Settings) -> list[Path]:
    folder = folder_of(settings)
    return sorted([*folder.glob("*.ogg"), *folder.glob(f"*{UNFINISHED}")])


def _digests_of(file: Path) -> Path:
    return file.with_suffix(".json")


def _read_digests(file: Path) -> list[str]:
    """Raises FileNotFoundError for a recording that is not finished, or was deleted."""
    file.stat()
    with suppress(FileNotFoundError, ValueError):
        return list(json.loads(_digests_of(file).read_text(encoding="ascii")))
    return []


def _delete(file: Path) -> None:
    # first what is said; without the digests nobody could be asked to forget it
    file.unlink(missing_ok=True)
    _digests_of(file).unlink(missing_ok=True)
