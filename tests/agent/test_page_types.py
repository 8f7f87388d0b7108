"""The code on the pages for owners is right for the mypy of a project."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from mypy import api

from tests.agent.test_how_to import blocks
from tests.support.templates import ROOT

# what the modules that are shown a part of have imported already
KNOWN = """\
from __future__ import annotations
from typing import Any
from unittest.mock import AsyncMock, Mock
from livekit import api
from livekit.agents import function_tool
from agent.conversation import CallAgent
from agent.lifecycle import Call
from agent.memory import Profile
from agent.persona import INSTRUCTIONS
from agent.settings import Settings
from agent.transport import Caller
from template.tests.talk import talk
class MyModel: ...
"""
# a package that no test needs
ABSENT = {"from livekit.plugins import noise_cancellation": "noise_cancellation: Any"}
SECTIONS = [
    ("how-to", "Add a tool"),
    ("how-to", "Hand over to another agent"),
    ("how-to", "Ask something before the greeting"),
    ("how-to", "Know what a call is about"),
    ("how-to", "Do something after a call"),
    ("how-to", "Go live"),
    ("how-to", "When no agent comes"),
    ("models", "Your persona's own choice"),
    ("telephone", "Hear keys"),
    ("telephone", "Have the agent call somebody"),
    ("telephone", "Let the callee speak first"),
    ("telephone", "Voicemail"),
    ("telephone", "Hand a caller on"),
]


def module(code: str) -> str:
    """A module with this code; a method stands in a persona."""
    for line, stand_in in ABSENT.items():
        code = code.replace(line, stand_in)
    if code.startswith(" "):
        code = f"class Persona(CallAgent):\n{code}"
    return f"{KNOWN}\n{code}"


def complaints(folder: Path, modules: dict[str, str]) -> str:
    """What mypy says of modules, by the settings of this repository, which are as strict."""
    for name, code in modules.items():
        (folder / f"{name}.py").write_text(code, encoding="utf-8")
    said, failed, _ = api.run(
        [
            *("--config-file", str(ROOT / "pyproject.toml")),
            *("--cache-dir", str(ROOT / ".mypy_cache")),
            *("--python-executable", sys.executable),
            *(str(folder / f"{name}.py") for name in modules),
        ]
    )
    assert not failed, failed
    return said


def test_the_code_that_is_shown_has_the_right_types(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    modules = {
        f"{page.replace('-', '_')}_{section}_{number}": module(code)
        for section, (page, title) in enumerate(SECTIONS)
        for number, code in enumerate(blocks(f"docs/agent/{page}.md", title, "python"))
    }
    said = complaints(tmp_path, modules)
    assert said.startswith("Success: "), said
