"""SQLite's thread interrupts abandoned queries, and closes whatever runs in it."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent import sqlite_thread as sqlite_thread_module
from agent.sqlite_thread import SqliteThread


@pytest.fixture
async def sqlite_thread(tmp_path: Path) -> AsyncIterator[SqliteThread]:
    path = tmp_path / "some.db"
    running = SqliteThread(path, lambda: sqlite3.connect(path))
    yield running
    await running.aclose()


ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"


async def test_cancelling_interrupts_the_query_and_only_that(sqlite_thread: SqliteThread) -> None:
    loop, began = asyncio.get_running_loop(), asyncio.Event()

    def endless(db: sqlite3.Connection) -> None:
        loop.call_soon_threadsafe(began.set)
        db.execute(ENDLESS).fetchall()

    query = asyncio.create_task(sqlite_thread.run(endless))
    await began.wait()
    waiting = [asyncio.create_task(sqlite_thread.run(lambda db: "answered")) for _ in range(2)]
    waiting[0].cancel()
    query.cancel()

    async with asyncio.timeout(30):
        assert await waiting[1] == "answered"
    assert query.cancelled()


async def test_work_that_nobody_waits_for_is_not_begun(sqlite_thread: SqliteThread) -> None:
    released, done = threading.Event(), list[str]()
    blocking = asyncio.create_task(sqlite_thread.run(lambda db: released.wait()))
    waiting = asyncio.create_task(sqlite_thread.run(lambda db: done.append("waiting")))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    released.set()
    await blocking
    await sqlite_thread.run(lambda db: done.append("next"))

    assert done == ["next"]


async def test_work_that_heeds_no_interrupt_holds_up_no_closing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_thread_module, "CLOSING_SECONDS", 0.01)
    stuck, released = (
        SqliteThread(tmp_path / "some.db", lambda: sqlite3.connect(":memory:")),
        threading.Event(),
    )
    work = asyncio.create_task(stuck.run(lambda db: released.wait()))
    await asyncio.sleep(0)

    async with asyncio.timeout(30):
        await stuck.aclose()
    assert not work.done()
    released.set()
    assert await work
    with pytest.raises(RuntimeError, match="closed"):
        await stuck.run(lambda db: None)
