"""Who changes which file: `.template.toml` says the same as copier.yml and the tree."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.support.both_tools import BothTools
from tests.support.templates import COMBINATIONS, CONFIG, MARK, ROOT, Template, identify
from tools.ownership import MOVED, template_files

UPDATE_ONLY = "{% if _copier_operation == 'update' %}"


def test_the_committed_ownership_is_the_generated_one() -> None:
    check = [sys.executable, str(ROOT / "tools" / "ownership.py"), "--check"]
    assert subprocess.run(check, check=False).returncode == 0, "run `make ownership`"


@pytest.mark.parametrize("case", COMBINATIONS[::5], ids=identify)
def test_every_file_of_a_project_has_one_owner(both_tools: BothTools, case: dict[str, str]) -> None:
    project = both_tools.copied(case)
    owners = project.ownership()
    for name in project.files():
        classes = [
            any(fnmatch(name, glob) for glob in owners["owner"]),
            name in owners["shared"],
            name in owners["template"],
        ]
        assert sum(classes) == 1, f"{name}: owner, shared, template = {classes}"
    assert set(owners["template"]) <= project.files().keys(), (
        "a file of the template is listed and absent"
    )
    assert owners["mark"] == MARK


def test_hashes_are_those_of_the_files_that_are_the_same_in_every_project(
    template: Template, tmp_path: Path
) -> None:
    project = template.copy(tmp_path / "project", project_name="Anything Else")
    owners = project.ownership()
    verbatim = {
        name for name in owners["template"] if (template.path / "template" / name).is_file()
    }
    assert owners["sha256"].keys() == verbatim
    for name, digest in owners["sha256"].items():
        assert hashlib.sha256((project.path / name).read_bytes()).hexdigest() == digest, name


def test_copier_never_overwrites_what_is_the_owners(both_tools: BothTools) -> None:
    owners = both_tools.copied(COMBINATIONS[0]).ownership()
    assert CONFIG["_skip_if_exists"] == [f"/{glob}" for glob in owners["owner"]]


def test_what_comes_once_is_the_owners(both_tools: BothTools) -> None:
    owners = both_tools.copied(COMBINATIONS[0]).ownership()
    once = [
        entry.removeprefix(UPDATE_ONLY)
        for entry in CONFIG["_exclude"]
        if entry.startswith(UPDATE_ONLY)
    ]
    assert once == [
        "/knowledge{% endif %}",
        "/README.md{% endif %}",
        "/tests/yours/scenarios.toml{% endif %}",
        "/tests/yours/test_behaviour.py{% endif %}",
        "/src/agent/callers.py{% endif %}",
        "/tests/yours/test_knowledge.py{% endif %}",
    ]
    theirs = {"knowledge/**", "README.md", "src/agent/callers.py", "tests/yours/**"}
    assert theirs <= set(owners["owner"])


def test_the_template_has_no_file_where_owners_are_told_that_it_never_will(
    template: Template,
) -> None:
    page = " ".join(template.source("docs/agent/ownership.md").read_text("utf-8").split())
    assert (
        "`src/agent/tools/`, `scripts/`, `tests/yours/` and `docs/` (outside `docs/agent/`)" in page
    )
    root = template.path / "template"
    names = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
    theirs = [name for name in names if name.startswith(("src/agent/tools/", "scripts/", "docs/"))]
    assert [name for name in theirs if not name.startswith("docs/agent/")] == []


def test_what_has_moved_is_gone_from_where_it_was_and_there_where_it_is(
    both_tools: BothTools,
) -> None:
    assert MOVED.keys().isdisjoint(template_files(ROOT))
    for case in COMBINATIONS[::5]:
        project = both_tools.copied(case)
        moved = project.ownership()["moved"]
        files = project.files()
        assert moved == {path: now for path, now in MOVED.items() if now in files}


def test_the_owners_formatter_leaves_the_templates_files_alone(both_tools: BothTools) -> None:
    project = both_tools.copied(COMBINATIONS[0])
    ruff = tomllib.loads(project.read("pyproject.toml"))["tool"]["ruff"]
    excluded = {Path(name) for name in ruff["extend-exclude"]}
    for name in [name for name in project.files() if name.endswith(".py")]:
        path = Path(name)
        is_excluded = path in excluded or not excluded.isdisjoint(path.parents)
        assert is_excluded == (name in project.ownership()["template"]), name
