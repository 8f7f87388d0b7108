"""Callers in one SQLite file: for one machine, and as many processes on it as answer calls."""

from __future__ import annotations

import errno
import json
import logging
import secrets
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TypeVar

from agent.memory import (
    KEPT,
    MOST_FACTS,
    RECALLED_TURNS,
    CallRecord,
    Item,
    Memory,
    MemoryUnavailable,
    Note,
    Profile,
    Turn,
    broke_off,
)
from agent.outbox import locked
from agent.reasons import NOT_REACHED
from agent.settings import Settings
from agent.sqlite_thread import SqliteThread

T = TypeVar("T")

log = logging.getLogger("agent.memory")

SCHEMA_VERSION = 2
# a writer holds the file for a millisecond; who waits longer gets an error, and tries again
BUSY_SECONDS = 0.25
# for another process that opens or replaces the file
OPENING_SECONDS = 1.0
DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
# an open file stays what it was when it was opened, such as read-only: only reopening it helps
STALE = {
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_FULL,
}

# Every key begins with the caller, so that nothing can be read without naming one.
CALLER_TABLES = """
CREATE TABLE callers(caller TEXT PRIMARY KEY, seen REAL NOT NULL);
CREATE TABLE calls(caller TEXT NOT NULL, call TEXT NOT NULL, at REAL NOT NULL,
                   room TEXT, reason TEXT, seconds REAL, turns INTEGER, UNIQUE(caller, call));
CREATE TABLE turns(caller TEXT NOT NULL, call TEXT NOT NULL, item TEXT NOT NULL, at REAL NOT NULL,
                   role TEXT NOT NULL, text TEXT NOT NULL, UNIQUE(caller, call, item));
"""
# The tables above stay as they are, but for columns at their end: a worker of the release before,
# which is draining on the same file, goes on writing to them.
SINCE_2 = """
ALTER TABLE calls ADD COLUMN usage TEXT;
CREATE TABLE names(caller TEXT PRIMARY KEY, name TEXT NOT NULL, at REAL NOT NULL);
CREATE TABLE facts(caller TEXT NOT NULL, fact TEXT NOT NULL, at REAL NOT NULL,
                   UNIQUE(caller, fact));
"""

# a call that nobody answered is kept, and is none that the caller has had
SPOKEN_TO = "(reason IS NULL OR reason NOT IN ({}))".format(
    ", ".join(f"'{reason}'" for reason in sorted(NOT_REACHED))
)


