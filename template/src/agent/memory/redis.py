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
from typing import NamedTuple, TypeVar
from urllib.parse import urlsplit

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, AuthorizationError, NoPermissionError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from agent.memory.store import KEPT, RECALLED_TURNS, CallRecord, Memory, MemoryUnavailable, Profile, Turn
from agent.settings import Settings

T = TypeVar("T")

ANSWER_SECONDS = 1.0  # a stopped server says nothing at all: only a deadline tells
CLOSING_SECONDS = 1.0
SCHEMA = 1


@asynccontextmanager
async def open_memory(settings: Settings) -> AsyncIterator[Memory]:
    """Yield the callers' memory and close its connections on exit; the first use connects.

    Raises MemoryUnavailable for an address that is none.
    """
    client = _client(settings.memory_url)
    try:
        yield RedisMemory(client, _where(settings.memory_url), settings.name, settings.memory_days)
    finally:
        with suppress(RedisError, OSError, TimeoutError):
            async with asyncio.timeout(CLOSING_SECONDS):
                await client.aclose()


class RedisMemory:
    """A `Memory`. All keys of a caller have one hash tag, so that a cluster keeps them together; none holds a name."""

    def __init__(self, client: Redis, where: str, agent: str, days: int) -> None:
        self._client, self._where, self._agent, self._days = client, where, agent, days

    async def check(self) -> None:
        """Write a key that is gone a second later: a replica or a full server refuses."""
        await self._asked(self._client.set(f"{self._agent}:v{SCHEMA}:check", "", ex=1))

    async def recall(self, caller: str) -> Profile | None:
        """Read in two round trips: which turns, then their texts."""
        keys = self._keys(caller)
        async with self._pipeline() as ask:
            ask.zrange(keys.turns, -RECALLED_TURNS, -1)
            ask.zcard(keys.calls)
            ask.zrange(keys.calls, -1, -1, withscores=True)
            items, calls, last = await self._asked(ask.execute())
        if not calls:
            return None
        texts = await self._asked(self._client.hmget(keys.texts, items)) if items else []
        turns = [Turn(**json.loads(text)) for text in texts if text is not None]
        return Profile(caller, calls, float(last[0][1]), turns)

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
                for order, content, old in (keys.turns, keys.texts, turns), (keys.calls, keys.records, calls):
                    if old:
                        trim.zrem(order, *old)
                        trim.hdel(content, *old)
                await self._asked(trim.execute())

    async def forget(self, caller: str) -> int:
        """Delete the caller's keys in one transaction."""
        keys = self._keys(caller)
        async with self._pipeline() as delete:
            delete.zcard(keys.turns)
            delete.zcard(keys.calls)
            delete.delete(*keys)
            turns, calls, _ = await self._asked(delete.execute())
        return int(turns) + int(calls)

    def _pipeline(self) -> Pipeline:
        return self._client.pipeline(transaction=True)

    def _keys(self, caller: str) -> _Keys:
        tag = hashlib.sha256(caller.encode("utf-8", "surrogatepass")).hexdigest()[:32]
        return _Keys(*(f"{self._agent}:v{SCHEMA}:{{{tag}}}:{name}" for name in _Keys._fields))

    def _expire(self, write: Pipeline, keys: _Keys) -> None:
        for key in keys:
            write.expire(key, timedelta(days=self._days))

    async def _asked(self, asked: Awaitable[T]) -> T:
        # the client's own messages quote commands, and with them what a caller said
        try:
            return await asked
        except RedisTimeoutError as error:
            raise MemoryUnavailable(f"no answer from Redis at {self._where} within {ANSWER_SECONDS:g} s") from error
        except (AuthenticationError, AuthorizationError, NoPermissionError) as error:
            raise MemoryUnavailable(
                f"Redis at {self._where} refuses the user or password: correct them in AGENT_MEMORY_URL"
            ) from error
        except (RedisConnectionError, OSError) as error:
            raise MemoryUnavailable(
                f"no connection to Redis at {self._where}: start it, or correct AGENT_MEMORY_URL"
            ) from error
        except RedisError as error:
            raise MemoryUnavailable(
                f"Redis at {self._where} answers with {type(error).__name__}: its own log says why"
            ) from error


class _Keys(NamedTuple):
    turns: str  # sorted set of items by time
    texts: str  # hash of turns by item
    calls: str  # sorted set of calls by time
    records: str  # hash of records by call


def _client(url: str) -> Redis:
    try:
        parts = urlsplit(url)
        if "@" in f"{parts.path}{parts.query}{parts.fragment}" or not re.fullmatch(r"(/[0-9]*)?", parts.path):
            raise ValueError
        # an idle connection may have been closed by the server: that is worth one more try, a late answer is not
        again = Retry(NoBackoff(), 1, (RedisConnectionError,))
        return Redis.from_url(
            url,
            decode_responses=True,
            socket_timeout=ANSWER_SECONDS,
            socket_connect_timeout=ANSWER_SECONDS,
            retry=again,
        )
    except ValueError:  # its message would quote the password
        raise MemoryUnavailable(
            "AGENT_MEMORY_URL is no address of a Redis: write redis://[user:password@]host:6379/0, "
            "special characters of the password as %40 and the like"
        ) from None


def _where(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.hostname or 'localhost'}:{parts.port or 6379}"
