"""Passages in one SQLite file with full-text search: nothing to run, nothing to pay for."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass
from pathlib import Path

from agent.knowledge import IngestReport, Knowledge, KnowledgeUnavailable, Passage, Skipped
from agent.knowledge.chunks import chunk
from agent.memory.thread import SqliteThread
from agent.settings import Settings

SCHEMA = 1  # raise it when chunks or tables change: every index is then built anew
LARGEST_MIB = 10
TITLE_WEIGHT = 2.0  # a word in the headings says more than one in the text
MOST_WORDS = 64

# Words that say how something is asked, not what: left in, a question finds whatever passage is wordiest.
_FUNCTION_WORDS = """
    a about after all also am an and any anybody anyone anything are aren as ask at be because been before being
    between both but by bye can cannot could couldn d did didn do does doesn doing don during each either else er
    ever every for from further get gets give go goes going gonna good got had hadn has hasn have haven having he
    hello her here hers herself hey hi him himself his how i if in into is isn it its itself just know let like ll m
    many may maybe me might mine more most much must my myself need nor not now o of off oh ok okay on once one only
    or other ought our ours ourselves out over own per please possible quite rather re really s said same say see
    shall shan she should shouldn so some somebody someone something such sure t tell than thank thanks that the
    their theirs them themselves then there these they thing things this those through to too uh um under until up
    upon us ve very want wanted wants was wasn we well were weren what whatever when where whether which while who
    whom whose why will wish with within without won wonder wondering would wouldn yeah yes yet you your yours
    yourself yourselves
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())


@dataclass(frozen=True)
class SqliteIndex:
    """The index of `knowledge/` in the data folder. It is never changed, only replaced: readers need no lock."""

    settings: Settings

    @property
    def path(self) -> Path:
        """Where the index is."""
        return self.settings.data / "knowledge.db"

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Knowledge]:
        """Yield the searchable index; its thread ends on exit."""
        thread = SqliteThread(self.path, self._connect)
        try:
            yield SqliteKnowledge(self.path, thread)
        finally:
            await thread.aclose()

    def ingest(self, report: Callable[[str], None] = lambda line: None) -> IngestReport:
        """Build the index aside and rename it: a search meanwhile, or an ingest that is killed, harms nothing."""
        folder, data = self.settings.documents, self.settings.data
        try:
            data.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(data)
            aside = data / f".knowledge-{os.getpid()}-{secrets.token_hex(4)}.tmp"
            try:
                made = _build(aside, folder, report)
                os.replace(aside, self.path)
            finally:
                aside.unlink(missing_ok=True)
        except (OSError, sqlite3.Error) as error:
            raise KnowledgeUnavailable(
                f"the index cannot be written to {data} ({_said(error)}): let this user write there, "
                "or set AGENT_DATA_DIR to another folder"
            ) from error
        return made

    def stale(self) -> bool:
        """Compare the names, sizes and contents of the documents with those that were ingested."""
        try:
            with closing(self._connect()) as index:
                if index.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
                    return True
                (stored,) = index.execute("SELECT value FROM about WHERE key = 'documents'").fetchone()
        except (sqlite3.Error, KnowledgeUnavailable, TypeError):
            return True
        fingerprint = _Fingerprint()
        for document in _documents(self.settings.documents):
            fingerprint.add(document)
        return bool(stored != str(fingerprint))

    def _connect(self) -> sqlite3.Connection:
        if not self.path.is_file():
            raise KnowledgeUnavailable(f"there is no index at {self.path}: run `agent ingest`")
        # immutable: a replaced file is never written again, so reading needs neither locks nor a writable folder
        return sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro&immutable=1", uri=True, isolation_level=None)


class SqliteKnowledge:
    """Searches the index in its own thread; a new one is used as soon as it has taken the old one's place."""

    def __init__(self, path: Path, thread: SqliteThread) -> None:
        self._path, self._thread = path, thread

    async def search(self, question: str, limit: int = 3) -> list[Passage]:
        """Rank by BM25 the passages that have any word of the question; cancelling interrupts the query."""
        query = _query(question)
        if not query:
            return []
        try:
            return await self._thread.run(lambda index: _search(index, query, limit))
        except sqlite3.Error as error:
            raise KnowledgeUnavailable(
                f"the index at {self._path} cannot be read ({error}): run `agent ingest`"
            ) from error


def _search(index: sqlite3.Connection, query: str, limit: int) -> list[Passage]:
    # ordered by rank alone, only the passages that are returned are read from the file
    found = index.execute(
        "SELECT source, title, text, -rank FROM passages "
        f"WHERE passages MATCH ? AND rank MATCH 'bm25({TITLE_WEIGHT}, 1.0)' ORDER BY rank LIMIT ?",
        (query, limit),
    )
    return [Passage(*row) for row in found]


