"""Which passages a question gets: by their score alone, or no section or document twice at first.

    PYTHONPATH=template/src python -m benchmarks.knowledge_sections [--quick]

Two shapes of the questions of benchmarks/retrieval. As whole answers, an answer is a document
without headings, and a long one several passages: the right document is to be found. As pages, a
document is ten answers under headings that say nothing: the right section of it is to be found.
Every way orders the same passages with the same scores, so that each question is a pair.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

from agent.knowledge import Passage, local_embedder
from agent.knowledge.evaluate import DEPTH
from agent.knowledge.ingest import ingest
from agent.knowledge.lookup import open_index
from agent.telemetry import LogJournal
from benchmarks.knowledge import SOURCES, settings_of
from benchmarks.report import Progress, describe, finish, has_server, machine, report, workshop
from benchmarks.retrieval.corpus import pairs, write_answers, write_pages
from tests.support.embedding import minilm
from tests.support.templates import WORK_TREE

# more than both halves of a search propose
EVERY = 1000
WORDS, MEANING = "words", "words and meaning"
ANSWERS, PAGES = "whole answers", "pages of ten answers"
BEFORE, SECTIONS, DOCUMENTS = "score", "sections", "documents"
# recall at 5
GOALS = {WORDS: 0.87, MEANING: 0.94}

Place = tuple[str, ...]


def in_rounds(found: Sequence[Passage], of: Callable[[Passage], Hashable]) -> list[Passage]:
    """The same passages, by score, but none of a group twice before each has come once."""
    seen, rounds = Counter[Hashable](), list[int]()
    for passage in found:
        rounds.append(seen[of(passage)])
        seen[of(passage)] += 1
    return [found[at] for at in sorted(range(len(found)), key=rounds.__getitem__)]


def ranks_of(found: Sequence[Passage], right: Place) -> dict[str, int]:
    """The rank of the right document or section for each way, 0 below the tenth."""
    by_score = sorted(found, key=lambda passage: passage.score, reverse=True)
    ways = {
        BEFORE: by_score,
        # what the agent does
        SECTIONS: found,
        DOCUMENTS: in_rounds(by_score, lambda passage: passage.source),
    }
    ranks = {}
    for way, passages in ways.items():
        places = [(one.source, one.title)[: len(right)] for one in passages[:DEPTH]]
        ranks[way] = places.index(right) + 1 if right in places else 0
    return ranks


async def measure(scratch: Path) -> dict[str, Any]:
    """Every raw number: the rank of each question, by shape, kind of search and way."""
    tell = Progress()
    results: dict[str, Any] = {"machine": machine(), "version": WORK_TREE}
    minilm(scratch / "minilm")
    # for the embedder, which is started as a module of the agent
    os.environ["PYTHONPATH"] = str(SOURCES)
    right: dict[str, list[Place]] = {
        ANSWERS: [(pair.source,) for pair in pairs()],
        PAGES: [*write_pages(scratch / PAGES / "knowledge")],
    }
    write_answers(scratch / ANSWERS / "knowledge", whole=True)
    results["ranks"] = ranks = dict[str, dict[str, list[int]]]()
    for shape, places in right.items():
        for how, embeddings in ((WORDS, "none"), (MEANING, "local")):
            tell(f"{shape}, {how}")
            settings = settings_of(scratch / shape, embeddings)
            settings = settings.model_copy(update={"knowledge_seconds": 60.0})
            ways = ranks[f"{shape}, {how}"] = {BEFORE: [], SECTIONS: [], DOCUMENTS: []}
            async with local_embedder(settings, wait=True, alone=True) as inside:
                done = await ingest(inside)
                results[f"{shape}, passages"] = done.passages
                async with open_index(inside, LogJournal()) as knowledge:
                    for pair, place in zip(pairs(), places, strict=True):
                        found = await knowledge.search(pair.question, EVERY)
                        for way, rank in ranks_of(found, place).items():
                            ways[way].append(rank)
    finish(results, tell.seconds)
    return results


# ---------------------------------------------------------------------- the table


def share(ranks: Sequence[int], depth: int, half: str) -> float:
    """Recall at this depth, of the questions of one half."""
    mine = [rank for rank, pair in zip(ranks, pairs(), strict=True) if pair.half == half]
    return sum(0 < rank <= depth for rank in mine) / len(mine)


def changed(one: Sequence[int], other: Sequence[int], depth: int) -> str:
    """How many reported questions one way finds and the other does not, and the reverse."""
    kept = [
        (0 < mine <= depth, 0 < theirs <= depth)
        for mine, theirs, pair in zip(one, other, pairs(), strict=True)
        if pair.half == "report"
    ]
    return f"+{kept.count((True, False))} -{kept.count((False, True))}"


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        describe(results),
        "",
        f"{results[f'{ANSWERS}, passages']} passages of {len(pairs())} whole answers, "
        f"{results[f'{PAGES}, passages']} of the pages.",
        "",
        "| by | none twice at first | tuned on: R@1 | R@3 | R@5 | **reported**: R@1 | R@3 | R@5 "
        "| questions at 3 | at 5 | goal |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for kind, ways in results["ranks"].items():
        shape, how = kind.split(", ")
        for way, ranks in ways.items():
            figures = [share(ranks, at, half) for half in ("tune", "report") for at in (1, 3, 5)]
            more = [changed(ranks, ways[BEFORE], at) if way != BEFORE else "" for at in (3, 5)]
            goal = ""
            if shape == ANSWERS and way == SECTIONS:
                reached = "met" if figures[-1] >= GOALS[how] else "**missed**"
                goal = f"{GOALS[how]:.2f}: {reached}"
            cells = [kind, "" if way == BEFORE else way, *(f"{one:.3f}" for one in figures), *more]
            lines.append(f"| {' | '.join([*cells, goal])} |")
    return "\n".join(lines)


def main() -> int:
    """Measure and report; 1 if no server is available."""
    parser = argparse.ArgumentParser(description="Compare which passages a question gets.")
    parser.add_argument("--quick", action="store_true", help="keep nothing")
    quick: bool = parser.parse_args().quick
    if not has_server():
        return 1
    with workshop() as scratch:
        results = asyncio.run(measure(scratch))
    report("knowledge-sections", results, table, quick=quick)
    return 0


if __name__ == "__main__":
    sys.exit(main())
