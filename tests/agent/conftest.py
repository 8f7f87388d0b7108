"""The agent in place: its tests need no keys, no network and none of the tester's settings."""

from __future__ import annotations

import pytest

from template.tests.conftest import hermetic
from tests.support.templates import ROOT

__all__ = ["hermetic"]


@pytest.fixture(autouse=True)
def processes_find_the_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that a test starts also run the agent in place."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "template" / "src"))
