"""The template's table of ends, for the tests on a real server; `template/tests/ends.py` reads it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.support.templates import ROOT


class End(Protocol):
    """One row of the table."""

    name: str
    reason: str
    heard: str
    room: str
    proven: frozenset[str]


def _load() -> Any:
    """The template's tests are a package of the same name as ours, so this one module is loaded by its path."""
    spec = importlib.util.spec_from_file_location(
        "template_ends", ROOT / "template" / "tests" / "ends.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


_table = _load()
ENDS: dict[str, End] = _table.ENDS


def ends(*names: str) -> pytest.MarkDecorator:
    """Run a test with `end` as each of these rows."""
    marked: pytest.MarkDecorator = _table.ends(*names)
    return marked


def proven_in(folder: Path) -> set[str]:
    """The rows that the tests of a folder name."""
    named: set[str] = _table.proven_in(folder)
    return named
