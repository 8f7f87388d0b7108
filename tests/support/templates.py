"""The template's releases, and projects that either tool renders from them and Copier updates."""

from __future__ import annotations

import itertools
import math
import os
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import copier
import yaml
from packaging.version import Version

from tests.support.covering import covering

ROOT = Path(__file__).parents[2]
# this checkout's name in tools/history.py
WORK_TREE = "v999.0.0"
MARK = "--- yours below: updates never touch what follows ---"

CONFIG: dict[str, Any] = yaml.safe_load((ROOT / "copier.yml").read_text(encoding="utf-8"))
ASKED: dict[str, dict[str, Any]] = {
    name: spec
    for name, spec in CONFIG.items()
    if not name.startswith("_") and spec.get("when", True)
}


def values_of(spec: dict[str, Any]) -> list[str]:
    """The choices of a question."""
    choices = spec["choices"]
    return list(choices.values() if isinstance(choices, dict) else choices)


CHOICES = {name: values_of(spec) for name, spec in ASKED.items() if "choices" in spec}
COMBINATIONS = (
    [dict(zip(CHOICES, values, strict=True)) for values in itertools.product(*CHOICES.values())]
    if math.prod(map(len, CHOICES.values())) <= 40
    else covering(CHOICES)
)

# Only these hold free text; in the others `$`, `#` or a line's end could mean something.
FREE_TEXT_IN = (".copier-answers.yml", "LICENSE", "README.md", "pyproject.toml")

# Legal answers that can break a file.
AWKWARD_NAMES = {
    "project_name": 'Zoë "Z" O\'Neil \\ 🎙 {{ 7 * 7 }} #',
    "project_slug": "null",
    "agent_name": "1e3",
    "description": "yes: 'a' \\n \"b\" ${HOME} {% raw %} <b> `x` & | é",
    "author_name": "Ann \\\" O'Neil [x](y) # 🎙",
}


def identify(case: dict[str, str]) -> str:
    """The name of a combination in pytest."""
    return "-".join(case.values())


def git(repository: Path, *arguments: str) -> str:
    """The output of git; the fixture `_isolated` keeps the tester's settings away."""
    command = ["git", *arguments]
    return subprocess.run(
        command, cwd=repository, check=True, capture_output=True, text=True
    ).stdout


def isolated_environment(folder: Path) -> dict[str, str]:
    """Variables that keep git, Copier and Cookiecutter from the tester's settings and caches."""
    (folder / "copier-settings.yml").write_text("{}\n", encoding="utf-8")
    config = {
        "cookiecutters_dir": str(folder / "cookiecutters"),
        "replay_dir": str(folder / "replay"),
    }
    (folder / "cookiecutter.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    identity = {
        f"GIT_{role}_{field}": "tester"
        for role in ("AUTHOR", "COMMITTER")
        for field in ("NAME", "EMAIL")
    }
    return identity | {
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "COPIER_SETTINGS_PATH": str(folder / "copier-settings.yml"),
        "COPIER_CACHE_DIR": str(folder / "copier-cache"),
        "COOKIECUTTER_CONFIG": str(folder / "cookiecutter.yml"),
    }


@dataclass(frozen=True)
class Project:
    """A rendered project."""

    path: Path

    def read(self, name: str) -> str:
        """The text of a file."""
        return (self.path / name).read_text(encoding="utf-8")

    def write(self, name: str, text: str) -> None:
        """Write a file, and its folders."""
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        (self.path / name).write_text(text, encoding="utf-8")

    def files(self) -> dict[str, tuple[bytes, int]]:
        """The bytes and mode of every file except git's."""
        found = [
            path for path in self.path.rglob("*") if path.is_file() and ".git" not in path.parts
        ]
        return {
            str(path.relative_to(self.path)): (path.read_bytes(), path.stat().st_mode)
            for path in found
        }

    def folders(self) -> set[str]:
        """Every folder except git's."""
        found = [
            path for path in self.path.rglob("*") if path.is_dir() and ".git" not in path.parts
        ]
        return {str(path.relative_to(self.path)) for path in found}

    def answers(self) -> dict[str, str]:
        """The recorded answers."""
        return cast("dict[str, str]", yaml.safe_load(self.read(".copier-answers.yml")))

    def ownership(self) -> dict[str, Any]:
        """What `.template.toml` says."""
        return parse_ownership(self.read(".template.toml"))

    def commit(self) -> None:
        """Commit everything, in the project's own repository."""
        if not (self.path / ".git").exists():
            git(self.path, "init", "--quiet", "--initial-branch=main")
        git(self.path, "add", "--all")
        git(self.path, "commit", "--quiet", "--allow-empty", "--message=work")

    def update(self, version: str, **answers: str) -> None:
        """`copier update --defaults`, which needs everything committed."""
        copier.run_update(
            self.path, data=answers, vcs_ref=version, defaults=True, overwrite=True, quiet=True
        )

    def changes(self) -> list[str]:
        """Everything that is not committed, also ignored files."""
        return git(
            self.path, "status", "--porcelain", "--ignored", "--untracked-files=all"
        ).splitlines()

    def conflicts(self) -> list[str]:
        """The conflicts of an update, which its exit status does not report."""
        unmerged = [
            line
            for line in self.changes()
            if line[:2] in {"UU", "AA", "DU", "UD", "AU", "UA", "DD"}
        ]
        rejected = [str(path) for path in self.path.rglob("*.rej")]
        marked = [
            name for name, (content, _) in self.files().items() if b"\n<<<<<<< " in b"\n" + content
        ]
        return unmerged + rejected + marked


