"""A small template with two releases, and a project of the first: the real Copier in a second."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import copier

from tests.support.templates import MARK
from tests.update.test_updater import Project

PYPROJECT = f"""\
[project]
name = "desk"
version = "0.1.0"
description = "{{{{ description }}}}"
dependencies = [
    "livekit-agents>=1.8.9,<1.9",
    "rich>=14",
    # {MARK}
]
"""
CHECKOUT = "uses: actions/checkout@3d3c # v7.0.1"
BEFORE = {
    "template/pyproject.toml.jinja": PYPROJECT,
    "template/Dockerfile": f"FROM python:3.11-slim\n\nRUN slow\n\n# {MARK}\n",
    "template/.github/workflows/ci.yml": f"jobs:\n  - {CHECKOUT}\n  - run: test\n  # {MARK}\n",
    "template/src/agent/__init__.py": "",
    "template/src/agent/settings.py": "# 1\n# 2\n# 3\n# 4\n# slow\n",
    "template/src/agent/old.py": "# old\n",
}
AFTER = {
    "template/pyproject.toml.jinja": PYPROJECT.replace("1.8.9,<1.9", "1.9.1,<1.10"),
    "template/Dockerfile": BEFORE["template/Dockerfile"].replace("slow", "quick"),
    "template/.github/workflows/ci.yml": BEFORE["template/.github/workflows/ci.yml"].replace(
        CHECKOUT, "uses: actions/checkout@4e4d # v7.2.0"
    ),
    "template/src/agent/settings.py": "# 1\n# 2\n# 3\n# 4\n# quick\n",
    "template/docs/news.md": "# News\n",
}
SHARED = ["pyproject.toml", "Dockerfile", ".github/workflows/ci.yml"]
QUESTIONS = """\
_subdirectory: template
agent_name:
  type: str
  default: desk
description:
  type: str
  default: It answers.
"""


def release(template: Project, version: str, files: dict[str, str]) -> None:
    """Commit and tag these changes as a release of the small template."""
    for name, text in files.items():
        template.write(name, text)
    sources = sorted((template.home / "template").rglob("*.*"))
    brought = {
        path.relative_to(template.home / "template").as_posix(): path
        for path in sources
        if path.suffix in {".py", ".md"}
    }
    digests = "".join(
        f'"{name}" = "{hashlib.sha256(path.read_bytes()).hexdigest()}"\n'
        for name, path in brought.items()
    )
    lists = f"shared = {json.dumps(SHARED)}\ntemplate = {json.dumps([*brought])}\n"
    text = f'mark = "{MARK}"\n{lists}[sha256]\n{digests}'
    template.write("template/.template.toml", text)
    template.commit()
    template.git("tag", version)


def make_source(home: Path) -> Path:
    """The template, with two releases."""
    template = Project(home)
    template.home.mkdir()
    template.git("init", "--quiet", "--initial-branch=main")
    template.write("copier.yml", QUESTIONS)
    answers = "template/{{ _copier_conf.answers_file }}.jinja"
    release(template, "v1.0.0", BEFORE | {answers: "{{ _copier_answers | to_nice_yaml -}}\n"})
    (template.home / "template/src/agent/old.py").unlink()
    release(template, "v1.1.0", AFTER)
    return template.home


def make_project(source: Path, home: Path, version: str = "v1.0.0") -> Path:
    """A project of a release, in no repository yet."""
    copier.run_copy(str(source), home, vcs_ref=version, defaults=True, quiet=True)
    return home
