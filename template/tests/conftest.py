"""No test of this project needs a key, a network or your settings, unless it takes `judge`."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from livekit.agents.llm import LLM

from agent import settings
from agent.cli.checks import check_sdk
from agent.entrypoint import models_for
from agent.models import KEYLESS, ModelsUnavailable


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say so, in one line, if the template was not proven with this version of LiveKit's SDK."""
    if (sdk := check_sdk()).level != "ok":
        terminalreporter.write_line(sdk.sentence, yellow=True)


# the owner's test of the documents waits for a project that has some again
has_documents = importlib.util.find_spec("agent.knowledge.evaluate") is not None
collect_ignore = [] if has_documents else ["yours/test_knowledge.py"]


JUDGED = "asks your language model, with your keys: `uv run pytest -m judged`"


def pytest_configure(config: pytest.Config) -> None:
    """`-m judged` is known."""
    config.addinivalue_line("markers", f"judged: {JUDGED}; each test that takes `judge`")


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests that take `judge` are judged, and cost money: they run when they are asked for."""
    for item in items:
        if "judge" in getattr(item, "fixturenames", ()):
            item.add_marker("judged")
            if "judged" not in config.getoption("markexpr"):
                item.add_marker(pytest.mark.skip(reason=JUDGED))


@pytest.fixture
async def judge() -> AsyncIterator[LLM[Any]]:
    """Your agent's own language model. Another one judges if you override this in tests/yours/."""
    chosen = settings.load_settings()
    if chosen.models in KEYLESS:
        pytest.skip(f"AGENT_MODELS={chosen.models} is a script, which judges nothing")
    try:
        model = models_for(chosen).llm
    except ModelsUnavailable as error:
        pytest.skip(str(error))
    if not isinstance(model, LLM):
        pytest.skip("a realtime model reads nothing: override `judge` in tests/yours/conftest.py")
    yield model
    await model.aclose()


@pytest.fixture(autouse=True)
def hermetic(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """An environment without your keys, keyless models, and a data folder for every test.

    Judged tests have your keys and models. No test has your data or your memory.
    """
    if "judge" in request.fixturenames:
        with suppress(ModuleNotFoundError):  # a project that remembers nobody has no such module
            scratch = importlib.import_module("agent.memory.scratch")
            monkeypatch.setenv(scratch.SETTING, f"scratch:{tmp_path}")
        monkeypatch.setenv("AGENT_DATA_DIR", str(tmp_path / "data"))
        settings.load_settings.cache_clear()
        return
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
