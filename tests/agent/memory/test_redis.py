"""Callers in a real Redis or Valkey: the promises of every store, and failures of the server."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import secrets
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import asdict, replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from redis.asyncio import Redis

from agent.memory import MemoryUnavailable, Profile, open_store, redis
from agent.memory.redis import RedisMemory
from agent.settings import Settings
from tests.agent.memory.stores import (
    SECRET,
    StoreContract,
    calling,
    ended,
    note,
    spooled,
    turn,
    warnings,
)
from tests.support.redis import PASSWORD, RedisServer


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """A server that the test may kill and stop."""
    with closing(RedisServer("valkey", keeps=False)) as running:
        yield running


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server that the tests share and leave as it was."""
    with closing(RedisServer("valkey", keeps=False)) as running:
        yield running.url


def settings_for(url: str) -> Settings:
    # the keys begin with it: tests share a server and no caller
    name = f"test-{secrets.token_hex(6)}"
    return Settings.model_validate({"name": name, "memory_url": url, "memory_seconds": 0.2})


@pytest.fixture
def settings(url: str) -> Settings:
    return settings_for(url)


@pytest.fixture
async def store(settings: Settings) -> AsyncIterator[RedisMemory]:
    async with open_store(settings) as opened:
        assert isinstance(opened, RedisMemory)
        yield opened


@pytest.fixture
async def raw(settings: Settings) -> AsyncIterator[Redis]:
    """The server itself, without our store; emptied after each test."""
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
        await store.write(caller, note(1, name="Ada", fact="Likes tea."))
        await store.write(caller, turn(1))
        await store.write(caller, ended())

    tags = [key.split("{")[1].split("}")[0] for key in await keys(raw, settings)]
    assert sorted(tags.count(tag) for tag in set(tags)) == [6, 6]
    assert not any("ann" in key or "bob" in key for key in await keys(raw, settings))


async def test_everything_expires_and_each_call_puts_it_off(
    store: RedisMemory, settings: Settings, raw: Redis
) -> None:
    await store.write("ann", turn(1))
    await store.write("ann", ended())
    await store.write("ann", note(1, name="Ada", fact="Likes tea."))
    for key in await keys(raw, settings):
        await raw.expire(key, 60)
    await store.write("ann", turn(2))

    days = [round(await raw.ttl(key) / 86400, 2) for key in await keys(raw, settings)]
    assert days == [settings.memory_days] * 6


async def test_a_record_holds_what_the_models_were_used_for(
    store: RedisMemory, settings: Settings, raw: Redis
) -> None:
    await store.write("ann", replace(ended(), usage={"llm_input_tokens": 7}))

    (records,) = [key for key in await keys(raw, settings) if key.endswith(":records")]
    assert json.loads((await raw.hgetall(records))["call-1"])["usage"] == {"llm_input_tokens": 7}


async def test_what_the_first_release_has_written_is_read(
    store: RedisMemory, settings: Settings, raw: Redis
) -> None:
    tag = hashlib.sha256(b"ann").hexdigest()[:32]
    v1 = f"{settings.name}:v1:" + "{" + tag + "}"
    item = json.dumps(["call-1", "item-1"])
    await raw.hset(f"{v1}:texts", item, json.dumps(asdict(turn(1))))
    await raw.zadd(f"{v1}:turns", {item: 1001.0})
    await raw.zadd(f"{v1}:calls", {"call-1": 1000.0})
    old = {name: value for name, value in asdict(ended()).items() if name != "usage"}
    await raw.hset(f"{v1}:records", "call-1", json.dumps(old))

    assert await store.recall("ann") == Profile("ann", 1, 1000.0, [turn(1)])
    assert await store.forget("ann") == 2


async def test_two_agents_on_one_server_share_no_caller(
    store: RedisMemory, settings: Settings, raw: Redis
) -> None:
    await store.write("ann", turn(1))
    async with open_store(settings_for(settings.memory_url)) as other:
        assert other is not None
        assert await other.recall("ann") is None


async def test_closing_leaves_no_connection(settings: Settings, raw: Redis) -> None:
    before = {client["id"] for client in await raw.client_list()}
    async with calling(settings) as memory:
        await memory.recall()
        assert {client["id"] for client in await raw.client_list()} > before
    assert {client["id"] for client in await raw.client_list()} <= before


# ---------------------------------------------------------------------- what a server can suffer


