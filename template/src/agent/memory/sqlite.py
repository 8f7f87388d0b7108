"""Callers in one SQLite file: for one machine, and as many processes on it as answer calls."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import secrets
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from agent.memory.store import (
    KEPT,
    MOST_FACTS,
    RECALLED_TURNS,
    CallRecord,
    Memory,
    MemoryUnavailable,
    Note,
    Profile,
    Turn,
    broke_off,
)
from agent.settings import Settings
from agent.sqlite_thread import SqliteThread

T = TypeVar("T")

log = logging.getLogger("agent.memory")

SCHEMA = 2
LOCKED_SECONDS = (
    0.25  # a writer holds the file for a millisecond; who waits longer is told, and tries again
)
DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
# an open file keeps what it was when it was opened, such as read-only: only opening it anew finds it cured
STALE = {
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_FULL,
}

# Every key begins with the caller, so that nothing can be read without naming one.
TABLES = """
CREATE TABLE callers(caller TEXT PRIMARY KEY, seen REAL NOT NULL);
CREATE TABLE calls(caller TEXT NOT NULL, call TEXT NOT NULL, at REAL NOT NULL,
                   room TEXT, reason TEXT, seconds REAL, turns INTEGER, UNIQUE(caller, call));
CREATE TABLE turns(caller TEXT NOT NULL, call TEXT NOT NULL, item TEXT NOT NULL, at REAL NOT NULL,
                   role TEXT NOT NULL, text TEXT NOT NULL, UNIQUE(caller, call, item));
"""
# The tables above stay as they are, but for columns at their end: a worker of the release before, which is draining on
# the same file, goes on writing to them.
SINCE_2 = """
ALTER TABLE calls ADD COLUMN usage TEXT;
CREATE TABLE names(caller TEXT PRIMARY KEY, name TEXT NOT NULL, at REAL NOT NULL);
CREATE TABLE facts(caller TEXT NOT NULL, fact TEXT NOT NULL, at REAL NOT NULL, UNIQUE(caller, fact));
"""


@asynccontextmanager
async def open_memory(settings: Settings) -> AsyncIterator[Memory]:
    """Yield the callers' memory in the data folder and close its file on exit; the first use makes it if need be."""
    memory = SqliteMemory(
        settings.data / "memory.db", settings.memory_days, settings.resume_seconds
    )
    try:
        yield memory
    finally:
        await memory.aclose()


