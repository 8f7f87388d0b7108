"""Kept reports in the Redis or Valkey that memory has: for workers on several machines."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Iterable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

from redis.asyncio import Redis
from redis.asyncio.connection import SSLConnection
from redis.exceptions import RedisError

from agent.memory import MemoryUnavailable
from agent.memory.redis import COMMAND_SECONDS, DISCONNECT_SECONDS, client_of, where_of
from agent.memory.redis_errors import sentence_of
from agent.reports import NotDelivered, Report
from agent.reports.delivery import Waiting
from agent.reports.kept import KeptCalls, fitting, oldest_kept
from agent.settings import Settings

T = TypeVar("T")


@asynccontextmanager
async def open_kept(settings: Settings) -> AsyncIterator[KeptCalls]:
    """Yield the kept reports, and close the connections on exit; the first use connects."""
    try:
        client = client_of(settings.memory_url)
    except MemoryUnavailable as error:
        raise NotDelivered(str(error)) from error
    try:
        yield KeptInRedis(client, settings)
    finally:
        with suppress(RedisError, OSError, TimeoutError):
            async with asyncio.timeout(DISCONNECT_SECONDS):
                await client.aclose()


class KeptInRedis:
    """`KeptCalls`: the ids of calls by when they began, and a hash of what is kept of each."""

    def __init__(self, client: Redis, settings: Settings) -> None:
        self._client, self._settings = client, settings
        self.unread: list[str] = []
        # one hash tag, so that a cluster keeps them together
        tag = f"{settings.name}:v1:" + "{calls}"
        self._order, self._reports = f"{tag}:order", f"{tag}:reports"

    async def add(self, waiting: Waiting) -> None:
        report = waiting.report
        kept = json.dumps({"keys": waiting.keys, "report": report.to_json().decode()})
        async with self._client.pipeline(transaction=True) as write:
            write.hset(self._reports, report.call, kept)
            write.zadd(self._order, {report.call: report.began})
            for key in (self._order, self._reports):
                write.expire(key, timedelta(days=self._settings.memory_days))
            await self._ask(write.execute())
        await self.tidy()

    async def tidy(self) -> None:
        async with self._client.pipeline(transaction=True) as write:
            write.zrangebyscore(self._order, "-inf", f"({oldest_kept(self._settings)}")
            write.zrange(self._order, 0, -self._settings.calls_kept - 1)
            expired, surplus = await self._ask(write.execute())
        await self._delete({*expired, *surplus})

    async def newest(self, most: int) -> list[Report]:
        oldest = oldest_kept(self._settings)
        ids: Any = await self._ask(
            self._client.zrange(
                self._order, "+inf", oldest, desc=True, byscore=True, offset=0, num=most
            )
        )
        found = await self._ask(self._client.hmget(self._reports, ids)) if ids else []
        reports, self.unread = fitting(
            (call, json.loads(kept)["report"])
            for call, kept in zip(ids, found, strict=True)
            if kept
        )
        return reports

    async def find(self, call: str) -> list[Report]:
        found = await self.newest(self._settings.calls_kept)
        return [report for report in found if report.call.startswith(call) or report.room == call]

    async def forget(self, digests: Iterable[str]) -> int:
        wanted = set(digests)
        kept: Any = await self._ask(self._client.hgetall(self._reports))
        gone = {call for call, one in kept.items() if wanted & set(json.loads(one)["keys"])}
        await self._delete(gone)
        return len(gone)

    async def _delete(self, calls: set[str]) -> None:
        if calls:
            async with self._client.pipeline(transaction=True) as delete:
                delete.zrem(self._order, *calls)
                delete.hdel(self._reports, *calls)
                await self._ask(delete.execute())

    async def _ask(self, command: Awaitable[T]) -> T:
        try:
            return await command
        except (RedisError, OSError) as error:
            sentence = sentence_of(
                error,
                where_of(self._settings.memory_url),
                agent=self._settings.name,
                tls=issubclass(self._client.connection_pool.connection_class, SSLConnection),
                seconds=COMMAND_SECONDS,
            )
            raise NotDelivered(sentence) from error
