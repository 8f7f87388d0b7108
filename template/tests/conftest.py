"""No test of this project needs a key, a network or your settings."""

from __future__ import annotations

import importlib.util
import logging
import os
from pathlib import Path

import pytest

from agent import settings
from agent.cli.checks import check_sdk


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say so, in one line, if the template was not proven with this version of LiveKit's SDK."""
    if (sdk := check_sdk()).level != "ok":
        terminalreporter.write_line(sdk.sentence, yellow=True)


# the owner's test of the documents waits for a project that has some again
has_documents = importlib.util.find_spec("agent.knowledge.evaluate") is not None
collect_ignore = [] if has_documents else ["yours/test_knowledge.py"]


@pytest.fixture(autouse=True)
def hermetic(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An environment without your keys, keyless models, and a data folder for every test."""
    for name in [name for name in os.environ if name.startswith(("AGENT_", "LIVEKIT_"))]:
        if not name.startswith("AGENT_TEST_"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(settings, "export_env_file", lambda home: None)
    for name in (
        "agent",
        "agent.call",
        "agent.knowledge",
        "agent.memory",
    ):  # which commands give levels of their own
        logging.getLogger(name).setLevel(logging.NOTSET)
    monkeypatch.setattr(
        logging.getLogger(), "handlers", [*logging.getLogger().handlers]
    )  # what a test adds, it keeps
    monkeypatch.setenv("AGENT_MODELS", "scripted")
    monkeypatch.setenv("AGENT_DATA_DIR", str(tmp_path / "data"))
    settings.load_settings.cache_clear()
