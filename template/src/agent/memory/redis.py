"""Callers in Redis or Valkey: for workers on several machines, or without a disk."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
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
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

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
from agent.memory.redis_errors import sentence_of
from agent.reasons import NOT_REACHED
from agent.settings import Settings

T = TypeVar("T")

# a stopped server sends nothing at all: only a deadline ends the waiting
COMMAND_SECONDS = 1.0
DISCONNECT_SECONDS = 1.0
# what was added since is in keys of its own, and in fields that older workers do not read
KEY_VERSION = 1


@asynccontextmanager
async def open_store(settings: Settings) -> AsyncIterator[Memory]:
    """Yield the memory, and close its connections on exit; the first use connects.

    Raises MemoryUnavailable for a malformed address.
    """
    client = client_of(settings.memory_url)
    try:
        yield RedisMemory(client, settings)
    finally:
        with suppress(RedisError, OSError, TimeoutError):
            async with asyncio.timeout(DISCONNECT_SECONDS):
                await client.aclose()


class RedisMemory:
    """A `Memory`. The keys of a caller share a hash tag, so that a cluster keeps them together.

    No key holds a name.
    """

    def __init__(self, client: Redis, settings: Settings) -> None:
        self._client, self._agent = client, settings.name
        self._where = where_of(settings.memory_url)
        self._expiry = timedelta(days=settings.memory_days)
        self._resume_seconds = settings.resume_seconds
        self._tls = issubclass(client.connection_pool.connection_class, SSLConnection)

    async def check(self) -> None:
        """Write a key that is gone a second later: a replica or a full server refuses."""
        await self._ask(self._client.set(f"{self._agent}:v{KEY_VERSION}:check", "", ex=1))

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
            items, calls, last, facts, names = await self._ask(ask.execute())
        if not calls:
            return None
        call, at = last[0][0], float(last[0][1])
        async with self._client.pipeline(transaction=False) as ask:
            ask.hget(keys.records, call)
            if items:
                ask.hmget(keys.texts, items)
            record, *found = await self._ask(ask.execute())
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

    async def write(self, caller: str, item: Item) -> None:
        """Write in one round trip, and in a second one delete what is too much of this caller."""
        keys = self._keys(caller)
        async with self._pipeline() as write:
            match item:
                case Turn():
                    _write_turn(write, keys, item)
                case Note():
                    _write_note(write, keys, item)
                case CallRecord():
                    write.hset(keys.records, item.call, json.dumps(asdict(item)))
                    missed = item.reason in NOT_REACHED
                    write.zadd(keys.missed if missed else keys.calls, {item.call: item.at})
            for key in keys:
                write.expire(key, self._expiry)
            if isinstance(item, CallRecord):
                write.zrange(keys.turns, 0, -KEPT - 1)
                write.zrange(keys.calls, 0, -KEPT - 1)
                write.zrange(keys.missed, 0, -KEPT - 1)
            answers = await self._ask(write.execute())
        if isinstance(item, CallRecord):
            await self._trim(keys, *answers[-3:])

    async def _trim(
        self, keys: _Keys, turns: list[str], calls: list[str], missed: list[str]
    ) -> None:
        if not (turns or calls or missed):
            return
        async with self._pipeline() as trim:
            for ordered, contents, old in (
                (keys.turns, keys.texts, turns),
                (keys.calls, keys.records, calls),
                (keys.missed, keys.records, missed),
            ):
                if old:
                    trim.zrem(ordered, *old)
                    trim.hdel(contents, *old)
            await self._ask(trim.execute())

    async def forget(self, caller: str) -> int:
        """Delete the caller's keys in one transaction."""
        keys = self._keys(caller)
        async with self._pipeline() as delete:
            for ordered in (keys.turns, keys.calls, keys.missed, keys.facts, keys.names):
                delete.zcard(ordered)
            delete.delete(*keys)
            *counts, _ = await self._ask(delete.execute())
        return sum(int(count) for count in counts)

    def _pipeline(self) -> Pipeline:
        return self._client.pipeline(transaction=True)

    def _keys(self, caller: str) -> _Keys:
        tag = hashlib.sha256(caller.encode("utf-8", "surrogatepass")).hexdigest()[:32]
        # what a cluster hashes is in braces
        prefix = f"{self._agent}:v{KEY_VERSION}:" + "{" + tag + "}"
        return _Keys(*(f"{prefix}:{name}" for name in _Keys._fields))

    async def _ask(self, command: Awaitable[T]) -> T:
        try:
            return await command
        except (RedisError, OSError) as error:
            sentence = sentence_of(
                error, self._where, agent=self._agent, tls=self._tls, seconds=COMMAND_SECONDS
            )
            raise MemoryUnavailable(sentence) from error


class _Keys(NamedTuple):
    """Sorted sets by time, and hashes of what is in them; of names only the newest.

    Calls that nobody answered are apart: they are none that the caller has had.
    """

    turns: str
    texts: str
    calls: str
    records: str
    facts: str
    names: str
    missed: str


def _write_turn(write: Pipeline, keys: _Keys, turn: Turn) -> None:
    """An item that is there keeps its text and its place."""
    item = json.dumps([turn.call, turn.item])
    write.hsetnx(keys.texts, item, json.dumps(asdict(turn)))
    write.zadd(keys.turns, {item: turn.at}, nx=True)
    write.zadd(keys.calls, {turn.call: turn.at}, nx=True)


def _write_note(write: Pipeline, keys: _Keys, note: Note) -> None:
    """A fact that is there keeps its place."""
    write.zadd(keys.calls, {note.call: note.at}, nx=True)
    if note.name:
        write.zadd(keys.names, {note.name: note.at}, gt=True)
        write.zremrangebyrank(keys.names, 0, -2)
    if note.fact:
        write.zadd(keys.facts, {note.fact: note.at}, nx=True)
        write.zremrangebyrank(keys.facts, 0, -MOST_FACTS - 1)


def client_of(url: str) -> Redis:
    """A client, which the first use connects; raises MemoryUnavailable for a malformed address."""
    try:
        parts = urlsplit(url)
        if "@" in f"{parts.path}{parts.query}{parts.fragment}":
            raise ValueError
        if not re.fullmatch(r"(/[0-9]*)?", parts.path):
            raise ValueError
        # the server may have closed an idle connection, which is worth one more try; a late answer
        # is not
        again = Retry(NoBackoff(), 1, (RedisConnectionError,))
        client = Redis.from_url(
            url,
            decode_responses=True,
            socket_timeout=COMMAND_SECONDS,
            socket_connect_timeout=COMMAND_SECONDS,
            retry=again,
        )
        # it connects nothing, and finds options that no connection takes
        pool: Any = client.connection_pool
        pool.make_connection()
        return client
    # the message of the first would quote the password
    except (ValueError, TypeError):
        raise MemoryUnavailable(
            "AGENT_MEMORY_URL is no address of a Redis: write redis://[user:password@]host:6379/0, "
            "special characters of the password as %40 and the like"
        ) from None


def where_of(url: str) -> str:
    """The server, without user and password."""
    parts = urlsplit(url)
    return f"{parts.hostname or 'localhost'}:{parts.port or 6379}"
