"""Passages in PostgreSQL with pgvector: one index for workers on many machines, and many agents in one database."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit

import asyncpg
import numpy as np
from numpy.typing import NDArray

from agent.knowledge import (
    IndexManifest,
    Knowledge,
    KnowledgeUnavailable,
    Passage,
    Questions,
    Writer,
)
from agent.knowledge.ranking import CANDIDATES, TITLE_WEIGHT, Candidate, phrase_of, rank, words_of
from agent.settings import Settings

T = TypeVar("T")

ANSWER_SECONDS = 1.0  # a search: a stopped server says nothing at all, only a deadline tells
STEP_SECONDS = 60.0  # a step of an ingest
INDEX_SECONDS = 3600.0  # the step that sorts a million vectors
LOCK_SECONDS = 600.0  # how long an ingest waits for another one
IDLE_SECONDS = (
    120.0  # a connection that was longer not used may be dead without a word: firewalls forget
)
CONNECTIONS = 2  # of a call; a worker has one process a call
NEAREST = 100  # what HNSW looks at for its best CANDIDATES
COMMON = (
    2000  # passages that words may propose before the more common words of a question propose none
)
BATCH = 256  # passages that are written at once
FEW = 500  # passages that go into the vectors' index one by one; of more, sorting all of them anew is soon faster
ANEW = 0.1  # from this part of all passages on: one by one takes twenty times as long
TERM, LENGTH = "1.2::float", "0.75::float"  # BM25's k1 and b, as SQLite has them

# One step a version; readers of the version before must be able to live with it, for they are still at work.
LAYOUTS = (
    """
    CREATE TABLE about(
        one boolean PRIMARY KEY DEFAULT true CHECK (one),
        revision bigint NOT NULL,     -- counts ingests
        generation integer NOT NULL,  -- counts those that made every passage anew
        passages integer NOT NULL,
        length real NOT NULL,         -- of a passage, in words, on average
        schema integer NOT NULL, model text NOT NULL, dimension integer NOT NULL, roots text NOT NULL,
        digests text NOT NULL
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
)


class PgvectorIndex:
    """A schema of the agent's own. An ingest is one transaction: until it ends, readers have the old index."""

    shared = True

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._database = _Database(
            settings.knowledge_url.get_secret_value(), schema_of(settings.name)
        )
        self._seen: int | None = None  # the revision that `about` told

    @asynccontextmanager
    async def open(self, questions: Questions) -> AsyncIterator[Knowledge]:
        """Yield the searchable index at once; it connects meanwhile, and its connections are dropped on exit."""
        connections = _Connections(
            self._database, max(ANSWER_SECONDS, self._settings.knowledge_seconds)
        )
        knowledge = PgvectorKnowledge(self._database, connections, questions)
        connections.begin(knowledge.prepare)
        try:
            yield knowledge
        finally:
            connections.close()

    async def manifest(self) -> IndexManifest | None:
        """Read it, and count the passages that should be there."""
        async with self._connected() as connection:
            with self._database.told(STEP_SECONDS):
                try:
                    row = await connection.fetchrow(
                        "SELECT about.*, there.* FROM about, LATERAL "
                        "(SELECT count(*) AS found FROM passages WHERE generation = about.generation"
                        " AND (about.dimension = 0 OR embedding IS NOT NULL)) AS there"
                    )
                except _NO_INDEX:
                    return None
        if row is None or row["found"] != row["passages"]:
            return None
        self._seen = row["revision"]
        roots, digests = json.loads(row["roots"]), json.loads(row["digests"])
        return IndexManifest(row["schema"], row["model"], row["dimension"], tuple(roots), digests)

    @asynccontextmanager
    async def rebuild(self, about: IndexManifest) -> AsyncIterator[Writer]:
        """Change the index in one transaction; what is left by an exception or killed changes nothing."""
        async with self._connected() as connection:
            with self._database.told(STEP_SECONDS):
                await _prepare(connection, self._database)
                transaction = connection.transaction()
                await transaction.start()
                writer = PgvectorWriter(connection, self._database, about)
                await writer.begin(self._seen)
            yield writer
            with self._database.told(INDEX_SECONDS):
                await writer.finish()
                await transaction.commit()
                await writer.tidy()

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
        with self._database.told(STEP_SECONDS):
            connection = await self._database.connect(STEP_SECONDS)
        try:
            yield connection
        finally:
            connection.terminate()