def _query(question: str) -> str:
    """The question for FTS5, whose own syntax (AND, NEAR, quotes, stars) a caller's words must never become."""
    words = re.findall(r"[^\W_]+", question)
    said = [word for word in dict.fromkeys(word.lower() for word in words) if word not in FUNCTION_WORDS]
    if said:
        return " OR ".join(f'"{word}"' for word in said[:MOST_WORDS])
    # "Who are you?" has no other words: it is only answered by a passage that says just that
    return '"' + " ".join(words[:MOST_WORDS]) + '"' if len(words) > 1 else ""


@dataclass(frozen=True)
class _Document:
    source: str  # posix path below knowledge/
    content: bytes
    size: int
    problem: str = ""


class _Fingerprint:
    """Names, sizes and contents: times of change differ in every checkout and image."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256(f"schema {SCHEMA}".encode())

    def add(self, document: _Document) -> None:
        content = hashlib.sha256(document.content).hexdigest()
        self._hash.update(f"\n{document.source}\t{document.size}\t{content}\t{document.problem}".encode())

    def __str__(self) -> str:
        return self._hash.hexdigest()


def _documents(folder: Path) -> Iterator[_Document]:
    """Every Markdown file below the folder, by name, one at a time; hidden ones are left out."""
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if any(part.startswith(".") for part in inside.parts) or path.suffix.lower() not in {".md", ".markdown"}:
            continue
        source = inside.as_posix().encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        try:
            if path.is_dir():
                continue
            size = path.stat().st_size
            if not path.is_file():
                yield _Document(source, b"", 0, "is no regular file: replace it with a Markdown file")
            elif size > LARGEST_MIB * 1024 * 1024:
                yield _Document(source, b"", size, f"is larger than {LARGEST_MIB} MiB: split it")
            else:
                content = path.read_bytes()
                yield _Document(source, content, len(content), _problem(content))
        except OSError as error:
            yield _Document(source, b"", 0, f"cannot be read ({_said(error)}): let this user read it")


def _problem(content: bytes) -> str:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return f"is not UTF-8 (byte {error.start}): save it as UTF-8"
    if "\0" in text:
        return "is not text: save it as Markdown in UTF-8"
    return "" if text.strip() else "is empty: write something into it, or delete it"


def _build(aside: Path, folder: Path, report: Callable[[str], None]) -> IngestReport:
    """A new index in the file `aside`; raises KnowledgeUnavailable if there is nothing to put into it."""
    if not folder.is_dir():
        raise KnowledgeUnavailable(f"there is no folder {folder}: make it and put your documents (.md) there")
    documents, passages, skipped, fingerprint = 0, 0, list[Skipped](), _Fingerprint()
    with closing(sqlite3.connect(aside, isolation_level=None)) as index:
        index.execute("PRAGMA journal_mode = MEMORY")
        index.execute("BEGIN")
        index.execute(
            "CREATE VIRTUAL TABLE passages USING fts5(title, text, source UNINDEXED, tokenize = 'porter unicode61')"
        )
        index.execute("CREATE TABLE about(key TEXT PRIMARY KEY, value TEXT NOT NULL)")
        for document in _documents(folder):
            fingerprint.add(document)
            if document.problem:
                skipped.append(Skipped(document.source, document.problem))
                report(f"{document.source} skipped: it {document.problem}")
                continue
            pieces = list(chunk(document.source, document.content.decode("utf-8-sig")))
            index.executemany(
                "INSERT INTO passages(title, text, source) VALUES(?, ?, ?)",
                [(title, text, document.source) for title, text in pieces],
            )
            documents, passages = documents + 1, passages + len(pieces)
            report(f"{document.source}: {len(pieces)} passage{'' if len(pieces) == 1 else 's'}")
        if not documents:
            first = f"; {skipped[0].source} {skipped[0].reason}" if skipped else ""
            raise KnowledgeUnavailable(
                f"{folder} has no document that can be read{first}: put Markdown files (.md) there"
            )
        index.execute("INSERT INTO about VALUES('documents', ?)", (str(fingerprint),))
        index.execute("INSERT INTO passages(passages) VALUES('optimize')")
        index.execute("COMMIT")
    return IngestReport(documents, passages, skipped)


def _remove_leftovers(data: Path) -> None:
    """What an ingest that was killed an hour ago or more has left; a younger one may still be at work."""
    for left in data.glob(".knowledge-*.tmp"):
        with suppress(FileNotFoundError):
            if left.stat().st_mtime < time.time() - 3600:
                left.unlink()


def _said(error: OSError | sqlite3.Error) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
