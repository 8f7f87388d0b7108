"""BM25 over the words of an FTS5 table, its weights computed when the index is made.

FTS5 cuts and stems the words, but computes every weight again for every question: 5 ms among 10,000
passages, a third of which share a word with it. Here a word is two arrays, and a question a few
additions.
"""

from __future__ import annotations

import math
import sqlite3
from array import array

import numpy as np
from numpy.typing import NDArray

from agent.knowledge.ranking import FUNCTION_WORDS, LENGTH, SATURATION, TITLE_WEIGHT

TOKENIZE = "porter unicode61"

WORD_TABLE = """
CREATE TABLE words(
    term TEXT PRIMARY KEY, weight REAL NOT NULL, passages BLOB NOT NULL, scores BLOB NOT NULL
);
"""


def write_words(index: sqlite3.Connection, passages: int) -> None:
    """Fill the table from `passages(title, text)`, whose rows are numbered from 1 on."""
    index.execute("CREATE VIRTUAL TABLE temp.instances USING fts5vocab(main, passages, 'instance')")
    lengths = np.zeros(passages + 1, np.float32)
    postings: dict[str, tuple[array[int], array[float]]] = {}
    found = index.execute(
        "SELECT term, doc, sum(CASE col WHEN 'title' THEN ? ELSE 1 END), count(*) FROM instances"
        " GROUP BY term, doc",
        (TITLE_WEIGHT,),
    )
    skipped = terms_of(index, sorted(FUNCTION_WORDS))
    for term, row, weight, count in found:
        lengths[row] += count
        if term not in skipped:
            rows, weights = postings.setdefault(term, (array("i"), array("f")))
            rows.append(row)
            weights.append(weight)
    average = max(1e-6, float(lengths.sum()) / max(1, passages))
    norm = SATURATION * (1 - LENGTH + LENGTH * lengths / average)
    for term, (rows, weights) in postings.items():
        at, frequency = np.array(rows, "<i4"), np.array(weights, np.float32)
        rarity = rarity_of(len(rows), passages)
        scores = rarity * frequency * (SATURATION + 1) / (frequency + norm[at])
        index.execute(
            "INSERT INTO words VALUES(?, ?, ?, ?)",
            (term, rarity, at.tobytes(), scores.astype("<f4").tobytes()),
        )
    index.execute("DROP TABLE temp.instances")


def rarity_of(having: int, passages: int) -> float:
    """The weight of a word that so many of the passages have."""
    return math.log(1 + (passages - having + 0.5) / (having + 0.5))


def terms_of(index: sqlite3.Connection, words: list[str]) -> set[str]:
    """The words as the index has them: stemmed, without accents."""
    index.execute(
        f"CREATE VIRTUAL TABLE IF NOT EXISTS temp.asked USING fts5(words, tokenize = '{TOKENIZE}')"
    )
    index.execute(
        "CREATE VIRTUAL TABLE IF NOT EXISTS temp.terms USING fts5vocab(temp, asked, 'row')"
    )
    index.execute("DELETE FROM temp.asked")
    index.execute("INSERT INTO temp.asked VALUES(?)", (" ".join(words),))
    return {term for (term,) in index.execute("SELECT term FROM temp.terms")}


def scores_of(
    index: sqlite3.Connection, words: list[str], passages: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """BM25 of every passage by row, and the share of the question's words that it has."""
    terms = terms_of(index, words)
    scores, covered = np.zeros(passages + 1, np.float32), np.zeros(passages + 1, np.float32)
    total = len(terms) * rarity_of(0, passages)
    marks = ", ".join("?" * len(terms))
    for rarity, rows, weights in index.execute(
        f"SELECT weight, passages, scores FROM words WHERE term IN ({marks})", tuple(terms)
    ):
        at = np.frombuffer(rows, "<i4")
        scores[at] += np.frombuffer(weights, "<f4")
        covered[at] += rarity
        total += rarity - rarity_of(0, passages)
    return scores[1:], covered[1:] / max(total, 1e-6)