class PgvectorKnowledge:
    """Searches by words and by meaning in one statement, so that it sees one index whatever an ingest does."""

    def __init__(self, database: _Database, connections: _Connections, meaning: Questions) -> None:
        self._database, self._connections, self._meaning = database, connections, meaning
        self._made: _Made | None = None  # from; as of the last search

    async def prepare(self, connection: asyncpg.Connection[asyncpg.Record]) -> _Made:
        """Learn what the index is made from."""
        row = await connection.fetchrow(
            "SELECT revision, generation, schema, model, dimension FROM about"
        )
        if row is None:
            raise KnowledgeUnavailable(self._database.no_index)
        about = IndexManifest(row["schema"], row["model"], row["dimension"], (), {})
        self._made = _Made(row["revision"], row["generation"], about)
        return self._made

    async def search(self, question: str, limit: int = 3) -> list[Passage]:
        """Rank what either half proposes; a search that is cancelled goes on for a moment by itself."""
        words, phrase = words_of(question), phrase_of(question)
        with self._database.told(self._connections.seconds):
            made = await self._connections.run(self.prepare) if self._made is None else self._made
            vector = await self._meaning.embed(question)
            return await self._connections.run(
                lambda connection: self._found(connection, made, words, phrase, vector, limit)
            )

    async def _found(
        self,
        connection: asyncpg.Connection[asyncpg.Record],
        made: _Made,
        words: list[str],
        phrase: str,
        vector: NDArray[np.float32] | None,
        limit: int,
    ) -> list[Passage]:
        while True:
            near = vector if vector is not None and self._meaning.fits(made.about, vector) else None
            if near is None and not words and not phrase:
                return []
            query, asked = _query(made, words, phrase, near)
            rows = await connection.fetch(query, *asked)
            if rows and rows[0]["revision"] == made.revision:
                break
            made = await self.prepare(connection)  # an ingest was faster
        found = {row["id"]: row for row in rows if row["id"] is not None}
        candidates = {
            key: Candidate(row["likeness"], row["covered"], row["meaning"])
            for key, row in found.items()
        }
        return [
            Passage(found[key]["source"], found[key]["title"], found[key]["text"], score, relevance)
            for key, score, relevance in rank(candidates, limit)
        ]


@dataclass(frozen=True)
class _Made:
    revision: int
    generation: int
    about: IndexManifest


