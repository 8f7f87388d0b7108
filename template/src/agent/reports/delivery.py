"""Reports on their way: a call leaves a file for each place that a report goes to.

A worker takes each to its place and deletes the file when it has arrived. So a place that is down,
and a worker that dies in the middle, cost no report; one may arrive twice.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import cast

from agent.outbox import Locked, locked, oldest_first, write_whole
from agent.reports import NewerReport, NotDelivered, Report, ReportRefused
from agent.reports.privacy import as_kept
from agent.settings import Settings

log = logging.getLogger("agent.reports")

# of all files of one place
MOST_BYTES = 64_000_000
DAY = 86_400.0
# after which no process is still writing an unfinished file
UNFINISHED_SECONDS = 60.0
# how long forgetting waits for a delivery
FORGET_LOCK_SECONDS = 70.0
# between two looks into the folders
DELIVERY_SECONDS = 2.0
# before a place that failed is asked again, and before a report that it refused is sent again; the
# first time, and then twice as long each time
PLACE_SECONDS, REPORT_SECONDS = (2.0, 60.0), (5.0, 3600.0)


@dataclass(frozen=True)
class Waiting:
    """A report on its way; `keys` are digests of what its caller is known by."""

    report: Report
    keys: list[str]

    @classmethod
    def of(cls, settings: Settings, report: Report, keys: Iterable[str]) -> Waiting:
        """The report of a caller who is known by these keys."""
        return cls(report, [key_digest(settings, key) for key in keys])

    def to_json(self) -> bytes:
        """As it is in a file."""
        return json.dumps({"keys": self.keys, "report": self.report.to_dict()}).encode("ascii")


Deliver = Callable[[Waiting], Awaitable[None]]
"""Takes a report to its place; raises NotDelivered when that does not work now."""


@dataclass(frozen=True)
class Place:
    """Where a report goes to; `opener` is "module:function", entered for several reports.

    The function takes the settings, and what it yields is a `Deliver`.
    """

    name: str
    is_wanted: Callable[[Settings], bool]
    opener: str
    takes_long: bool = False

    def open(self, settings: Settings) -> AbstractAsyncContextManager[Deliver]:
        """Yield what delivers; it may raise NotDelivered."""
        module, _, function = self.opener.partition(":")
        opener = getattr(import_module(module), function)
        return cast(AbstractAsyncContextManager[Deliver], opener(settings))

    def folder(self, settings: Settings) -> Path:
        """Where reports wait for it."""
        return settings.data / "reports" / self.name


RECORDINGS = Place(
    "recordings",
    lambda settings: settings.record == "audio" and bool(settings.recordings_url),
    "agent.reports.recordings:open_deliverer",
)
KEPT = Place("kept", lambda settings: settings.calls_kept > 0, "agent.reports.kept:open_deliverer")
PLACES = [
    RECORDINGS,
    KEPT,
    Place(
        "webhook",
        lambda settings: bool(settings.webhook_url.get_secret_value()),
        "agent.reports.webhook:open_deliverer",
    ),
    Place(
        "after_call",
        # the owner's code, which is above this
        lambda settings: bool(import_module("agent.after_call").is_wanted()),
        "agent.after_call:open_deliverer",
        takes_long=True,
    ),
]


def places(settings: Settings) -> list[Place]:
    """Where the report of a call goes to; without any none is made."""
    return [place for place in PLACES if place.is_wanted(settings)]


def is_wanted(settings: Settings) -> bool:
    """Whether a report is to be made; by default that imports nothing of the owner's."""
    return any(place.is_wanted(settings) for place in PLACES)


def key_digest(settings: Settings, key: str) -> str:
    """What stands for a caller's key, so that a report can be found by it and names nobody."""
    return hashlib.blake2b(f"{settings.name}\0{key}".encode(), digest_size=16).hexdigest()


def file_of(call: str) -> str:
    """The name of the files of a call: one for each place."""
    return f"{re.sub(r'[^A-Za-z0-9_-]', '_', call)}.json"


def leave(settings: Settings, left: Waiting) -> None:
    """Leave a report for each place that wants it.

    One with a recording that has to be taken elsewhere waits for that first. Raises OSError, when
    it has been left for all others.
    """
    waits = left.report.recording and RECORDINGS.is_wanted(settings)
    _leave_for([RECORDINGS] if waits else _others(settings), settings, left)


def pass_on(settings: Settings, left: Waiting) -> None:
    """Leave a report whose recording need not be waited for any more. Raises OSError."""
    _leave_for(_others(settings), settings, left)


def _others(settings: Settings) -> list[Place]:
    return [place for place in places(settings) if place is not RECORDINGS]


def _leave_for(wanted: list[Place], settings: Settings, left: Waiting) -> None:
    name, failed = file_of(left.report.call), None
    for place in wanted:
        fit = replace(left, report=_to_keep(left.report, settings)) if place is KEPT else left
        try:
            folder = place.folder(settings)
            write_whole(folder, fit.to_json(), name=name, most_bytes=MOST_BYTES)
        except OSError as error:
            failed = error
    if failed is not None:
        raise failed


def _to_keep(report: Report, settings: Settings) -> Report:
    """The report without the words of a caller whom memory does not remember, unless asked for."""
    is_remembered = settings.memory != "none" and report.caller is not None
    if is_remembered or settings.keep_strangers_words:
        return report
    return as_kept(report, settings.model_copy(update={"keep_transcripts": False}))


