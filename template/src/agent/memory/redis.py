"""Callers in Redis or Valkey: for workers on several machines, or without a disk."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import ssl
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.asyncio.connection import SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthenticationWrongNumberOfArgsError,
    AuthorizationError,
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

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

T = TypeVar("T")

ANSWER_SECONDS = 1.0  # a stopped server says nothing at all: only a deadline tells
CLOSING_SECONDS = 1.0
SCHEMA = (
    1  # what was added since is in keys of its own and in fields that older workers do not read
)


@asynccontextmanager
async def open_memory(settings: Settings) -> AsyncIterator[Memory]:
    """Yield the callers' memory and close its connections on exit; the first use connects.

    Raises MemoryUnavailable for an address that is none.
    """
    client = _client(settings.memory_url)
    try:
        where = _where(settings.memory_url)
        yield RedisMemory(
            client, where, settings.name, settings.memory_days, settings.resume_seconds
        )
    finally:
        with suppress(RedisError, OSError, TimeoutError):
            async with asyncio.timeout(CLOSING_SECONDS):
                await client.aclose()


class RedisMemory:
    """A `Memory`. All keys of a caller have one hash tag, so that a cluster keeps them together; none holds a name."""

    def __init__(
        self, client: Redis, where: str, agent: str, days: int, resume_seconds: float
    ) -> None:
        self._client, self._where, self._agent, self._days = client, where, agent, days
        self._resume_seconds = resume_seconds
        self._tls = issubclass(client.connection_pool.connection_class, SSLConnection)

    async def check(self) -> None:
        """Write a key that is gone a second later: a replica or a full server refuses."""
        await self._asked(self._client.set(f"{self._agent}:v{SCHEMA}:check", "", ex=1))

    async def recall(self, caller: str) -> Profile | None:
        """Read in two round trips: which turns and which last call, then what they hold."""
        keys = self._keys(caller)
        # in no transaction: a full server refuses to queue even a question
        async with self._client.pipeline(transaction=False) as ask:
            ask.zrange(keys.turns, -RECALLED_TURNS, -1)
            ask.zcard(keys.calls)
            ask.zrange(keys.calls, -1, -1, withscores=True)
            ask.zrange(keys.facts, 0, -1)
            ask.zrange(keys.names, -1, -1)
            items, calls, last, facts, names = await self._asked(ask.execute())
        if not calls:
            return None
        call, at = last[0][0], float(last[0][1])
        async with self._client.pipeline(transaction=False) as ask:
            ask.hget(keys.records, call)
            if items:
                ask.hmget(keys.texts, items)
            record, *found = await self._asked(ask.execute())
        turns = [Turn(**json.loads(text)) for texts in found for text in texts if text is not None]
        known = json.loads(record) if record else {}
        ended = max(
            [at + known.get("seconds", 0), *[turn.at for turn in turns if turn.call == call]]
        )
        return Profile(
            caller,
            calls,
            last_call=at,
            turns=turns,
            name=names[0] if names else None,
            facts=facts,
            resumed=broke_off(known.get("reason"), ended, self._resume_seconds),
        )

    async def remember(self, caller: str, turn: Turn) -> None:
        """Write in one round trip; an item that is there keeps its text and its place."""
        keys = self._keys(caller)
        item = json.dumps([turn.call, turn.item])
        async with self._pipeline() as write:
            write.hsetnx(keys.texts, item, json.dumps(asdict(turn)))
            write.zadd(keys.turns, {item: turn.at}, nx=True)
            write.zadd(keys.calls, {turn.call: turn.at}, nx=True)
            self._expire(write, keys)
            await self._asked(write.execute())

    async def record(self, caller: str, call: CallRecord) -> None:
        """Write the record, then delete what is too much of this caller."""
        keys = self._keys(caller)
        async with self._pipeline() as write:
            write.hset(keys.records, call.call, json.dumps(asdict(call)))
            write.zadd(keys.calls, {call.call: call.at})
            self._expire(write, keys)
            write.zrange(keys.turns, 0, -KEPT - 1)
            write.zrange(keys.calls, 0, -KEPT - 1)
            *_, turns, calls = await self._asked(write.execute())
        if turns or calls:
            async with self._pipeline() as trim:
                for order, content, old in (
                    (keys.turns, keys.texts, turns),
                    (keys.calls, keys.records, calls),
                ):
                    if old:
                        trim.zrem(order, *old)
                        trim.hdel(content, *old)
                await self._asked(trim.execute())

    async def note(self, caller: str, note: Note) -> None:
        """Write in one round trip; a fact that is there keeps its place, and of the names the newest stays."""
        keys = self._keys(caller)
        async with self._pipeline() as write:
            write.zadd(keys.calls, {note.call: note.at}, nx=True)
            if note.name:
                write.zadd(keys.names, {note.name: note.at}, gt=True)
                write.zremrangebyrank(keys.names, 0, -2)
            if note.fact:
                write.zadd(keys.facts, {note.fact: note.at}, nx=True)
                write.zremrangebyrank(keys.facts, 0, -MOST_FACTS - 1)
            self._expire(write, keys)
            await self._asked(write.execute())

    async def forget(self, caller: str) -> int:
        """Delete the caller's keys in one transaction."""
        keys = self._keys(caller)
        async with self._pipeline() as delete:
            for ordered in (keys.turns, keys.calls, keys.facts, keys.names):
                delete.zcard(ordered)
            delete.delete(*keys)
            *counts, _ = await self._asked(delete.execute())
        return sum(int(count) for count in counts)

    def _pipeline(self) -> Pipeline:
        return self._client.pipeline(transaction=True)

    def _keys(self, caller: str) -> _Keys:
        tag = hashlib.sha256(caller.encode("utf-8", "surrogatepass")).hexdigest()[:32]
        slot = "{" + tag + "}"  # what a cluster hashes
        return _Keys(*(f"{self._agent}:v{SCHEMA}:{slot}:{name}" for name in _Keys._fields))

    def _expire(self, write: Pipeline, keys: _Keys) -> None:
        for key in keys:
            write.expire(key, timedelta(days=self._days))

    async def _asked(self, asked: Awaitable[T]) -> T:
        try:
            return await asked
        except (RedisError, OSError) as error:
            raise MemoryUnavailable(self._sentence(error)) from error

    def _sentence(self, error: RedisError | OSError) -> str:
        """What is wrong and what to do. The client's own messages quote commands, and with them what a caller said."""
        server = f"Redis at {self._where}"
        match error:
            case RedisTimeoutError() if self._tls and "connecting" in str(
                error
            ):  # a server without TLS waits for more
                return f"no TLS with {server} within {ANSWER_SECONDS:g} s: {_tls_cure(error)}"
            case RedisTimeoutError():
                return f"no answer from {server} within {ANSWER_SECONDS:g} s"
            case BusyLoadingError():
                return (
                    f"{server} is still loading its data: wait until it has, nothing else is needed"
                )
            case (
                AuthenticationError()
                | AuthenticationWrongNumberOfArgsError()
                | AuthorizationError()
            ):
                return f"{server} refuses the user or password: correct them in AGENT_MEMORY_URL"
            case NoPermissionError():
                return (
                    f"{server} refuses the user or password: correct them in AGENT_MEMORY_URL, "
                    f"or let this user read and write the keys {self._agent}:*"
                )
            case RedisConnectionError() | OSError() if (tls := _tls_error(error)) is not None:
                return f"no TLS with {server} ({_tls_reason(tls)}): {_tls_cure(tls)}"
            case RedisConnectionError() | OSError() if isinstance(
                error.__context__, FileNotFoundError
            ):
                return f"{server} is asked with a certificate that is not there: correct its path in AGENT_MEMORY_URL"
            case RedisConnectionError() if "max number of clients" in str(error):
                return f"{server} has as many clients as it takes: raise its maxclients, or find who holds them"
            case RedisConnectionError() if "onnection closed by server" in str(
                error
            ):  # as by one that expects TLS
                return f"{server} hangs up: if it expects TLS, write rediss:// in AGENT_MEMORY_URL"
            case RedisConnectionError() | OSError():
                return f"no connection to {server}: start it, or correct AGENT_MEMORY_URL"
            case OutOfMemoryError():
                return (
                    f"{server} is full and takes nothing more (OutOfMemoryError): "
                    "raise its maxmemory, or set its maxmemory-policy to volatile-ttl"
                )
            case ReadOnlyError():
                return f"{server} is a read-only replica: write the address of its primary into AGENT_MEMORY_URL"
            case MasterDownError():
                return f"{server} is a replica that has lost its primary: start that, or correct AGENT_MEMORY_URL"
            case ClusterDownError():
                return f"{server} belongs to a cluster that is down: its own log says why"
            case AskError():  # and MovedError
                return (
                    f"{server} is one node of a cluster and sends us to another: write the address of a proxy "
                    "or of a single server into AGENT_MEMORY_URL"
                )
            case ResponseError() if "MISCONF" in str(error):
                return f"{server} cannot save to its disk and refuses to write: make room there, its own log says more"
            case ResponseError() if "DB index" in str(error):
                return f"{server} has no such database: correct the number at the end of AGENT_MEMORY_URL"
            case _:
                return f"{server} answers with {type(error).__name__}: its own log says why"


