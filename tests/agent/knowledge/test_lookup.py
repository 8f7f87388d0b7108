"""Relevant passages reach the reply in time, and a lookup never costs the reply."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from agent.knowledge import (
    FOUND,
    NOTHING_FOUND,
    STORES,
    Knowledge,
    KnowledgeUnavailable,
    Passage,
    load,
    open_knowledge,
)
from agent.knowledge.embeddings import QuestionEmbedder
from agent.settings import Settings
from agent.telemetry import LogJournal
from template.tests.talk import talk

HOURS = Passage("hours.md", "Opening hours", "On Saturday we open at ten.", 1.0, 0.9)
FAR = Passage("garden.md", "Garden", "The roses are red on Saturday.", 0.4, 0.1)


class Shelf:
    """Documents for a test."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.passages = [HOURS, FAR]
        self.error: Exception | None = None
        self.answers = asyncio.Event()
        self.answers.set()

    async def search(self, question: str, limit: int = 3) -> list[Passage]:
        self.asked.append(question)
        await self.answers.wait()
        if self.error is not None:
            raise self.error
        return self.passages


SHELVES: list[Shelf] = []


class ShelfIndex:
    """An `Index` that is only searched."""

    def __init__(self, settings: Settings) -> None:
        self.shelf = SHELVES[-1]

    @asynccontextmanager
    async def open(self, questions: QuestionEmbedder) -> AsyncIterator[Knowledge]:
        yield self.shelf


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch) -> Shelf:
    SHELVES.append(Shelf())
    for store in ("sqlite", "pgvector"):
        monkeypatch.setitem(STORES, store, f"{__name__}:ShelfIndex")
    return SHELVES[-1]


def looked_up(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    records = [record for record in caplog.records if record.getMessage() == "looked up"]
    return [record.__dict__["fields"] for record in records]


async def test_a_question_is_answered_from_the_documents_without_a_second_pass(
    shelf: Shelf, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="agent.knowledge")
    async with talk() as call:
        answer = await call.say("When do you open on Saturday?")
        assert call.call.session is not None
        tools = [tool.id for tool in call.call.session.current_agent.tools]
        history = [item.type for item in call.call.session.history.items]

    assert "ten" in answer
    assert shelf.asked == ["When do you open on Saturday?"]
    assert "search_knowledge" not in tools
    assert "function_call" not in history
    [record] = looked_up(caplog)
    assert (record["outcome"], record["passages"]) == ("ok", ["hours.md > Opening hours"])
    assert record["call"]


async def test_what_was_found_is_for_one_reply_only(shelf: Shelf) -> None:
    async with talk() as call:
        await call.say("When do you open on Saturday?")
        assert call.call.session is not None
        texts = [message.text_content or "" for message in call.call.session.history.messages()]

    assert not any(FOUND in text for text in texts)


async def test_words_too_few_to_look_up_are_looked_up_with_those_before(shelf: Shelf) -> None:
    async with talk() as call:
        await call.say("When do you open on Saturday morning?")
        await call.say("And on Sundays?")

    assert shelf.asked[-1] == "When do you open on Saturday morning? And on Sundays?"


@pytest.mark.parametrize(
    ("question", "before"),
    [
        ("How much is a ticket for children?", "Do you have parking for coaches?"),
        ("Thanks", ""),
    ],
)
async def test_a_question_that_says_enough_stands_alone(
    shelf: Shelf, question: str, before: str
) -> None:
    opening = open_knowledge(Settings(), LogJournal())
    assert opening is not None
    async with opening as knowledge:
        await knowledge.look_up(question, before)
    assert shelf.asked == [question]


async def test_a_passage_that_is_not_relevant_is_not_used(shelf: Shelf) -> None:
    shelf.passages = [FAR]
    async with talk() as call:
        assert await call.say("What is the capital of France?") == NOTHING_FOUND


async def test_the_owner_sets_how_relevant_a_passage_has_to_be(shelf: Shelf) -> None:
    shelf.passages = [FAR]
    async with talk(knowledge_floor=0.05) as call:
        assert "roses" in await call.say("What colour do the roses have?")


def stalls(shelf: Shelf) -> None:
    shelf.answers.clear()


def fails(shelf: Shelf) -> None:
    shelf.error = KnowledgeUnavailable("no index: run `agent ingest`")


def breaks(shelf: Shelf) -> None:
    shelf.error = ZeroDivisionError("of the owner's store")


@pytest.mark.parametrize(
    ("trouble", "outcome"),
    [(stalls, "late"), (fails, "error"), (breaks, "error")],
    ids=["stalls", "fails", "breaks"],
)
async def test_a_reply_goes_on_without_documents_that_do_not_answer_and_says_so(
    shelf: Shelf, caplog: pytest.LogCaptureFixture, trouble: Callable[[Shelf], None], outcome: str
) -> None:
    caplog.set_level(logging.INFO, logger="agent.knowledge")
    async with talk(knowledge_seconds=0.05, knowledge="pgvector") as call:
        trouble(shelf)
        for _ in range(2):
            assert await call.say("When do you open?") == "I cannot look that up at the moment."
        shelf.answers.set()
        shelf.error = None
        # the store is left alone for a few seconds
        for outage in call.call.settings.data.glob("*.outage"):
            os.utime(outage, (outage.stat().st_mtime - 60,) * 2)
        assert "ten" in await call.say("When do you open on Saturday?")

    assert [record["outcome"] for record in looked_up(caplog)] == [outcome, "error", "ok"]
    # a late store is not awaited again
    assert len(shelf.asked) == (2 if outcome == "late" else 3)
    warned = [
        record
        for record in caplog.records
        if (record.name, record.levelname) == ("agent.knowledge", "WARNING")
    ]
    # one warning, which is counted
    counted = [record.__dict__["fields"].get("degraded") for record in warned]
    assert counted == ["knowledge"]


async def test_an_index_of_this_machine_that_was_late_is_asked_again_at_once(
    shelf: Shelf,
) -> None:
    async with talk(knowledge_seconds=0.05, knowledge="sqlite") as call:
        stalls(shelf)
        await call.say("When do you open?")
        shelf.answers.set()
        assert "ten" in await call.say("When do you open on Saturday?")


async def test_where_it_is_looked_up_before_the_reply_no_tool_costs_another_one(
    shelf: Shelf,
) -> None:
    async with talk(knowledge_lookup="before", knowledge="sqlite") as call:
        run = await call.run("When do you open on Saturday?")
        assert [event.type for event in run.events] == ["message"]
        assert "search_knowledge" not in [tool.id for tool in call.call.persona.tools]


async def test_where_the_model_asks_itself_it_has_a_tool(shelf: Shelf) -> None:
    async with talk(knowledge_lookup="tool") as call:
        assert "ten" in await call.say("When do you open on Saturday?")
        assert call.tool_output("search_knowledge").startswith(FOUND)
    assert shelf.asked == ["When do you open on Saturday?"]


# ---------------------------------------------------------------------- options


def test_a_call_without_documents_has_none() -> None:
    without = Settings(knowledge="none")
    load(without)
    assert open_knowledge(without, LogJournal()) is None


async def test_a_project_that_was_made_without_documents_says_how_to_add_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "agent.knowledge.lookup", None)
    with pytest.raises(KnowledgeUnavailable, match="agent update -d knowledge=sqlite"):
        load(Settings(knowledge="sqlite"))
    opening = open_knowledge(Settings(knowledge="sqlite"), LogJournal())
    assert opening is not None
    with pytest.raises(KnowledgeUnavailable, match="agent update -d knowledge=sqlite"):
        async with opening:
            pass
