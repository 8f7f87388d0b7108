"""`make release` adds a version to the bundle once; any checkout rebuilds the history from it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.templates import ROOT, WORK_TREE, Project, git
from tools.history import PARTS

MADE = (
    *(part for part in PARTS if part != "CHANGELOG.md"),
    "tools",
    "tests/__init__.py",
    "tests/support",
)
LEFT_OUT = re.compile(r"template/(docs|knowledge|tests|src/agent/\w+)/")
CHANGELOG = """\
# Changelog

## [Unreleased]

## [0.2.0] - 2026-02-01

### Fixed
- A call ends when its caller leaves.

## [0.1.0] - 2026-01-01

### Added
- Everything.

## [0.0.9] - 2025-12-01
"""


def make_checkout(folder: Path) -> Project:
    """A checkout with a changelog and without releases, everything committed.

    Its template has few files and few answers, because a release is tried with all of both.
    """
    checkout = Project(folder)
    for name in git(
        ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *MADE
    ).split("\0"):
        if (ROOT / name).is_file() and not LEFT_OUT.match(name):
            checkout.write(name, (ROOT / name).read_text(encoding="utf-8"))
            (folder / name).chmod((ROOT / name).stat().st_mode)
    checkout.write("CHANGELOG.md", CHANGELOG)
    fewer = checkout.read("copier.yml").replace("[Apache-2.0, MIT, proprietary]", "[Apache-2.0]")
    fewer = re.sub(r"    Documents in PostgreSQL.*\n    Nowhere: none\n", "", fewer)
    fewer = re.sub(r"    Redis or Valkey.*\n", "", fewer)
    checkout.write("copier.yml", fewer)
    checkout.commit()
    assert run(checkout, "ownership.py") == ""
    checkout.commit()
    return checkout


@pytest.fixture
def checkout(tmp_path: Path) -> Project:
    """A checkout."""
    return make_checkout(tmp_path / "checkout")


def run(checkout: Project, tool: str, *arguments: str) -> str:
    """The complaint of a tool of the checkout; empty if it succeeded."""
    command = [sys.executable, "-B", str(checkout.path / "tools" / tool), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = "".join(
        line
        for line in done.stderr.splitlines(keepends=True)
        if not line.startswith("gate: updated")
    )
    assert bool(done.returncode) == bool(said), done
    return said


def test_a_history_has_every_release_and_then_the_work_tree(
    checkout: Project, tmp_path: Path
) -> None:
    released = checkout.read("hooks/pre_prompt.py")
    for version in ("0.1.0", "0.2.0"):
        assert run(checkout, "release.py", version) == ""
        checkout.commit()
        checkout.write("hooks/pre_prompt.py", f"{released}# after {version}\n")
        checkout.commit()
    checkout.write("hooks/not_tracked_yet.py", "# new\n")
    (checkout.path / "hooks" / "post_gen_project.py").unlink()

    history = tmp_path / "history"
    assert run(checkout, "history.py", str(history)) == ""

    assert git(history, "tag", "--sort=version:refname").split() == ["v0.1.0", "v0.2.0", WORK_TREE]
    assert git(history, "show", "v0.1.0:hooks/pre_prompt.py") == released
    assert git(history, "show", "v0.2.0:hooks/pre_prompt.py") == f"{released}# after 0.1.0\n"
    assert git(history, "cat-file", "-t", "v0.1.0") == "tag\n"
    assert (history / "hooks" / "pre_prompt.py").read_text(
        encoding="utf-8"
    ) == f"{released}# after 0.2.0\n"
    assert (history / "hooks" / "not_tracked_yet.py").exists()
    assert not (history / "hooks" / "post_gen_project.py").exists()
    assert git(history, "status", "--porcelain") == ""


def test_the_same_release_is_the_same_bytes_wherever_it_is_made(tmp_path: Path) -> None:
    bundles = []
    for name in ("here", "there"):
        checkout = make_checkout(tmp_path / name)
        assert run(checkout, "release.py", "v0.1.0") == ""
        bundles.append((checkout.path / "releases" / "history.bundle").read_bytes())
    assert bundles[0] == bundles[1]


@pytest.mark.parametrize(
    ("version", "complaint"),
    [
        ("1.x", "'1.x' is not a version: write one such as 0.2.0"),
        ("0.01.0", "'0.01.0' cannot be released: write a version such as 0.2.0"),
        ("999.0.0", "'999.0.0' cannot be released: write a version such as 0.2.0"),
        (
            "0.3.0",
            "CHANGELOG.md says nothing about 0.3.0: write a section `## [0.3.0] - YYYY-MM-DD`",
        ),
        ("0.0.9", "CHANGELOG.md says nothing about 0.0.9"),
    ],
)
def test_a_version_that_cannot_be_released_is_refused(
    checkout: Project, version: str, complaint: str
) -> None:
    assert f"release: {complaint}" in run(checkout, "release.py", version)
    assert not (checkout.path / "releases").exists()


def test_a_released_version_never_changes(checkout: Project) -> None:
    assert run(checkout, "release.py", "0.2.0") == ""
    checkout.commit()
    bundle = (checkout.path / "releases" / "history.bundle").read_bytes()
    for version in ("0.2.0", "0.1.0"):
        assert f"{version} is not newer than 0.2.0" in run(checkout, "release.py", version)
    assert (checkout.path / "releases" / "history.bundle").read_bytes() == bundle


def test_a_version_that_would_break_a_promise_is_not_released(checkout: Project) -> None:
    assert run(checkout, "release.py", "0.1.0") == ""
    checkout.write(
        "copier.yml",
        checkout.read("copier.yml").replace("    Nowhere, every caller is new: none\n", ""),
    )
    checkout.commit()
    bundle = (checkout.path / "releases" / "history.bundle").read_bytes()
    assert "memory=none of v0.1.0 is gone" in run(checkout, "release.py", "0.2.0")
    assert (checkout.path / "releases" / "history.bundle").read_bytes() == bundle


def test_uncommitted_work_is_not_released(checkout: Project) -> None:
    checkout.write("template/new.md", "new\n")
    assert "there is uncommitted work, such as template/new.md: commit it first" in run(
        checkout, "release.py", "0.1.0"
    )


def test_a_tree_whose_owners_are_out_of_date_is_not_released(checkout: Project) -> None:
    checkout.write("template/new.md", "new\n")
    checkout.commit()
    assert "run `make ownership` and commit it" in run(checkout, "release.py", "0.1.0")


def test_a_history_is_not_made_over_something_else(checkout: Project, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert "is not empty: name a new folder" in run(checkout, "history.py", str(tmp_path / "full"))