class _Keys(NamedTuple):
    turns: str  # sorted set of items by time
    texts: str  # hash of turns by item
    calls: str  # sorted set of calls by time
    records: str  # hash of records by call
    facts: str  # sorted set of facts by time
    names: str  # sorted set of the newest name by time


def _client(url: str) -> Redis:
    try:
        parts = urlsplit(url)
        if "@" in f"{parts.path}{parts.query}{parts.fragment}" or not re.fullmatch(
            r"(/[0-9]*)?", parts.path
        ):
            raise ValueError
        # an idle connection may have been closed by the server: that is worth one more try, a late answer is not
        again = Retry(NoBackoff(), 1, (RedisConnectionError,))
        client = Redis.from_url(
            url,
            decode_responses=True,
            socket_timeout=ANSWER_SECONDS,
            socket_connect_timeout=ANSWER_SECONDS,
            retry=again,
        )
        pool: Any = client.connection_pool
        pool.make_connection()  # which connects nothing, and finds what no connection can be told
        return client
    except (ValueError, TypeError):  # the message of the first would quote the password
        raise MemoryUnavailable(
            "AGENT_MEMORY_URL is no address of a Redis: write redis://[user:password@]host:6379/0, "
            "special characters of the password as %40 and the like"
        ) from None


def _where(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.hostname or 'localhost'}:{parts.port or 6379}"


def _tls_error(error: BaseException | None) -> ssl.SSLError | None:
    """The error of the handshake that the client has wrapped, if that is what happened."""
    while error is not None and not isinstance(error, ssl.SSLError):
        error = error.__cause__ or error.__context__
    return error


def _tls_reason(error: ssl.SSLError) -> str:
    verify = getattr(error, "verify_message", "")  # of a certificate
    return verify or (error.reason or type(error).__name__).replace("_", " ").lower()


def _tls_cure(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            "let AGENT_MEMORY_URL name the host of its certificate, and end in ?ssl_ca_certs=/path/to/ca.pem "
            "if you have issued it yourself"
        )
    return "write redis:// in AGENT_MEMORY_URL if that port has no TLS"
