"""`agent update` is a tool of the template: uv fetches it from there, so that it is the newest."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Annotated

import typer

from agent.cli.terminal import busy
from agent.settings import SettingsError, find_home

ANSWERS = ".copier-answers.yml"
# this template asks the first; another one may ask it, too, but not all of them
QUESTIONS = ("agent_name", "knowledge", "memory")
HOSTS = {"gh": "https://github.com", "gl": "https://gitlab.com"}


def update(
    to: Annotated[
        str | None,
        typer.Option(metavar="VERSION", help="Such as v1.2.0; by default the newest."),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            *("-d", "--data"), metavar="NAME=VALUE", help="Change an answer, such as memory=redis."
        ),
    ] = None,
    preview: Annotated[
        bool, typer.Option("--preview", help="Try all of it and say what would change.")
    ] = False,
) -> int:
    """Bring the template's fixes here: tried and tested in a copy, then left for you to commit.

    What does not fit or fails the tests changes nothing here: exit 1, and what to do.
    """
    # the tool does that; it raises SettingsError if it cannot be found
    home = find_home()
    uv = shutil.which("uv") or os.environ.get("UV")
    if not uv or not shutil.which("git"):
        missing = "git" if uv else "uv (https://docs.astral.sh/uv)"
        raise SettingsError([f"there is no {missing} here: update in a checkout, with git and uv"])
    address = address_of(answer(home, "_src_path"))
    with busy(f"asking {masked(address)} for its newest release"):
        asked = ["git", "ls-remote", "--tags", "--refs", "--", address]
        done = subprocess.run(asked, cwd=home, capture_output=True, text=True)
    releases = re.findall(r"refs/tags/v(\d+)\.(\d+)\.(\d+)$", done.stdout, re.MULTILINE)
    if not releases:
        problem = f"{address} names no release of the template: no tag there is like v1.2.3"
        if done.returncode:
            said = done.stderr.strip().replace("\n", " ")
            problem = f"git cannot ask {address} for the template's releases: {said}"
        raise SettingsError([masked(problem)])
    newest = ".".join(max(releases, key=lambda release: [int(part) for part in release]))
    tool = f"git+{address}@v{newest}#subdirectory=updater"
    options = [f"--to={to}"] * bool(to) + [f"--data={one}" for one in data or []]
    options += ["--preview"] * preview
    # the tool has packages of its own, and works where it is started
    others = {"PYTHONPATH", "UV_WORKING_DIR", "UV_WORKING_DIRECTORY"}
    environment = {name: value for name, value in os.environ.items() if name not in others}
    os.chdir(home)
    os.execve(uv, [uv, "tool", "run", "--from", tool, "agent-update", *options], environment)


def address_of(source: str) -> str:
    """The template's repository as git and uv take it, from how Copier does."""
    short, colon, rest = source.removeprefix("git+").partition(":")
    if short in HOSTS and rest:
        return f"{HOSTS[short]}/{rest.strip('/').removesuffix('.git')}.git"
    if short.startswith(("/", "~")):
        return Path(short + colon + rest).expanduser().as_uri()
    if not rest:
        problem = f"{ANSWERS} does not say where the template is (_src_path: {source or 'missing'})"
        cure = "restore it, or write an address or a whole path there, such as gh:OWNER/REPO"
        raise SettingsError([f"{problem}: {cure}"])
    return f"{short}:{rest}" if rest.startswith("//") else f"ssh://{short}/{rest.lstrip('/')}"


def answers_of(home: Path) -> Path | None:
    """Where the answers to this template's questions are; None if nowhere.

    The file with the usual name may have those to another template, with which Copier began here.
    """
    files = [home / ANSWERS, *sorted(home.glob(".*.y*ml"))]
    texts = {path: f"\n{read(path)}" for path in files if path.is_file()}
    answered = {
        path: sum(f"\n{name}:" in text for name in QUESTIONS)
        for path, text in texts.items()
        if f"\n{QUESTIONS[0]}:" in text
    }
    return max(answered, key=lambda path: answered[path], default=None)


def read(path: Path) -> str:
    """The text of a file, whatever it holds."""
    return path.read_text(encoding="utf-8", errors="replace")


def has_conflict(path: Path) -> bool:
    """Whether somebody has committed the marks of a conflict in this file."""
    return bool(re.search(r"^<<<<<<< (?s:.*)^>>>>>>> ", read(path), re.MULTILINE))


def answer(home: Path, name: str) -> str:
    """What Copier has recorded under this name; empty if there is nothing."""
    path = answers_of(home)
    text = read(path) if path else ""
    found = re.search(rf"^{name}:[ \n]*(.*(?:\n +.*)*)$", text, re.MULTILINE)
    value = " ".join(line.strip() for line in found[1].splitlines()) if found else ""
    return value[1:-1].replace("''", "'") if value.startswith(("'", '"')) else value


def masked(text: str) -> str:
    """Without the passwords and tokens of addresses."""
    return re.sub(r"(?<=://)[^\s/]+@", "***@", text)
