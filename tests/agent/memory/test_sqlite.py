"""Callers in one file: the promises of every store, and failures of the file."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import sqlite3
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, closing
from dataclasses import replace
from pathlib import Path

import pytest

from agent.memory import MemoryUnavailable, Profile, open_store
from agent.memory.sqlite import SqliteMemory
from agent.settings import Settings
from tests.agent.memory.stores import (
    SECRET,
    StoreContract,
    calling,
    ended,
    note,
    turn,
    warnings,
)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.model_validate(
        {"home": tmp_path, "data_dir": tmp_path / "data", "memory_url": "sqlite"}
    )


@pytest.fixture
def path(settings: Settings) -> Path:
    return settings.data / "memory.db"


@pytest.fixture
async def store(settings: Settings) -> AsyncIterator[SqliteMemory]:
    async with open_store(settings) as opened:
        assert isinstance(opened, SqliteMemory)
        yield opened


def files(path: Path) -> dict[str, bytes]:
    """Contents by name of everything in the folder."""
    return {file.name: file.read_bytes() for file in sorted(path.parent.iterdir())}


def moved_aside(path: Path) -> list[tuple[str, bytes]]:
    found = files(path).items()
    return [
        (name, content)
        for name, content in found
        if "damaged" in name and not name.endswith(("-wal", "-shm"))
    ]


def overwrite(path: Path, content: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)


def delete(path: Path) -> None:
    for name in files(path):
        path.with_name(name).unlink()


class TestSqlite(StoreContract):
    pass


async def test_callers_are_known_again_by_another_process(settings: Settings) -> None:
    async with open_store(settings) as first:
        assert first is not None
        await first.write("ann", turn(1))
    async with open_store(settings) as second:
        assert second is not None
        assert await second.recall("ann") == Profile("ann", 1, 1001.0, [turn(1)])


async def test_nobody_else_may_read_the_file(store: SqliteMemory, path: Path) -> None:
    await store.write("ann", turn(1))

    modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.glob("memory.db*")}
    del modes["memory.db.lock"]  # which is empty
    assert set(modes.values()) == {0o600}, modes


async def test_a_caller_whose_time_is_over_is_unknown_and_starts_over(
    store: SqliteMemory, path: Path
) -> None:
    for caller in ("ann", "bob"):
        await store.write(caller, turn(1))
    with closing(sqlite3.connect(path)) as other, other:
        other.execute("UPDATE callers SET seen = seen - 31 * 86400")

    assert await store.recall("ann") is None
    await store.write("ann", turn(2))
    assert await store.recall("ann") == Profile("ann", 1, 1002.0, [turn(2)])


async def test_who_never_calls_again_is_deleted_with_somebodys_next_call(
    store: SqliteMemory, path: Path
) -> None:
    await store.write("ann", turn(1))
    with closing(sqlite3.connect(path)) as other, other:
        other.execute("UPDATE callers SET seen = seen - 31 * 86400")
    await store.write("bob", ended())

    assert await store.forget("ann") == 0


async def test_what_is_forgotten_is_overwritten(store: SqliteMemory, path: Path) -> None:
    await store.write("ann", turn(1, text=SECRET))
    await store.write("bob", turn(1))
    await store.forget("ann")

    assert [name for name, content in files(path).items() if SECRET.encode() in content] == []


async def test_a_file_that_is_no_database_is_moved_aside(
    store: SqliteMemory, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    overwrite(path, b"no database at all, " * 500)

    assert await store.recall("ann") is None
    await store.write("ann", turn(1))
    assert await store.recall("ann") is not None
    ((aside, content),) = moved_aside(path)
    assert content == b"no database at all, " * 500
    (said,) = warnings(caplog)
    assert aside in said


async def test_of_processes_that_meet_a_damaged_file_one_moves_it_aside(
    settings: Settings, path: Path
) -> None:
    overwrite(path, b"no database at all, " * 500)
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(open_store(settings)) for _ in range(8)]
        await asyncio.gather(
            *[store.write("ann", turn(n)) for n, store in enumerate(stores) if store]
        )
        assert stores[0] is not None
        assert await stores[0].forget("ann") == 8 + 1
    assert len(moved_aside(path)) == 1


async def test_a_file_that_turns_out_to_be_damaged_is_moved_aside(
    settings: Settings, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_store(settings) as store:
        assert store is not None
        for number in range(100):
            await store.write("ann", turn(number, text="words " * 50))
    whole = files(path)[path.name]
    damaged = whole[:4096] + b"\xa5" * (len(whole) - 4096)
    overwrite(path, damaged)

    async with open_store(settings) as store:
        assert store is not None
        assert await store.recall("ann") is None
        await store.write("ann", turn(1))
        assert await store.recall("ann") is not None
    assert [content for _, content in moved_aside(path)] == [damaged]
    assert len(warnings(caplog)) == 1


async def test_a_file_deleted_in_mid_call_is_made_again(store: SqliteMemory, path: Path) -> None:
    await store.write("ann", turn(1))
    delete(path)
    await store.write("ann", turn(2))

    assert await store.recall("ann") == Profile("ann", 1, 1002.0, [turn(2)])
    assert path.name in files(path)


async def test_a_newer_file_is_left_alone(store: SqliteMemory, path: Path) -> None:
    overwrite(path, b"")
    with closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA user_version = 99")
    before = files(path)[path.name]

    with pytest.raises(MemoryUnavailable, match="newer version"):
        await store.check()
    assert files(path)[path.name] == before


V1 = """
PRAGMA journal_mode = WAL;
CREATE TABLE callers(caller TEXT PRIMARY KEY, seen REAL NOT NULL);
CREATE TABLE calls(caller TEXT NOT NULL, call TEXT NOT NULL, at REAL NOT NULL,
                   room TEXT, reason TEXT, seconds REAL, turns INTEGER, UNIQUE(caller, call));
