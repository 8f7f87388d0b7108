"""Writing the index: layout of the tables, passages, and what is known only at the end."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress

import asyncpg
import numpy as np
from numpy.typing import NDArray

from agent.knowledge import IndexManifest, KnowledgeUnavailable
from agent.knowledge.pgvector import errors
from agent.knowledge.pgvector.connection import Connection, Database
from agent.knowledge.pgvector.search import indexable, text_of
from agent.knowledge.ranking import TITLE_WEIGHT

WRITE_SECONDS = 60.0
# the statement that sorts a million vectors
INDEX_SECONDS = 3600.0
# passages that are written at once
ROWS_AT_ONCE = 256
# of more new passages than this, and than this share of all, sorting all vectors again is faster
FEW, SMALL_SHARE = 500, 0.1
# where new passages wait, outside of the vectors' index
PENDING = 0

# from words of a passage, those of the heading weighing more
POSTINGS = f"""
INSERT INTO postings(word, passage, length, times)
SELECT lexeme, id, length,
    cardinality(weights) + {TITLE_WEIGHT - 1} * cardinality(array_positions(weights, 'A'))
FROM passages, unnest(words)
"""
# One step a version; readers of the version before must be able to live with it, for they are still
# at work.
LAYOUTS = (
    """
    CREATE TABLE about(
        one boolean PRIMARY KEY DEFAULT true CHECK (one),
        revision bigint NOT NULL,     -- counts ingests
        generation integer NOT NULL,  -- counts those that sorted the vectors again
        passages integer NOT NULL,
        length real NOT NULL,         -- of a passage, in words, on average
        schema integer NOT NULL, model text NOT NULL, dimension integer NOT NULL,
        roots text NOT NULL, digests text NOT NULL
    );
    CREATE TABLE passages(
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        generation integer NOT NULL,
        source text NOT NULL, title text NOT NULL, text text NOT NULL,
        length integer NOT NULL,
        words tsvector NOT NULL,
        embedding vector
    );
    ALTER TABLE passages ALTER COLUMN words SET STORAGE MAIN;
    CREATE INDEX passages_words ON passages USING gin(words);
    CREATE INDEX passages_titles ON passages USING gin(to_tsvector('pg_catalog.simple', title));
    CREATE TABLE words(word text PRIMARY KEY, passages integer NOT NULL);
    """,
    f"""
    CREATE TABLE postings(
        word text NOT NULL, passage bigint NOT NULL, length integer NOT NULL, times real NOT NULL
    );
    {POSTINGS} ORDER BY lexeme, id;
    CREATE UNIQUE INDEX postings_words ON postings(word, passage) INCLUDE (times, length);
    """,
)


class PgvectorWriter:
    """A `Writer` inside a transaction.

    The vectors' index is of one generation of passages. New passages wait outside of it, until it
    is known whether they join it or make a new generation with all that are kept.
    """

    def __init__(self, connection: Connection, database: Database, manifest: IndexManifest) -> None:
        self._connection, self._database, self._manifest = connection, database, manifest
        self._generation = 1
        # whether the passages in the index are of the same model
        self._fits = True
        # whether another ingest has changed the index since its manifest was read
        self._outdated = False
        # the passages of each document that is not kept, so far
        self._old: dict[str, list[int]] = {}
        self._waiting: list[tuple[object, ...]] = []
        self._added, self._kept = 0, 0
        self._changed = False

    async def begin(self, seen: int | None) -> None:
        """Look at what is there; `seen` is the revision that the digests are of."""
        old = await self._connection.fetchrow(
            "SELECT revision, generation, schema, model, dimension FROM about"
        )
        if old is None:
            return
        made = IndexManifest(old["schema"], old["model"], old["dimension"], (), {})
        self._generation, self._fits = old["generation"], made.fits(self._manifest)
        self._outdated = old["revision"] != seen
        rows = await self._connection.fetch(
            "SELECT source, array_agg(id) AS ids FROM passages GROUP BY source"
        )
        self._old = {row["source"]: row["ids"] for row in rows}

    async def keep(self, source: str) -> int:
        """Touch nothing; 0 passages if there is no such document, or another ingest was faster."""
        if self._outdated or not self._fits:
            return 0
        passages = len(self._old.pop(_storable(source), ()))
        self._kept += passages
        return passages

    async def add(
        self, source: str, passages: Sequence[tuple[str, str]], vectors: NDArray[np.float32] | None
    ) -> None:
        """Write in batches."""
        rows = (
            [None] * len(passages) if vectors is None else [text_of(vector) for vector in vectors]
        )
        for (title, text), vector in zip(passages, rows, strict=True):
            said = [" ".join(_words(part)) for part in (title, text)]
            length = sum(len(part.split()) for part in said)
            texts = _storable(source), _storable(title), _storable(text)
            self._waiting.append((*texts, length, *said, vector))
        while len(self._waiting) >= ROWS_AT_ONCE:
            with self._database.translate_errors(WRITE_SECONDS):
                await self._write()

    async def _write(self) -> None:
        rows, self._waiting = self._waiting[:ROWS_AT_ONCE], self._waiting[ROWS_AT_ONCE:]
        if not rows:
            return
        await self._connection.execute(
            "INSERT INTO passages(generation, source, title, text, length, words, embedding)"
            f" SELECT {PENDING}, source, title, text, length,"
            " setweight(to_tsvector('pg_catalog.english', heading), 'A')"
            " || to_tsvector('pg_catalog.english', body), numbers::vector"
            " FROM unnest($1::text[], $2::text[], $3::text[], $4::int[], $5::text[], $6::text[],"
            " $7::text[]) AS new(source, title, text, length, heading, body, numbers)",
            *(list(column) for column in zip(*rows, strict=True)),
        )
        self._added += len(rows)

    async def finish(self) -> None:
        """Delete what is neither kept nor added, and write what is known only at the end."""
        while self._waiting:
            await self._write()
        execute, manifest = self._connection.execute, self._manifest
        gone = [key for keys in self._old.values() for key in keys]
        self._changed = bool(gone or self._added)
        await execute(
            "DELETE FROM postings USING passages, unnest(words) WHERE id = ANY($1)"
            " AND postings.word = lexeme AND postings.passage = id",
            gone,
        )
        await execute("DELETE FROM passages WHERE id = ANY($1)", gone)
        await execute(
            f"{POSTINGS} WHERE generation = {PENDING} ORDER BY lexeme, id", timeout=INDEX_SECONDS
        )
        await self._index_vectors()
        if self._changed:
            await execute("DELETE FROM words")
            await execute(
                "INSERT INTO words SELECT word, count(*) FROM postings GROUP BY word",
                timeout=INDEX_SECONDS,
            )
        await execute(
            "INSERT INTO about(revision, generation, schema, model, dimension, roots, digests,"
            " passages, length)"
            " SELECT 1, $1, $2, $3, $4, $5, $6, count(*), coalesce(avg(length), 0) FROM passages"
            " ON CONFLICT (one) DO UPDATE SET"
            " (revision, generation, schema, model, dimension, roots, digests, passages, length)"
            " = (about.revision + 1, $1, $2, $3, $4, $5, $6, excluded.passages, excluded.length)",
            *(self._generation, manifest.schema, manifest.model, manifest.dimension),
            *(json.dumps(manifest.roots), json.dumps(dict(manifest.digests))),
        )

    async def _index_vectors(self) -> None:
        """Let a few passages join the index, or make it of all, with the next generation."""
        many = self._added > max(FEW, SMALL_SHARE * (self._added + self._kept))
        if many or not self._fits:
            self._generation += 1
        execute, generation = self._connection.execute, self._generation
        await execute(
            "UPDATE passages SET generation = $1 WHERE generation <> $1",
            generation,
            timeout=INDEX_SECONDS,
        )
        dimension = self._manifest.dimension
        if 0 < dimension <= 4000:
            kind = "vector" if dimension <= 2000 else "halfvec"
            await execute(
                f"CREATE INDEX IF NOT EXISTS passages_near_{generation} ON passages USING hnsw"
                f" ({indexable(dimension)} {kind}_cosine_ops) WHERE generation = {generation}",
                timeout=INDEX_SECONDS,
            )

    async def tidy(self) -> None:
        """After the commit, without keeping readers waiting; what is left undone waits."""
        if not self._changed:
            return
        with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            for row in await self._connection.fetch(
                "SELECT indexname FROM pg_indexes WHERE schemaname = $1"
                " AND starts_with(indexname, 'passages_near_') AND indexname <> $2",
                *(self._database.schema, f"passages_near_{self._generation}"),
            ):
                await self._connection.execute(
                    f"DROP INDEX CONCURRENTLY IF EXISTS {row['indexname']}"
                )
            await self._connection.execute(
                "VACUUM (ANALYZE) passages, postings, words", timeout=INDEX_SECONDS
            )


async def prepare(connection: Connection, database: Database) -> None:
    """Wait for another ingest to end, then have the extension and the tables of this version."""
    await connection.execute(
        # embedding takes its time between two statements, and an ingest whose machine died must not
        # hold the lock; parallel workers would sort in shared memory, of which a container has
        # 64 MB
        f"SET lock_timeout = '{errors.LOCK_SECONDS:g}s'; SET statement_timeout = 0;"
        " SET client_min_messages = error; SET idle_in_transaction_session_timeout = 0;"
        " SET max_parallel_maintenance_workers = 0; SET tcp_keepalives_idle = 60;"
        " SET tcp_keepalives_count = 3; SET tcp_keepalives_interval = 10"
    )
    await connection.execute(
        "SELECT pg_advisory_lock(hashtextextended($1, 0))",
        database.schema,
        timeout=errors.LOCK_SECONDS + WRITE_SECONDS,
    )
    await _have_extension(connection, database.where)
    schemas = "SELECT count(*) FROM pg_namespace WHERE nspname = $1"
    if not await connection.fetchval(schemas, database.schema):
        await connection.execute(f"CREATE SCHEMA {database.schema}")
    await database.set_search_path(connection)
    if not await connection.fetchval("SELECT to_regtype('vector') IS NOT NULL"):
        raise KnowledgeUnavailable(
            f"{database.where} has the extension vector in a schema that this user may not use: "
            "grant it USAGE there"
        )
    async with connection.transaction():
        await connection.execute("CREATE TABLE IF NOT EXISTS layout(version integer NOT NULL)")
        version = await connection.fetchval("SELECT coalesce(max(version), 0) FROM layout")
        if version > len(LAYOUTS):
            raise KnowledgeUnavailable(
                f"the index in {database.where} was made by a newer version of this agent: ingest "
                "with that one"
            )
        for number, step in enumerate(LAYOUTS[version:], start=version + 1):
            await connection.execute(step, timeout=INDEX_SECONDS)
            await connection.execute("INSERT INTO layout VALUES($1)", number)


async def _have_extension(connection: Connection, where: str) -> None:
    if await connection.fetchval("SELECT count(*) FROM pg_extension WHERE extname = 'vector'"):
        return
    try:
        await connection.execute("RESET search_path; CREATE EXTENSION IF NOT EXISTS vector")
    except asyncpg.InsufficientPrivilegeError as error:
        raise KnowledgeUnavailable(
            f"{where} lacks the extension vector, and this user may not create it: "
            "have its administrator run `CREATE EXTENSION vector` there"
        ) from error
    except (asyncpg.FeatureNotSupportedError, asyncpg.UndefinedFileError) as error:
        raise KnowledgeUnavailable(
            f"{where} has no pgvector: install it there, or take an image that has it "
            "(pgvector/pgvector)"
        ) from error


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", _storable(text).lower())


def _storable(text: str) -> str:
    """What PostgreSQL can store: any text but its NUL, and half characters."""
    return text.replace("\0", " ").encode("utf-8", "replace").decode()
