"""How well the documents answer questions whose source is known."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.knowledge.ingest import Progress
from agent.knowledge.lookup import open_index
from agent.settings import Settings, SettingsError
from agent.telemetry import LogJournal

# passages that are looked at for the mean reciprocal rank
DEPTH = 10


@dataclass(frozen=True)
class Question:
    """What somebody asks, and the document that answers it, as `Passage.source` names it."""

    question: str
    source: str


@dataclass(frozen=True)
class Figures:
    """Shares of the questions whose source is among the first passages, and how long searches take.

    `mrr` is the mean of 1/rank of the first passage of the source, 0 below the tenth.
    """

    n: int
    recall_at_1: float
    recall_at_3: float
    recall_at_5: float
    mrr: float
    p50_ms: float
    p95_ms: float


@dataclass(frozen=True)
class Result:
    """The figures, and what was not among the first five."""

    figures: Figures
    missed: list[Question]


def questions_in(file: Path) -> list[Question]:
    """The questions of a file of JSON objects with `question` and `source`, one a line.

    Raises SettingsError.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        problem = f"{file} cannot be read ({error}): give a file of JSON lines"
        raise SettingsError([problem]) from error
    questions, problems = [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            questions.append(_question_in(line))
        except (ValueError, KeyError, TypeError):
            example = '{"question": "When are you open?", "source": "opening-hours.md"}'
            problems.append(f"{file}:{number} is no question: write {example}")
    if not questions and not problems:
        problems.append(f"{file} has no questions: write a JSON object a line")
    if problems:
        raise SettingsError(problems)
    return questions


async def evaluate(
    settings: Settings,
    questions: Sequence[Question],
    progress: Progress = lambda line, done, total: None,
) -> Result:
    """Ask every question, without deadline and floor; raises KnowledgeUnavailable."""
    ranks: list[int] = []
    took: list[float] = []
    patient = settings.model_copy(update={"knowledge_seconds": 60.0})
    async with open_index(patient, LogJournal()) as knowledge:
        # a call has opened and loaded the index before it is asked
        await knowledge.search("warm up")
        for number, question in enumerate(questions, start=1):
            began = time.perf_counter()
            passages = await knowledge.search(question.question, DEPTH)
            took.append((time.perf_counter() - began) * 1000)
            sources = [passage.source for passage in passages]
            ranks.append(sources.index(question.source) + 1 if question.source in sources else 0)
            progress("", number, len(questions))
    took.sort()
    figures = Figures(
        n=len(ranks),
        recall_at_1=_share(ranks, 1),
        recall_at_3=_share(ranks, 3),
        recall_at_5=_share(ranks, 5),
        mrr=round(sum(1 / rank for rank in ranks if rank) / len(ranks), 3),
        p50_ms=_percentile(took, 0.50),
        p95_ms=_percentile(took, 0.95),
    )
    pairs = zip(questions, ranks, strict=True)
    return Result(figures, [question for question, rank in pairs if not 0 < rank <= 5])


def _question_in(line: str) -> Question:
    known = json.loads(line)
    question, source = known["question"], known["source"]
    if not (isinstance(question, str) and isinstance(source, str)):
        raise TypeError
    if not (question.strip() and source):
        raise ValueError
    return Question(question, source)


def _share(ranks: Sequence[int], depth: int) -> float:
    return round(sum(0 < rank <= depth for rank in ranks) / len(ranks), 3)


def _percentile(took: Sequence[float], part: float) -> float:
    return round(took[min(int(len(took) * part), len(took) - 1)], 2)