class SqliteMemory:
    """A `Memory`. A damaged file is moved aside, never deleted, and a new one made."""

    def __init__(self, path: Path, days: float, resume_seconds: float) -> None:
        self._path, self._days, self._resume_seconds = path, days, resume_seconds
        self._suspect = False  # whether the file has to be checked thoroughly when it is opened
        self._thread = SqliteThread(path, self._connect)

    async def aclose(self) -> None:
        """End the thread and close the file."""
        await self._thread.aclose()

    async def check(self) -> None:
        """Begin a transaction that writes nothing."""
        await self._run(lambda db: None)

    async def recall(self, caller: str) -> Profile | None:
        """Read without waiting for other processes' writing."""

        def work(db: sqlite3.Connection) -> Profile | None:
            (calls,) = db.execute(
                "SELECT count(*) FROM calls JOIN callers USING (caller) WHERE caller = ? AND seen >= ?",
                (caller, self._oldest()),
            ).fetchone()
            if not calls:
                return None
            newest = db.execute(
                "SELECT call, item, role, text, at FROM turns WHERE caller = ? ORDER BY at DESC, rowid DESC LIMIT ?",
                (caller, RECALLED_TURNS),
            ).fetchall()
            turns = [Turn(*row) for row in reversed(newest)]
            last, at, reason, seconds = db.execute(
                "SELECT call, at, reason, seconds FROM calls WHERE caller = ? ORDER BY at DESC, rowid DESC LIMIT 1",
                (caller,),
            ).fetchone()
            ended = max([at + (seconds or 0), *[turn.at for turn in turns if turn.call == last]])
            name = db.execute("SELECT name FROM names WHERE caller = ?", (caller,)).fetchone()
            facts = db.execute(
                "SELECT fact FROM facts WHERE caller = ? ORDER BY at, rowid", (caller,)
            )
            return Profile(
                caller,
                calls,
                last_call=at,
                turns=turns,
                name=name and name[0],
                facts=[fact for (fact,) in facts],
                resumed=broke_off(reason, ended, self._resume_seconds),
            )

        return await self._run(work, begin="BEGIN")  # reads while another process writes

    async def remember(self, caller: str, turn: Turn) -> None:
        """Write the turn and its call in one transaction."""

        def work(db: sqlite3.Connection) -> None:
            self._heard(db, caller)
            db.execute(
                "INSERT OR IGNORE INTO calls(caller, call, at) VALUES(?, ?, ?)",
                (caller, turn.call, turn.at),
            )
            db.execute(
                "INSERT OR IGNORE INTO turns(caller, call, item, role, text, at) VALUES(?, ?, ?, ?, ?, ?)",
                (caller, turn.call, turn.item, turn.role, turn.text, turn.at),
            )

        await self._run(work)

    async def record(self, caller: str, call: CallRecord) -> None:
        """Write the record; delete what is too much of this caller, and callers whose time is over."""

        def work(db: sqlite3.Connection) -> None:
            self._heard(db, caller)
            db.execute(
                "INSERT OR REPLACE INTO calls(caller, call, at, room, reason, seconds, turns, usage) "
                "VALUES(?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    caller,
                    call.call,
                    call.at,
                    call.room,
                    call.reason,
                    call.seconds,
                    call.turns,
                    json.dumps(call.usage),
                ),
            )
            for table in ("calls", "turns"):
                db.execute(
                    f"DELETE FROM {table} WHERE rowid IN (SELECT rowid FROM {table} WHERE caller = ? "
                    "ORDER BY at DESC, rowid DESC LIMIT -1 OFFSET ?)",
                    (caller, KEPT),
                )
            for (gone,) in db.execute(
                "SELECT caller FROM callers WHERE seen < ? LIMIT 100", (self._oldest(),)
            ).fetchall():
                _delete(db, gone)

        await self._run(work)

    async def note(self, caller: str, note: Note) -> None:
        """Write the name, the fact and their call in one transaction; delete the oldest facts if there are too many."""

        def work(db: sqlite3.Connection) -> None:
            self._heard(db, caller)
            db.execute(
                "INSERT OR IGNORE INTO calls(caller, call, at) VALUES(?, ?, ?)",
                (caller, note.call, note.at),
            )
            if note.name:
                db.execute(
                    "INSERT INTO names VALUES(?, ?, ?) ON CONFLICT(caller) "
                    "DO UPDATE SET name = excluded.name, at = excluded.at WHERE excluded.at > at",
                    (caller, note.name, note.at),
                )
            if note.fact:
                db.execute(
                    "INSERT OR IGNORE INTO facts VALUES(?, ?, ?)", (caller, note.fact, note.at)
                )
                db.execute(
                    "DELETE FROM facts WHERE rowid IN (SELECT rowid FROM facts WHERE caller = ? "
                    "ORDER BY at DESC, rowid DESC LIMIT -1 OFFSET ?)",
                    (caller, MOST_FACTS),
                )

        await self._run(work)

    async def forget(self, caller: str) -> int:
        """Delete, and overwrite in the file what was deleted."""
        deleted = await self._run(lambda db: _delete(db, caller))
        with suppress(
            sqlite3.Error
        ):  # else the words would stay in the log until somebody else writes enough
            await self._thread.run(
                lambda db: db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            )
        return deleted

    async def _run(
        self, work: Callable[[sqlite3.Connection], T], begin: str = "BEGIN IMMEDIATE"
    ) -> T:
        """One transaction in the thread; a file found damaged is replaced, and the work done in the new one."""

        def transaction(db: sqlite3.Connection) -> T:
            db.execute(begin)
            try:
                result = work(db)
                db.execute("COMMIT")
                return result
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")

        def healing(db: sqlite3.Connection) -> T:
            try:
                return transaction(db)
            except sqlite3.DatabaseError as error:
                if _is_of(error, STALE):
                    self._thread.disconnect()
                if not _is_of(error, DAMAGED):
                    raise
                self._suspect = True
                self._thread.disconnect()
                return transaction(self._thread.connection())

        try:
            return await self._thread.run(healing)
        except (sqlite3.Error, OSError) as error:
            raise MemoryUnavailable(self._sentence(error)) from error

    def _oldest(self) -> float:
        return time.time() - self._days * 86400

    def _heard(self, db: sqlite3.Connection, caller: str) -> None:
        """The caller is there now; one whose time was over begins anew."""
        if db.execute(
            "SELECT 1 FROM callers WHERE caller = ? AND seen < ?", (caller, self._oldest())
        ).fetchone():
            _delete(db, caller)
        db.execute(
            "INSERT OR REPLACE INTO callers(caller, seen) VALUES(?, ?)", (caller, time.time())
        )

    def _connect(self) -> sqlite3.Connection:
        """Open the file, made or replaced if need be; no other process does so meanwhile."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(self._path.with_name(f"{self._path.name}.lock")):
            db = self._opened()
            if _is_damaged(db, thoroughly=self._suspect):
                db.close()
                self._move_aside()
                db = self._opened()
            self._suspect = False
            try:
                self._prepare(db)
            except BaseException:
                db.close()
                raise
            return db

    def _opened(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, timeout=LOCKED_SECONDS, isolation_level=None)

    def _prepare(self, db: sqlite3.Connection) -> None:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA:
            raise MemoryUnavailable(
                f"{self._path} was written by a newer version of this agent: update this one, or move the file away"
            )
        if version == 0:
            db.execute("PRAGMA journal_mode = WAL")
        if version < SCHEMA:  # whole or not at all, and what is there stays
            tables = SINCE_2 if version == 1 else TABLES + SINCE_2
            db.executescript(f"BEGIN IMMEDIATE; {tables} PRAGMA user_version = {SCHEMA}; COMMIT;")
        db.execute(
            "PRAGMA synchronous = NORMAL"
        )  # with WAL a power cut costs the last turns, never the file
        db.execute("PRAGMA secure_delete = ON")  # what is forgotten is overwritten

    def _move_aside(self) -> None:
        aside = f"{self._path.name}.damaged-{time.strftime('%Y%m%dT%H%M%S')}-{secrets.token_hex(3)}"
        for suffix in ("", "-wal", "-shm"):
            with suppress(FileNotFoundError):
                self._path.with_name(self._path.name + suffix).rename(
                    self._path.with_name(aside + suffix)
                )
        log.warning(
            "memory: %s is damaged; it was moved to %s in the same folder and a new one made",
            self._path,
            aside,
        )

    def _sentence(self, error: sqlite3.Error | OSError) -> str:
        if isinstance(error, TimeoutError) or _is_of(
            error, {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
        ):
            return f"{self._path} is locked by another process: look for one that holds it open"
        if _is_of(error, {sqlite3.SQLITE_FULL}) or getattr(error, "errno", None) in {
            errno.ENOSPC,
            errno.EDQUOT,
        }:
            return (
                f"callers cannot be remembered in {self._path}, its disk is full: make room there, "
                "or set AGENT_DATA_DIR to a folder on another disk"
            )
        said = (error.strerror if isinstance(error, OSError) else None) or str(error)
        if _is_of(error, {sqlite3.SQLITE_IOERR}):
            return f"callers cannot be remembered in {self._path}, its disk fails ({said}): the system's log says why"
        return (
            f"callers cannot be remembered in {self._path} ({said}): let this user write to {self._path.parent}, "
            "or set AGENT_DATA_DIR to another folder"
        )


def _delete(db: sqlite3.Connection, caller: str) -> int:
    tables = ("turns", "calls", "facts", "names")
    deleted = [
        db.execute(f"DELETE FROM {table} WHERE caller = ?", (caller,)).rowcount for table in tables
    ]
    db.execute("DELETE FROM callers WHERE caller = ?", (caller,))
    return sum(deleted)


def _is_damaged(db: sqlite3.Connection, thoroughly: bool) -> bool:
    try:
        db.execute("PRAGMA schema_version")
        return thoroughly and db.execute("PRAGMA integrity_check(1)").fetchone() != ("ok",)
    except sqlite3.DatabaseError as error:
        if not _is_of(error, DAMAGED):
            db.close()
            raise
        return True


def _is_of(error: Exception, codes: set[int]) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in codes


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the lock file; raises TimeoutError after a second."""
    with path.open("a") as file:
        for _ in range(100):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.01)
            else:
                yield
                return
    raise TimeoutError(f"{path} is held")