async def test_a_killed_server_makes_an_unknown_caller_and_one_warning(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    settings = settings_for(server.url)
    async with calling(settings) as memory:
        memory.add_turn(turn(1))
        assert await memory.queue.flush(30)
        server.kill()
        memory.add_turn(turn(2, text=SECRET))
        assert await memory.recall() is None
        memory.add_call(ended())

    assert (memory.queue.lost, spooled(settings)) == (0, [turn(2, text=SECRET), ended()])
    assert len(warnings(caplog)) == 1
    assert SECRET not in caplog.text


async def test_turns_of_an_outage_are_written_in_order_when_the_server_is_back(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with calling(settings_for(server.url)) as memory:
        assert await memory.recall() is None
        server.kill()
        memory.add_turn(turn(1))
        memory.add_turn(turn(2))
        assert await memory.recall() is None
        server.start()
        assert await memory.queue.flush(30)
        assert await memory.recall() == Profile("ann", 1, 1001.0, [turn(1), turn(2)])

    (said,) = warnings(caplog)
    assert f"no connection to Redis at 127.0.0.1:{server.port}" in said


async def test_a_stalled_server_makes_an_unknown_caller_and_one_warning(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with calling(settings_for(server.url)) as memory:
        memory.add_turn(turn(1))
        assert await memory.queue.flush(30)
        server.stop()
        memory.add_turn(turn(2))
        async with asyncio.timeout(
            30
            # only our own deadline ends this: the server never answers
        ):
            assert await memory.recall() is None
        server.go_on()
        assert await memory.queue.flush(30)
        assert await memory.recall() == Profile("ann", 1, 1001.0, [turn(1), turn(2)])

    assert len(warnings(caplog)) == 1


async def test_a_stalled_server_is_one_sentence(server: RedisServer) -> None:
    sentence = f"no answer from Redis at 127.0.0.1:{server.port} within {redis.COMMAND_SECONDS:g} s"
    async with open_store(settings_for(server.url)) as store:
        assert store is not None
        await store.check()
        server.stop()
        async with asyncio.timeout(30):
            with pytest.raises(MemoryUnavailable, match=sentence):
                await store.check()


async def test_a_call_ends_while_the_server_is_stalled(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    settings = settings_for(server.url)
    async with asyncio.timeout(30), calling(settings) as memory:
        server.stop()
        assert await memory.recall() is None
        memory.add_turn(turn(1))

    assert (memory.queue.lost, spooled(settings)) == (0, [turn(1)])
    assert len(warnings(caplog)) == 1


@asynccontextmanager
async def refused(url: str, sentence: str) -> AsyncIterator[None]:
    """Any use of the store at `url` raises this one sentence, without words and passwords."""
    async with open_store(settings_for(url)) as store:
        assert store is not None
        asked: list[Callable[[], Awaitable[object]]]
        asked = [store.check, lambda: store.write("ann", turn(1, text=SECRET))]
        for question in asked:
            with pytest.raises(MemoryUnavailable, match=sentence) as said:
                await question()
            assert SECRET not in str(said.value)
            assert PASSWORD not in str(said.value)
        yield


async def test_a_user_with_a_password_is_let_in_and_another_is_one_sentence(
    server: RedisServer,
) -> None:
    def as_user(user: str) -> str:
        return f"redis://{user}127.0.0.1:{server.port}/0"

    for rules in ("ada on >{0} ~* +@all", "bob on >{0} ~bobs:* +@all", "default off"):
        assert server.command("ACL", "SETUSER", *rules.format(PASSWORD).split()) == "+OK"
    async with open_store(settings_for(as_user(f"ada:{PASSWORD}@"))) as store:
        assert store is not None
        await store.write("ann", turn(1))
        assert await store.recall("ann") == Profile("ann", 1, 1001.0, [turn(1)])
    for user in (f":{PASSWORD}@", f"eve:{PASSWORD}@", "ada:wrong@", ""):
        async with refused(as_user(user), "refuses the user or password: correct them"):
            pass
    async with refused(as_user(f"bob:{PASSWORD}@"), r"let this user read and write the keys"):
        pass


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            ["--maxmemory", "1", "--maxmemory-policy", "noeviction"],
            "is full .*: raise its maxmemory",
        ),
        (
            ["--replicaof", "127.0.0.1", "1"],
            "is a read-only replica: write the address of its primary",
        ),
    ],
)
async def test_a_server_that_takes_nothing_is_one_sentence(
    options: list[str], sentence: str
) -> None:
    with closing(RedisServer("valkey", *options, keeps=False)) as server:
        async with refused(server.url, sentence):
            pass


async def test_a_full_server_still_tells_who_calls_and_is_written_when_it_has_room(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        Redis.from_url(server.url) as client,
        calling(settings_for(server.url)) as memory,
    ):
        memory.add_turn(turn(1))
        assert await memory.queue.flush(30)
        await client.config_set("maxmemory", 1)
        memory.add_turn(turn(2))
        assert not await memory.queue.flush(0.3)
        assert await memory.recall() == Profile("ann", 1, 1001.0, [turn(1)])
        await client.config_set("maxmemory", 0)
        assert await memory.queue.flush(30)
        assert await memory.recall() == Profile("ann", 1, 1001.0, [turn(1), turn(2)])

    (said,) = warnings(caplog)
    assert "is full" in said


@asynccontextmanager
async def answering(reply: bytes) -> AsyncIterator[str]:
    """The address of a server that answers every command so, or hangs up."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while reply and (said := await reader.read(65536)):
                writer.write(reply * len(re.findall(rb"(?m)^\*[0-9]+\r$", said)))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"


@pytest.mark.parametrize(
    ("reply", "sentence"),
    [
        (b"-LOADING Valkey is loading the dataset in memory\r\n", "still loading its data: wait"),
        (
            b"-MISCONF Valkey is configured to save RDB snapshots, but\r\n",
            "cannot save to its disk .*: make room",
        ),
        (b"-MOVED 3999 127.0.0.1:6381\r\n", "one node of a cluster .*: write the address of"),
        (
            b"-MASTERDOWN Link with MASTER is down\r\n",
            "replica that has lost its primary: start that",
        ),
        (b"-CLUSTERDOWN The cluster is down\r\n", "belongs to a cluster that is down"),
        (
            b"-ERR max number of clients reached\r\n",
            "as many clients as it takes: raise its maxclients",
        ),
        (b"-ERR DB index is out of range\r\n", "no such database: correct the number"),
        (b"-ERR something of its own\r\n", "answers with ResponseError: its own log says why"),
        (b"", "hangs up: if it expects TLS, write rediss://"),
    ],
)
async def test_what_a_server_answers_is_one_sentence(reply: bytes, sentence: str) -> None:
    async with answering(reply) as url, refused(url, sentence):
        pass


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of 127.0.0.1 and its key, in one file."""
    made = tmp_path_factory.mktemp("tls") / "both.pem"
    options = [
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-subj",
        "/CN=test",
    ]
    where = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(made), "-out", f"{made}.crt"]
    subprocess.run(["openssl", "req", *options, *where], check=True, capture_output=True)
    made.write_text(made.read_text() + Path(f"{made}.crt").read_text())
    return made


