"""The agent in place: its own tests need no key, no network and none of the tester's settings."""

from __future__ import annotations

import pytest

from template.tests.conftest import hermetic
from tests.support.templates import ROOT

__all__ = ["hermetic"]


@pytest.fixture(autouse=True)
def processes_find_the_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that a test starts run the agent in place, too."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "template" / "src"))