def _query(
    made: _Made, words: list[str], phrase: str, vector: NDArray[np.float32] | None
) -> tuple[str, tuple[object, ...]]:
    """The candidates with all that is known of them; what a caller said is only ever an argument."""
    likeness = (
        f"SELECT coalesce(sum(weight * times / (times + {TERM} * (1 - {LENGTH} + {LENGTH} * length / typical))), 0)"
        " AS likeness, coalesce(sum(weight) FILTER (WHERE times > 0) / nullif(sum(weight), 0), 0) AS covered"
        f" FROM asked, LATERAL (SELECT {_times('1, 1, 1, 1')} + {TITLE_WEIGHT - 1} * {_times('0, 0, 0, 1')})"
        " AS said(times)"
    )
    by_words = (
        f"SELECT id FROM passages, proposing, LATERAL ({likeness}) AS of"
        f" WHERE generation = {made.generation} AND words @@ proposing.query ORDER BY likeness DESC LIMIT {CANDIDATES}"
    )
    if not words:  # nothing but function words: "Who are you?" is answered under that heading
        likeness = "SELECT (to_tsvector('pg_catalog.simple', title) @@ phraseto_tsquery('pg_catalog.simple', $1))::int"
        likeness = f"SELECT fits::float AS likeness, fits::float AS covered FROM ({likeness}) AS title(fits)"
        by_words = (
            f"SELECT id FROM passages WHERE generation = {made.generation} AND to_tsvector('pg_catalog.simple', title)"
            f" @@ phraseto_tsquery('pg_catalog.simple', $1) ORDER BY length LIMIT {CANDIDATES}"
        )
    by_meaning, meaning = "", "NULL::float"
    if vector is not None:
        near = _indexed(made.about.dimension)
        by_meaning = (
            f" UNION (SELECT id FROM passages WHERE generation = {made.generation}"
            f" ORDER BY {near} <=> {_indexed(made.about.dimension, '$2::text')} LIMIT {CANDIDATES})"
        )
        meaning = "1 - (embedding <=> $2::text::vector)"
    query = f"""
    WITH asked AS MATERIALIZED (
        SELECT ('''' || lexeme || '''')::tsquery AS query, coalesce(words.passages, 0) AS holding,
            greatest(about.length, 1)::float AS typical,
            ln(1 + (about.passages - coalesce(words.passages, 0) + 0.5::float)
                / (coalesce(words.passages, 0) + 0.5::float)) AS weight
        FROM about, (
            SELECT DISTINCT unnest(tsvector_to_array(to_tsvector('pg_catalog.english', said))) AS lexeme
            FROM unnest({"$1::text[]" if words else "ARRAY[]::text[]"}) AS said
        ) AS said LEFT JOIN words ON word = lexeme
    ), proposing AS MATERIALIZED (
        SELECT string_agg(query::text, ' | ')::tsquery AS query FROM (
            SELECT query, row_number() OVER rare AS rarest, sum(holding) OVER rare AS proposed
            FROM asked WHERE holding > 0 WINDOW rare AS (ORDER BY holding, query::text)
        ) AS known WHERE rarest = 1 OR proposed <= {COMMON}
    ), candidates AS MATERIALIZED (({by_words}){by_meaning})
    SELECT about.revision, found.* FROM about LEFT JOIN (
        SELECT id, source, title, text, likeness, covered, {meaning} AS meaning
        FROM candidates JOIN passages USING (id), LATERAL ({likeness}) AS of
    ) AS found ON true
    """
    arguments: list[object] = [words or phrase]
    return query, (*arguments, *([] if vector is None else [_text(vector)]))


def _times(weights: str) -> str:
    # ts_rank of one word that is there n times is the sum of 1/i² up to n, as a part of that of all: what is missing is
    # 0.6079/(n + 0.5). Unnesting the words to count them finds the same passages and takes ten times as long.
    array = "'{" + weights + "}'"
    return f"round(0.6079::float / (1.0001::float - ts_rank({array}, words, query)) - 0.5::float)"


def _indexed(dimension: int, column: str = "embedding") -> str:
    """As pgvector can index it: exact up to 2000 numbers, at half precision up to 4000, and beyond not at all."""
    exact = f"({column}::vector({dimension}))"
    return exact if dimension <= 2000 or dimension > 4000 else f"({exact}::halfvec({dimension}))"


def _text(vector: NDArray[np.float32]) -> str:
    return str(vector.astype(np.float64).round(7).tolist())


