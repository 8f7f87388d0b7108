"""Searching by words and by meaning in one statement, so that it sees one index."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agent.knowledge import IndexManifest, KnowledgeUnavailable, Passage, Questions
from agent.knowledge.pgvector.connection import Connection, Connections, Database
from agent.knowledge.pgvector.errors import no_index
from agent.knowledge.ranking import (
    CANDIDATES,
    LENGTH,
    SATURATION,
    Candidate,
    phrase_of,
    rank,
    words_of,
)

# passages that words may propose before the more common words of a question propose none
COMMON = 2000

# What a word adds to the BM25 of a passage; `length` and `typical` are numbers of words.
SCORE = (
    "weight * times"
    f" / (times + {SATURATION} * ({1 - LENGTH} + {LENGTH} * length::float8 / typical))"
)
# The words of the question, stemmed, with how many passages have each and how much it weighs.
ASKED = """
asked AS MATERIALIZED (
    SELECT word, holding, typical, ln(1 + (passages - holding + 0.5) / (holding + 0.5)) AS weight
    FROM (
        SELECT lexeme AS word, coalesce(words.passages, 0)::float8 AS holding,
            about.passages, greatest(about.length, 1)::float8 AS typical
        FROM about, (
            SELECT DISTINCT unnest(tsvector_to_array(to_tsvector('pg_catalog.english', said)))
                AS lexeme
            FROM unnest($1::text[]) AS said
        ) AS said LEFT JOIN words ON word = lexeme
    ) AS counted
)
"""
# Each word is looked up by itself (OFFSET 0), whatever PostgreSQL guesses: it has no statistics
# of a table as small as `about`, takes a question for thousands of words, and reads all postings.
LIKENESS = f"""
    SELECT coalesce(sum({SCORE}), 0) AS likeness,
        coalesce(sum(weight) FILTER (WHERE times > 0) / nullif(sum(weight), 0), 0) AS covered
    FROM asked LEFT JOIN LATERAL (
        SELECT length, times FROM postings
        WHERE postings.word = asked.word AND passage = id OFFSET 0
    ) AS here ON true
"""
# Rare words propose passages, and common ones only as long as those are not too many. All words of
# the question decide which of them are the best.
BY_WORDS = f"""
rare AS MATERIALIZED (
    SELECT word FROM (
        SELECT word, row_number() OVER rare AS rarest, sum(holding) OVER rare AS proposed
        FROM asked WHERE holding > 0 WINDOW rare AS (ORDER BY holding, word)
    ) AS known WHERE rarest = 1 OR proposed <= {COMMON}
), proposed AS MATERIALIZED (
    SELECT DISTINCT passage AS id FROM rare, LATERAL (
        SELECT passage FROM postings WHERE postings.word = rare.word OFFSET 0
    ) AS holders
), by_words AS (
    SELECT passage AS id FROM asked, LATERAL (
        SELECT passage, length, times FROM postings WHERE postings.word = asked.word OFFSET 0
    ) AS holders
    WHERE passage IN (SELECT id FROM proposed)
    GROUP BY passage ORDER BY sum({SCORE}) DESC LIMIT {CANDIDATES}
)
"""
# Function words alone, as in "Who are you?", are answered under a heading that says just that.
TITLED = (
    "to_tsvector('pg_catalog.simple', title) @@ phraseto_tsquery('pg_catalog.simple', $1::text)"
)
BY_PHRASE = f"""
by_words AS (SELECT id FROM passages WHERE {TITLED} ORDER BY length LIMIT {CANDIDATES})
"""
PHRASE_LIKENESS = f"""
    SELECT fits AS likeness, fits AS covered FROM (SELECT ({TITLED})::int::float8) AS title(fits)
