"""The rows that represent all combinations have every pair of values."""

from __future__ import annotations

from itertools import combinations

import pytest

from tests.support.covering import covering, pairs
from tests.support.projects import PAIRS
from tests.support.templates import CHOICES

ALL = [
    CHOICES,
    {"one": ["a"], "other": ["b"]},
    {f"question {n}": [f"{n}.{value}" for value in range(2 + n % 4)] for n in range(11)},
]


def every_pair(choices: dict[str, list[str]]) -> set[frozenset[tuple[str, str]]]:
    """All pairs to cover."""
    return {
        frozenset({(one, left), (other, right)})
        for one, other in combinations(choices, 2)
        for left in choices[one]
        for right in choices[other]
    }


@pytest.mark.parametrize("choices", ALL, ids=len)
def test_a_covering_array_has_every_pair_in_few_rows(choices: dict[str, list[str]]) -> None:
    rows = covering(choices)
    assert set.union(*map(pairs, rows)) == every_pair(choices)
    assert all(row[name] in choices[name] for row in rows for name in choices)
    largest, second = sorted(map(len, choices.values()))[-1:-3:-1]
    assert largest * second <= len(rows) <= 2 * largest * second
    assert rows == covering(choices)


def test_the_projects_that_are_installed_and_called_have_every_pair() -> None:
    assert set.union(*(pairs(chosen.data()) for chosen in PAIRS)) == every_pair(CHOICES)