class PgvectorWriter:
    """A `Writer` inside a transaction. Another model or another way of cutting makes a new generation of passages."""

    def __init__(
        self,
        connection: asyncpg.Connection[asyncpg.Record],
        database: _Database,
        about: IndexManifest,
    ) -> None:
        self._connection, self._database, self._about = connection, database, about
        self._generation, self._moved = 1, False
        self._added, self._kept = 0, 0
        self._old: dict[str, list[int]] = {}  # the passages of each document that is not yet kept
        self._waiting: list[tuple[object, ...]] = []
        self._changed = False

    async def begin(self, seen: int | None) -> None:
        """Look what is there; `seen` is the revision that the digests are of."""
        old = await self._connection.fetchrow(
            "SELECT revision, generation, schema, model, dimension FROM about"
        )
        if old is None:
            return
        fits = IndexManifest(old["schema"], old["model"], old["dimension"], (), {}).fits(
            self._about
        )
        self._generation = old["generation"] + (0 if fits else 1)
        self._moved = old["revision"] != seen
        rows = await self._connection.fetch(
            "SELECT source, array_agg(id) AS ids FROM passages WHERE generation = $1 GROUP BY source",
            self._generation,
        )
        self._old = {row["source"]: row["ids"] for row in rows}

    async def keep(self, source: str) -> int:
        """Touch nothing; 0 passages if there is no such document, or another ingest changed the index meanwhile."""
        passages = 0 if self._moved else len(self._old.pop(_clean(source), ()))
        self._kept += passages
        return passages

    async def add(
        self, source: str, passages: Sequence[tuple[str, str]], vectors: NDArray[np.float32] | None
    ) -> None:
        """Write in batches."""
        rows = [None] * len(passages) if vectors is None else [_text(vector) for vector in vectors]
        for (title, text), vector in zip(passages, rows, strict=True):
            said = [" ".join(_words(part)) for part in (title, text)]
            length = sum(len(part.split()) for part in said)
            self._waiting.append(
                (_clean(source), _clean(title), _clean(text), length, *said, vector)
            )
        while len(self._waiting) >= BATCH:
            with self._database.told(STEP_SECONDS):
                await self._write()

    async def _write(self) -> None:
        rows, self._waiting = self._waiting[:BATCH], self._waiting[BATCH:]
        if not rows:
            return
        self._changed = True
        await self._connection.execute(
            "INSERT INTO passages(generation, source, title, text, length, words, embedding) "
            "SELECT $1::int, source, title, text, length, setweight(to_tsvector('pg_catalog.english', heading), 'A')"
            " || to_tsvector('pg_catalog.english', body), numbers::vector "
            "FROM unnest($2::text[], $3::text[], $4::text[], $5::int[], $6::text[], $7::text[], $8::text[])"
            " AS new(source, title, text, length, heading, body, numbers)",
            self._generation + (self._added >= FEW),
            *(list(column) for column in zip(*rows, strict=True)),
        )
        self._added += len(rows)

    async def finish(self) -> None:
        """Delete what is neither kept nor added, and write what is known only at the end."""
        while self._waiting:
            await self._write()
        execute, about = self._connection.execute, self._about
        gone = [key for keys in self._old.values() for key in keys]
        old = self._generation, self._generation + 1
        deleted = await execute(
            "DELETE FROM passages WHERE id = ANY($1) OR generation <> ALL($2)", gone, old
        )
        self._changed |= deleted != "DELETE 0"
        if self._added > FEW:
            self._generation += self._added > ANEW * (self._added + self._kept)
            await execute(
                "UPDATE passages SET generation = $1 WHERE generation <> $1", self._generation
            )
        generation = self._generation
        if 0 < about.dimension <= 4000:
            kind = "vector" if about.dimension <= 2000 else "halfvec"
            await execute(
                f"CREATE INDEX IF NOT EXISTS passages_near_{generation} ON passages USING hnsw"
                f" ({_indexed(about.dimension)} {kind}_cosine_ops) WHERE generation = {generation}",
                timeout=INDEX_SECONDS,
            )
        if self._changed:
            await execute("DELETE FROM words")
            await execute(
                "INSERT INTO words SELECT word, ndoc FROM ts_stat($1)",
                f"SELECT words FROM passages WHERE generation = {generation}",
                timeout=INDEX_SECONDS,
            )
        await execute(
            "INSERT INTO about(revision, generation, schema, model, dimension, roots, digests, passages, length)"
            " SELECT 1, $1, $2, $3, $4, $5, $6, count(*), coalesce(avg(length), 0) FROM passages WHERE generation = $1"
            " ON CONFLICT (one) DO UPDATE SET"
            " (revision, generation, schema, model, dimension, roots, digests, passages, length)"
            " = (about.revision + 1, $1, $2, $3, $4, $5, $6, excluded.passages, excluded.length)",
            *(generation, about.schema, about.model, about.dimension),
            *(json.dumps(about.roots), json.dumps(dict(about.digests))),
        )

    async def tidy(self) -> None:
        """After the commit, without keeping readers waiting; left undone, the next ingest does it."""
        if not self._changed:
            return
        with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            for row in await self._connection.fetch(
                "SELECT indexname FROM pg_indexes WHERE schemaname = $1 AND starts_with(indexname, 'passages_near_')"
                " AND indexname <> $2",
                *(self._database.schema, f"passages_near_{self._generation}"),
            ):
                await self._connection.execute(
                    f"DROP INDEX CONCURRENTLY IF EXISTS {row['indexname']}"
                )
            await self._connection.execute(
                "VACUUM (ANALYZE) passages, words", timeout=INDEX_SECONDS
            )


