"""The reports of the last calls, kept: in a SQLite file, or in the Redis that memory has.

No call waits for it: a worker brings the reports here, and commands read them.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing, suppress
from importlib import import_module
from pathlib import Path
from typing import Protocol, TypeVar, cast

from agent.reports import NotDelivered, Report
from agent.reports.delivery import DAY, Deliver, Waiting, key_digest
from agent.settings import Settings

T = TypeVar("T")

SCHEMA_VERSION = 1
# for another process that writes
BUSY_SECONDS = 2.0
# between two looks for what is too old
TIDY_SECONDS = 3600.0
SCHEMA = """
CREATE TABLE calls(call TEXT PRIMARY KEY, at REAL NOT NULL, keys TEXT NOT NULL,
                   report TEXT NOT NULL);
CREATE INDEX calls_at ON calls(at);
"""


class KeptCalls(Protocol):
    """The newest `calls_kept` reports of the last `memory_days`. May raise NotDelivered.

    `unread` are the calls that the last question left out: their reports do not fit this version.
    """

    unread: list[str]

    async def add(self, waiting: Waiting) -> None:
        """Keep a report; the same call again replaces it."""
        ...

    async def tidy(self) -> None:
        """Delete what is too old, or too much, also while no call brings a report."""
        ...

    async def newest(self, most: int) -> list[Report]:
        """So many reports, the newest first."""
        ...

    async def find(self, call: str) -> list[Report]:
        """The reports of the calls whose id or room begins like this, the newest first."""
        ...

    async def forget(self, digests: Iterable[str]) -> int:
        """Delete the reports of a caller; how many that were."""
        ...


def open_kept(settings: Settings) -> AbstractAsyncContextManager[KeptCalls]:
    """Yield the kept reports, and close their store on exit.

    They are in Redis if that is the memory of the agent, else in a file.
    """
    if settings.memory != "redis":
        return _open_file(settings)
    try:
        module = import_module("agent.reports.redis")
    except ModuleNotFoundError as error:
        raise NotDelivered(
            f"AGENT_MEMORY_URL asks for redis, but this project was made without it "
            f"({error.name} is missing): run `agent update -d memory=redis`, or set "
            "AGENT_MEMORY_URL=none"
        ) from error
    return cast(AbstractAsyncContextManager[KeptCalls], module.open_kept(settings))


@asynccontextmanager
async def open_deliverer(settings: Settings) -> AsyncIterator[Deliver]:
    """Yield what keeps a report."""
    async with open_kept(settings) as kept:
        yield kept.add


async def forget(settings: Settings, keys: Iterable[str]) -> int:
    """Delete the kept reports of a caller, by every key of theirs; how many that were."""
    async with open_kept(settings) as kept:
        return await kept.forget([key_digest(settings, key) for key in keys])


async def keep_tidy(settings: Settings) -> None:
    """Delete what is too old, or too much, now and then, until cancelled; raises nothing."""
    while True:
        # whoever brings a report, or asks for one, is told
        with suppress(NotDelivered):
            async with open_kept(settings) as kept:
                await kept.tidy()
        await asyncio.sleep(TIDY_SECONDS)


def oldest_kept(settings: Settings) -> float:
    """When the oldest call may have begun whose report is still kept."""
    return time.time() - settings.memory_days * DAY


def fitting(kept: Iterable[tuple[str, str]]) -> tuple[list[Report], list[str]]:
    """The reports of calls and their JSON, and the calls whose report does not fit this version."""
    reports, unread = list[Report](), list[str]()
    for call, text in kept:
        try:
            reports.append(Report.from_json(text))
        except ValueError:
            unread.append(call)
    return reports, unread


@asynccontextmanager
async def _open_file(settings: Settings) -> AsyncIterator[KeptCalls]:
    yield KeptInFile(settings)


class KeptInFile:
    """`KeptCalls` in the data folder. The file is opened for each use, in a thread."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self._path = settings, settings.data / "calls.db"
        self.unread: list[str] = []

    async def add(self, waiting: Waiting) -> None:
        report = waiting.report
        row = report.call, report.began, json.dumps(waiting.keys), report.to_json().decode()

        def work(db: sqlite3.Connection) -> None:
            db.execute("INSERT OR REPLACE INTO calls VALUES(?, ?, ?, ?)", row)
            self._tidy(db)

        await self._run(work)

    async def tidy(self) -> None:
        if await asyncio.to_thread(self._path.exists):
            await self._run(self._tidy)

    def _tidy(self, db: sqlite3.Connection) -> None:
        db.execute("DELETE FROM calls WHERE at < ?", (oldest_kept(self._settings),))
        db.execute(
            "DELETE FROM calls WHERE call IN (SELECT call FROM calls"
            " ORDER BY at DESC, call LIMIT -1 OFFSET ?)",
            (self._settings.calls_kept,),
        )

    async def newest(self, most: int) -> list[Report]:
        return await self._reports("ORDER BY at DESC, call LIMIT ?", most)

    async def find(self, call: str) -> list[Report]:
        found = await self._reports("ORDER BY at DESC, call")
        return [report for report in found if report.call.startswith(call) or report.room == call]

    async def forget(self, digests: Iterable[str]) -> int:
        wanted = set(digests)

        def work(db: sqlite3.Connection) -> int:
            rows = db.execute("SELECT call, keys FROM calls").fetchall()
            gone = [(call,) for call, keys in rows if wanted & set(json.loads(keys))]
            db.executemany("DELETE FROM calls WHERE call = ?", gone)
            return len(gone)

        return await self._run(work)

    async def _reports(self, order: str, *values: int) -> list[Report]:
        def work(db: sqlite3.Connection) -> list[tuple[str, str]]:
            where = f"SELECT call, report FROM calls WHERE at >= ? {order}"
            return db.execute(where, (oldest_kept(self._settings), *values)).fetchall()

        rows = await self._run(work) if await asyncio.to_thread(self._path.exists) else []
        reports, self.unread = fitting(rows)
        return reports

    async def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return await asyncio.to_thread(self._within_transaction, work)
        except (sqlite3.Error, OSError) as error:
            raise NotDelivered(_sentence(self._path, error)) from error

    def _within_transaction(self, work: Callable[[sqlite3.Connection], T]) -> T:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # SQLite itself would let everybody read what was said
        self._path.touch(mode=0o600)
        with closing(sqlite3.connect(self._path, timeout=BUSY_SECONDS, isolation_level=None)) as db:
            # what is deleted is overwritten
            db.execute("PRAGMA secure_delete = ON")
            db.execute("BEGIN IMMEDIATE")
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if version > SCHEMA_VERSION:
                raise NotDelivered(
                    f"{self._path} was written by a newer version of this agent: update this one,"
                    " or move the file away"
                )
            if version == 0:
                for statement in SCHEMA.split(";"):
                    db.execute(statement)
                db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            result = work(db)
            db.execute("COMMIT")
            return result


def _sentence(path: Path, error: Exception) -> str:
    if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
        return f"{path} is damaged ({error}): move it away, and a new one is made"
    return (
        f"calls cannot be kept in {path} ({error}): let this user write to {path.parent}, make"
        " room there, or set AGENT_DATA_DIR to another folder"
    )