@asynccontextmanager
async def open_store(settings: Settings) -> AsyncIterator[Memory]:
    """Yield the memory in the data folder and close its file on exit; the first use makes it."""
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
        # whether the file has to be checked thoroughly when it is opened
        self._suspect = False
        self._thread = SqliteThread(path, self._connect)

    async def aclose(self) -> None:
        """End the thread and close the file."""
        await self._thread.aclose()

    async def check(self) -> None:
        """Begin a transaction that writes nothing."""
        await self._run(lambda db: None)

    async def recall(self, caller: str) -> Profile | None:
        """Read without waiting for other processes that write."""
        return await self._run(lambda db: self._profile(db, caller), begin="BEGIN")

    async def write(self, caller: str, item: Item) -> None:
        """Write the item and its call in one transaction; delete what is too old or too much."""

        def work(db: sqlite3.Connection) -> None:
            self._renew(db, caller)
            match item:
                case Turn():
                    _write_turn(db, caller, item)
                case Note():
                    _write_note(db, caller, item)
                case CallRecord():
                    _write_record(db, caller, item)
                    self._delete_expired(db)

        await self._run(work)

    async def forget(self, caller: str) -> int:
        """Delete, and overwrite in the file what was deleted."""
        deleted = await self._run(lambda db: _delete(db, caller))
        # otherwise the words would stay in the log until another process has written enough
        with suppress(sqlite3.Error):
            await self._thread.run(
                lambda db: db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            )
        return deleted

    async def _run(
        self, work: Callable[[sqlite3.Connection], T], begin: str = "BEGIN IMMEDIATE"
    ) -> T:
        """One transaction in the thread; in a new file, if this one turns out to be damaged."""

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

    def _renew(self, db: sqlite3.Connection, caller: str) -> None:
        """Put off the caller's expiry; what has expired already is deleted first."""
        if db.execute(
            "SELECT 1 FROM callers WHERE caller = ? AND seen < ?", (caller, self._oldest())
        ).fetchone():
            _delete(db, caller)
        db.execute(
            "INSERT OR REPLACE INTO callers(caller, seen) VALUES(?, ?)", (caller, time.time())
        )

    def _delete_expired(self, db: sqlite3.Connection) -> None:
        expired = db.execute(
            "SELECT caller FROM callers WHERE seen < ? LIMIT 100", (self._oldest(),)
        ).fetchall()
        for (caller,) in expired:
            _delete(db, caller)

    def _profile(self, db: sqlite3.Connection, caller: str) -> Profile | None:
        (calls,) = db.execute(
            "SELECT count(*) FROM calls JOIN callers USING (caller)"
            f" WHERE caller = ? AND seen >= ? AND {SPOKEN_TO}",
            (caller, self._oldest()),
        ).fetchone()
        if not calls:
            return None
        newest = db.execute(
            "SELECT call, item, role, text, at FROM turns WHERE caller = ?"
            " ORDER BY at DESC, rowid DESC LIMIT ?",
            (caller, RECALLED_TURNS),
        ).fetchall()
        turns = [Turn(*row) for row in reversed(newest)]
        last, at, reason, seconds = db.execute(
            f"SELECT call, at, reason, seconds FROM calls WHERE caller = ? AND {SPOKEN_TO}"
            " ORDER BY at DESC, rowid DESC LIMIT 1",
            (caller,),
        ).fetchone()
        ended = max([at + (seconds or 0), *[turn.at for turn in turns if turn.call == last]])
        name = db.execute("SELECT name FROM names WHERE caller = ?", (caller,)).fetchone()
        facts = db.execute("SELECT fact FROM facts WHERE caller = ? ORDER BY at, rowid", (caller,))
        return Profile(
            caller,
            calls,
            last_call=at,
            turns=turns,
            name=name and name[0],
            facts=[fact for (fact,) in facts],
            resumed=broke_off(reason, ended, self._resume_seconds),
        )

    def _connect(self) -> sqlite3.Connection:
        """Open the file, made or replaced if need be; no other process does so meanwhile."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with locked(self._path.with_name(f"{self._path.name}.lock"), OPENING_SECONDS):
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
        # SQLite itself would let everybody read what was said
        self._path.touch(mode=0o600)
        return sqlite3.connect(self._path, timeout=BUSY_SECONDS, isolation_level=None)

    def _prepare(self, db: sqlite3.Connection) -> None:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            raise MemoryUnavailable(
                f"{self._path} was written by a newer version of this agent: update this one, or "
                "move the file away"
            )
        if version == 0:
            db.execute("PRAGMA journal_mode = WAL")
        # whole or not at all, and what is there stays
        if version < SCHEMA_VERSION:
            tables = SINCE_2 if version == 1 else CALLER_TABLES + SINCE_2
            db.executescript(
                f"BEGIN IMMEDIATE; {tables} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
            )
        # with WAL a power cut costs the last turns, never the file
        db.execute("PRAGMA synchronous = NORMAL")
        # what is forgotten is overwritten
        db.execute("PRAGMA secure_delete = ON")

    def _move_aside(self) -> None:
        aside = f"{self._path.name}.damaged-{time.strftime('%Y%m%dT%H%M%S')}-{secrets.token_hex(3)}"
        for suffix in ("", "-wal", "-shm"):
            with suppress(FileNotFoundError):
                self._path.with_name(self._path.name + suffix).rename(
                    self._path.with_name(aside + suffix)
                )
        sentence = "memory: %s is damaged; it was moved to %s in the same folder and a new one made"
        log.warning(sentence, self._path, aside)

    def _sentence(self, error: sqlite3.Error | OSError) -> str:
        locked_out = _is_of(error, {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
        if locked_out or isinstance(error, TimeoutError):
            return f"{self._path} is locked by another process: look for one that holds it open"
        no_space = getattr(error, "errno", None) in {errno.ENOSPC, errno.EDQUOT}
        if no_space or _is_of(error, {sqlite3.SQLITE_FULL}):
            return (
                f"callers cannot be remembered in {self._path}, its disk is full: make room there, "
                "or set AGENT_DATA_DIR to a folder on another disk"
            )
        said = (error.strerror if isinstance(error, OSError) else None) or str(error)
        if _is_of(error, {sqlite3.SQLITE_IOERR}):
            return (
                f"callers cannot be remembered in {self._path}, its disk fails ({said}): "
                "the system's log says why"
            )
        return (
            f"callers cannot be remembered in {self._path} ({said}): let this user write to "
            f"{self._path.parent}, or set AGENT_DATA_DIR to another folder"
        )


def _write_turn(db: sqlite3.Connection, caller: str, turn: Turn) -> None:
    _write_call(db, caller, turn.call, turn.at)
    db.execute(
        "INSERT OR IGNORE INTO turns(caller, call, item, role, text, at) VALUES(?, ?, ?, ?, ?, ?)",
        (caller, turn.call, turn.item, turn.role, turn.text, turn.at),
    )


def _write_note(db: sqlite3.Connection, caller: str, note: Note) -> None:
    _write_call(db, caller, note.call, note.at)
    if note.name:
        db.execute(
            "INSERT INTO names VALUES(?, ?, ?) ON CONFLICT(caller) "
            "DO UPDATE SET name = excluded.name, at = excluded.at WHERE excluded.at > at",
            (caller, note.name, note.at),
        )
    if note.fact:
        db.execute("INSERT OR IGNORE INTO facts VALUES(?, ?, ?)", (caller, note.fact, note.at))
        _keep_newest(db, "facts", caller, MOST_FACTS)


def _write_record(db: sqlite3.Connection, caller: str, call: CallRecord) -> None:
    values = call.call, call.at, call.room, call.reason, call.seconds, call.turns
    db.execute(
        "INSERT OR REPLACE INTO calls(caller, call, at, room, reason, seconds, turns, usage)"
        " VALUES(?, ?, ?, ?, ?, ?, ?, ?)",
        (caller, *values, json.dumps(call.usage)),
    )
    for table in ("calls", "turns"):
        _keep_newest(db, table, caller, KEPT)


def _write_call(db: sqlite3.Connection, caller: str, call: str, at: float) -> None:
    """A call is known by its first item, until its record comes."""
    db.execute("INSERT OR IGNORE INTO calls(caller, call, at) VALUES(?, ?, ?)", (caller, call, at))


def _keep_newest(db: sqlite3.Connection, table: str, caller: str, most: int) -> None:
    db.execute(
        f"DELETE FROM {table} WHERE rowid IN (SELECT rowid FROM {table} WHERE caller = ?"
        " ORDER BY at DESC, rowid DESC LIMIT -1 OFFSET ?)",
        (caller, most),
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
