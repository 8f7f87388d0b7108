"""The template rendered by plain Jinja with the hooks' environment: a few milliseconds a project.

For tests that need thousands of renderings. A test of tests/render proves that Copier renders the
same.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from hooks import copier_yml as hooks
from tests.support.templates import CONFIG, ROOT

# the answers file's name in the template
ANSWERS = "{{ _copier_conf.answers_file }}"


class Quick(Environment):
    """Compiles each expression of copier.yml once."""

    @cache  # noqa: B019 (there is one, and it lives as long as the tests)
    def from_string(self, source: str) -> Template:  # type: ignore[override]
        """The compiled text."""
        return super().from_string(source)


# As Cookiecutter has it for this template; StrictUndefined, as copier.yml has it.
ENVIRONMENT = Quick(
    loader=FileSystemLoader(ROOT / "template"),
    undefined=StrictUndefined,
    keep_trailing_newline=True,
    line_statement_prefix=CONFIG["_envops"]["line_statement_prefix"],
    extensions=[hooks.CopierTemplate],
)
SOURCES = {
    name.removesuffix(".jinja").replace(ANSWERS, ".copier-answers.yml"): (
        ROOT / "template" / name
    ).read_text("utf-8")
    for name in ENVIRONMENT.list_templates(extensions=["jinja"])
}
TEMPLATES = {
    name.removesuffix(".jinja").replace(ANSWERS, ".copier-answers.yml"): ENVIRONMENT.get_template(
        name
    )
    for name in ENVIRONMENT.list_templates(extensions=["jinja"])
}


def settle(**given: str) -> dict[str, Any]:
    """Every answer, given or default, as the templates see them."""
    answers: dict[str, Any] = hooks.settle(ENVIRONMENT, given)
    return answers


def refusals(answers: dict[str, Any]) -> list[str]:
    """The validators' messages."""
    said: list[str] = hooks.complaints(ENVIRONMENT, answers)
    return said


def render(*names: str, **given: str) -> dict[str, str]:
    """The text of these files, or of all rendered ones, also of those that an option leaves out."""
    answers = settle(**given)
    recorded = {name: answers[name] for name in hooks.ASKED}
    return {
        name: TEMPLATES[name].render(answers, _copier_answers=recorded)
        for name in names or TEMPLATES
    }
