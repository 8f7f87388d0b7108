"""Owners' edits of their projects, which an update keeps or stops at, and the update."""

from __future__ import annotations

import io
import os
import re
import subprocess
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Protocol
from unittest import mock

from hypothesis import strategies as st

from agent_update.__main__ import main
from tests.support.projects import UV, clean_environment
from tests.support.templates import MARK, Project
from tools.ownership import MOVED

PRINTABLE = st.text(
    st.characters(min_codepoint=32, exclude_categories=["C", "Z"]) | st.just(" "), max_size=30
)
OWNER = (
    "README.md",
    "src/agent/callers.py",
    "src/agent/persona.py",
    "src/agent/resources.py",
    "tests/yours/test_persona.py",
    "tests/yours/test_resources.py",
)
SHARED = (
    ".env.example",
    ".gitignore",
    "AGENTS.md",
    "Dockerfile",
    "compose.yaml",
    "deploy/kubernetes.yaml",
    "pyproject.toml",
)
ADDED = (
    ".github/workflows/deploy.yml",
    "compose.override.yaml",
    "docs/on-call.md",
    "knowledge/prices.md",
    "knowledge/menus/summer.txt",
    "migrations/0001.sql",
    "scripts/backup.sh",
    "src/agent/tools/__init__.py",
    "src/agent/tools/weather.py",
    "tests/test_weather.py",
    "tests/yours/test_weather.py",
    "uv.lock",
)


class Edit(Protocol):
    """One edit of an owner."""

    def make(self, project: Project) -> None:
        """Make the edit in this project."""
        ...


def agent_update(project: Project, version: str) -> tuple[int, str]:
    """Run the updater without installing and testing; return its exit code and its report."""
    reported = io.StringIO()
    with (
        chdir(project.path),
        redirect_stdout(reported),
        redirect_stderr(reported),
        mock.patch.dict(os.environ, UV="true"),
    ):
        code = main(["--to", version])
    return code, reported.getvalue()


@dataclass(frozen=True)
class Change:
    """Lines of a file, anywhere: after this share of them so many are cut, and these put in."""

    name: str
    place: float
    cut: int
    lines: tuple[str, ...] = ()

    def make(self, project: Project) -> None:
        """Make the edit, if the project has the file."""
        if (project.path / self.name).exists():
            old = project.read(self.name).splitlines(keepends=True)
            place = round(self.place * len(old))
            new = [f"{line}\n" for line in self.lines]
            project.write(self.name, "".join([*old[:place], *new, *old[place + self.cut :]]))


@dataclass(frozen=True)
class Delete:
    """An owner's file that they delete."""

    name: str

    def make(self, project: Project) -> None:
        """Delete it, if the project has it."""
        (project.path / self.name).unlink(missing_ok=True)


@dataclass(frozen=True)
class Below:
    """Lines put below a mark of a shared file, in the indentation of the mark."""

    name: str
    mark: int
    lines: tuple[str, ...]

    def make(self, project: Project) -> None:
        """Insert them below that mark, counted from the last one."""
        old = project.read(self.name).splitlines(keepends=True)
        marks = [number for number, line in enumerate(old) if MARK in line]
        place = marks[-1 - self.mark % len(marks)]
        margin = re.match(r"\s*", old[place])
        assert margin is not None
        new = [f"{margin[0]}{line}".rstrip() + "\n" for line in self.lines]
        project.write(self.name, "".join([*old[: place + 1], *new, *old[place + 1 :]]))


@dataclass(frozen=True)
class Table:
    """A table of a tool at the end of pyproject.toml, once: twice would be no TOML."""

    lines: tuple[str, ...]

    def make(self, project: Project) -> None:
        """Add it, if it is not there."""
        if self.lines[-1] not in project.read("pyproject.toml"):
            Below("pyproject.toml", 0, self.lines).make(project)


@dataclass(frozen=True)
class Add:
    """A new file of the owner."""

    name: str
    text: str

    def make(self, project: Project) -> None:
        """Write it."""
        project.write(self.name, self.text)