async def _prepare(connection: asyncpg.Connection[asyncpg.Record], database: _Database) -> None:
    """Wait for another ingest to end, then have the extension and the tables of this version."""
    await connection.execute(
        # embedding takes its time between two statements, and an ingest whose machine died must not hold the lock;
        # parallel workers would sort in shared memory, of which a container has 64 MB
        f"SET lock_timeout = '{LOCK_SECONDS:g}s'; SET statement_timeout = 0; SET client_min_messages = error;"
        "SET idle_in_transaction_session_timeout = 0; SET max_parallel_maintenance_workers = 0;"
        "SET tcp_keepalives_idle = 60; SET tcp_keepalives_count = 3; SET tcp_keepalives_interval = 10"
    )
    await connection.execute(
        "SELECT pg_advisory_lock(hashtextextended($1, 0))",
        database.schema,
        timeout=LOCK_SECONDS + STEP_SECONDS,
    )
    if not await connection.fetchval("SELECT count(*) FROM pg_extension WHERE extname = 'vector'"):
        try:
            await connection.execute("RESET search_path; CREATE EXTENSION IF NOT EXISTS vector")
        except asyncpg.InsufficientPrivilegeError as error:
            raise KnowledgeUnavailable(
                f"{database.where} lacks the extension vector, and this user may not create it: "
                "have its administrator run `CREATE EXTENSION vector` there"
            ) from error
        except (asyncpg.FeatureNotSupportedError, asyncpg.UndefinedFileError) as error:
            raise KnowledgeUnavailable(
                f"{database.where} has no pgvector: install it there, or take an image that has it (pgvector/pgvector)"
            ) from error
    if not await connection.fetchval(
        "SELECT count(*) FROM pg_namespace WHERE nspname = $1", database.schema
    ):
        await connection.execute(f"CREATE SCHEMA {database.schema}")
    await database.settle(connection)
    if not await connection.fetchval("SELECT to_regtype('vector') IS NOT NULL"):
        raise KnowledgeUnavailable(
            f"{database.where} has the extension vector in a schema that this user may not use: grant it USAGE there"
        )
    async with connection.transaction():
        await connection.execute("CREATE TABLE IF NOT EXISTS layout(version integer NOT NULL)")
        version = await connection.fetchval("SELECT coalesce(max(version), 0) FROM layout")
        if version > len(LAYOUTS):
            raise KnowledgeUnavailable(
                f"the index in {database.where} was made by a newer version of this agent: ingest with that one"
            )
        for number, step in enumerate(LAYOUTS[version:], start=version + 1):
            await connection.execute(step)
            await connection.execute("INSERT INTO layout VALUES($1)", number)
        if not await connection.fetchval(
            "SELECT count(*) FROM pg_attribute WHERE attrelid = 'passages'::regclass AND attname = 'embedding'"
            " AND NOT attisdropped"
        ):  # it went with the extension, when somebody dropped that
            await connection.execute("ALTER TABLE passages ADD COLUMN embedding vector")


