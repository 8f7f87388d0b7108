"""Each step of Cookiecutter's hooks; test_parity proves that the project equals Copier's."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from cookiecutter.exceptions import FailedHookException  # type: ignore[import-untyped]
from cookiecutter.utils import create_env_with_context  # type: ignore[import-untyped]
from hypothesis import example, given, settings
from hypothesis import strategies as st
from packaging.version import Version

from tests.support.templates import ASKED, CONFIG, ROOT, WORK_TREE, Project, Template, git

FINAL = st.from_regex(
    r"v?([1-9]!)?[0-9]{1,2}(\.[0-9]{1,2}){0,3}(\.post[0-9]{1,2}|-[0-9]|rev[0-9])?", fullmatch=True
)
NEVER_TAGS = [
    "1.0rc1",
    "v9.9.9a1",
    "2.0.dev3",
    "1.0.post1.dev2",
    "latest",
    "v",
    "v1.0-beta",
    "1.x",
    "x1",
]
NEVER = st.sampled_from(NEVER_TAGS)


@pytest.fixture(scope="module")
def pre_prompt() -> Iterator[ModuleType]:
    """The hook before the first question, imported from the root, as it imports its neighbour."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(sys, "path", [*sys.path])
        yield importlib.import_module("hooks.pre_prompt")