@dataclass(frozen=True)
class Template:
    """A git repository of every release and this checkout, as tools/history.py makes it."""

    path: Path

    @property
    def url(self) -> str:
        """The address that both tools accept as a git repository."""
        return f"git+file://{self.path}"

    def copy(self, project: Path, version: str = WORK_TREE, **answers: str) -> Project:
        """`copier copy --defaults`; raises ValueError for an answer that is refused."""
        copier.run_copy(self.url, project, data=answers, vcs_ref=version, defaults=True, quiet=True)
        return Project(project)

    def bake(self, parent: Path, version: str = WORK_TREE, **answers: str) -> Project:
        """`cookiecutter --no-input`; the slug names the project's folder."""
        done = cookiecut(
            self.url,
            parent,
            "--checkout",
            version,
            *(f"{k}={literal(v)}" for k, v in answers.items()),
        )
        assert done.returncode == 0, done.stderr + done.stdout
        (project,) = parent.iterdir()
        return Project(project)

    def source(self, name: str) -> Path:
        """The template's path of a project's file."""
        plain = self.path / "template" / name
        return plain if plain.is_file() else plain.with_name(f"{plain.name}.jinja")

    def add_line(self, name: str, line: str, before: str = "") -> None:
        """Add a line to a file: above each line that contains `before`, or at the end."""
        source = self.source(name)
        lines = source.read_text(encoding="utf-8").splitlines(keepends=True)
        places = (
            [number for number, text in enumerate(lines) if before in text]
            if before
            else [len(lines)]
        )
        for number in reversed(places):
            margin = (
                lines[number][: len(lines[number]) - len(lines[number].lstrip())] if before else ""
            )
            lines.insert(number, f"{margin}{line}\n")
        source.write_text("".join(lines), encoding="utf-8")

    def add_dependency(self, requirement: str) -> None:
        """Make projects install one more package, above the first mark of pyproject.toml."""
        metadata = self.source("pyproject.toml")
        text = metadata.read_text(encoding="utf-8")
        metadata.write_text(
            text.replace(f"    # {MARK}", f'    "{requirement}",\n    # {MARK}', 1),
            encoding="utf-8",
        )

    def release(self, version: str) -> None:
        """Commit and tag the changes."""
        ownership = [sys.executable, str(ROOT / "tools" / "ownership.py"), "--root", str(self.path)]
        subprocess.run(ownership, check=True)
        git(self.path, "add", "--all")
        git(self.path, "commit", "--quiet", "--message", version)
        git(self.path, "tag", "--annotate", "--message", version, version)


def parse_ownership(text: str) -> dict[str, Any]:
    """A `.template.toml`, with today's names also for releases before v0.5.0."""
    said = tomllib.loads(text)
    for name, before in (("owner", "yours"), ("template", "ours")):
        said.setdefault(name, said.get(before))
    return {"moved": {}, **said}


def literal(value: str) -> str:
    """The value for Cookiecutter's command line, which renders it as Jinja, unlike Copier's."""
    return value.replace("{{", "{{ '{{' }}").replace("{%", "{{ '{%' }}").replace("{#", "{{ '{#' }}")


def cookiecut(source: str, parent: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `cookiecutter --no-input` for a project in `parent`."""
    command = [
        sys.executable,
        "-m",
        "cookiecutter",
        "--no-input",
        "--output-dir",
        str(parent),
        source,
        *arguments,
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def copy_by_hand(source: str, project: Path, **answers: str) -> subprocess.CompletedProcess[str]:
    """Run `copier copy --defaults` in a process, without --trust."""
    given = [f"--data={name}={value}" for name, value in answers.items()]
    command = [sys.executable, "-m", "copier", "copy", "--defaults", *given, source, str(project)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )


def make_template(folder: Path) -> Template:
    """Make the releases and this checkout in `folder`, which does not exist."""
    command = [sys.executable, str(ROOT / "tools" / "history.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{shlex.join(command)}: {done.stderr}"
    return Template(folder)


def released() -> list[str]:
    """The tags of the released templates, oldest first."""
    bundle = ROOT / "releases" / "history.bundle"
    if not bundle.exists():
        return []
    heads = git(ROOT, "bundle", "list-heads", str(bundle)).split()
    tags = [name.removeprefix("refs/tags/") for name in heads if name.startswith("refs/tags/")]
    return sorted(tags, key=Version)