CREATE TABLE turns(caller TEXT NOT NULL, call TEXT NOT NULL, item TEXT NOT NULL, at REAL NOT NULL,
                   role TEXT NOT NULL, text TEXT NOT NULL, UNIQUE(caller, call, item));
INSERT INTO callers VALUES('ann', unixepoch());
INSERT INTO calls VALUES('ann', 'call-0', 990.0, 'room', 'caller left', 60.0, 1);
INSERT INTO turns VALUES('ann', 'call-0', 'item-1', 1001.0, 'user', 'turn 1');
PRAGMA user_version = 1;
"""
HEARD_BY_V1 = "INSERT OR REPLACE INTO callers VALUES('ann', 2e9)"
RECORDED_BY_V1 = """
INSERT OR REPLACE INTO calls(caller, call, at, room, reason, seconds, turns)
VALUES('ann', 'call-2', 3000.0, 'room', 'caller left', 60.0, 1)
"""


async def test_a_file_of_the_first_release_keeps_what_it_holds_and_its_writers(
    store: SqliteMemory, path: Path
) -> None:
    path.parent.mkdir()
    with closing(
        sqlite3.connect(path, isolation_level=None)
        # a worker that drains while the new one runs
    ) as old:
        old.executescript(V1)
        before = turn(1, call="call-0")
        assert await store.recall("ann") == Profile("ann", 1, 990.0, [before])
        await store.write("ann", note(1, name="Ada", fact="Likes tea."))
        await store.write("ann", replace(ended(at=2000.0), usage={"llm_input_tokens": 7}))
        old.execute(HEARD_BY_V1)
        old.execute(RECORDED_BY_V1)

    known = Profile("ann", 3, 3000.0, [before], name="Ada", facts=["Likes tea."])
    assert await store.recall("ann") == known
    with closing(sqlite3.connect(path)) as other:
        assert other.execute("PRAGMA user_version").fetchone() == (2,)


async def test_a_migration_that_is_interrupted_leaves_the_file_as_it_was(
    store: SqliteMemory, path: Path
) -> None:
    path.parent.mkdir()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.executescript(V1)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(MemoryUnavailable, match="locked by another process"):
            await store.recall("ann")
        other.execute("ROLLBACK")
        assert other.execute("PRAGMA user_version").fetchone() == (1,)

    profile = await store.recall("ann")
    assert profile is not None
    assert profile.calls == 1


async def test_a_record_holds_what_the_models_were_used_for(
    store: SqliteMemory, path: Path
) -> None:
    await store.write("ann", replace(ended(), usage={"llm_input_tokens": 7}))

    with closing(sqlite3.connect(path)) as other:
        assert other.execute("SELECT usage FROM calls").fetchall() == [('{"llm_input_tokens": 7}',)]


async def test_a_full_disk_is_one_sentence_and_stops_no_recall(
    store: SqliteMemory, caplog: pytest.LogCaptureFixture
) -> None:
    await store.write("ann", turn(1))
    # as good as a full disk
    await store._thread.run(lambda db: db.execute("PRAGMA max_page_count = 1").fetchall())
    long = turn(2, text="x" * 100_000)
    with pytest.raises(MemoryUnavailable, match="its disk is full: make room there"):
        await store.write("ann", long)
    assert await store.recall("ann") == Profile("ann", 1, 1001.0, [turn(1)])

    # there is room again
    await store.write("ann", long)
    assert await store.recall("ann") == Profile("ann", 1, 1001.0, [turn(1), long])


async def test_a_file_that_was_read_only_is_written_as_soon_as_it_may_be(
    store: SqliteMemory, path: Path
) -> None:
    await store.write("ann", turn(1))
    # root cannot have this by a file's mode
    await store._thread.run(lambda db: db.execute("PRAGMA query_only = ON"))
    with pytest.raises(
        MemoryUnavailable,
        match=r"memory\.db \(attempt to write a readonly database\): let this user",
    ):
        await store.write("ann", turn(2))

    await store.write("ann", turn(2))
    assert await store.recall("ann") == Profile("ann", 1, 1001.0, [turn(1), turn(2)])


async def test_a_folder_that_is_none_is_one_sentence(
    store: SqliteMemory, settings: Settings
) -> None:
    settings.data.write_text("a file where the folder should be")

    with pytest.raises(MemoryUnavailable, match=r"memory\.db .*AGENT_DATA_DIR"):
        await store.check()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
async def test_a_folder_that_may_be_written_again_is(settings: Settings, path: Path) -> None:
    settings.data.mkdir()
    settings.data.chmod(0o500)
    async with open_store(settings) as store:
        assert store is not None
        for _ in range(2):
            with pytest.raises(MemoryUnavailable, match="let this user write"):
                await store.write("ann", turn(1))
        settings.data.chmod(0o700)
        await store.write("ann", turn(1))
        for file in path.parent.iterdir():
            file.chmod(0o400)
    async with open_store(settings) as store:
        assert store is not None
        with pytest.raises(MemoryUnavailable, match="let this user write"):
            await store.write("ann", turn(2))
        for file in path.parent.iterdir():
            file.chmod(0o600)
        await store.write("ann", turn(2))
        assert await store.recall("ann") == Profile("ann", 1, 1001.0, [turn(1), turn(2)])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
async def test_a_folder_that_cannot_be_written_is_one_sentence(
    store: SqliteMemory, settings: Settings
) -> None:
    settings.data.mkdir(mode=0o500)

    with pytest.raises(MemoryUnavailable, match=r"memory\.db .*AGENT_DATA_DIR"):
        await store.check()


async def test_another_process_that_holds_the_file_stops_no_recall_and_loses_no_turn(
    settings: Settings, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with calling(settings) as memory:
        memory.add_turn(turn(1))
        assert await memory.queue.flush(30)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            memory.add_turn(turn(2))
            assert not await memory.queue.flush(0.5)
            assert await memory.recall() == Profile("ann", 1, 1001.0, [turn(1)])
            other.execute("ROLLBACK")
        assert await memory.queue.flush(30)
        assert await memory.recall() == Profile("ann", 1, 1001.0, [turn(1), turn(2)])

    (said,) = warnings(caplog)
    assert "is locked by another process" in said


def write_and_die(settings: Settings, process: int) -> None:
    """A worker's process that is killed right after its turns were written."""

    async def write() -> None:
        async with calling(settings) as memory:
            for number in range(20):
                memory.add_turn(turn(number, call=f"call-{process}"))
            os._exit(0 if await memory.queue.flush(60) else 1)

    logging.disable()
    asyncio.run(write())


async def test_processes_that_write_at_once_and_die_lose_nothing(
    settings: Settings, store: SqliteMemory
) -> None:
    spawn = multiprocessing.get_context("spawn")
    processes = [
        spawn.Process(target=write_and_die, args=(settings, number)) for number in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        await asyncio.to_thread(process.join, 60)

    assert [process.exitcode for process in processes] == [0, 0]
    assert await store.forget("ann") == 2 * 20 + 2
