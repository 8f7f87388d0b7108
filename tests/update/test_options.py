"""Options that an update switches: files come and go, the owner's stay, going back is clean."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.support.templates import CHOICES, COMBINATIONS, WORK_TREE, Project, Template
from tests.update.owners import EVERYTHING

ALONE = [(name, values) for name in CHOICES for values in (CHOICES[name], CHOICES[name][::-1])]


def owned(template: Template, folder: Path, answers: dict[str, str]) -> Project:
    """A project with these answers and all of an owner's edits."""
    project = template.copy(folder, **answers)
    for edit in EVERYTHING:
        edit.make(project)
    return project


@pytest.mark.parametrize("direction", [1, -1], ids=["forth", "back"])
def test_options_go_round_with_everything_of_the_owners_in_place(
    template: Template, direction: int, tmp_path: Path
) -> None:
    # neighbours go round against each other, so that each value meets others on its way
    turns = {name: direction * (-1) ** at for at, name in enumerate(CHOICES)}
    assert_a_round_trip(
        template,
        tmp_path,
        [
            {name: values[turns[name] * step % len(values)] for name, values in CHOICES.items()}
            for step in range(max(map(len, CHOICES.values())))
        ],
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("question", "values"),
    ALONE,
    ids=lambda value: str(value) if isinstance(value, str) else "-".join(value),
)
def test_one_option_goes_round_with_everything_of_the_owners_in_place(
    template: Template, question: str, values: list[str], tmp_path: Path
) -> None:
    assert_a_round_trip(
        template, tmp_path, [COMBINATIONS[0] | {question: value} for value in values]
    )


def assert_a_round_trip(template: Template, folder: Path, stops: list[dict[str, str]]) -> None:
    """Switch to each set of answers in turn, then to the first; compare with fresh copies."""
    project = owned(template, folder / "project", stops[0])
    project.commit()
    # git ignores it, and so must an update
    project.write("data/memory.db", "what callers have said")
    before = project.files()
    for number, answers in enumerate([*stops[1:], stops[0]]):
        project.update(WORK_TREE, **answers)

        assert project.conflicts() == []
        expected = owned(template, folder / str(number), answers).files()
        after = project.files()
        # these come with the first copy only, and are never taken away
        once = (
            *("data/", "knowledge/", "src/agent/callers.py", "tests/yours/scenarios.toml"),
            *("tests/yours/test_behaviour.py", "tests/yours/test_knowledge.py"),
        )
        theirs = {name for name in before if name.startswith(once)}
        rest = {name for name in after.keys() | expected.keys() if not name.startswith(once)}
        assert {name for name in rest if after.get(name) != expected.get(name)} == set()
        assert {name for name in theirs if after.get(name) != before[name]} == set()
        project.commit()
    assert project.files() == before


@pytest.mark.parametrize("models", [None, *CHOICES["models"]])
def test_a_project_from_before_the_question_keeps_livekits_models_or_gets_others(
    template: Template, models: str | None, tmp_path: Path
) -> None:
    def modules(project: Project) -> set[str]:
        return {name for name in project.files() if name.startswith("src/agent/models/")}

    project = template.copy(tmp_path / "project", "v0.5.0")
    project.commit()
    project.update(WORK_TREE, **({"models": models} if models else {}))

    chosen = models or "livekit"
    assert (project.conflicts(), project.answers()["models"]) == ([], chosen)
    assert modules(project) == modules(template.copy(tmp_path / "fresh", models=chosen))
    assert f"src/agent/models/{chosen}.py" in modules(project)


def test_documents_outlive_an_agent_that_looks_nothing_up(
    template: Template, tmp_path: Path
) -> None:
    project = template.copy(tmp_path / "project")
    project.write("knowledge/prices.md", "# Prices\n")
    project.commit()
    documents = {
        name: content for name, content in project.files().items() if name.startswith("knowledge/")
    }
    project.update(WORK_TREE, knowledge="none")
    assert not (project.path / "src/agent/knowledge/sqlite.py").exists()
    assert {name: project.files().get(name) for name in documents} == documents


@pytest.mark.parametrize(("version", "knowledge"), [("v0.4.0", "none"), ("v0.4.0", "sqlite")])
def test_the_owners_test_of_the_documents_outlives_them(
    template: Template, version: str, knowledge: str, tmp_path: Path
) -> None:
    """It imports what is no longer there, so the project's own tests and types leave it out."""
    name = "tests/yours/test_knowledge.py"
    project = template.copy(tmp_path / "project", version, knowledge=knowledge)
    project.write(name, f"{project.read(name)}\n\n# The owner's.\n")
    project.commit()
    mine = project.read(name)

    project.update(WORK_TREE, knowledge="none")

    assert (project.read(name), project.conflicts()) == (mine, [])
    assert not (project.path / "src/agent/knowledge/evaluate.py").exists()
    collect = [sys.executable, "-m", "pytest", "-q", "--collect-only", "tests"]
    found = subprocess.run(
        collect,
        cwd=project.path,
        env={**os.environ, "PYTHONPATH": "src"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "tests/yours/test_persona.py" in found
    assert name not in found
    metadata = tomllib.loads(project.read("pyproject.toml"))
    assert any(re.search(one, name) for one in metadata["tool"]["mypy"]["exclude"])
    assert not (template.copy(tmp_path / "fresh", knowledge="none").path / name).exists()
