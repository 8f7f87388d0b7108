"""`agent evaluate` counts correctly, and reports the mistakes in a file of questions."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agent.knowledge import Knowledge, Passage, evaluate
from agent.knowledge.evaluate import Question, questions_in
from agent.settings import Settings, SettingsError
from agent.telemetry import Journal


class Ranked:
    """Answers every question with the sources that it names, in that order."""

    async def search(self, question: str, limit: int = 3) -> list[Passage]:
        return [Passage(source, "", "", 1.0) for source in question.split()][:limit]


async def test_recall_and_reciprocal_rank_count_the_first_passage_of_the_source(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    @asynccontextmanager
    async def ranked(settings: Settings, journal: Journal) -> AsyncIterator[Knowledge]:
        yield Ranked()

    monkeypatch.setattr(evaluate, "open_index", ranked)
    questions = [
        Question("a a b", "a"),
        Question("b c a a", "a"),
        Question("b b b b a", "a"),
        Question("b", "a"),
    ]

    result = await evaluate.evaluate(Settings.model_validate({"home": tmp_path}), questions)

    figures = result.figures
    assert (figures.n, figures.recall_at_1, figures.recall_at_3, figures.recall_at_5) == (
        4,
        0.25,
        0.5,
        0.75,
    )
    assert figures.mrr == pytest.approx((1 + 1 / 3 + 1 / 5) / 4, abs=0.001)
    assert 0 <= figures.p50_ms <= figures.p95_ms
    assert result.missed == [questions[3]]


def test_every_line_that_is_no_question_is_named(tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    good = json.dumps({"question": "When?", "source": "hours.md"})
    file.write_text(
        "\n".join([good, "", '{"question": "Who?"}', "nonsense", '["a"]', ""]), encoding="utf-8"
    )

    with pytest.raises(SettingsError) as raised:
        questions_in(file)

    assert [problem.split(" ")[0].rpartition(":")[2] for problem in raised.value.problems] == [
        "3",
        "4",
        "5",
    ]
    file.write_text(good, encoding="utf-8")
    assert questions_in(file) == [Question("When?", "hours.md")]


@pytest.mark.parametrize("content", [None, b"", b"\n", b"\xff"])
def test_a_file_without_questions_is_one_sentence(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "questions.jsonl"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SettingsError, match=r"questions\.jsonl"):
        questions_in(file)