@dataclass(frozen=True)
class Describe:
    """Another value in a line of pyproject.toml that the template has rendered."""

    key: str
    value: str

    def make(self, project: Project) -> None:
        """Write it."""
        text, lines = re.subn(
            rf"(?m)^{self.key} = .*$",
            lambda _: f"{self.key} = {self.value}",
            project.read("pyproject.toml"),
            count=1,
        )
        assert lines == 1, self.key
        project.write("pyproject.toml", text)


@dataclass(frozen=True)
class Depend:
    """`uv add`; without `lock` only pyproject.toml is written, and nothing is installed."""

    package: str
    options: tuple[str, ...] = ()
    lock: bool = False

    def make(self, project: Project) -> None:
        """Run the real uv."""
        options = (*self.options, *([] if self.lock else ["--frozen"]))
        command = [str(UV), "add", "--quiet", *options, self.package]
        subprocess.run(
            command, cwd=project.path, env=clean_environment(), check=True, capture_output=True
        )


def lines(prefix: str = "") -> st.SearchStrategy[tuple[str, ...]]:
    """Some lines of a text file."""
    return st.lists(PRINTABLE.map(lambda text: prefix + text), min_size=1, max_size=4).map(tuple)


def edits() -> st.SearchStrategy[list[Edit]]:
    """Anything that an owner may do by the rules of docs/agent/ownership.md."""
    places = st.floats(0, 1)
    return st.lists(
        st.one_of(
            st.builds(Change, st.sampled_from(OWNER), places, st.just(0), lines()),
            st.builds(Change, st.sampled_from(OWNER), places, st.integers(1, 30)),
            st.builds(Delete, st.sampled_from(OWNER)),
            # a comment: in a .gitignore or a Dockerfile other lines would mean something
            st.builds(Below, st.sampled_from(SHARED), st.integers(0, 5), lines("# ")),
            st.builds(Add, st.sampled_from(ADDED), lines().map("\n".join)),
            st.builds(
                Describe,
                st.just("version"),
                st.sampled_from(['"0.2.0"', '"1.0.0rc1"', '"2026.11.23"']),
            ),
            st.builds(
                Describe,
                st.just("description"),
                st.sampled_from(['"Answers the phone."', '"🎙 = \\"tea\\""']),
            ),
            st.builds(Describe, st.just("line-length"), st.sampled_from(["100", "88"])),
            st.builds(Table, st.sampled_from(TABLES)),
            st.builds(
                Depend,
                st.sampled_from(["httpx", "aiofiles>=24", "zstandard==0.25.0", "arrow[doc]"]),
            ),
            st.builds(Depend, st.sampled_from(["hypothesis", "freezegun>=1"]), st.just(("--dev",))),
        ),
        min_size=1,
        max_size=12,
    )


def moved_edits() -> st.SearchStrategy[list[Change]]:
    """Against the rules: changes of the template's files that have moved since."""
    change = st.builds(
        Change, st.sampled_from(sorted(MOVED)), st.floats(0, 1), st.just(0), lines("# ")
    )
    return st.lists(change, min_size=1, max_size=3, unique_by=lambda edit: edit.name)


TABLES = [
    ("", "[tool.coverage.run]", "branch = true"),
    ("", "[[tool.mypy.overrides]]", 'module = "arrow.*"', "ignore_missing_imports = true"),
]

EVERYTHING: list[Edit] = [
    Change("src/agent/persona.py", 0.4, 0, ("", "# tea", "")),
    Change("src/agent/resources.py", 0.5, 10),
    Delete("README.md"),
    *(Below(name, 0, ("# theirs", "# theirs too")) for name in SHARED),
    *(Below(name, 1, ("# theirs as well",)) for name in SHARED),
    Add("knowledge/prices.md", "# Prices"),
    Add("tests/test_weather.py", "def test_it_rains() -> None: ..."),
    Add("uv.lock", "version = 1"),
    Describe("version", '"2.0.0"'),
    Describe("description", '"Mine."'),
    Describe("line-length", "100"),
    Depend("httpx"),
    Depend("hypothesis", ("--dev",)),
]
