"""What a reply takes from the documents: in time, relevant, or an honest word that there is nothing."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from functools import cache

from agent.circuit_breaker import CircuitBreaker
from agent.errors import one_line
from agent.knowledge import KnowledgeUnavailable, Passage
from agent.knowledge.ranking import words_of
from agent.lifecycle import Call
from agent.settings import Settings

log = logging.getLogger("agent.knowledge")

FOUND = "From our documents, for what the caller has just said:"
NOTHING_FOUND = "Nothing in the documents answers that."
NOT_SEARCHED = "The documents cannot be searched at the moment: say so, and answer only what you know for certain."
HONEST = "If it was a question about us, say honestly that you do not know."
FEW_WORDS = 2  # "And on Sundays?" is understood from the question before it


async def look_up(call: Call, question: str) -> str:
    """What the documents say, for a model; never raises, and never takes longer than `knowledge_seconds`."""
    assert call.knowledge is not None
    began, outcome, passages = time.time_ns(), "ok", list[Passage]()
    breaker = _breaker_of(call.settings)
    try:
        if breaker and breaker.open:
            raise KnowledgeUnavailable("the documents did not answer a moment ago")
        async with asyncio.timeout(call.settings.knowledge_seconds):
            found = await call.knowledge.search(question)
        if breaker:
            breaker.worked()
        passages = [
            passage for passage in found if passage.relevance >= call.settings.knowledge_floor
        ]
    except (
        Exception
    ) as error:  # a store of the owner's may raise anything, and the reply must not wait for it
        outcome = "late" if isinstance(error, TimeoutError) else "error"
        if breaker and outcome == "late":  # an error costs nobody any time
            breaker.failed()
        said = str(error) if isinstance(error, KnowledgeUnavailable) else one_line(error)
        sentence = (
            said if outcome == "error" else f"nothing within {call.settings.knowledge_seconds:g} s"
        )
        call.journal.warn_once("knowledge", log, f"answers go on without documents: {sentence}")
    sources = [f"{passage.source} > {passage.title}" for passage in passages]
    milliseconds = round((time.time_ns() - began) / 1e6)
    log.info(
        "looked up", extra=call.journal.fields(outcome=outcome, passages=sources, ms=milliseconds)
    )
    call.journal.took("look up", began, outcome=outcome, passages="; ".join(sources))
    if outcome != "ok":
        return f"{NOT_SEARCHED} {HONEST}"
    if not passages:
        return f"{NOTHING_FOUND} {HONEST}"
    return "\n\n".join([FOUND, *(f"[{p.source}] {p.title}\n{p.text}" for p in passages)])


@cache
def _breaker_of(settings: Settings) -> CircuitBreaker | None:
    """Of a store that all calls share; one of this machine's own may be late for one call and none of the others."""
    return (
        CircuitBreaker(settings.data / "knowledge.outage")
        if settings.knowledge == "pgvector"
        else None
    )


def question_of(said: Sequence[str]) -> str:
    """The caller's last words; with those before them, if they are too few to look anything up by."""
    return " ".join(said) if len(words_of(said[-1])) < FEW_WORDS else said[-1]
