"""How words and meaning are put together: the same for every store.

On public questions that nobody wrote for it this finds about what vectors alone find first, and more among the first
five than either half (the template's docs/benchmarks.md). Fusing the two orders by rank, as textbooks do, was tried as
the design was chosen: it was worse than vectors alone.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

K = TypeVar("K", bound=Hashable)

CANDIDATES = 50  # passages that each half may propose
MOST_WORDS = 64
TITLE_WEIGHT = 2.0  # a word in the headings says more than one in the text
MEANING = 0.8  # what the likeness of meaning counts; the rest is the likeness of words

# Words that say how something is asked, not what: left in, a question finds whatever passage is wordiest.
_FUNCTION_WORDS = """
    a about after all also am an and any anybody anyone anything are aren as ask at be because been before being
    between both but by bye can cannot could couldn d did didn do does doesn doing don during each either else er
    ever every for from further get gets give go goes going gonna good got had hadn has hasn have haven having he
    hello her here hers herself hey hi him himself his how i if in into is isn it its itself just know let like ll m
    many may maybe me might mine more most much must my myself need nor not now o of off oh ok okay on once one only
    or other ought our ours ourselves out over own per please possible quite rather re really s said same say see
    shall shan she should shouldn so some somebody someone something such sure t tell than thank thanks that the
    their theirs them themselves then there these they thing things this those through to too uh um under until up
    upon us ve very want wanted wants was wasn we well were weren what whatever when where whether which while who
    whom whose why will wish with within without won wonder wondering would wouldn yeah yes yet you your yours
    yourself yourselves
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())


@dataclass(frozen=True)
class Found:
    """What a store knows of a passage that may answer a question."""

    words: float = (
        0.0  # how well its words fit (BM25 or the like); higher is better, 0: none of them is there
    )
    covered: float = (
        0.0  # which share of the question's words it has, rare ones counting more, from 0 to 1
    )
    meaning: float | None = None  # cosine between the question and it; None without vectors


def words_of(question: str) -> list[str]:
    """The words that say what is asked, in lower case, each once; empty if there is none but function words."""
    words = re.findall(r"[^\W_]+", question.lower())
    return [word for word in dict.fromkeys(words) if word not in FUNCTION_WORDS][:MOST_WORDS]


def phrase_of(question: str) -> str:
    """What a question of function words alone is looked up by: "Who are you?" is answered by what says just that."""
    words = re.findall(r"[^\W_]+", question.lower())
    return " ".join(words[:MOST_WORDS]) if len(words) > 1 else ""


def rank(candidates: Mapping[K, Found], limit: int) -> list[tuple[K, float, float]]:
    """The best candidates, best first: key, score, relevance."""
    best = max((found.words for found in candidates.values()), default=0.0)
    ranked = [(key, _score(found, best), _relevance(found)) for key, found in candidates.items()]
    return sorted(ranked, key=lambda one: one[1], reverse=True)[:limit]


def _score(found: Found, best: float) -> float:
    words = found.words / best if best else 0.0
    return words if found.meaning is None else MEANING * found.meaning + (1 - MEANING) * words


def _relevance(found: Found) -> float:
    """A passage may share the rare words of a question, or say the same in others; a little of both counts as well."""
    if found.meaning is None:
        return min(1.0, found.covered)
    return min(1.0, max(0.0, found.meaning, (found.covered + found.meaning) / 2))