class Pauses:
    """When what has failed is tried again; a worker that starts anew tries everything at once."""

    def __init__(self) -> None:
        self._failed: dict[Path, tuple[float, float]] = {}  # the pause, and until when
        self._in_vain = Counter[Path]()

    def is_over(self, of: Path) -> bool:
        """Whether it may be tried."""
        return of not in self._failed or time.monotonic() >= self._failed[of][1]

    def failed(self, of: Path, first: float, longest: float) -> None:
        """It has failed: the pause is twice the last one."""
        pause = min(2 * self._failed[of][0], longest) if of in self._failed else first
        self._failed[of] = pause, time.monotonic() + pause

    def worked(self, of: Path) -> None:
        """It has worked."""
        self._failed.pop(of, None)
        self._in_vain.pop(of, None)

    def tried(self, of: Path) -> None:
        """It is being tried."""
        self._in_vain[of] += 1

    def in_turn(self, files: list[Path]) -> list[Path]:
        """Those that may be tried; what has been tried in vain, after what has not."""
        return sorted(filter(self.is_over, files), key=lambda file: self._in_vain[file])


async def keep_delivering(settings: Settings) -> None:
    """Deliver what waits, now and when more comes, until cancelled; raises nothing."""
    # one that is slow holds up no other; a group ends when all of them have let their locks go
    async with asyncio.TaskGroup() as group:
        for place in PLACES:
            group.create_task(_keep_delivering(settings, place))


async def _keep_delivering(settings: Settings, place: Place) -> None:
    """A place that takes nothing is one warning."""
    level, pauses, folder = logging.WARNING, Pauses(), place.folder(settings)
    while True:
        try:
            if pauses.is_over(folder):
                if await deliver(settings, place, pauses):
                    level = logging.WARNING
                pauses.worked(folder)
        except Exception as error:
            known = isinstance(error, NotDelivered | OSError)
            why = str(error) if known else type(error).__name__
            log.log(level, "reports wait for a later delivery (%s): %s", place.name, why)
            level = logging.DEBUG
            if isinstance(error, ReportRefused):
                pauses.worked(folder)
            else:
                pauses.failed(folder, *PLACE_SECONDS)
        await asyncio.sleep(DELIVERY_SECONDS)


async def deliver(settings: Settings, place: Place, pauses: Pauses | None = None) -> int:
    """Take what waits to its place; how many that were.

    What another process is delivering is left to it. A report that was refused holds up no other,
    and neither does one at which the place always fails: the next time the others come first.
    Raises NotDelivered, OSError; ReportRefused when all others have been delivered.
    """
    delivered, refused, pauses = 0, None, pauses or Pauses()
    files = pauses.in_turn(waiting(settings, place))
    # what was left while the place was still wanted grows old
    if not (files and place.is_wanted(settings)):
        return delivered
    async with place.open(settings) as take:
        with suppress(Locked):
            for file in files:
                with locked(_lock_of(settings, place), seconds=0):
                    pauses.tried(file)
                    try:
                        if (report := read(file)) is not None:
                            await take(report)
                            delivered += 1
                    except ReportRefused as error:
                        refused = error
                        pauses.failed(file, *REPORT_SECONDS)
                        continue
                    file.unlink(missing_ok=True)
                    pauses.worked(file)
    if refused is not None:
        raise refused
    return delivered


async def deliver_once(settings: Settings, seconds: float) -> None:
    """Deliver what waits, now and for so long at most; what takes long is left to later."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            for place in (place for place in PLACES if not place.takes_long):
                # which waits on
                with suppress(NotDelivered, OSError):
                    await deliver(settings, place)


def waiting(settings: Settings, place: Place) -> list[Path]:
    """What waits for a place, oldest first; files older than `memory_days` are gone."""
    now, folder, days = time.time(), place.folder(settings), settings.memory_days
    for pattern, oldest in ("*.json", days * DAY), ("*.part", UNFINISHED_SECONDS):
        for file in folder.glob(pattern):
            with suppress(FileNotFoundError):
                if now - file.stat().st_mtime <= oldest:
                    continue
                file.unlink()
                if pattern == "*.json":
                    sentence = "the report %s was not delivered (%s) within %d days, and is gone"
                    log.warning(sentence, file.stem, place.name, days)
    return oldest_first(folder, "*.json")


def read(file: Path) -> Waiting | None:
    """The report in a file; None if it is gone, or damaged, which is reported without its words.

    Raises NewerReport.
    """
    try:
        fields = json.loads(file.read_bytes())
        return Waiting(Report.from_json(json.dumps(fields["report"])), list(fields["keys"]))
    except FileNotFoundError:
        return None
    except NewerReport:
        raise
    except (ValueError, TypeError, KeyError):
        log.warning("the report in %s is damaged and was left out", file.name)
        return None


def unread(settings: Settings, place: Place) -> list[str]:
    """The calls whose report waits for a newer version."""
    calls = []
    for file in waiting(settings, place):
        try:
            read(file)
        except NewerReport:
            calls.append(file.stem)
    return calls


def forget(settings: Settings, keys: Iterable[str]) -> int:
    """Delete what waits of a caller, by every key of theirs; how many reports that were.

    Raises OSError, a TimeoutError if a delivery takes too long.
    """
    digests, gone = {key_digest(settings, key) for key in keys}, set[str]()
    for place in PLACES:
        if not place.folder(settings).is_dir():
            continue
        with locked(_lock_of(settings, place), FORGET_LOCK_SECONDS):
            for file in waiting(settings, place):
                if digests & _keys_in(file):
                    gone.add(file.name)
                    os.unlink(file)
    return len(gone)


def _keys_in(file: Path) -> set[str]:
    """Digests of what the caller is known by, also of a report that a newer version has left."""
    with suppress(FileNotFoundError, ValueError, TypeError, KeyError):
        return set(json.loads(file.read_bytes())["keys"])
    return set()


def _lock_of(settings: Settings, place: Place) -> Path:
    return place.folder(settings) / ".lock"
