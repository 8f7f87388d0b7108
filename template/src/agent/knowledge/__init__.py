"""What the agent looks up in documents: the protocols, and the table of stores behind them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import Protocol, cast

from agent.settings import Settings

# "module:factory"; a module that the project was made without is simply not there
STORES = {"sqlite": "agent.knowledge.sqlite:SqliteIndex"}


@dataclass(frozen=True)
class Passage:
    """A piece of a document: `source` is its path below knowledge/, `title` the headings above it."""

    source: str
    title: str
    text: str
    score: float  # higher is better; comparable within one search only


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


class KnowledgeUnavailable(Exception):
    """The index or the documents cannot be opened or read: which, where, what to do."""


class Knowledge(Protocol):
    """An index of passages. `search` may raise KnowledgeUnavailable and is safe to cancel."""

    async def search(self, question: str, limit: int = 3) -> list[Passage]:
        """The best passages, best first; none if no word of the question is in the documents."""
        ...


class Index(Protocol):
    """What a store offers; its factory takes the settings and opens nothing."""

    def open(self) -> AbstractAsyncContextManager[Knowledge]:
        """Search until it is closed. Opening waits for nothing: a missing index is told by the first search."""
        ...

    def ingest(self, report: Callable[[str], None]) -> IngestReport:
        """Read every document into a new index and put it in the place of the old one, at once.

        `report` gets a line for each document. Raises KnowledgeUnavailable if there is nothing to read or nowhere to
        write; the old index then stays.
        """
        ...

    def stale(self) -> bool:
        """Whether the documents are not the ones in the index, or the index is damaged."""
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
            f"run `copier update -d knowledge={settings.knowledge}`, or set AGENT_KNOWLEDGE=none"
        ) from error
    return cast(Index, made(settings))


@asynccontextmanager
async def knowledge_of(settings: Settings) -> AsyncIterator[Knowledge | None]:
    """Yield what the settings choose, closed on exit; raises KnowledgeUnavailable only for a missing module."""
    if (index := index_of(settings)) is None:
        yield None
        return
    async with index.open() as knowledge:
        yield knowledge


def ingest(settings: Settings, report: Callable[[str], None] = lambda line: None) -> IngestReport:
    """`Index.ingest` of what the settings choose."""
    if (index := index_of(settings)) is None:
        raise KnowledgeUnavailable("this agent looks nothing up (AGENT_KNOWLEDGE=none), so there is nothing to ingest")
    return index.ingest(report)


def stale(settings: Settings) -> bool:
    """`Index.stale` of what the settings choose; without an index nothing is."""
    index = index_of(settings)
    return index is not None and index.stale()
