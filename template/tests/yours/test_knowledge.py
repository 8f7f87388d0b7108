"""YOURS: callers' questions, and the documents that answer them.

Add their questions to knowledge/questions.jsonl.
"""

from __future__ import annotations

import pytest

from agent.knowledge import KnowledgeUnavailable
from agent.knowledge.evaluate import evaluate, questions_in
from agent.knowledge.ingest import ingest
from agent.settings import load_settings

GOAL = 0.9  # of the questions find their document among the first three passages


async def test_questions_find_their_documents() -> None:
    settings = load_settings()
    questions = settings.documents / "questions.jsonl"
    if settings.knowledge == "none" or not questions.exists():
        pytest.skip("this agent looks nothing up, or has no knowledge/questions.jsonl")
    try:
        await ingest(settings)
        result = await evaluate(settings, questions_in(questions))
    except KnowledgeUnavailable as error:  # a database or a model that is not on this machine
        pytest.skip(str(error))
    assert result.figures.recall_at_3 >= GOAL, result.missed
