"""Calls that go on: each has a file that its process holds a lock on, so that its death is noticed.

A process that is killed, or that has no memory left, reports nothing, but its lock goes with it.
A worker, this one or the next on this machine, sees that, and leaves a report of what is known.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import IO

from agent.outbox import oldest_first
from agent.reasons import Reason
from agent.reports import Failure, NewerReport, Report
from agent.reports.delivery import PLACES, Waiting, file_of, leave, read
from agent.settings import Settings

log = logging.getLogger("agent.reports")

# between two looks at who has died
LOOK_SECONDS = 2.0


class Going:
    """A call that goes on, until its process says `over` or is no more."""

    def __init__(self, settings: Settings, begun: Waiting) -> None:
        """`begun` is what is known when the call begins. Raises OSError."""
        folder = folder_of(settings)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file = folder / file_of(begun.report.call)
        handle, unfinished = tempfile.mkstemp(dir=folder, suffix=".part")
        # the lock is the open file's: it is held as long as this
        self._held: IO[bytes] = os.fdopen(handle, "wb")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            self.know(begun)
            os.replace(unfinished, self._file)
        except OSError:
            Path(unfinished).unlink(missing_ok=True)
            raise

    def know(self, begun: Waiting) -> None:
        """Note what is known of the call by now. Raises OSError."""
        self._held.seek(0)
        self._held.write(begun.to_json())
        self._held.truncate()
        self._held.flush()

    def over(self) -> None:
        """The call has left its own report. Raises OSError."""
        self._file.unlink(missing_ok=True)
        self._held.close()


def folder_of(settings: Settings) -> Path:
    """Where the files are."""
    return settings.data / "reports" / "going"


def report_deaths(settings: Settings) -> int:
    """Leave a report of each call whose process is no more; how many. Raises OSError.

    The others are marked as seen, so that it is known until when a call went on, whoever asks next.
    """
    deaths = 0
    for file in oldest_first(folder_of(settings), "*.json"):
        # one of a newer version is left to a worker that can read it
        with suppress(FileNotFoundError, NewerReport), file.open("rb") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.utime(file)
                continue
            # gone if the call, or another worker, was faster; its own report is the better one
            seen, begun = file.stat().st_mtime, read(file)
            if begun is not None and not _has_reported(settings, begun.report):
                leave(settings, replace(begun, report=_died(begun.report, seen)))
                about = {"call": begun.report.call, "room": begun.report.room}
                log.info("a call has died, and is reported", extra={"fields": about})
                deaths += 1
            file.unlink(missing_ok=True)
    return deaths


async def keep_reporting_deaths(settings: Settings) -> None:
    """Leave a report of each call that dies, until cancelled; raises nothing."""
    level = logging.WARNING
    while True:
        try:
            report_deaths(settings)
            level = logging.WARNING
        except OSError as error:
            log.log(level, "calls that have died are not reported yet: %s", error)
            level = logging.DEBUG
        await asyncio.sleep(LOOK_SECONDS)


def _died(begun: Report, seen: float) -> Report:
    seconds = max(0.0, round(seen - begun.began, 3))
    problem = "it was killed, or has crashed, and took along what had happened in the call"
    failure = Failure(seconds, "the call's process", problem, "a worker made this report")
    return replace(begun, seconds=seconds, reason=Reason.JOB_DIED, failures=[failure])


def _has_reported(settings: Settings, report: Report) -> bool:
    """Whether the report of the call waits: its process died after all was done."""
    found = (place.folder(settings) / file_of(report.call) for place in PLACES)
    return any(file.exists() for file in found)
