"""What the agent looks up in documents: the protocols, and the table of stores behind them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

from agent.settings import Settings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# "module:factory"; a module that the project was made without is simply not there
STORES = {
    "sqlite": "agent.knowledge.sqlite:SqliteIndex",
    "pgvector": "agent.knowledge.pgvector:PgvectorIndex",
}


@dataclass(frozen=True)
class Passage:
    """A piece of a document: `source` is its path below the folder it was read from, `title` the headings above it."""

    source: str
    title: str
    text: str
    score: float  # higher is better; comparable within one search only
    relevance: float = 1.0  # from 0 to 1, comparable between questions: see knowledge/hybrid.py


@dataclass(frozen=True)
class Skipped:
    """A document that was left out of the index, and why."""

    source: str
    reason: str


@dataclass(frozen=True)
class IngestReport:
    """What an ingest read, and what it could not."""

    documents: int
    passages: int
    skipped: list[Skipped] = field(default_factory=list)
    unchanged: int = 0  # of the documents, those that the index had already
    removed: int = 0  # documents that the index had and that are gone


@dataclass(frozen=True)
class About:
    """What an index is made from; another model, or another way of cutting, makes every passage anew."""

    schema: int  # of chunks: `agent.knowledge.chunks.SCHEMA`
    model: str  # of the embeddings; empty: none
    dimension: int  # of the embeddings; 0: none
    roots: tuple[
        str, ...
    ]  # the folders and files that were given to read, absolute; none: the project's knowledge/
    digests: Mapping[
        str, str
    ]  # of every document by its source, also of those that could not be read

    def fits(self, other: About) -> bool:
        """Whether passages of the one may stay in the other."""
        return (self.schema, self.model, self.dimension) == (
            other.schema,
            other.model,
            other.dimension,
        )


class KnowledgeUnavailable(Exception):
    """The index or the documents cannot be opened or read: which, where, what to do."""


class Embedder(Protocol):
    """What turns texts into vectors; `agent.knowledge.embeddings` has them. Safe to cancel."""

    model: str

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """One row a text, each of length 1; raises KnowledgeUnavailable."""
        ...


class Knowledge(Protocol):
    """An index of passages. `search` may raise KnowledgeUnavailable and is safe to cancel."""

    async def search(self, question: str, limit: int = 3) -> list[Passage]:
        """The best passages, best first; none if no word of the question is in the documents."""
        ...


class Writer(Protocol):
    """One ingest. What is not named by `keep` or `add` is not in the index afterwards."""

    async def keep(self, source: str) -> int:
        """Leave a document of the old index as it is; how many passages it has, 0 if it is not in there."""
        ...

    async def add(
        self, source: str, passages: Sequence[tuple[str, str]], vectors: NDArray[np.float32] | None
    ) -> None:
        """Put in the place of a document these passages, title and text each, a row of `vectors` for each."""
        ...


class Index(Protocol):
    """What a store offers; its factory takes the settings and opens nothing. All may raise KnowledgeUnavailable."""

    shared: bool  # whether several machines use it: then a worker's start leaves it alone

    def open(self, embedder: Embedder | None) -> AbstractAsyncContextManager[Knowledge]:
        """Search until it is closed. Opening waits for nothing: a missing index is told by the first search."""
        ...

    async def about(self) -> About | None:
        """What the index is made from; None if there is none, or a damaged one."""
        ...

    def rebuild(self, about: About) -> AbstractAsyncContextManager[Writer]:
        """Make the index anew and put it in the place of the old one at once, unless it is left by an exception."""
        ...


def index_of(settings: Settings) -> Index | None:
    """The index that the settings choose, None if they choose none; raises KnowledgeUnavailable."""
    if settings.knowledge == "none":
        return None
    module, _, factory = STORES[settings.knowledge].partition(":")
    try:
        made = getattr(import_module(module), factory)
    except ModuleNotFoundError as error:
        raise KnowledgeUnavailable(
            f"AGENT_KNOWLEDGE={settings.knowledge}, but this project was made without it ({error.name} is missing): "
            f"run `agent update -d knowledge={settings.knowledge}`, or set AGENT_KNOWLEDGE=none"
        ) from error
    return cast(Index, made(settings))


@asynccontextmanager
async def knowledge_of(settings: Settings) -> AsyncIterator[Knowledge | None]:
    """Yield what the settings choose, closed on exit; raises KnowledgeUnavailable only for a missing module."""
    from agent.knowledge.embeddings import embedder_of

    if (index := index_of(settings)) is None:
        yield None
        return
    async with embedder_of(settings) as embedder, index.open(embedder) as knowledge:
        # a connection to a server that is far away takes longer than a question may: it is made while nobody waits
        warming = asyncio.create_task(_warm(embedder), name="embedder warm-up")
        try:
            yield knowledge
        finally:
            warming.cancel()
            await asyncio.wait([warming])


async def _warm(embedder: Embedder | None) -> None:
    if embedder is not None:
        with suppress(KnowledgeUnavailable):  # the first question tells it
            await embedder.embed(["Hello"])
