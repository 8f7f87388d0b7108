"""copier.yml for Cookiecutter: questions, defaults, validators and exclusions are defined once.

Cookiecutter loads `CopierTemplate` from the temporary copy of the repository that pre_prompt.py
has reshaped.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import yaml
from cookiecutter.exceptions import FailedHookException  # type: ignore[import-untyped]
from jinja2 import Environment
from jinja2.ext import Extension
from jinja2.runtime import Context
from jinja2.utils import missing

Answers = dict[str, Any]
# A file beside this one: pre_prompt.py writes the commit that it has reshaped into it.
COMMIT = "commit"

CONFIG: dict[str, Any] = yaml.safe_load(
    (Path(__file__).parent.parent / "copier.yml").read_text(encoding="utf-8")
)
QUESTIONS: dict[str, dict[str, Any]] = {
    name: spec for name, spec in CONFIG.items() if not name.startswith("_")
}
ASKED: dict[str, dict[str, Any]] = {
    name: spec for name, spec in QUESTIONS.items() if spec.get("when", True)
}


def settle(environment: Environment, given: Answers) -> Answers:
    """Every question's answer, as Copier has it: the given answer, else the rendered default."""
    answers: Answers = {}
    for name, spec in QUESTIONS.items():
        if name in ASKED and name in given:
            answers[name] = given[name]
        else:
            answers[name] = environment.from_string(spec["default"]).render(answers)
    return answers


def complaints(environment: Environment, answers: Answers) -> list[str]:
    """One line for each answer that its validator refuses."""
    said = {
        name: environment.from_string(spec.get("validator", "")).render(answers)
        for name, spec in ASKED.items()
    }
    return [f"{name}: {sentence}" for name, sentence in said.items() if sentence]


def excluded(environment: Environment, answers: Answers, root: Path) -> list[Path]:
    """The paths in `root` that a project with these answers does not have."""
    rendered = [
        environment.from_string(entry).render(answers, _copier_operation="copy")
        for entry in CONFIG["_exclude"]
    ]
    found: list[Path] = []
    for pattern in filter(None, rendered):
        found += root.glob(pattern[1:]) if pattern.startswith("/") else root.rglob(pattern)
    return found


def in_the_way(project: Path) -> list[str]:
    """Why this folder cannot become a project: `--overwrite-if-exists` would change its files."""
    if not project.is_dir() or not any(project.iterdir()):
        return []
    return [
        f"{project} exists and is not empty, and nothing in it is overwritten: `uv run agent"
        " update` there brings a project up to date; for another project, give another name"
    ]


def replayed(given: Answers) -> list[str]:
    """Why answers to another version cannot be used: its files and exclusions were different."""
    noted = Path(__file__).with_name(COMMIT)
    commit = noted.read_text(encoding="utf-8") if noted.exists() else given.get("_commit")
    if commit == given.get("_commit"):
        return []
    return [
        f"these answers were given to {given.get('_commit')}, and this is {commit}:"
        " add `--checkout` for that one"
    ]


class CopierTemplate(Extension):
    """Makes Cookiecutter read Copier's templates: plain names, and the Ansible filters they use."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self.begun = False
        environment.context_class = CopierContext
        environment.filters["quote"] = shlex.quote
        environment.filters["regex_search"] = lambda text, pattern: (
            re.search(pattern, text) or [None]
        )[0]
        environment.filters["regex_replace"] = lambda text, pattern, new: re.sub(pattern, new, text)
        environment.filters["to_nice_yaml"] = lambda data: yaml.dump(
            data, indent=4, allow_unicode=True, default_flow_style=False
        )
        environment.globals["accepted"] = self.accepted
        environment.globals["excluded"] = self.excluded
        environment.globals["next_steps"] = self.next_steps

    def accepted(self, given: Answers) -> Answers:
        """The answers, which name the project's folder; raises FailedHookException.

        It refuses invalid answers and, before the folder is made, a folder that exists and holds
        files, and a replay of another version's answers.
        """
        answers = settle(self.environment, given)
        problems = complaints(self.environment, answers)
        if not problems and not self.begun:
            problems = [
                *in_the_way(Path(given.get("_output_dir", "."), answers["project_slug"])),
                *replayed(given),
            ]
        if problems:
            raise FailedHookException("\n".join(problems))
        self.begun = True
        return answers

    def excluded(self, given: Answers) -> list[str]:
        """The paths to delete from the project that Cookiecutter has made."""
        answers = settle(self.environment, given)
        project = Path(given["_output_dir"], answers["project_slug"])
        return [str(path) for path in excluded(self.environment, answers, project)]

    def next_steps(self, given: Answers) -> str:
        """The message that Copier prints after a copy."""
        answers = settle(self.environment, given)
        conf = {"dst_path": answers["project_slug"]}
        return self.environment.from_string(CONFIG["_message_after_copy"]).render(
            answers, _copier_conf=conf
        )


class CopierContext(Context):
    """Resolves `project_name` to `cookiecutter.project_name`; `_copier_answers` is for updates."""

    def resolve_or_missing(self, key: str) -> Any:
        """The value of a name, or `missing`."""
        found = super().resolve_or_missing(key)
        given = super().resolve_or_missing("cookiecutter")
        if found is not missing or given is missing:
            return found
        if key == "_copier_answers":
            origin = {"_src_path": given["_template"]} | (
                {"_commit": given["_commit"]} if "_commit" in given else {}
            )
            return origin | {name: given[name] for name in ASKED}
        if key in ASKED:
            return given.get(key, missing)
        if key in QUESTIONS:
            return settle(self.environment, given)[key]
        return missing
