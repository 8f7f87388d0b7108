"""Any name is either legal in every file it reaches or refused, in a sentence, before a file is written."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from jinja2 import StrictUndefined
from jinja2.sandbox import SandboxedEnvironment

from tests.support.templates import CONFIG, ROOT, Template, cookiecut, copy_by_hand, literal

SENTENCES = {
    "project_name": "Write a name of 1 to 80 printable characters on one line, such as Front Desk.",
    "project_slug": (
        "Write 1 to 60 of a-z, 0-9 and single dashes, with a letter first and no dash last, such as front-desk."
    ),
    "agent_name": (
        "Write 1 to 63 of A-Z, a-z, 0-9, dots, dashes and underscores, "
        "with a letter or digit first, such as front-desk."
    ),
    "description": (
        "Write a description of 1 to 200 printable characters on one line, such as Answers the phone of a small hotel."
    ),
    "author_name": "Write an owner of 1 to 100 printable characters on one line, such as Ada Lovelace.",
}
LIMITS = {"project_name": 80, "description": 200, "author_name": 100}
REFUSED = [
    *((name, "") for name in SENTENCES),
    *((name, "x" * 201) for name in SENTENCES),
    *((name, "two\nlines") for name in SENTENCES),
    *((name, "trailing newline\n") for name in SENTENCES),
    ("project_name", "   "),
    ("project_name", "bell\x07"),
    ("project_slug", "Front-Desk"),
    ("project_slug", "../elsewhere"),
    ("project_slug", "a/b"),
    ("project_slug", "3-bears"),
    ("project_slug", "dash-"),
    ("project_slug", "slug\n"),
    ("project_slug", "{{ project_name }}"),
    ("agent_name", "-x"),
    ("agent_name", "café"),
    ("agent_name", "x\n"),
]


def load_hooks() -> ModuleType:
    """hooks/copier_yml.py, which computes what copier.yml says; that both tools agree with it, tests/parity proves."""
    spec = importlib.util.spec_from_file_location("copier_yml", ROOT / "hooks" / "copier_yml.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def is_legal(text: str, limit: int) -> bool:
    """Whether free text may be an answer."""
    return text.isprintable() and text == text.strip() and 0 < len(text) <= limit


HOOKS = load_hooks()
ENVIRONMENT = SandboxedEnvironment(undefined=StrictUndefined, extensions=[HOOKS.CopierTemplate])


@given(st.text(min_size=1, max_size=80) | st.from_regex(r"[a-z0-9 _.-]{1,80}", fullmatch=True))
@settings(max_examples=300, deadline=None, derandomize=True)
@example("🎙🎙🎙")
@example("3 Bears")
@example("agent")
@example("Redis")
@example("a" * 57 + "-" + "b" * 22)
@example("-" * 80)
@example("İstanbul")
def test_any_accepted_name_gives_a_legal_slug_and_agent_name(name: str) -> None:
    answers = HOOKS.settle(ENVIRONMENT, {"project_name": name})
    refusals = HOOKS.complaints(ENVIRONMENT, answers)
    if is_legal(name, LIMITS["project_name"]):
        assert refusals == []
    else:
        assert refusals[0] == f"project_name: {SENTENCES['project_name']}"
    assert re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", answers["project_slug"])
    assert len(answers["project_slug"]) <= 60
    assert answers["project_slug"] not in CONFIG["taken_names"]["default"].split()
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", answers["agent_name"])


@given(
    st.text(max_size=210) | st.text(alphabet="\"'\\{}%#$`<>:&*!|- \t\néZ🎙", max_size=90),
    st.sampled_from(sorted(LIMITS)),
)
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example("{{ 7 * 7 }}{% raw %}", "project_name")
@example('\\"', "author_name")
@example("x" * 200, "description")
@example("x" * 100, "author_name")
def test_free_text_is_refused_before_a_file_is_written_or_comes_back_from_every_file(
    template: Template, tmp_path_factory: pytest.TempPathFactory, text: str, question: str
) -> None:
    folder = tmp_path_factory.mktemp("copied") / "project"
    if not is_legal(text, LIMITS[question]):
        with pytest.raises(ValueError, match=re.escape(SENTENCES[question])):
            template.copy(folder, **{question: text})
        assert not folder.exists()
        return
    project = template.copy(folder, **{question: text})
    assert project.answers()[question] == text
    about = tomllib.loads(project.read("pyproject.toml"))["project"]
    if question == "description":
        assert about["description"] == text
    if question == "author_name":
        assert about["authors"] == [{"name": text}]
        assert text in project.read("LICENSE")


@pytest.mark.parametrize(("question", "answer"), REFUSED)
def test_an_illegal_answer_is_refused_with_what_to_type(question: str, answer: str) -> None:
    answers = HOOKS.settle(ENVIRONMENT, {question: answer})
    assert f"{question}: {SENTENCES[question]}" in HOOKS.complaints(ENVIRONMENT, answers)


@pytest.mark.parametrize(
    ("question", "answer"),
    [*((question, "") for question in SENTENCES), ("project_slug", "../elsewhere"), ("project_name", "x" * 200)],
)
def test_both_tools_refuse_in_the_same_words_before_a_file_is_written(
    template: Template, tmp_path: Path, question: str, answer: str
) -> None:
    copied = copy_by_hand(template.url, tmp_path / "copier" / "project", **{question: answer})
    assert copied.returncode != 0
    assert SENTENCES[question] in " ".join(copied.stderr.split())
    baked = cookiecut(str(template.path), tmp_path / "cookiecutter", f"{question}={literal(answer)}")
    assert baked.returncode == 1
    assert f"{question}: {SENTENCES[question]}" in baked.stdout + baked.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["agent", "livekit-agents", "tests"])
def test_a_name_that_is_taken_is_refused_with_one_that_is_not(template: Template, tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"Write another name, such as my-{name}: {name} is taken"):
        template.copy(tmp_path / "project", project_slug=name)
    assert not (tmp_path / "project").exists()
