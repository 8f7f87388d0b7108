"""An update brings the changes and keeps every byte of the owner's, for any edits of theirs."""

from __future__ import annotations

import shutil
import uuid
from typing import Protocol

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from tests.support.templates import (
    MARK,
    WORK_TREE,
    Project,
    Template,
    git,
    make_template,
    released,
)
from tests.update.owners import EVERYTHING, Change, Edit, agent_update, edits, moved_edits
from tools.gate import cases_of, configuration, differences, owner_of, versions_since
from tools.ownership import MOVED

# this checkout, with a change in a file of every kind
NEXT = "v999.1.0"
VERSIONS = [*released(), WORK_TREE]
FIXED = "src/agent/settings.py"
FIX = "# A fix that owners wait for."
ANY = settings(
    deadline=None,
    database=None,
    # no shrinking: an example takes seconds
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Template:
    """Every release, this checkout, and a next release that changes a file of every kind."""
    template = make_template(tmp_path_factory.mktemp("history") / "livekit-agent-template")
    for name in template.copy(tmp_path_factory.mktemp("any") / "project").ownership()["shared"]:
        template.add_line(name, "# A line of the template's.", before=MARK)
    template.add_dependency("anyio>=4")
    template.add_line(FIXED, FIX)
    for name in ("src/agent/persona.py", "README.md", "knowledge/news.md"):
        template.source(name).touch()
        template.add_line(name, "# This comes with first copies only.")
    template.source("docs/agent/news.md").write_text("# News\n", encoding="utf-8")
    template.release(NEXT)
    return template


class Pristine(Protocol):
    """Gives a copy of a release; `asked` is the version whose answers are numbered, or the same."""

    def __call__(self, version: str, number: int, asked: str = "") -> Project: ...


@pytest.fixture(scope="module")
def pristine(history: Template, tmp_path_factory: pytest.TempPathFactory) -> Pristine:
    """A committed project of a release with the n-th set of its answers; rendered once each."""
    folder, kept = tmp_path_factory.mktemp("pristine"), dict[tuple[str, str, int], Project]()

    def copy(version: str, number: int, asked: str = "") -> Project:
        cases = cases_of(configuration(history, asked or version))
        key = version, asked or version, number % len(cases)
        if key not in kept:
            to = folder / "-".join(map(str, key))
            kept[key] = history.copy(to, version, **cases[key[2]])
            kept[key].commit()
        to = folder / uuid.uuid4().hex
        shutil.copytree(kept[key].path, to, symlinks=True)
        return Project(to)

    return copy


def assert_kept(
    pristine: Pristine,
    history: Template,
    version: str,
    number: int,
    made: list[Edit],
) -> None:
    """Make the edits, update, and compare with a fresh copy with the same edits."""
    project = pristine(version, number)
    came = project.files().keys()
    for edit in made:
        edit.make(project)
    project.commit()
    before = project.files()

    code, report = agent_update(project, NEXT)

    assert code == 0, report
    answers = {
        name: answer for name, answer in project.answers().items() if not name.startswith("_")
    }
    fresh = history.copy(project.path.with_name(f"{project.path.name}-fresh"), NEXT, **answers)
    for edit in made:
        edit.make(fresh)
    owners, after, expected = fresh.ownership(), project.files(), fresh.files()
    merged = {*owners["shared"], *owners["template"]}
    assert {name for name in merged if after.get(name) != expected.get(name)} == set(), (
        "what is merged is not the sum"
    )
    theirs = {name for name in before if owner_of(name, owners) == "owner" or name not in came}
    assert {name for name in theirs if after.get(name) != before[name]} == set(), (
        "what is theirs was changed"
    )
    for folder in (project.path, fresh.path):
        shutil.rmtree(folder)


@given(st.sampled_from(VERSIONS), st.integers(0, 8), edits())
@settings(ANY, max_examples=4, derandomize=True)
@example(VERSIONS[0], 0, EVERYTHING)
@example(VERSIONS[-1], 1, EVERYTHING)
def test_an_update_keeps_whatever_an_owner_did(
    history: Template,
    pristine: Pristine,
    version: str,
    number: int,
    made: list[Edit],
) -> None:
    assert_kept(pristine, history, version, number, made)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@given(st.sampled_from(VERSIONS), st.integers(0, 8), edits())
@settings(ANY, max_examples=150)
def test_an_update_keeps_whatever_any_owner_did(
    history: Template,
    pristine: Pristine,
    version: str,
    number: int,
    made: list[Edit],
) -> None:
    assert_kept(pristine, history, version, number, made)


def assert_stopped(
    pristine: Pristine,
    version: str,
    number: int,
    made: list[Edit],
    moved: list[Change],
) -> None:
    """Make the edits, also of files that have moved: the update stops, and names the new places."""
    project = pristine(version, number)
    brought = project.files().keys()
    for edit in [*made, *moved]:
        edit.make(project)
    project.commit()
    before = project.files()

    code, report = agent_update(project, NEXT)

    changed = {edit.name for edit in moved} & brought
    assert code == (1 if changed else 0), report
    # an option may have taken away what a file has become
    now = pristine(WORK_TREE, number, version).files()
    followed = {name: MOVED[name] for name in changed if MOVED[name] in now}
    for name, path in followed.items():
        assert f"  {name} is now {path}: put your change there" in report
    if changed:
        assert project.files() == before
        assert project.changes() == []
        git(project.path, "rm", "--quiet", *changed)
        project.commit()
        assert agent_update(project, NEXT)[0] == 0
        assert set(followed.values()) <= project.files().keys()
    shutil.rmtree(project.path)


@given(st.sampled_from(released()), st.integers(0, 8), edits(), moved_edits())
@settings(ANY, max_examples=2, derandomize=True)
@example(
    released()[0], 0, EVERYTHING, [Change("src/agent/lifecycle.py", 1.0, 0, ("# The owner's.",))]
)
def test_a_change_of_a_file_that_has_moved_stops_the_update_and_is_not_lost(
    history: Template,
    pristine: Pristine,
    version: str,
    number: int,
    made: list[Edit],
    moved: list[Change],
) -> None:
    assert_stopped(pristine, version, number, made, moved)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@given(st.sampled_from(released()), st.integers(0, 8), edits(), moved_edits())
@settings(ANY, max_examples=60)
def test_any_change_of_a_file_that_has_moved_stops_the_update(
    history: Template,
    pristine: Pristine,
    version: str,
    number: int,
    made: list[Edit],
    moved: list[Change],
) -> None:
    assert_stopped(pristine, version, number, made, moved)


def test_an_edited_project_ends_the_same_step_by_step(
    history: Template, pristine: Pristine
) -> None:
    # its updates pass through all the others
    version = VERSIONS[0]
    direct, by_steps = pristine(version, 0), pristine(version, 0)
    for project in (direct, by_steps):
        for edit in EVERYTHING:
            edit.make(project)
        project.commit()
    direct.update(NEXT)
    for step in versions_since(history, version):
        by_steps.update(step)
        assert by_steps.conflicts() == []
        by_steps.commit()
    assert differences(direct, by_steps, configuration(history, NEXT)) == []


@given(st.floats(0, 1), st.sampled_from(["cut", "insert", "change"]))
@settings(ANY, max_examples=4, derandomize=True)
@example(1.0, "insert")
def test_an_edit_of_the_templates_is_merged_or_reported_and_never_lost(
    history: Template, pristine: Pristine, place: float, what: str
) -> None:
    project = pristine(WORK_TREE, 0)
    lines = project.read(FIXED).splitlines(keepends=True)
    at = min(round(place * len(lines)), len(lines) - 1) + (place == 1.0)
    lines[at : at + (what != "insert")] = [] if what == "cut" else ["# Against the contract.\n"]
    project.write(FIXED, "".join(lines))
    project.commit()

    code, report = agent_update(project, NEXT)

    if code:
        assert f"{FIXED} was changed by you and by the template" in report
        assert project.changes() == []
    assert project.read(FIXED) == "".join(lines if code else [*lines, f"{FIX}\n"])
    # both have added a line at the end
    assert code == 1 or place != 1.0
    shutil.rmtree(project.path)
