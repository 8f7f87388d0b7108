"""What the agent looks up in documents: types, protocols, and the way in.

A project that looks nothing up has this file alone: everything else of the package is imported when
it is asked for.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

from agent.settings import Settings
from agent.telemetry import Journal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# "module:factory"; a module that the project was made without is not there
STORES = {
    "sqlite": "agent.knowledge.sqlite:SqliteIndex",
    "pgvector": "agent.knowledge.pgvector:PgvectorIndex",
}

# how what a model is given begins
FOUND = "From our documents, for what the caller has just said:"
NOTHING_FOUND = "Nothing in the documents answers that."
NOT_SEARCHED = (
    "The documents cannot be searched at the moment: say so, and answer only what you know for "
    "certain."
)


class KnowledgeUnavailable(Exception):
    """The index or the documents cannot be opened or read: which, where, what to do."""


@dataclass(frozen=True)
class Passage:
    """A piece of a document.

    `source` is the document's path below the folder it was read from, `title` the headings above
    the text. A higher score is better, within one search only; `relevance`, from 0 to 1, means the
    same for every question (knowledge/ranking.py).
    """

    source: str
    title: str
    text: str
    score: float
    relevance: float = 1.0


class CallKnowledge(Protocol):
    """The documents, for one call."""

    async def search(self, question: str, limit: int = 3) -> list[Passage]:
        """The best passages, each section's best first; raises KnowledgeUnavailable."""
        ...

    async def look_up(self, question: str, before: str = "") -> str:
        """What the documents say, for a model; never raises, and keeps to `knowledge_seconds`.

        A question of too few words is looked up together with what the caller said `before` it.
        """
        ...


def open_knowledge(
    settings: Settings, journal: Journal
) -> AbstractAsyncContextManager[CallKnowledge] | None:
    """The documents for a call, to be entered for as long as it lasts; None if none are chosen.

    Entering raises KnowledgeUnavailable only where the project was made without them.
    """
    return None if settings.knowledge == "none" else _open_lookup(settings, journal)


@asynccontextmanager
async def _open_lookup(settings: Settings, journal: Journal) -> AsyncIterator[CallKnowledge]:
    async with _module("agent.knowledge.lookup", settings).opened(settings, journal) as lookup:
        yield lookup


@asynccontextmanager
async def local_embedder(
    settings: Settings, *, wait: bool = False, alone: bool = False
) -> AsyncIterator[Settings]:
    """Have the local embedder running while this is open, if the settings choose it.

    Yields the settings with which it is found, here and in other processes. With `wait` it answers
    by then, or KnowledgeUnavailable says why not; without, calls do without it until it does. It
    leaves half of the cores to the calls, unless it is `alone`.
    """
    if settings.knowledge == "none" or settings.embeddings != "local":
        yield settings
        return
    embedder = _module("agent.knowledge.embedder_process", settings)
    async with embedder.running(settings, wait=wait, alone=alone) as inside:
        yield inside


def load(settings: Settings) -> None:
    """Import what a call uses, so that the first one need not; raises KnowledgeUnavailable."""
    if settings.knowledge != "none":
        _module("agent.knowledge.lookup", settings)
        index_of(settings)


# ---------------------------------------------------------------------- between ingest and stores


@dataclass(frozen=True)
class IndexManifest:
    """What an index is made from.

    Of another `schema` (agent.knowledge.ingest.SCHEMA), or of embeddings of another model or
    dimension (empty and 0: none), no passage may stay. `roots` are the folders and files that were
    given to read, absolute; none stand for the project's knowledge/. `digests` are those of every
    document by its source, also of those that could not be read.
    """

    schema: int
    model: str
    dimension: int
    roots: tuple[str, ...]
    digests: Mapping[str, str]

    def fits(self, other: IndexManifest) -> bool:
        """Whether passages of the one may stay in the other."""
        mine = self.schema, self.model, self.dimension
        return mine == (other.schema, other.model, other.dimension)


@dataclass(frozen=True)
class Skipped:
    """A document that was left out of the index, and why."""

    source: str
    reason: str


@dataclass(frozen=True)
class IngestReport:
    """What an ingest read, and what it could not.

    Of the documents, so many were in the index already; so many of the index are gone.
    """

    documents: int
    passages: int
    skipped: list[Skipped] = field(default_factory=list)
    unchanged: int = 0
    removed: int = 0


class Embedder(Protocol):
    """What turns texts into vectors. Safe to cancel."""

    model: str

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """One row a text, each of length 1; raises KnowledgeUnavailable."""
        ...


class Questions(Protocol):
    """The questions of a call as vectors; without one, documents are found by their words alone."""

    async def embed(self, question: str) -> NDArray[np.float32] | None:
        """The question as a vector of length 1, None if there is none in time."""
        ...

    def fits(self, manifest: IndexManifest, vector: NDArray[np.float32]) -> bool:
        """Whether the index was made with this model; a warning says once if it was not."""
        ...


class Knowledge(Protocol):
    """An index that is open."""

    async def search(self, question: str, limit: int = 3) -> list[Passage]:
        """The best passages, as `rank` chooses; raises KnowledgeUnavailable, safe to cancel."""
        ...


class Writer(Protocol):
    """One ingest. What is not named by `keep` or `add` is not in the index afterwards."""

    async def keep(self, source: str) -> int:
        """Leave a document of the old index as it is; the number of its passages, 0 for none."""
        ...

    async def add(
        self, source: str, passages: Sequence[tuple[str, str]], vectors: NDArray[np.float32] | None
    ) -> None:
        """Replace a document by these passages, title and text each, with a row of `vectors`."""
        ...


class Index(Protocol):
    """What a store offers; its factory takes the settings and opens nothing.

    Everything may raise KnowledgeUnavailable. `shared` is whether several machines use the index:
    then a worker's start leaves it alone.
    """

    shared: bool

    def open(self, questions: Questions) -> AbstractAsyncContextManager[Knowledge]:
        """Search until it is closed. Opening never blocks: the first search finds what is wrong."""
        ...

    async def upgrade(self) -> None:
        """Let this version read an index that an earlier one has made, where that is possible."""
        ...

    async def manifest(self) -> IndexManifest | None:
        """What the index is made from; None if there is none that can be read."""
        ...

    def rebuild(self, manifest: IndexManifest) -> AbstractAsyncContextManager[Writer]:
        """Replace the index at once on exit, unless an exception leaves it."""
        ...


def index_of(settings: Settings) -> Index:
    """The index that the settings choose; raises KnowledgeUnavailable, also if they choose none."""
    if settings.knowledge == "none":
        raise KnowledgeUnavailable("this agent looks nothing up (AGENT_KNOWLEDGE=none)")
    module, _, factory = STORES[settings.knowledge].partition(":")
    return cast(Index, getattr(_module(module, settings), factory)(settings))


def _module(name: str, settings: Settings) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise KnowledgeUnavailable(
            f"AGENT_KNOWLEDGE={settings.knowledge}, but this project was made without it "
            f"({error.name} is missing): run `agent update -d knowledge={settings.knowledge}`, or "
            "set AGENT_KNOWLEDGE=none"
        ) from error