class _Connections:
    """The connections of one call. Who waits for an answer may go: the question is asked to its end or its deadline."""

    def __init__(self, database: _Database, seconds: float) -> None:
        self._database, self.seconds = database, seconds
        self._slots = asyncio.Semaphore(CONNECTIONS)
        self._idle: list[tuple[asyncpg.Connection[asyncpg.Record], float]] = []
        self._busy: set[asyncio.Task[Any]] = set()

    async def run(self, work: Callable[[asyncpg.Connection[asyncpg.Record]], Awaitable[T]]) -> T:
        """Do it within `seconds`, connecting included."""
        return await asyncio.shield(self.begin(work))

    def begin(
        self, work: Callable[[asyncpg.Connection[asyncpg.Record]], Awaitable[T]]
    ) -> asyncio.Task[T]:
        """The same, waiting for nothing."""
        task = asyncio.create_task(self._run(work))
        self._busy.add(task)
        task.add_done_callback(self._ended)
        return task

    def close(self) -> None:
        """Drop all connections, also of a server that says nothing."""
        for task in self._busy:
            task.cancel()
        while self._idle:
            self._idle.pop()[0].terminate()

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._busy.discard(task)
        if not task.cancelled():
            task.exception()  # whoever still waits for it is told; nobody else needs to be

    async def _run(self, work: Callable[[asyncpg.Connection[asyncpg.Record]], Awaitable[T]]) -> T:
        async with asyncio.timeout(self.seconds), self._slots:
            while (connection := self._waiting()) is not None:
                try:
                    return await self._used(connection, work)
                except _LOST:
                    continue  # the server was started anew meanwhile: that is worth a new connection
            return await self._used(await self._database.connect(self.seconds), work)

    async def _used(
        self,
        connection: asyncpg.Connection[asyncpg.Record],
        work: Callable[[asyncpg.Connection[asyncpg.Record]], Awaitable[T]],
    ) -> T:
        try:
            done = await work(connection)
        except BaseException:
            connection.terminate()
            raise
        self._idle.append((connection, asyncio.get_running_loop().time()))
        return done

    def _waiting(self) -> asyncpg.Connection[asyncpg.Record] | None:
        while self._idle:
            connection, used = self._idle.pop()
            if (
                not connection.is_closed()
                and used > asyncio.get_running_loop().time() - IDLE_SECONDS
            ):
                return connection
            connection.terminate()
        return None


