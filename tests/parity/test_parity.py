"""Cookiecutter makes the same project as Copier: folders, bytes, modes, and an answers file."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import copier
import pytest

from tests.support.both_tools import BothTools
from tests.support.templates import (
    ASKED,
    AWKWARD_NAMES,
    COMBINATIONS,
    WORK_TREE,
    Project,
    Template,
    cookiecut,
    git,
    identify,
)

TOOLS = ("copier", "cookiecutter")


def assert_same(copied: Project, baked: Project) -> None:
    """Compare two projects, naming the files that differ."""
    ours, theirs = copied.files(), baked.files()
    assert {
        name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)
    } == set()
    assert copied.folders() == baked.folders()


@pytest.mark.parametrize("case", COMBINATIONS, ids=identify)
def test_copier_and_cookiecutter_agree(
    both_tools: BothTools, case: dict[str, str], record_property: Callable[[str, object], None]
) -> None:
    copied, baked = both_tools.copied(case), both_tools.baked(case)
    record_property(
        "seconds of both tools", sum(both_tools.seconds[tool, identify(case)] for tool in TOOLS)
    )
    ours, theirs = copied.files(), baked.files()
    # only the name of the template's folder in this file differs
    origin = theirs.pop(".copier-answers.yml")
    assert origin[1] == ours.pop(".copier-answers.yml")[1]
    assert {
        name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)
    } == set()
    assert copied.folders() == baked.folders()
    assert baked.answers() == copied.answers() | {"_src_path": baked.answers()["_src_path"]}
    assert baked.answers() == baked.answers() | case | {"_commit": WORK_TREE}


@pytest.mark.parametrize(
    "names",
    [
        {},
        AWKWARD_NAMES,
        {"project_name": "🎙🎙🎙"},
        {"project_name": "3 Bears & Söhne"},
        {"project_name": "agent"},
        {"project_name": "x" * 80, "description": " ".join(["words"] * 33), "author_name": "3.10"},
    ],
    ids=lambda names: ascii(names.get("project_name"))[:20],
)
def test_copier_and_cookiecutter_agree_on_awkward_names(
    template: Template, names: dict[str, str], tmp_path: Path
) -> None:
    baked = template.bake(tmp_path / "cookiecutter", **names)
    assert_same(template.copy(tmp_path / "copier", **names), baked)
    assert baked.answers()["_src_path"] == template.url


def test_they_agree_on_a_folder_that_is_no_git_repository(
    template: Template, tmp_path: Path
) -> None:
    plain = Template(tmp_path / "plain")
    shutil.copytree(template.path, plain.path, ignore=shutil.ignore_patterns(".git"))
    left_behind = [
        "template/.venv/lib/x.py",
        "template/src/agent/__pycache__/x.pyc",
        "template/uv.lock",
        "template/data/x",
    ]
    for name in left_behind:
        Project(plain.path).write(name, "{{ not_a_name }}\n")
    done = cookiecut(str(plain.path), tmp_path / "cookiecutter")
    assert done.returncode == 0, done.stderr
    baked = Project(tmp_path / "cookiecutter" / "my-agent")
    copier.run_copy(str(plain.path), tmp_path / "copier", defaults=True, quiet=True)
    assert_same(Project(tmp_path / "copier"), baked)
    assert "_commit" not in baked.answers()


def test_cookiecutter_overwrites_nothing_of_a_project_that_is_there(
    template: Template, tmp_path: Path
) -> None:
    project = template.bake(tmp_path / "projects")
    for name in (".env.local", "data/memory.db", "uv.lock", "knowledge/mine.md"):
        project.write(name, "the owner's\n")
    project.commit()
    before = project.files()
    again = ("--checkout", WORK_TREE, "--overwrite-if-exists", "knowledge=none")
    done = cookiecut(template.url, project.path.parent, *again)
    assert done.returncode == 1
    assert "my-agent exists and is not empty" in done.stdout + done.stderr
    assert "`uv run agent update`" in done.stdout + done.stderr
    assert project.files() == before
    assert (project.path / ".git").is_dir()


def test_answers_that_were_given_to_another_version_are_not_replayed(
    template: Template, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "cookiecutter", "--output-dir"]
    template.bake(tmp_path / "first", "v0.2.0")
    replay = [str(tmp_path / "second"), "--replay", "--checkout", WORK_TREE, template.url]
    # fetch it again; then a line for each question that that version did not ask
    answers = "y\n" + 20 * "\n"
    done = subprocess.run(
        [*command, *replay], input=answers, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert (
        f"these answers were given to v0.2.0, and this is {WORK_TREE}" in done.stdout + done.stderr
    )
    assert not list((tmp_path / "second").glob("*"))


def test_a_terminal_that_cannot_show_the_name_does_not_cost_the_project(
    template: Template, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "latin-1")
    monkeypatch.setenv("PYTHONUTF8", "0")
    assert template.bake(tmp_path, project_name="🎙 Desk").read("README.md").startswith("# 🎙 Desk\n")


def test_cookiecutter_says_when_what_it_renders_is_no_version(
    template: Template, tmp_path: Path
) -> None:
    work = Template(tmp_path / "work")
    shutil.copytree(template.path, work.path)
    work.add_line("README.md", "Not committed.")
    git(work.path, "checkout", "--quiet", "--detach")
    done = cookiecut(str(work.path), tmp_path / "edited")
    assert f"This is {WORK_TREE} with uncommitted changes." in done.stderr
    shutil.rmtree(work.path / ".git")
    done = cookiecut(str(work.path), tmp_path / "plain")
    assert "This is not a git repository: the project cannot be updated later." in done.stderr


def test_cookiecutter_asks_every_question_in_copiers_words(
    template: Template, tmp_path: Path
) -> None:
    command = [
        sys.executable,
        "-m",
        "cookiecutter",
        "--output-dir",
        str(tmp_path),
        str(template.path),
    ]
    done = subprocess.run(
        command, input="\n" * len(ASKED), capture_output=True, text=True, check=True
    )
    said = " ".join(done.stdout.split())
    for question in ASKED.values():
        assert question["help"] in said
    assert "uv run agent chat" in said
    assert (tmp_path / "my-agent" / ".copier-answers.yml").is_file()