@asynccontextmanager
async def tls_before(url: str, certificate: Path) -> AsyncIterator[str]:
    """The rediss address of a server that takes off the TLS in front of the one at `url`."""
    inner = urlsplit(url)

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while said := await reader.read(65536):
                writer.write(said)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ahead = await asyncio.open_connection(inner.hostname, inner.port)
        await asyncio.gather(pump(reader, ahead[1]), pump(ahead[0], writer))

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with server:
        yield f"rediss://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"


async def test_tls_is_spoken_with_a_server_whose_certificate_is_known(
    server: RedisServer, certificate: Path
) -> None:
    async with tls_before(server.url, certificate) as url:
        known = url.replace("//", f"//:{PASSWORD}@") + f"?ssl_ca_certs={certificate}"
        async with open_store(settings_for(known)) as store:
            assert store is not None
            await store.write("ann", turn(1))
            assert await store.recall("ann") == Profile("ann", 1, 1001.0, [turn(1)])
        wrong = {
            url: r"no TLS with .* \(self.signed certificate\): let AGENT_.*ssl_ca_certs=",
            known.replace("127.0.0.1", "localhost"): "let AGENT_MEMORY_URL name the host of its",
            f"{url}?ssl_ca_certs=/nowhere.pem": "certificate that is not there: correct its path",
            url.replace("rediss", "redis"): "hangs up: if it expects TLS, write rediss://",
        }
        for address, sentence in wrong.items():
            async with refused(address, sentence):
                pass


async def test_tls_with_a_port_that_has_none_is_one_sentence(server: RedisServer) -> None:
    async with refused(
        server.url.replace("redis://", "rediss://"), "write redis:// in AGENT_MEMORY_URL"
    ):
        pass


@pytest.mark.parametrize(
    "address",
    [
        f"redis://:{PASSWORD}/x@localhost:6379/0",
        f"redis://:{PASSWORD}#x@localhost:6379/0",
        f"redis://:12345#{PASSWORD}@localhost:6379/0",
        f"redis://localhost:{PASSWORD}/0",
        f"redis://:{PASSWORD}@localhost:6379/first",
        f"redis://:{PASSWORD}@localhost:6379/0?ssl_ca_certs=/ca.pem",
    ],
)
async def test_an_address_that_is_none_is_one_sentence_without_the_password(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with calling(settings_for(address)) as memory:
        assert await memory.recall() is None

    (said,) = warnings(caplog)
    assert "AGENT_MEMORY_URL is no address of a Redis" in said
    assert PASSWORD not in caplog.text