class _Database:
    """Where the index is, and what went wrong there, in words that name no password."""

    def __init__(self, url: str, schema: str) -> None:
        self._url, self.schema = url, schema
        try:
            self.where = _where(url)
        except KnowledgeUnavailable:  # told when it is to be used
            self.where = "PostgreSQL"
        self.no_index = f"there is no index of this agent in {self.where}: run `agent ingest`"

    async def connect(self, seconds: float) -> asyncpg.Connection[asyncpg.Record]:
        """A connection for statements of so many seconds; whoever connects terminates it."""
        _where(self._url)
        try:
            connection = await asyncpg.connect(
                self._url, timeout=min(seconds, 10), command_timeout=seconds
            )
        except (asyncpg.ClientConfigurationError, ValueError):  # its message may quote the password
            raise KnowledgeUnavailable(_NO_ADDRESS) from None
        try:
            await connection.execute(
                f"SET statement_timeout = {round(seconds * 1000)}; SET jit = off; SET hnsw.ef_search = {NEAREST}"
            )
            await self.settle(connection)
        except BaseException:
            connection.terminate()
            raise
        return connection

    async def settle(self, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        """Have names mean the agent's own tables, and the extension's type wherever it was created."""
        await connection.execute(
            "SELECT set_config('search_path', concat_ws(', ', $1::text, (SELECT quote_ident(nspname) FROM pg_extension"
            " JOIN pg_namespace ON pg_namespace.oid = extnamespace WHERE extname = 'vector')), false)",
            self.schema,
        )

    @contextmanager
    def told(self, seconds: float) -> Iterator[None]:
        """Turn what PostgreSQL, the network or the client say into one sentence."""
        try:
            yield
        except TimeoutError as error:
            raise KnowledgeUnavailable(
                f"no answer from {self.where} within {seconds:g} s"
            ) from error
        except asyncpg.PostgresError as error:
            raise KnowledgeUnavailable(self._refused(error, seconds)) from error
        except ssl.SSLError as error:
            raise KnowledgeUnavailable(
                f"no trusted connection to {self.where} ({error.reason or 'TLS'}): "
                "correct sslmode or sslrootcert in AGENT_KNOWLEDGE_URL"
            ) from error
        except OSError as error:
            if "SSL" in str(error):
                raise KnowledgeUnavailable(
                    f"{self.where} speaks no TLS: switch it on there, or take sslmode out of AGENT_KNOWLEDGE_URL"
                ) from error
            raise KnowledgeUnavailable(self._unreached) from error
        except (asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
            raise KnowledgeUnavailable(self._unreached) from error

    @property
    def _unreached(self) -> str:
        return f"no connection to {self.where}: start it, or correct AGENT_KNOWLEDGE_URL"

    def _refused(self, error: asyncpg.PostgresError, seconds: float) -> str:
        state = str(error.sqlstate or "")
        if isinstance(error, _NO_INDEX):
            return self.no_index
        if state.startswith("08") or state in {"57P01", "57P02", "57P03", "57P05"}:
            return self._unreached
        if state == "57014":
            return f"no answer from {self.where} within {seconds:g} s"
        said = {
            "28P01": "refuses the user or password: correct them in AGENT_KNOWLEDGE_URL",
            "28000": "refuses this user from here: correct AGENT_KNOWLEDGE_URL (?sslmode=require?) or its pg_hba.conf",
            "3D000": "does not exist: create it, or correct AGENT_KNOWLEDGE_URL",
            "53300": "takes no more connections: raise its max_connections, or put a pooler before it",
            "53100": "has no space left on its disk: make room there",
            "25006": "may only be read: write the address of the primary into AGENT_KNOWLEDGE_URL",
            "42501": f"refuses this user the schema {self.schema}: grant it (to ingest, CREATE on the database)",
            "55P03": f"is being ingested into for {LOCK_SECONDS:g} s already: wait, or end that ingest",
            "22000": "has vectors of another model: run `agent ingest`",
            "26000": "is behind a pooler that mixes sessions: have it pool by session",
            "42P05": "is behind a pooler that mixes sessions: have it pool by session",
        }.get(state)
        return f"{self.where} {said or f'answers with {type(error).__name__} ({state}): its own log says why'}"


_NO_INDEX = (
    asyncpg.UndefinedTableError,
    asyncpg.UndefinedColumnError,
    asyncpg.UndefinedObjectError,
)
_LOST = (
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # of a connection that breaks just as it is used
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    ConnectionError,
)
_NO_ADDRESS = (
    "AGENT_KNOWLEDGE_URL is no address of a PostgreSQL: write postgresql://user:password@host:5432/database, "
    "special characters of the password as %40 and the like"
)


def schema_of(agent: str) -> str:
    """The PostgreSQL schema of an agent: its name as far as a schema can have it, and what tells it from all others."""
    readable = re.sub(r"[^a-z0-9]+", "_", agent.lower()).strip("_")[:40]
    return (
        f"agent_{readable}_{hashlib.sha256(agent.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"
    )


def _where(url: str) -> str:
    """Hosts and database of an address; raises KnowledgeUnavailable if it is none."""
    try:
        parts = urlsplit(url)
        hosts = parts.netloc.rpartition("@")[2]
        host = r"([A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?"
        if "@" in f"{parts.path}{parts.query}{parts.fragment}" or parts.fragment:
            raise ValueError
        if not re.fullmatch(rf"{host}(,{host})*", hosts) or parts.scheme not in {
            "postgresql",
            "postgres",
        }:
            raise ValueError
        asked = parse_qs(parts.query)
    except ValueError:
        raise KnowledgeUnavailable(_NO_ADDRESS) from None
    hosts = hosts or ",".join(asked.get("host", ["localhost"]))
    database = unquote(parts.path.lstrip("/")) or "of the user's name"
    named = hosts if ":" in hosts or hosts.startswith("/") else f"{hosts}:5432"
    return f"the database {database} of PostgreSQL at {named}"


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", _clean(text).lower())


def _clean(text: str) -> str:
    """What PostgreSQL can store: any text but its NUL, and half characters."""
    return text.replace("\0", " ").encode("utf-8", "replace").decode()
