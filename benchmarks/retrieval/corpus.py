"""The evaluation set as documents, and any number of filler documents with the same words."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Pair:
    """A question of a public page and its answer, which `write_answers` puts into `source`."""

    question: str
    answer: str
    source: str
    # "tune" or "report"
    half: str
    # what the answer was shortened by
    rest: str = ""


def pairs() -> list[Pair]:
    """All pairs; the name of a source has no words of its question."""
    found = []
    for number, line in enumerate(_lines("pairs.jsonl")):
        folder = line["source"].split("/")[0]
        found.append(
            Pair(
                line["question"],
                line["answer"],
                f"{folder}/{number:03}.md",
                line["half"],
                line.get("rest", ""),
            )
        )
    return found


def unanswerable() -> list[str]:
    """Questions that none of the answers answers."""
    return [line["question"] for line in _lines("unanswerable.jsonl")]


def write_answers(folder: Path, *, whole: bool = False) -> None:
    """Write a document for each answer, without its question; shortened, unless it is `whole`."""
    for pair in pairs():
        file = folder / pair.source
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(pair.answer + pair.rest * whole, encoding="utf-8")


def write_pages(folder: Path) -> list[tuple[str, str]]:
    """Write the shortened answers of each FAQ, ten a document, under headings that say nothing.

    Returns document and heading of each pair.
    """
    places, pages = list[tuple[str, str]](), dict[Path, str]()
    for number, pair in enumerate(pairs()):
        source, heading = f"{pair.source.split('/')[0]}/{number // 10:02}.md", f"Section {number}"
        pages[folder / source] = f"{pages.get(folder / source, '')}# {heading}\n\n{pair.answer}\n\n"
        places.append((source, heading))
    for file, text in pages.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return places


def write_filler(folder: Path, passages: int) -> None:
    """Write so many more passages of shuffled sentences from the answers, ten a document."""
    chance = random.Random(5)
    sentences = [
        one for pair in pairs() for one in re.split(r"(?<=[.!?])\s+", pair.answer) if len(one) > 20
    ]
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(0, passages, 10):
        sections = [
            f"# Section {number + at}\n\n{' '.join(_about_150_words(chance, sentences))}"
            for at in range(min(10, passages - number))
        ]
        (folder / f"filler-{number:05}.md").write_text("\n\n".join(sections), encoding="utf-8")


def _about_150_words(chance: random.Random, sentences: list[str]) -> Iterator[str]:
    words = 0
    while words < 120:
        sentence = chance.choice(sentences)
        words += len(sentence.split())
        if words < 170:
            yield sentence


def _lines(name: str) -> Iterator[dict[str, str]]:
    for line in (HERE / name).read_text(encoding="utf-8").splitlines():
        yield json.loads(line)
