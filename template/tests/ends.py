"""Reads the table of docs/agent/ending-calls.md: a test expects of an end what the page says."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[1] / "docs" / "agent" / "ending-calls.md"


@dataclass(frozen=True)
class End:
    """One row; the page says what `heard` and `room` mean."""

    name: str
    what: str
    reason: str
    heard: str
    room: str
    proven: frozenset[str]  # server, here


def read(page: Path = PAGE) -> dict[str, End]:
    """Every row of the page, by name."""
    found: dict[str, End] = {}
    for line in page.read_text(encoding="utf-8").splitlines():
        if match := re.fullmatch(r"\| `([a-z0-9-]+)` \|(.*)\|", line):
            what, reason, heard, room, proven = (cell.strip() for cell in match[2].split(" | "))
            assert match[1] not in found, f"{match[1]} is in the table twice"
            found[match[1]] = End(
                match[1], what, reason, heard, room, frozenset(proven.split(", "))
            )
    return found


ENDS = read()


def ends(*names: str) -> pytest.MarkDecorator:
    """Run a test with `end` as each of these rows."""
    return pytest.mark.parametrize("end", [ENDS[name] for name in names], ids=names)


def proven_in(folder: Path) -> set[str]:
    """The rows that the tests of a folder name in `@ends(…)`."""
    named: set[str] = set()
    for file in sorted(folder.glob("test_*.py")):
        for arguments in re.findall(
            r"^\s*@ends\(([^)]*)\)", file.read_text(encoding="utf-8"), re.M
        ):
            named |= set(re.findall(r'"([a-z0-9-]+)"', arguments))
    return named
