"""Passages in PostgreSQL with pgvector: one index for the workers of many machines.

Many agents may share a database: each has a schema of its own.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from agent.knowledge import IndexManifest, Knowledge, Questions, Writer
from agent.knowledge.pgvector import connection as connecting
from agent.knowledge.pgvector.connection import Connection, Connections, Database
from agent.knowledge.pgvector.errors import NO_INDEX
from agent.knowledge.pgvector.search import PgvectorKnowledge
from agent.knowledge.pgvector.writer import INDEX_SECONDS, PgvectorWriter, prepare
from agent.settings import Settings

# one statement of an ingest
STATEMENT_SECONDS = 60.0


class PgvectorIndex:
    """An `Index`. An ingest is one transaction: until it ends, readers have the old index."""

    shared = True

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        url = settings.knowledge_url.get_secret_value()
        self._database = Database(url, schema_of(settings.name))
        # the revision that `manifest` has read
        self._seen: int | None = None

    @asynccontextmanager
    async def open(self, questions: Questions) -> AsyncIterator[Knowledge]:
        """Yield the index at once; it connects meanwhile, and drops its connections on exit."""
        seconds = max(connecting.SEARCH_SECONDS, self._settings.knowledge_seconds)
        connections = Connections(self._database, seconds)
        knowledge = PgvectorKnowledge(self._database, connections, questions)
        connections.begin(knowledge.prepare)
        try:
            yield knowledge
        finally:
            connections.close()

    async def upgrade(self) -> None:
        """Have the tables of this version, filled from those that are there."""
        async with self._connected() as connection:
            with self._database.translate_errors(INDEX_SECONDS):
                await prepare(connection, self._database)

    async def manifest(self) -> IndexManifest | None:
        """Read it, and count the passages that should be there."""
        async with self._connected() as connection:
            with self._database.translate_errors(STATEMENT_SECONDS):
                try:
                    row = await connection.fetchrow(
                        "SELECT about.*, there.* FROM about, LATERAL ("
                        "SELECT count(*) AS found FROM passages WHERE generation = about.generation"
                        " AND (about.dimension = 0 OR embedding IS NOT NULL)) AS there"
                        # which an index of an earlier layout lacks
                        " WHERE (SELECT count(*) FROM postings WHERE false) = 0"
                    )
                except NO_INDEX:
                    return None
        if row is None or row["found"] != row["passages"]:
            return None
        self._seen = row["revision"]
        roots, digests = json.loads(row["roots"]), json.loads(row["digests"])
        made = row["schema"], row["model"], row["dimension"]
        return IndexManifest(*made, tuple(roots), digests)

    @asynccontextmanager
    async def rebuild(self, manifest: IndexManifest) -> AsyncIterator[Writer]:
        """Change the index in one transaction: an exception, or a kill, changes nothing."""
        async with self._connected() as connection:
            with self._database.translate_errors(STATEMENT_SECONDS):
                await prepare(connection, self._database)
                if self._seen is None:
                    # it goes with the extension, when somebody drops that
                    column = "ADD COLUMN IF NOT EXISTS embedding vector"
                    await connection.execute(f"ALTER TABLE passages {column}")
                transaction = connection.transaction()
                await transaction.start()
                writer = PgvectorWriter(connection, self._database, manifest)
                await writer.begin(self._seen)
            yield writer
            with self._database.translate_errors(INDEX_SECONDS):
                await writer.finish()
                await transaction.commit()
                await writer.tidy()

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[Connection]:
        with self._database.translate_errors(STATEMENT_SECONDS):
            connection = await self._database.connect(STATEMENT_SECONDS)
        try:
            yield connection
        finally:
            connection.terminate()


def schema_of(agent: str) -> str:
    """The PostgreSQL schema of an agent: what can be read of its name, and a digest of it."""
    readable = re.sub(r"[^a-z0-9]+", "_", agent.lower()).strip("_")[:40]
    digest = hashlib.sha256(agent.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"agent_{readable}_{digest}"
