"""How long `copier copy` takes: this template against one of three files, in pairs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import yaml

from tests.support.templates import ASKED, Template, git

FILES = {
    "README.md.jinja": "# {{ project_name }}\n",
    "pyproject.toml.jinja": '[project]\nname = "{{ project_slug }}"\nversion = "0.1.0"\n',
    "agent.py": '"""An agent."""\n',
}


def make_small_template(folder: Path) -> Template:
    """A git repository of three files that asks as many questions as ours, all of them plain."""
    questions = {name: {"type": "str", "default": name.replace("_", "-")} for name in ASKED}
    (folder / "template").mkdir(parents=True)
    (folder / "copier.yml").write_text(yaml.safe_dump({"_subdirectory": "template", **questions}), encoding="utf-8")
    for name, text in FILES.items():
        (folder / "template" / name).write_text(text, encoding="utf-8")
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message=small")
    git(folder, "tag", "v1.0.0")
    return Template(folder)


def copy_seconds(template: Template, scratch: Path) -> float:
    """One `copier copy --defaults` of the newest version, in a process of its own."""
    project = scratch / "copied"
    command = [sys.executable, "-m", "copier", "copy", "--quiet", "--defaults", template.url, str(project)]
    began = time.perf_counter()
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, env=os.environ)
    seconds = time.perf_counter() - began
    shutil.rmtree(project)
    return seconds


def measure_copies(ours: Template, scratch: Path, pairs: int) -> dict[str, list[float]]:
    """Seconds of every copy; which one of a pair goes first alternates."""
    sides = {"ours": ours, "small": make_small_template(scratch / "small")}
    for template in sides.values():
        copy_seconds(template, scratch)  # compiles Copier, fills the caches
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for pair in range(pairs):
        for name in sorted(sides, reverse=bool(pair % 2)):
            seconds[name].append(copy_seconds(sides[name], scratch))
        print(".", end="", file=sys.stderr, flush=True)
    return seconds
