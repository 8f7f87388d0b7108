"""When memory or knowledge fails, calls continue, and it recovers without a restart."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

import psutil
import pytest

from tests.stores.world import ANSWER, KNOWN, NOT_NOW, STRANGER, Desk, Fault, Trouble, closing, done
from tests.support.embedding import minilm
from tests.support.postgres import Postgres
from tests.support.redis import NoEngine, RedisServer, engine_binary, slow_wire
from tools.history import ROOT

PAGES = [ROOT / "template" / "docs" / "agent" / name for name in ("memory.md", "knowledge.md")]

pytestmark = pytest.mark.xdist_group("parts")

World = Callable[[Path], AbstractAsyncContextManager[Trouble]]

S = TypeVar("S", RedisServer, Postgres)


def on(
    start: Callable[[], S],
    address: str,
    make: Callable[[S], Trouble],
    *,
    model: bool = False,
    **healthy: str,
) -> World:
    """A server with this fault; the setting `address` has its address, `healthy` are others."""

    @asynccontextmanager
    async def world(home: Path) -> AsyncIterator[Trouble]:
        async with closing(await asyncio.to_thread(start)) as server:
            trouble = make(server)
            trouble.healthy |= {address: server.url, **healthy}
            if model:
                folder = minilm(home / "minilm")
                trouble.healthy |= {
                    "embeddings": "local",
                    "embeddings_model": str(folder),
                    "knowledge_seconds": 1.0,
                }
            yield trouble

    return world


# ---------------------------------------------------------------------- Redis


valkey = partial(on, partial(RedisServer, "valkey"), "memory_url")
redis = partial(on, partial(RedisServer, "redis"), "memory_url")


def killed(server: RedisServer) -> Trouble:
    return Trouble(cause=server.kill, heal=server.start)


def stalled(server: RedisServer) -> Trouble:
    return Trouble(cause=server.stop, heal=server.go_on)


def other_password(server: RedisServer) -> Trouble:
    return Trouble(broken={"memory_url": server.url_of(password="wrong")})


def tls_to_plain(server: RedisServer) -> Trouble:
    return Trouble(broken={"memory_url": server.url_of(scheme="rediss")})


def out_of_memory(server: RedisServer) -> Trouble:
    def limit(maxmemory: str) -> None:
        server.command("CONFIG", "SET", "maxmemory", maxmemory)

    return Trouble(cause=partial(limit, "1"), heal=partial(limit, "0"))


def read_only(server: RedisServer) -> Trouble:
    def follow(*whom: str) -> None:
        server.command("REPLICAOF", *whom)

    return Trouble(cause=partial(follow, "127.0.0.1", "1"), heal=partial(follow, "NO", "ONE"))


@asynccontextmanager
async def slow_valkey(home: Path) -> AsyncIterator[Trouble]:
    async with closing(RedisServer("valkey")) as server, slow_wire(server.port) as wire:
        slow, quick = partial(setattr, wire, "delay", 0.2), partial(setattr, wire, "delay", 0.0)
        yield Trouble({"memory_url": server.url_of(port=wire.port)}, cause=slow, heal=quick)


# ---------------------------------------------------------------------- SQLite


def spoil(file: Path) -> None:
    """Damage the file like a bad disk or a truncated copy."""
    for suffix in ("-wal", "-shm"):
        Path(f"{file}{suffix}").unlink(missing_ok=True)
    file.write_bytes(b"\xa5" * 20_000)


@asynccontextmanager
async def memory_locked(home: Path) -> AsyncIterator[Trouble]:
    other = sqlite3.connect(home / "other.db", isolation_level=None, check_same_thread=False)

    def lock() -> None:
        other.execute("ATTACH ? AS memory", (str(home / "data" / "memory.db"),))
        other.execute("BEGIN IMMEDIATE")
        other.execute("DELETE FROM memory.turns WHERE 0")

    def release() -> None:
        other.execute("ROLLBACK")
        other.execute("DETACH memory")

    yield Trouble(cause=lock, heal=release)
    other.close()


@asynccontextmanager
async def memory_deleted(home: Path) -> AsyncIterator[Trouble]:
    yield Trouble(cause=lambda: (home / "data" / "memory.db").unlink())


@asynccontextmanager
async def memory_corrupt(home: Path) -> AsyncIterator[Trouble]:
    yield Trouble(cause=lambda: spoil(home / "data" / "memory.db"))


@asynccontextmanager
async def small_disk(home: Path, make: Callable[[Path], Trouble]) -> AsyncIterator[Trouble]:
    disk = home / "data"
    disk.mkdir()
    try:
        await asyncio.to_thread(run, "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk))
    except (OSError, subprocess.CalledProcessError):
        (pytest.fail if os.environ.get("CI") else pytest.skip)(
            "a small disk is mounted, which only root may"
        )
    try:
        yield make(disk)
    finally:
        await asyncio.to_thread(run, "umount", "--lazy", str(disk))


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def full(disk: Path) -> Trouble:
    filler = disk / "filler"

    def fill() -> None:
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(b"x" * 512):
                pass

    return Trouble(cause=fill, heal=filler.unlink)


def unwritable(disk: Path) -> Trouble:
    def remount(how: str) -> None:
        run("mount", "-o", f"remount,{how}", str(disk))

    # a disk with files open for writing cannot be remounted, so this comes before the call
    return Trouble(cause=partial(remount, "ro"), heal=partial(remount, "rw"))


@asynccontextmanager
async def index_deleted(home: Path) -> AsyncIterator[Trouble]:
    yield Trouble(cause=lambda: (home / "data" / "knowledge.db").unlink(), ingest=True)


@asynccontextmanager
async def index_corrupt(home: Path) -> AsyncIterator[Trouble]:
    yield Trouble(
        cause=lambda: spoil(home / "data" / "knowledge.db"),
        ingest=True,
    )


# ---------------------------------------------------------------------- the embedder


def embedder_of_ours() -> psutil.Process:
    """The embedder's process, found by its command."""
    [process] = [
        child
        for child in psutil.Process().children(recursive=True)
        if "agent.knowledge.embedder" in child.cmdline()
    ]
    return process


