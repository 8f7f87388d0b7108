"""The connections of one call, and the settings that every connection gets."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeVar

import asyncpg

from agent.knowledge import KnowledgeUnavailable
from agent.knowledge.pgvector.errors import LOST, NO_ADDRESS, location, translate_errors

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]
else:
    Connection = asyncpg.Connection

T = TypeVar("T")

# a search: a stopped server sends nothing at all, so only a deadline ends the waiting
SEARCH_SECONDS = 1.0
CONNECTING_SECONDS = 10.0
# a connection that was idle for longer may be dead without a word: firewalls forget
IDLE_SECONDS = 120.0
# of a call; a worker has one process a call
MOST_CONNECTIONS = 2
# what HNSW looks at for its best candidates
NEAREST = 100
# Passages that an ingest has removed are among these until the next vacuum, and an old transaction
# anywhere on the server holds that up: go on until enough are found. Before 0.8 pgvector cannot.
# The order is free, because all candidates are ranked again.
GO_ON = (
    "SELECT set_config('hnsw.iterative_scan', 'relaxed_order', false) FROM pg_extension"
    " WHERE extname = 'vector' AND string_to_array(extversion, '.')::int[] >= '{0,8}'"
)


class Database:
    """Where the index of an agent is."""

    def __init__(self, url: str, schema: str) -> None:
        self._url, self.schema = url, schema
        try:
            self.where = location(url)
        except KnowledgeUnavailable:
            # reported when it is used
            self.where = "PostgreSQL"

    def translate_errors(self, seconds: float) -> AbstractContextManager[None]:
        """Raise KnowledgeUnavailable for what happens inside, which may take so many seconds."""
        return translate_errors(self.where, self.schema, seconds)

    async def connect(self, seconds: float) -> Connection:
        """A connection for statements of so many seconds, to be terminated by the caller."""
        location(self._url)
        try:
            connection = await asyncpg.connect(
                self._url, timeout=min(seconds, CONNECTING_SECONDS), command_timeout=seconds
            )
        except (asyncpg.ClientConfigurationError, ValueError):
            # its message may quote the password
            raise KnowledgeUnavailable(NO_ADDRESS) from None
        try:
            await connection.execute(
                f"SET statement_timeout = {round(seconds * 1000)}; SET jit = off;"
                f" SET hnsw.ef_search = {NEAREST}; {GO_ON}"
            )
            await self.set_search_path(connection)
        except BaseException:
            connection.terminate()
            raise
        return connection

    async def set_search_path(self, connection: Connection) -> None:
        """Have names mean the agent's own tables, and the extension's type wherever it is."""
        await connection.execute(
            "SELECT set_config('search_path', concat_ws(', ', $1::text, ("
            "SELECT quote_ident(nspname) FROM pg_extension"
            " JOIN pg_namespace ON pg_namespace.oid = extnamespace WHERE extname = 'vector'"
            ")), false)",
            self.schema,
        )


class Connections:
    """The connections of one call.

    Whoever waits for an answer may leave: the question is asked to its end or its deadline, because
    cancelling it would wait for a server that may have stopped.
    """

    def __init__(self, database: Database, seconds: float) -> None:
        self._database, self.seconds = database, seconds
        self._slots = asyncio.Semaphore(MOST_CONNECTIONS)
        self._idle: list[tuple[Connection, float]] = []
        self._busy: set[asyncio.Task[Any]] = set()

    async def run(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """Do it within `seconds`, connecting included."""
        return await asyncio.shield(self.begin(work))

    def begin(self, work: Callable[[Connection], Awaitable[T]]) -> asyncio.Task[T]:
        """The same, without waiting."""
        task = asyncio.create_task(self._run(work))
        self._busy.add(task)
        task.add_done_callback(self._ended)
        return task

    def close(self) -> None:
        """Drop all connections, also those of a server that does not answer."""
        for task in self._busy:
            task.cancel()
        while self._idle:
            self._idle.pop()[0].terminate()

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._busy.discard(task)
        # retrieved, because nobody may be waiting for it
        if not task.cancelled():
            task.exception()

    async def _run(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        async with asyncio.timeout(self.seconds), self._slots:
            while (connection := self._take_idle()) is not None:
                try:
                    return await self._use(connection, work)
                except LOST:
                    # the server was restarted meanwhile: that is worth a new connection
                    continue
            return await self._use(await self._database.connect(self.seconds), work)

    async def _use(self, connection: Connection, work: Callable[[Connection], Awaitable[T]]) -> T:
        try:
            done = await work(connection)
        except BaseException:
            connection.terminate()
            raise
        self._idle.append((connection, asyncio.get_running_loop().time()))
        return done

    def _take_idle(self) -> Connection | None:
        while self._idle:
            connection, used = self._idle.pop()
            fresh = used > asyncio.get_running_loop().time() - IDLE_SECONDS
            if fresh and not connection.is_closed():
                return connection
            connection.terminate()
        return None
