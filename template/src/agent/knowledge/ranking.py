"""How words and meaning are combined: the same for every store.

On public questions that nobody wrote for it this finds about as much first as vectors alone, and
more among the first five than either half (the template's docs/benchmarks.md). Fusing the two
orders by rank, as textbooks do, was worse than vectors alone when the design was chosen.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

K = TypeVar("K", bound=Hashable)

# passages that each half may propose
CANDIDATES = 50
MOST_WORDS = 64
# a word in the headings says more than one in the text
TITLE_WEIGHT = 2.0
# the usual k1 and b of BM25
SATURATION, LENGTH = 1.2, 0.75
# what the likeness of meaning counts; the rest is the likeness of words
MEANING = 0.8

# Words that say how something is asked, not what: with them a question finds the wordiest passage.
_FUNCTION_WORDS = """
    a about after all also am an and any anybody anyone anything are aren as ask at be because
    been before being between both but by bye can cannot could couldn d did didn do does doesn
    doing don during each either else er ever every for from further get gets give go goes going
    gonna good got had hadn has hasn have haven having he hello her here hers herself hey hi him
    himself his how i if in into is isn it its itself just know let like ll m many may maybe me
    might mine more most much must my myself need nor not now o of off oh ok okay on once one only
    or other ought our ours ourselves out over own per please possible quite rather re really s
    said same say see shall shan she should shouldn so some somebody someone something such sure t
    tell than thank thanks that the their theirs them themselves then there these they thing
    things this those through to too uh um under until up upon us ve very want wanted wants was
    wasn we well were weren what whatever when where whether which while who whom whose why will
    wish with within without won wonder wondering would wouldn yeah yes yet you your yours
    yourself yourselves
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())


@dataclass(frozen=True)
class Candidate:
    """What a store knows of a passage that may answer a question.

    `words` is how well its words fit (BM25 or the like), 0 where it has none of them; `covered` is
    the share of the question's words that it has, from 0 to 1, rare ones counting more; `meaning`
    is the cosine between the question and it, None without vectors.
    """

    words: float = 0.0
    covered: float = 0.0
    meaning: float | None = None


def words_of(question: str) -> list[str]:
    """The words that say what is asked, in lower case, each once; function words are left out."""
    words = re.findall(r"[^\W_]+", question.lower())
    return [word for word in dict.fromkeys(words) if word not in FUNCTION_WORDS][:MOST_WORDS]


def phrase_of(question: str) -> str:
    """What a question of function words alone is looked up by, such as "who are you"."""
    words = re.findall(r"[^\W_]+", question.lower())
    return " ".join(words[:MOST_WORDS]) if len(words) > 1 else ""


def rank(
    candidates: Mapping[K, Candidate], section_of: Callable[[K], Hashable], limit: int
) -> list[tuple[K, float, float]]:
    """The best candidates, each section's best first: key, score, relevance.

    A section is what a document says below one heading. A long one is cut into several passages,
    which are much alike: none of it comes twice before another section has come once. `section_of`
    is asked of as few as possible.
    """
    best = max((one.words for one in candidates.values()), default=0.0)
    ranked = [(key, _score(one, best), _relevance(one)) for key, one in candidates.items()]
    rounds, passages = list[tuple[int, tuple[K, float, float]]](), Counter[Hashable]()
    for one in sorted(ranked, key=lambda one: one[1], reverse=True):
        section = section_of(one[0])
        rounds.append((passages[section], one))
        passages[section] += 1
        if len(passages) == limit:
            break
    return [one for _, one in sorted(rounds, key=lambda known: known[0])][:limit]


def _score(one: Candidate, best: float) -> float:
    words = one.words / best if best else 0.0
    return words if one.meaning is None else MEANING * one.meaning + (1 - MEANING) * words


def _relevance(one: Candidate) -> float:
    """High where the passage says the same in other words, or some of it in the same words."""
    if one.meaning is None:
        return min(1.0, one.covered)
    return min(1.0, max(0.0, one.meaning, (one.covered + one.meaning) / 2))
