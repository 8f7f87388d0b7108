"""`uv run agent update` in a real project, with the real uv and the Copier that it fetches."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import projects
from tests.support.templates import WORK_TREE, Template
from tests.update.test_update import FIX, NEXT, OURS, make_it_theirs

DEPENDENCY = "tomli-w"  # small, and nothing of the template's needs it


@pytest.fixture
def fixed(own_template: Template) -> Template:
    """The template with a next release, which has a fix and a dependency more."""
    own_template.add_line(OURS, FIX)
    own_template.add_dependency(DEPENDENCY)
    own_template.release(NEXT)
    return own_template


@dataclass(frozen=True)
class Desk:
    """An installed project that its owner has changed and committed."""

    project: projects.Project
    environment: dict[str, str]

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return self.project.run(*command, check=False, env=self.environment)


def unkind_settings(folder: Path) -> Path:
    """What people set for all their repositories, and what makes Copier by itself drop lines of theirs."""
    (folder / "attributes").write_text("* -diff\n", encoding="utf-8")
    (folder / "excludes").write_text("AGENTS.md\npyproject.toml\n", encoding="utf-8")
    core = f"[core]\nattributesFile = {folder}/attributes\nexcludesFile = {folder}/excludes\n"
    settings = folder / "gitconfig"
    settings.write_text(
        f"{core}[apply]\nwhitespace = error\n[status]\nshowUntrackedFiles = no\n", encoding="utf-8"
    )
    return settings


@pytest.fixture
def desk(fixed: Template, tmp_path: Path) -> Desk:
    """A project of the version before; what is installed is beside it, so that its files can be compared."""
    chosen = projects.Answers()
    project = projects.Project(
        fixed.copy(tmp_path / "desk", WORK_TREE, **chosen.data()).path, chosen
    )
    make_it_theirs(project)
    project.write("notes.md", "Two spaces at the end  \nare a line break.\n")
    environment = {
        "GIT_CONFIG_GLOBAL": str(unkind_settings(tmp_path)),
        "GIT_CONFIG_NOSYSTEM": "1",
        "PYTEST_ADDOPTS": "tests/yours/test_persona.py",  # the others are run by the tests of the template
        "PYTHONDONTWRITEBYTECODE": "1",
        "UV_PROJECT_ENVIRONMENT": str(tmp_path / "environment"),
    }
    desk = Desk(project, environment)
    assert desk.run("uv", "sync", "--quiet").returncode == 0
    project.commit()
    return desk


def test_the_fix_and_its_dependency_arrive_and_the_owners_lines_stay(desk: Desk) -> None:
    project = desk.project
    before = project.files()
    assert DEPENDENCY not in project.read("uv.lock")

    done = desk.run("uv", "run", "agent", "update")

    assert done.returncode == 0, done.stderr
    after = project.files()
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert changed == {OURS, "pyproject.toml", "uv.lock", ".copier-answers.yml", ".template.toml"}
    assert FIX in project.read(OURS)
    assert '"httpx' in project.read("pyproject.toml")
    assert f'name = "{DEPENDENCY}"' in project.read("uv.lock")
    assert f"from {WORK_TREE} to {NEXT}" in done.stdout
    assert desk.run("uv", "run", "--no-sync", "python", "-c", "import tomli_w").returncode == 0

    project.commit()
    again = desk.run("uv", "run", "agent", "update")
    assert again.returncode == 0
    assert f"Nothing to do: the project is at {NEXT}" in again.stdout
    assert project.changes() == []


@pytest.mark.parametrize(
    ("name", "arguments", "problem"),
    [
        (OURS, [], f"{OURS}:"),
        ("src/agent/memory/sqlite.py", ["-d", "memory=none"], "sqlite.py was changed by you"),
    ],
    ids=["a line that the update changes", "a file that an option removes"],
)
def test_an_owners_change_of_a_file_of_ours_stops_the_update(
    desk: Desk, name: str, arguments: list[str], problem: str
) -> None:
    project = desk.project
    project.write(name, f"{project.read(name)}# The owner's.\n")
    project.commit()
    before = project.files()

    done = desk.run("uv", "run", "agent", "update", *arguments)

    assert done.returncode == 1
    assert problem in done.stderr
    assert project.files() == before
    assert project.changes() == []
