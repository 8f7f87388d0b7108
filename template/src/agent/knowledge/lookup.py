"""What a reply takes from the documents: in time and relevant, or an honest word that it is not."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from agent import one_line
from agent.circuit_breaker import CircuitBreaker, Late, Unanswered
from agent.knowledge import (
    FOUND,
    NOT_SEARCHED,
    NOTHING_FOUND,
    Embedder,
    Knowledge,
    KnowledgeUnavailable,
    Passage,
    index_of,
)
from agent.knowledge.embeddings import QuestionEmbedder, embedder_of
from agent.knowledge.ranking import words_of
from agent.settings import Settings
from agent.telemetry import Journal

log = logging.getLogger("agent.knowledge")

HONEST = "If it was a question about us, say honestly that you do not know."
# "And on Sundays?" is understood from the question before it
FEW_WORDS = 2


@asynccontextmanager
async def open_index(settings: Settings, journal: Journal) -> AsyncIterator[Knowledge]:
    """Yield the index that the settings choose, searchable by words and by meaning.

    Raises KnowledgeUnavailable if they choose none, or one whose module is missing.
    """
    index = index_of(settings)
    async with (
        embedder_of(settings) as embedder,
        index.open(QuestionEmbedder(embedder, settings, journal)) as knowledge,
    ):
        # connecting to a server that is far away takes longer than a question may: it is done while
        # nobody waits
        warming = asyncio.create_task(_warm(embedder), name="embedder warm-up")
        try:
            yield knowledge
        finally:
            warming.cancel()
            await asyncio.wait([warming])


async def _warm(embedder: Embedder | None) -> None:
    if embedder is not None:
        # the first question reports it
        with suppress(KnowledgeUnavailable):
            await embedder.embed(["Hello"])


@asynccontextmanager
async def opened(settings: Settings, journal: Journal) -> AsyncIterator[Lookup]:
    """Yield the documents for one call."""
    async with open_index(settings, journal) as index:
        yield Lookup(index, settings, journal)


class Lookup:
    """A `CallKnowledge` on an index."""

    def __init__(self, index: Knowledge, settings: Settings, journal: Journal) -> None:
        self.search = index.search
        self._settings, self._journal = settings, journal
        shared = settings.knowledge == "pgvector"
        outage = settings.data / "knowledge.outage" if shared else None
        # an error takes nobody's time, so only late answers open it
        self._breaker = CircuitBreaker("the documents", outage)

    async def look_up(self, question: str, before: str = "") -> str:
        """Report what was looked up, and what it led to."""
        if before and len(words_of(question)) < FEW_WORDS:
            question = f"{before} {question}"
        began = time.time_ns()
        outcome, passages = await self._ask(question)
        sources = [f"{passage.source} > {passage.title}" for passage in passages]
        fields = {"outcome": outcome, "passages": sources}
        took = round((time.time_ns() - began) / 1e6)
        log.info("looked up", extra=self._journal.fields(**fields, ms=took))
        self._journal.looked_up(question, sources, outcome, began)
        if outcome != "ok":
            return f"{NOT_SEARCHED} {HONEST}"
        if not passages:
            return f"{NOTHING_FOUND} {HONEST}"
        return "\n\n".join([FOUND, *(f"[{p.source}] {p.title}\n{p.text}" for p in passages)])

    async def _ask(self, question: str) -> tuple[str, list[Passage]]:
        try:
            found = await self._breaker.ask(
                lambda: self.search(question), self._settings.knowledge_seconds
            )
        except Exception as error:
            # any error: the store may be the owner's, and the reply must not wait for it
            known = isinstance(error, KnowledgeUnavailable | Unanswered)
            said = str(error) if known else one_line(error)
            sentence = f"answers go on without documents: {said}"
            self._journal.warn_once("knowledge", log, sentence)
            return "late" if isinstance(error, Late) else "error", []
        floor = self._settings.knowledge_floor
        return "ok", [passage for passage in found if passage.relevance >= floor]
