"""`copier update` brings the template's fixes and keeps the owner's files, from every release."""

from __future__ import annotations

import shutil
from pathlib import Path

import copier
import pytest

from tests.support.templates import (
    ROOT,
    WORK_TREE,
    Project,
    Template,
    git,
    released,
)
from tests.update.owners import Depend
from tools.history import PARTS

# this checkout with a fix in it
NEXT = "v999.1.0"
VERSIONS = [*released(), WORK_TREE]
PERSONA = "src/agent/persona.py"
FIXED = "src/agent/settings.py"
FIX = "# A fix that owners wait for."
DEPENDENCY = '"anyio>=4",'


@pytest.fixture
def fixed(own_template: Template) -> Template:
    """The template with a next release, which changes a file of every class."""
    own_template.add_line(FIXED, FIX)
    own_template.add_dependency("anyio>=4")
    for name in (PERSONA, "README.md", "knowledge/news.md"):
        own_template.source(name).touch()
        own_template.add_line(name, "# This comes with first copies only.")
    own_template.release(NEXT)
    return own_template


def make_it_theirs(project: Project) -> dict[str, str]:
    """Make an owner's edits, commit them, and return the text of every file of their own."""
    project.commit()
    Depend("httpx").make(project)
    Depend("hypothesis", ("--dev",)).make(project)
    theirs = {
        PERSONA: project.read(PERSONA) + '\nFAVOURITE = "tea"\n',
        "README.md": "# Ours now\n",
        "knowledge/prices.md": "# Prices\n\nTea is 3 euros.\n",
        "src/agent/weather.py": '"""A tool of the owner\'s."""\n',
    }
    for name, text in theirs.items():
        project.write(name, text)
    project.commit()
    return theirs


@pytest.mark.parametrize("version", VERSIONS)
def test_an_update_brings_the_fix_and_keeps_every_byte_of_the_owners(
    fixed: Template, version: str, tmp_path: Path
) -> None:
    project = fixed.copy(tmp_path / "project", version)
    theirs = make_it_theirs(project)
    documents = [name for name in project.files() if name.startswith("knowledge/")]

    project.update(NEXT)

    assert project.conflicts() == []
    assert FIX in project.read(FIXED)
    assert {name: project.read(name) for name in theirs} == theirs
    assert [name for name in project.files() if name.startswith("knowledge/")] == documents
    dependencies = (
        project.read("pyproject.toml").split("dependencies = [")[1].split("]\n")[0].split()
    )
    assert DEPENDENCY in dependencies
    assert (
        dependencies.index(DEPENDENCY)
        < dependencies.index("below:")
        < dependencies.index('"httpx",')
    )

    project.commit()
    project.update(NEXT)
    assert project.changes() == [], "a second update changed something"


def test_deleted_code_of_the_owner_comes_back_and_deleted_documents_do_not(
    fixed: Template, tmp_path: Path
) -> None:
    project = fixed.copy(tmp_path / "project")
    for name in (PERSONA, "README.md"):
        (project.path / name).unlink()
    shutil.rmtree(project.path / "knowledge")
    project.commit()

    project.update(NEXT)

    assert project.read(PERSONA) == fixed.source(PERSONA).read_text(encoding="utf-8")
    assert not (project.path / "README.md").exists()
    assert not (project.path / "knowledge").exists()


def test_copying_again_overwrites_nothing_of_the_owners(fixed: Template, tmp_path: Path) -> None:
    project = fixed.copy(tmp_path / "project")
    theirs = make_it_theirs(project)
    copier.run_recopy(project.path, vcs_ref=NEXT, defaults=True, overwrite=True, quiet=True)
    assert FIX in project.read(FIXED)
    assert {name: project.read(name) for name in theirs} == theirs


def test_a_project_from_cookiecutter_updates_too(fixed: Template, tmp_path: Path) -> None:
    project = fixed.bake(tmp_path / "projects", memory="redis")
    theirs = make_it_theirs(project)
    project.update(NEXT)
    assert project.conflicts() == []
    assert FIX in project.read(FIXED)
    assert {name: project.read(name) for name in theirs} == theirs
    assert project.answers()["_commit"] == NEXT


def test_no_path_has_changed_its_owner_since_it_was_released(
    template: Template, tmp_path: Path
) -> None:
    owner: dict[str, str] = {}
    for version in VERSIONS:
        owners = template.copy(tmp_path / version, version).ownership()
        for kind in ("owner", "shared", "template"):
            for path in owners[kind]:
                assert owner.setdefault(path, kind) == kind, (
                    f"{path} was {owner[path]} before {version}"
                )


def test_the_bundle_holds_what_the_tags_of_this_checkout_hold(template: Template) -> None:
    for tag in git(ROOT, "tag").split():
        if tag in VERSIONS:
            assert git(ROOT, "ls-tree", "-r", tag, "--", *PARTS) == git(
                template.path, "ls-tree", "-r", tag
            ), tag