"""


class PgvectorKnowledge:
    """An index that is open. What a caller says is only ever an argument of a statement."""

    def __init__(self, database: Database, connections: Connections, questions: Questions) -> None:
        self._database, self._connections, self._questions = database, connections, questions
        # as of the last search
        self._snapshot: _Snapshot | None = None

    async def prepare(self, connection: Connection) -> _Snapshot:
        """Read what the index is made from."""
        row = await connection.fetchrow(
            "SELECT revision, generation, schema, model, dimension FROM about"
        )
        if row is None:
            raise KnowledgeUnavailable(no_index(self._database.where))
        manifest = IndexManifest(row["schema"], row["model"], row["dimension"], (), {})
        self._snapshot = _Snapshot(row["revision"], row["generation"], manifest)
        return self._snapshot

    async def search(self, question: str, limit: int = 3) -> list[Passage]:
        """Rank what words and meaning propose; a cancelled search ends by itself."""
        with self._database.translate_errors(self._connections.seconds):
            if (snapshot := self._snapshot) is None:
                snapshot = await self._connections.run(self.prepare)
            vector = await self._questions.embed(question)
            return await self._connections.run(
                lambda connection: self._search(connection, snapshot, question, vector, limit)
            )

    async def _search(
        self,
        connection: Connection,
        snapshot: _Snapshot,
        question: str,
        vector: NDArray[np.float32] | None,
        limit: int,
    ) -> list[Passage]:
        words, phrase = words_of(question), phrase_of(question)
        while True:
            if vector is not None and not self._questions.fits(snapshot.manifest, vector):
                vector = None
            if vector is None and not words and not phrase:
                return []
            asked: list[object] = [words or phrase]
            asked += [] if vector is None else [text_of(vector)]
            query = query_of(snapshot, by_words=bool(words), by_meaning=vector is not None)
            rows = await connection.fetch(query, *asked)
            if rows and rows[0]["revision"] == snapshot.revision:
                break
            # an ingest was faster
            snapshot = await self.prepare(connection)
        found = {row["id"]: row for row in rows if row["id"] is not None}
        candidates = {
            key: Candidate(row["likeness"], row["covered"], row["meaning"])
            for key, row in found.items()
        }
        ranked = rank(candidates, lambda key: (found[key]["source"], found[key]["title"]), limit)
        return [
            Passage(found[key]["source"], found[key]["title"], found[key]["text"], score, relevance)
            for key, score, relevance in ranked
        ]


@dataclass(frozen=True)
class _Snapshot:
    revision: int
    generation: int
    manifest: IndexManifest


def query_of(snapshot: _Snapshot, *, by_words: bool, by_meaning: bool) -> str:
    """The candidates with all that is known of them.

    $1 are the words of the question, or its phrase, and $2 is its vector as text.
    """
    parts = [ASKED, BY_WORDS] if by_words else [BY_PHRASE]
    meaning, candidates = "NULL::float8", "SELECT id FROM by_words"
    if by_meaning:
        dimension = snapshot.manifest.dimension
        parts.append(
            f"by_meaning AS (SELECT id FROM passages WHERE generation = {snapshot.generation}"
            f" ORDER BY {indexable(dimension)} <=> {indexable(dimension, '$2::text')}"
            f" LIMIT {CANDIDATES})"
        )
        meaning = "1 - (embedding <=> $2::text::vector)"
        candidates += " UNION SELECT id FROM by_meaning"
    parts.append(f"candidates AS MATERIALIZED ({candidates})")
    return f"""
    WITH {", ".join(parts)}
    SELECT about.revision, found.* FROM about LEFT JOIN (
        SELECT id, source, title, text, likeness, covered, {meaning} AS meaning
        FROM candidates JOIN passages USING (id),
            LATERAL ({LIKENESS if by_words else PHRASE_LIKENESS}) AS likeness
        -- another one may have vectors of another length, and is asked once more
        WHERE generation = {snapshot.generation}
    ) AS found ON true
    """


def indexable(dimension: int, column: str = "embedding") -> str:
    """As pgvector can index it: exact up to 2000 numbers, at half precision up to 4000."""
    exact = f"({column}::vector({dimension}))"
    return exact if dimension <= 2000 or dimension > 4000 else f"({exact}::halfvec({dimension}))"


def text_of(vector: NDArray[np.float32]) -> str:
    """A vector as PostgreSQL reads it."""
    return str(vector.astype(np.float64).round(7).tolist())
