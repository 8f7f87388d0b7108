"""What the documents say reaches the reply in time and only if it is relevant; a reply never waits for them in vain."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from agent import entrypoint
from agent.knowledge import Knowledge, KnowledgeUnavailable, Passage
from agent.knowledge.lookup import FOUND, NOTHING_FOUND, question_of
from agent.settings import Settings
from template.tests.talk import talk

HOURS = Passage("hours.md", "Opening hours", "On Saturday we open at ten.", 1.0, 0.9)
FAR = Passage("garden.md", "Garden", "The roses are red on Saturday.", 0.4, 0.1)


class Shelf:
    """Documents as a test wants them."""

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


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch) -> Shelf:
    made = Shelf()

    @asynccontextmanager
    async def opened(settings: Settings) -> AsyncIterator[Knowledge]:
        yield made

    monkeypatch.setattr(entrypoint, "knowledge_of", opened)
    return made


def looked_up(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    records = [record for record in caplog.records if record.getMessage() == "looked up"]
    return [record.__dict__["fields"] for record in records]


async def test_a_question_is_answered_from_the_documents_without_a_second_pass(
    shelf: Shelf, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="agent.knowledge")
    async with talk() as call:
        answer = await call.say("When do you open on Saturday?")
        tools = (
            [tool.id for tool in call.call.session.current_agent.tools] if call.call.session else []
        )
        history = (
            [item.type for item in call.call.session.history.items] if call.call.session else []
        )

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
    ("said", "question"),
    [
        (
            ["Do you have parking for coaches?", "How much is a ticket for children?"],
            "How much is a ticket for children?",
        ),
        (["Thanks"], "Thanks"),
    ],
)
def test_a_question_that_says_enough_stands_alone(said: list[str], question: str) -> None:
    assert question_of(said) == question


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
    shelf.error = ZeroDivisionError("not ours")


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
        for outage in call.call.settings.data.glob(
            "*.outage"
        ):  # which is left alone for a few seconds
            os.utime(outage, (outage.stat().st_mtime - 60,) * 2)
        assert "ten" in await call.say("When do you open on Saturday?")

    assert [record["outcome"] for record in looked_up(caplog)] == [outcome, "error", "ok"]
    assert len(shelf.asked) == (
        2 if outcome == "late" else 3
    )  # what was late is not waited for again
    warned = [
        record
        for record in caplog.records
        if (record.name, record.levelname) == ("agent.knowledge", "WARNING")
    ]
    warnings = [record.__dict__["fields"] for record in warned]
    assert [fields.get("degraded") for fields in warnings] == [
        "knowledge"
    ]  # one warning, which is counted


async def test_an_index_of_this_machines_own_that_was_late_is_asked_again_at_once(
    shelf: Shelf,
) -> None:
    async with talk(knowledge_seconds=0.05, knowledge="sqlite") as call:
        stalls(shelf)
        await call.say("When do you open?")
        shelf.answers.set()
        assert "ten" in await call.say("When do you open on Saturday?")


async def test_where_the_model_asks_itself_it_has_a_tool(shelf: Shelf) -> None:
    async with talk(knowledge_lookup="tool") as call:
        assert "ten" in await call.say("When do you open on Saturday?")
        assert call.tool_output("search_knowledge").startswith(FOUND)
    assert shelf.asked == ["When do you open on Saturday?"]
