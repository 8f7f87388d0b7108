"""Passages in one SQLite file with full-text search and vectors: no server to run or pay for."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import sqlite3
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

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
from agent.knowledge.bm25 import TOKENIZE, WORD_TABLE, scores_of, write_words
from agent.knowledge.ranking import CANDIDATES, Candidate, phrase_of, rank, words_of
from agent.settings import Settings
from agent.sqlite_thread import SqliteThread

# of the file; an index of another format is built again
FORMAT = 3
# vectors that are compared at once: a number is a byte in the file, and four while it is compared
BLOCK = 512

INDEX_TABLES = f"""
{WORD_TABLE}
CREATE VIRTUAL TABLE passages USING fts5(title, text, source UNINDEXED, tokenize = '{TOKENIZE}');
CREATE TABLE documents(source TEXT PRIMARY KEY, first INTEGER NOT NULL, passages INTEGER NOT NULL);
CREATE TABLE vectors(numbers BLOB NOT NULL, lengths BLOB NOT NULL);
CREATE TABLE about(format INTEGER NOT NULL, passages INTEGER NOT NULL, about TEXT NOT NULL);
"""


@dataclass(frozen=True)
class SqliteIndex:
    """The index in the data folder, which is never changed, only replaced: readers need no lock."""

    settings: Settings
    shared = False

    @property
    def path(self) -> Path:
        """Where the index is."""
        return self.settings.data / "knowledge.db"

    @asynccontextmanager
    async def open(self, questions: Questions) -> AsyncIterator[Knowledge]:
        """Yield the index at once, and read it while the call begins; its thread ends on exit."""
        thread = SqliteThread(self.path, self._connect)
        knowledge = SqliteKnowledge(self.path, thread, questions)
        loading = asyncio.create_task(knowledge.load(), name="load the index")
        try:
            yield knowledge
        finally:
            loading.cancel()
            try:
                await asyncio.wait([loading])
            finally:
                await thread.aclose()

    async def upgrade(self) -> None:
        """Leave it: what cannot be read is built again."""

    async def manifest(self) -> IndexManifest | None:
        """Read it, and check the file for damage."""
        try:
            with closing(self._connect()) as index:
                if index.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
                    return None
                return _manifest(index)[0]
        except (sqlite3.Error, KnowledgeUnavailable):
            return None

    @asynccontextmanager
    async def rebuild(self, manifest: IndexManifest) -> AsyncIterator[Writer]:
        """Build the index aside, and rename it: killed ingests and searches meanwhile are safe."""
        data = self.settings.data
        aside = data / f".knowledge-{os.getpid()}-{secrets.token_hex(4)}.tmp"
        try:
            data.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(data)
            old = self._connect() if self.path.is_file() else sqlite3.connect(":memory:")
            with closing(old), closing(sqlite3.connect(aside, isolation_level=None)) as index:
                writer = SqliteWriter(index, manifest, old)
                yield writer
                writer.finish()
            os.replace(aside, self.path)
        except (OSError, sqlite3.Error) as error:
            raise KnowledgeUnavailable(
                f"the index cannot be written to {data} ({_said(error)}): let this user write "
                "there, or set AGENT_DATA_DIR to another folder"
            ) from error
        finally:
            for left in (aside, aside.with_name(f"{aside.name}-journal")):
                with suppress(OSError):
                    left.unlink(missing_ok=True)

    def _connect(self) -> sqlite3.Connection:
        if not self.path.is_file():
            raise KnowledgeUnavailable(f"there is no index at {self.path}: run `agent ingest`")
        index = sqlite3.connect(_readable(self.path), uri=True, isolation_level=None)
        # for the words of a question; there may be no disk to write to
        index.execute("PRAGMA temp_store = MEMORY")
        return index


class SqliteWriter:
    """A `Writer` into a file that nobody reads yet."""

    def __init__(
        self, index: sqlite3.Connection, manifest: IndexManifest, old: sqlite3.Connection
    ) -> None:
        self._index, self._manifest, self._old = index, manifest, old
        self._numbers, self._lengths, self._passages = bytearray(), bytearray(), 0
        index.execute("PRAGMA journal_mode = MEMORY")
        index.executescript(f"BEGIN; {INDEX_TABLES}")

    async def keep(self, source: str) -> int:
        """Copy the passages and their vectors from the old file."""
        old = self._old
        found = old.execute(
            "SELECT first, passages FROM documents WHERE source = ?", (source,)
        ).fetchone()
        # it could not be read, and is not in the index
        if found is None:
            return 0
        first, passages = found
        rows = old.execute(
            "SELECT title, text, source FROM passages WHERE rowid BETWEEN ? AND ? ORDER BY rowid",
            (first, first + passages - 1),
        )
        self._index.executemany("INSERT INTO passages(title, text, source) VALUES(?, ?, ?)", rows)
        if dimension := self._manifest.dimension:
            self._numbers += _cut(old, "numbers", first - 1, passages, dimension)
            self._lengths += _cut(old, "lengths", first - 1, passages, 4)
        self._end_document(source, passages)
        return int(passages)

    async def add(
        self, source: str, passages: Sequence[tuple[str, str]], vectors: NDArray[np.float32] | None
    ) -> None:
        """Write the passages; that a number of a vector is a byte costs no rank that matters."""
        self._index.executemany(
            "INSERT INTO passages(title, text, source) VALUES(?, ?, ?)",
            [(title, text, source) for title, text in passages],
        )
        if self._manifest.dimension and vectors is not None:
            largest = np.maximum(np.abs(vectors).max(axis=1, keepdims=True, initial=0), 1e-12)
            numbers = np.rint(vectors / largest * 127).astype(np.int8)
            lengths = np.linalg.norm(numbers.astype(np.float32), axis=1)
            self._numbers += numbers.tobytes()
            self._lengths += lengths.astype("<f4").tobytes()
        self._end_document(source, len(passages))

    def _end_document(self, source: str, passages: int) -> None:
        self._index.execute(
            "INSERT INTO documents VALUES(?, ?, ?)", (source, self._passages + 1, passages)
        )
        self._passages += passages

    def finish(self) -> None:
        """Write what is known only at the end, and have all of it on the disk."""
        self._index.execute("INSERT INTO vectors VALUES(?, ?)", (self._numbers, self._lengths))
        self._index.execute(
            "INSERT INTO about VALUES(?, ?, ?)",
            (FORMAT, self._passages, json.dumps(asdict(self._manifest))),
        )
        self._index.execute("INSERT INTO passages(passages) VALUES('optimize')")
        write_words(self._index, self._passages)
        self._index.execute("COMMIT")


class SqliteKnowledge:
    """Searches the index in its own thread; a new index is used as soon as it is there."""

    def __init__(self, path: Path, thread: SqliteThread, questions: Questions) -> None:
        self._path, self._thread, self._questions = path, thread, questions
        # a connection, and what was read from it
        self._opened: tuple[sqlite3.Connection, _Opened] | None = None

    async def search(self, question: str, limit: int = 3) -> list[Passage]:
        """Rank the passages that share a word with the question, or are alike in meaning.

        Cancelling interrupts the search.
        """
        vector = await self._questions.embed(question)
        try:
            return await self._thread.run(
                lambda index: self._search(index, question, vector, limit)
            )
        except sqlite3.Error as error:
            raise KnowledgeUnavailable(
                f"the index at {self._path} cannot be read ({error}): run `agent ingest`"
            ) from error

    async def load(self) -> None:
        """Read what searching takes, so that the first question does not wait for it."""
        # the first search reports what is wrong
        with suppress(sqlite3.Error, KnowledgeUnavailable):
            await self._thread.run(self._open)

    def _open(self, index: sqlite3.Connection) -> _Opened:
        if self._opened is None or self._opened[0] is not index:
            self._opened = index, _Opened(index)
        return self._opened[1]

    def _search(
        self,
        index: sqlite3.Connection,
        question: str,
        vector: NDArray[np.float32] | None,
        limit: int,
    ) -> list[Passage]:
        opened = self._open(index)
        if words := words_of(question):
            scores, covered = scores_of(index, words, opened.passages)
        else:
            scores = covered = _having(index, phrase_of(question), opened.passages)
        if vector is not None and self._questions.fits(opened.manifest, vector):
            cosines = opened.cosines(vector)
            candidates = {
                row: Candidate(float(scores[row]), float(covered[row]), float(cosines[row]))
                for row in {*_best(scores), *_best(cosines)}
            }
        else:
            candidates = {
                row: Candidate(float(scores[row]), float(covered[row]))
                for row in _best(scores)
                if scores[row] > 0
            }
        found: dict[int, tuple[str, str, str]] = {}

        def section_of(row: int) -> tuple[str, str]:
            source, title, text = index.execute(
                "SELECT source, title, text FROM passages WHERE rowid = ?", (row + 1,)
            ).fetchone()
            found[row] = source, title, text
            return source, title

        return [
            Passage(*found[row], score, relevance)
            for row, score, relevance in rank(candidates, section_of, limit)
        ]


class _Opened:
    """What searching takes, in memory: 4 MB for 10,000 vectors of 384 numbers, a byte each."""

    def __init__(self, index: sqlite3.Connection) -> None:
        self.manifest, self.passages = _manifest(index)
        numbers, lengths = index.execute("SELECT numbers, lengths FROM vectors").fetchone()
        self._numbers = np.frombuffer(numbers, np.int8).reshape(-1, max(1, self.manifest.dimension))
        self._lengths = np.frombuffer(lengths, "<f4")

    def cosines(self, vector: NDArray[np.float32]) -> NDArray[np.float32]:
        blocks = range(0, len(self._numbers), BLOCK)
        # not `@`: the threads of a BLAS go on spinning, and take the cores from the embedder
        products = [
            np.einsum("ij,j->i", self._numbers[at : at + BLOCK].astype(np.float32), vector)
            for at in blocks
        ]
        cosines: NDArray[np.float32] = np.concatenate([np.empty(0, np.float32), *products])
        cosines /= np.maximum(self._lengths, 1e-12)
        return cosines


def _best(scores: NDArray[np.float32]) -> list[int]:
    if len(scores) <= CANDIDATES:
        return list(range(len(scores)))
    return [int(row) for row in np.argpartition(scores, -CANDIDATES)[-CANDIDATES:]]


def _having(index: sqlite3.Connection, phrase: str, passages: int) -> NDArray[np.float32]:
    """1 for passages with the phrase, whose words never become a query (AND, NEAR, quotes)."""
    scores = np.zeros(passages, np.float32)
    if phrase:
        for (row,) in index.execute(
            "SELECT rowid FROM passages WHERE passages MATCH ?", (f'"{phrase}"',)
        ):
            scores[row - 1] = 1
    return scores


def _cut(index: sqlite3.Connection, column: str, first: int, passages: int, size: int) -> bytes:
    """The bytes of some passages in a column of the vectors, each of this size."""
    with index.blobopen("vectors", column, 1, readonly=True) as blob:
        blob.seek(first * size)
        return blob.read(passages * size)


def _manifest(index: sqlite3.Connection) -> tuple[IndexManifest, int]:
    """What the index is made from, and how many passages it has."""
    written, passages, about = index.execute("SELECT format, passages, about FROM about").fetchone()
    if written != FORMAT:
        raise sqlite3.DatabaseError("it was made by another version of this agent")
    known = json.loads(about)
    return IndexManifest(**{**known, "roots": tuple(known["roots"])}), passages


def _readable(path: Path) -> str:
    """A file that is never written again can be read without locks or a writable folder."""
    return f"{path.absolute().as_uri()}?mode=ro&immutable=1"


def _remove_leftovers(data: Path) -> None:
    """What an ingest left that was killed; one that began less than an hour ago may still run."""
    for left in data.glob(".knowledge-*.tmp*"):
        with suppress(FileNotFoundError):
            if left.stat().st_mtime < time.time() - 3600:
                left.unlink()


def _said(error: OSError | sqlite3.Error) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