@asynccontextmanager
async def embedder(home: Path, how: signal.Signals) -> AsyncIterator[Trouble]:
    model = minilm(home / "minilm")
    yield Trouble(
        {"embeddings": "local", "embeddings_model": str(model), "knowledge_seconds": 1.0},
        cause=lambda: embedder_of_ours().send_signal(how),
    )


# ---------------------------------------------------------------------- PostgreSQL


postgres = partial(on, Postgres, "knowledge_url", knowledge="pgvector")


def postgres_killed(server: Postgres) -> Trouble:
    return Trouble(cause=server.kill, heal=server.start)


def postgres_stalled(server: Postgres) -> Trouble:
    return Trouble(cause=server.stop, heal=server.go_on)


def postgres_password(server: Postgres) -> Trouble:
    return Trouble(broken={"knowledge_url": server.url_of("postgres", password="wrong")})


def postgres_tls(server: Postgres) -> Trouble:
    return Trouble(broken={"knowledge_url": f"{server.url}?sslmode=require"})


def postgres_extension(server: Postgres) -> Trouble:
    def drop() -> None:
        server.execute("DROP EXTENSION vector CASCADE")

    return Trouble(cause=drop, ingest=True)


@asynccontextmanager
async def slow_postgres(home: Path) -> AsyncIterator[Trouble]:
    async with closing(await asyncio.to_thread(Postgres)) as server, slow_wire(server.port) as wire:
        slow, quick = partial(setattr, wire, "delay", 0.3), partial(setattr, wire, "delay", 0.0)
        url = server.url.replace(f":{server.port}/", f":{wire.port}/")
        yield Trouble(
            {"knowledge": "pgvector", "knowledge_url": url, "knowledge_seconds": 0.25},
            cause=slow,
            heal=quick,
        )


@asynccontextmanager
async def crowded_postgres(home: Path) -> AsyncIterator[Trouble]:
    import asyncpg

    async with closing(await asyncio.to_thread(Postgres, "max_connections=8")) as server:
        crowd: list[asyncpg.Connection] = []

        async def fill() -> None:
            with suppress(asyncpg.PostgresError):
                while True:
                    crowd.append(await asyncpg.connect(server.url))

        async def leave() -> None:
            for connection in crowd:
                await connection.close()

        yield Trouble(
            {"knowledge": "pgvector", "knowledge_url": server.url}, cause=fill, heal=leave
        )


@asynccontextmanager
async def postgres_model(home: Path) -> AsyncIterator[Trouble]:
    model = minilm(home / "minilm")
    async with closing(await asyncio.to_thread(Postgres)) as server:
        yield Trouble(
            {"knowledge": "pgvector", "knowledge_url": server.url, "knowledge_seconds": 1.0},
            broken={"embeddings": "local", "embeddings_model": str(model)},
        )


# ---------------------------------------------------------------------- the table

MEMORY, LATER = partial(Fault, part="memory"), partial(Fault, part="knowledge", answers=(NOT_NOW,))

