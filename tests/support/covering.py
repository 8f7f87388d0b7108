"""Covering arrays: few rows that have every pair of values of two questions at least once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

Pair = frozenset[tuple[str, str]]


def pairs(row: Mapping[str, str]) -> set[Pair]:
    """The pairs of answers that a row has."""
    return {frozenset(pair) for pair in combinations(row.items(), 2)}


def covering(choices: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    """Rows with every pair, always the same for the same choices; close to the fewest.

    Each row begins with the first pair that is missing, and takes for every other question the
    value that adds the most pairs.
    """
    # a dict, because it keeps its order
    missing = {
        frozenset({(one, left), (other, right)}): None
        for one, other in combinations(choices, 2)
        for left in choices[one]
        for right in choices[other]
    }
    rows: list[dict[str, str]] = []
    while missing:
        row = dict(sorted(next(iter(missing))))
        for name in [name for name in choices if name not in row]:
            added = [
                sum(frozenset({(name, value), had}) in missing for had in row.items())
                for value in choices[name]
            ]
            row[name] = choices[name][added.index(max(added))]
        rows.append({name: row[name] for name in choices})
        for pair in pairs(row):
            missing.pop(pair, None)
    return rows