@pytest.fixture
def copy(template: Template, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """The temporary copy of the repository, on a branch; the hook runs in it."""
    shutil.copytree(template.path, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return Project(tmp_path / "copy")


@given(st.lists(FINAL | NEVER, max_size=8))
@settings(max_examples=300, deadline=None, derandomize=True)
@example(["v0.9.0", "v0.10.0", "v1.0.0rc1"])
@example(["1.0", "1.0.post1"])
@example(["2.0", "1!0.1"])
@example(["1.0.0", "1"])
def test_the_newest_release_is_the_one_that_copier_takes(
    pre_prompt: ModuleType, tags: list[str]
) -> None:
    final = [tag for tag in tags if tag not in NEVER_TAGS and not Version(tag).is_prerelease]
    found = pre_prompt.newest_release(tags)
    assert (found is None) == (not final)
    assert found is None or Version(found) == max(map(Version, final))


def test_a_copy_of_a_branch_becomes_the_newest_release_and_runs_that_releases_own_hook(
    pre_prompt: ModuleType, copy: Project, capfd: pytest.CaptureFixture[str]
) -> None:
    git(copy.path, "tag", "--delete", WORK_TREE)
    newest = git(copy.path, "tag", "--sort=version:refname").split()[-1]
    copy.write("template/README.md.jinja", "edited and not committed\n")
    copy.write("template/not_tracked.md", "\n")

    with pytest.raises(SystemExit) as ended:
        pre_prompt.main()

    assert ended.value.code == 0
    assert f"This is {newest}, the newest release." in capfd.readouterr().err
    assert json.loads(copy.read("cookiecutter.json"))["_commit"] == newest
    rendered = copy.path / "{{accepted(cookiecutter).project_slug}}"
    assert (rendered / "README.md").read_text(encoding="utf-8") == git(
        copy.path, "show", f"{newest}:template/README.md.jinja"
    )
    assert not (rendered / "not_tracked.md").exists()
    assert not (copy.path / ".release").exists()


def test_a_linked_work_tree_stays_where_it_is(
    pre_prompt: ModuleType, copy: Project, tmp_path: Path
) -> None:
    git(copy.path, "worktree", "add", "--quiet", "-b", "feature", str(tmp_path / "linked"))
    shutil.copytree(tmp_path / "linked", tmp_path / "copy of linked")
    os.chdir(tmp_path / "copy of linked")
    pre_prompt.become("v0.1.0")
    assert git(tmp_path / "copy of linked", "describe", "--tags") == "v0.1.0\n"
    assert git(tmp_path / "linked", "status", "--porcelain", "--branch") == "## feature\n"


def test_a_release_that_git_cannot_check_out_is_not_passed_over(
    pre_prompt: ModuleType, copy: Project
) -> None:
    git(copy.path, "tag", "v1000.0.0", git(copy.path, "rev-parse", "HEAD:LICENSE").strip())
    with pytest.raises(SystemExit, match=r"is v1000\.0\.0, which git cannot check out here"):
        pre_prompt.main()
    assert copy.read("cookiecutter.json") == (ROOT / "cookiecutter.json").read_text(
        encoding="utf-8"
    )


@pytest.mark.parametrize("commit", ["v0.1.0", "v0.2.0", WORK_TREE])
def test_a_commit_that_was_asked_for_is_taken_as_it_is(
    pre_prompt: ModuleType, copy: Project, commit: str
) -> None:
    git(copy.path, "checkout", "--quiet", commit)
    assert pre_prompt.release_to_take() is None
    assert pre_prompt.described_commit() == commit


def test_a_branch_without_a_release_is_taken_as_it_is(
    pre_prompt: ModuleType, copy: Project
) -> None:
    git(copy.path, "tag", "--delete", *git(copy.path, "tag").split())
    git(copy.path, "tag", "v1.0.0rc1")
    git(copy.path, "tag", "newest")
    assert pre_prompt.release_to_take() is None


def test_without_git_the_copy_is_taken_as_it_is(
    pre_prompt: ModuleType, copy: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    assert pre_prompt.release_to_take() is None
    assert pre_prompt.described_commit() is None


def test_a_folder_that_is_no_repository_is_taken_as_it_is(
    pre_prompt: ModuleType, copy: Project
) -> None:
    shutil.rmtree(copy.path / ".git")
    # another repository
    around = copy.path.parent
    git(around, "init", "--quiet")
    git(around, "commit", "--quiet", "--allow-empty", "--message=theirs")
    git(around, "tag", "v9.0.0")
    assert pre_prompt.release_to_take() is None
    assert pre_prompt.described_commit() is None


def test_a_git_hooks_variables_do_not_name_another_repository(
    pre_prompt: ModuleType, copy: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    assert pre_prompt.release_to_take() == WORK_TREE


def test_the_form_asks_every_question_with_its_help_and_default_first(
    pre_prompt: ModuleType,
) -> None:
    form = pre_prompt.form()
    assert list(form) == [*ASKED, "__prompts__"]
    for name, spec in ASKED.items():
        if "choices" not in spec:
            assert form[name] == spec["default"]
            assert form["__prompts__"][name] == spec["help"]
        else:
            values = list(
                spec["choices"].values() if isinstance(spec["choices"], dict) else spec["choices"]
            )
            assert form[name][0] == spec["default"]
            assert sorted(form[name]) == sorted(values)


def test_choices_are_shown_in_copiers_words(pre_prompt: ModuleType) -> None:
    prompts = pre_prompt.form()["__prompts__"]
    assert prompts["memory"]["__prompt__"] == CONFIG["memory"]["help"]
    shown = {label: value for value, label in prompts["memory"].items() if value != "__prompt__"}
    assert shown == CONFIG["memory"]["choices"]
    assert prompts["license"] == CONFIG["license"]["help"]


def test_a_default_that_is_not_the_first_choice_is_asked_first(
    pre_prompt: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = {"help": "Which?", "choices": {"One": "1", "Two": "2", "Three": "3"}, "default": "2"}
    monkeypatch.setattr(pre_prompt, "ASKED", {"number": question})
    assert pre_prompt.form()["number"] == ["2", "1", "3"]


def test_reshaping_leaves_out_what_work_left_behind_and_names_files_as_a_project_has_them(
    pre_prompt: ModuleType, copy: Project
) -> None:
    left_behind = [
        ".venv/lib/x.py",
        "src/agent/__pycache__/x.pyc",
        "uv.lock",
        "data/x",
        ".mypy_cache/x",
        ".env.local",
    ]
    for name in left_behind:
        copy.write(f"template/{name}", "{{ not_a_name }}\n")

    plain = pre_prompt.reshape(Path("template"))

    root = copy.path / "{{accepted(cookiecutter).project_slug}}"
    names = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    assert not names & set(left_behind)
    assert {"README.md", "main.py", ".copier-answers.yml", "src/agent/memory/redis.py"} <= names
    assert not [name for name in names if name.endswith(".jinja")]
    assert "main.py" in plain
    assert "README.md" not in plain
    assert set(plain) < names


@pytest.fixture
def reshaped(pre_prompt: ModuleType, copy: Project) -> Project:
    """The copy at Cookiecutter's first question."""
    git(copy.path, "checkout", "--quiet", "--detach")
    pre_prompt.main()
    return copy


def test_the_copy_names_its_commit_and_loads_the_extension_under_a_name_of_its_own(
    reshaped: Project,
) -> None:
    config = json.loads(reshaped.read("cookiecutter.json"))
    assert config["_commit"] == WORK_TREE
    assert config["_extensions"] == ["livekit_agent_template_copier_yml.copier_yml.CopierTemplate"]
    assert (reshaped.path / "livekit_agent_template_copier_yml" / "copier_yml.py").is_file()
    assert [path.name for path in reshaped.path.glob("*{{*")] == [
        "{{accepted(cookiecutter).project_slug}}"
    ]


@pytest.fixture
def given_answers(tmp_path: Path) -> dict[str, object]:
    """Cookiecutter's context of a template: the answers and its own values."""
    answers: dict[str, object] = {
        "project_name": "Front Desk",
        "project_slug": "front-desk",
        "agent_name": "desk",
        "description": "Answers.",
        "author_name": "Ann",
    }
    stores = {"knowledge": "none", "memory": "redis"}
    chosen = {"models": "livekit", **stores, "web": "yes", "telephony": "no", "license": "MIT"}
    return (
        answers
        | chosen
        | {"_template": "gh:x/y", "_commit": "v1.0.0", "_output_dir": str(tmp_path)}
    )


def rendered(text: str, given: dict[str, object]) -> str:
    """A text, rendered by Cookiecutter for these answers."""
    context = {"cookiecutter": {"_extensions": ["hooks.copier_yml.CopierTemplate"], **given}}
    shown: str = create_env_with_context(context).from_string(text).render(**context)
    return shown


def test_plain_names_are_the_answers(given_answers: dict[str, object]) -> None:
    assert rendered("{{ project_name }}/{{ memory }}", given_answers) == "Front Desk/redis"


def test_a_name_that_is_not_asked_has_its_settled_value(given_answers: dict[str, object]) -> None:
    assert rendered("{{ taken_names }}", given_answers) == CONFIG["taken_names"]["default"]


def test_a_name_that_nobody_knows_is_an_error(given_answers: dict[str, object]) -> None:
    with pytest.raises(Exception, match="'nobody' is undefined"):
        rendered("{{ nobody }}", given_answers)


def test_the_answers_file_says_where_the_project_is_from(given_answers: dict[str, object]) -> None:
    answers = json.loads(rendered("{{ _copier_answers | tojson }}", given_answers))
    assert answers == {"_src_path": "gh:x/y", "_commit": "v1.0.0"} | {
        name: given_answers[name] for name in ASKED
    }
    del given_answers["_commit"]
    assert "_commit" not in json.loads(rendered("{{ _copier_answers | tojson }}", given_answers))


def test_the_filters_are_those_of_copier(given_answers: dict[str, object]) -> None:
    assert rendered("{{ 'a b' | quote }}", given_answers) == "'a b'"
    assert rendered("{{ 'a-b' | regex_search('[a-z]-') }}", given_answers) == "a-"
    assert rendered("{{ 'a-b' | regex_search('x') }}", given_answers) == "None"
    assert rendered("{{ 'a-b' | regex_replace('([a-z])', '<\\\\1>') }}", given_answers) == "<a>-<b>"
    assert (
        rendered("{{ {'b': '🎙', 'a': 'on'} | to_nice_yaml }}", given_answers) == "a: 'on'\nb: 🎙\n"
    )


def test_every_refused_answer_is_named_at_once(given_answers: dict[str, object]) -> None:
    with pytest.raises(FailedHookException) as refused:
        rendered(
            "{{ accepted(cookiecutter) }}",
            given_answers | {"project_slug": "A B", "author_name": ""},
        )
    assert [line.split(":")[0] for line in str(refused.value).splitlines()] == [
        "project_slug",
        "author_name",
    ]


def test_what_the_answers_leave_out_is_named_and_nothing_else(
    given_answers: dict[str, object], tmp_path: Path
) -> None:
    project = Project(tmp_path / "front-desk")
    for name in (
        "src/agent/memory/redis.py",
        "src/agent/memory/sqlite.py",
        "knowledge/a.md",
        "README.md",
    ):
        project.write(name, "\n")
    listed = json.loads(rendered("{{ excluded(cookiecutter) | tojson }}", given_answers))
    assert {Path(path).relative_to(project.path).as_posix() for path in listed} == {
        "knowledge",
        "src/agent/memory/sqlite.py",
    }


def test_what_is_left_out_is_deleted_and_the_next_steps_are_said(
    given_answers: dict[str, object], tmp_path: Path
) -> None:
    project = Project(tmp_path / "front-desk")
    for name in ("src/agent/memory/redis.py", "src/agent/memory/sqlite.py", "knowledge/a/b.md"):
        project.write(name, "\n")
    script = rendered(
        (ROOT / "hooks" / "post_gen_project.py").read_text(encoding="utf-8"), given_answers
    )

    done = subprocess.run(
        [sys.executable, "-c", script], cwd=project.path, capture_output=True, text=True, check=True
    )

    assert project.files().keys() == {"src/agent/memory/redis.py"}
    assert "Front Desk is ready. Next:" in done.stdout
    assert "cd front-desk\n" in done.stdout


def test_no_answer_can_leave_the_script_that_it_is_filled_into(
    given_answers: dict[str, object], tmp_path: Path
) -> None:
    (tmp_path / "front-desk").mkdir()
    awkward = given_answers | {
        "project_name": '\'\'\' """ \\ {{ 1 }} {% raw %} ")); raise SystemExit(3) #'
    }
    script = rendered((ROOT / "hooks" / "post_gen_project.py").read_text(encoding="utf-8"), awkward)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert f"{awkward['project_name']} is ready." in done.stdout