FAULTS = {
    "valkey killed before the call": MEMORY(valkey(killed), when="before", greeting=STRANGER),
    "valkey killed and back in mid-call": MEMORY(valkey(killed), when="blip"),
    "valkey stalled in mid-call": MEMORY(valkey(stalled), when="mid"),
    "valkey slow": MEMORY(slow_valkey, when="before", greeting=STRANGER),
    "valkey with another password": MEMORY(
        valkey(other_password), when="before", greeting=STRANGER
    ),
    "valkey asked for TLS on a plain port": MEMORY(
        valkey(tls_to_plain), when="before", greeting=STRANGER
    ),
    "valkey out of memory": MEMORY(valkey(out_of_memory), when="mid"),
    "valkey become a read-only replica": MEMORY(valkey(read_only), when="mid"),
    "redis killed before the call": MEMORY(redis(killed), when="before", greeting=STRANGER),
    "redis stalled in mid-call": MEMORY(redis(stalled), when="mid"),
    "redis out of memory": MEMORY(redis(out_of_memory), when="mid"),
    "memory file locked by another process": MEMORY(memory_locked, when="mid"),
    "memory file deleted in mid-call": MEMORY(memory_deleted, when="mid", part="", keeps="new"),
    "memory file corrupt": MEMORY(
        memory_corrupt, when="before", part="", greeting=STRANGER, keeps="new"
    ),
    "memory on a read-only disk": MEMORY(
        partial(small_disk, make=unwritable), when="before", greeting=STRANGER, keeps="before"
    ),
    "memory on a full disk": MEMORY(partial(small_disk, make=full), when="mid", keeps="before"),
    "index deleted in mid-call": LATER(index_deleted, when="mid"),
    "index corrupt": LATER(index_corrupt, when="before"),
    "embedder killed in mid-call": Fault(partial(embedder, how=signal.SIGKILL), "embedder", "mid"),
    "embedder stalled in mid-call": Fault(partial(embedder, how=signal.SIGSTOP), "embedder", "mid"),
    "postgres killed before the call": LATER(postgres(postgres_killed), when="before"),
    "postgres killed and back in mid-call": LATER(postgres(postgres_killed), when="blip"),
    "postgres stalled in mid-call": LATER(postgres(postgres_stalled), when="mid"),
    "postgres slow": LATER(slow_postgres, when="mid"),
    "postgres with another password": LATER(postgres(postgres_password), when="before"),
    "postgres asked for TLS on a plain port": LATER(postgres(postgres_tls), when="before"),
    "postgres without the extension": LATER(
        postgres(postgres_extension, model=True), when="before"
    ),
    "postgres with vectors of another model": Fault(postgres_model, "embedder", "before"),
    "postgres with no connection left": LATER(crowded_postgres, when="before"),
}


@pytest.mark.parametrize("name", FAULTS)
async def test_a_fault_costs_no_call_and_leaves_nothing_behind(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fault = FAULTS[name]
    if name.startswith("redis"):
        needs_redis()
    async with fault.world(tmp_path) as trouble, asyncio.timeout(120):
        desk = Desk(tmp_path, lambda: caplog.records, trouble)
        await desk.ingest()
        first = await desk.call(desk.settings)
        assert (first.greeting[:6], first.answers, first.warnings) == (STRANGER, [ANSWER], [])

        if fault.when == "before":
            await done(trouble.cause)
            second = await desk.call(desk.broken)
            broken = second.answers
        else:
            second = await desk.call(
                desk.broken, trouble.cause, trouble.heal if fault.when == "blip" else None
            )
            assert second.answers[0] == ANSWER
            broken = second.answers[1:]
        assert second.greeting.startswith(fault.greeting)
        if fault.when == "blip":
            # repaired in the same call
            assert broken.pop() == ANSWER
        assert all(answer in fault.answers for answer in broken)
        degraded = [record.__dict__.get("fields", {}).get("degraded") for record in second.warnings]
        # a disk that takes nothing takes no report of the call either
        lost = (
            [None]
            if any("report of the call is lost" in one.message for one in second.warnings)
            else []
        )
        assert len(lost) == (name == "memory on a read-only disk")
        assert degraded in ([[fault.part, *lost]] if fault.part else [[], [None]]), [
            str(one) for one in second.warnings
        ]

        if fault.when != "blip":
            await done(trouble.heal)
        if trouble.ingest:
            await desk.ingest()
        await desk.later()
        third = await desk.call(desk.settings)
        assert (third.greeting[: len(KNOWN)], third.answers, third.warnings) == (
            KNOWN,
            [ANSWER],
            [],
        )
        kept = await desk.remembered()
        match fault.keeps:
            case "all":
                assert kept == first.words + second.words + third.words
            # nothing of the first call is left, and everything since the fault
            case "new":
                new = second.words[0 if fault.when == "before" else 3 :] + third.words
                assert kept[-len(new) :] == new
                assert len(kept) < len(first.words + second.words + third.words)
            # turns from the outage are given up
            case _:
                assert kept[: len(first.words)] == first.words
                assert kept[-len(third.words) :] == third.words


def needs_redis() -> None:
    """Redis itself, beside Valkey: skipped if it is not available, but failed in CI."""
    try:
        engine_binary("redis")
    except NoEngine as error:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(str(error))


def test_the_tables_of_faults_and_their_tests_are_the_same() -> None:
    tables = [
        page.read_text(encoding="utf-8").partition("| fault | the caller notices |")[2]
        for page in PAGES
    ]
    rows = re.findall(r"^\| `([^`]+)` \|", "".join(tables), re.MULTILINE)
    assert rows == list(FAULTS)
