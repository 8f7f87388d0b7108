"""Shared by the tests of renderings: each combination, copied once."""

from __future__ import annotations

import pytest

from tests.support.both_tools import BothTools
from tests.support.templates import COMBINATIONS, Project, identify


@pytest.fixture(params=COMBINATIONS, ids=identify)
def case(request: pytest.FixtureRequest) -> dict[str, str]:
    """One combination."""
    found: dict[str, str] = request.param
    return found


@pytest.fixture
def project(both_tools: BothTools, case: dict[str, str]) -> Project:
    """A read-only project of that combination."""
    return both_tools.copied(case)


@pytest.fixture
def every_copy(both_tools: BothTools) -> list[Project]:
    """A read-only project of every combination."""
    return [both_tools.copied(case) for case in COMBINATIONS]
