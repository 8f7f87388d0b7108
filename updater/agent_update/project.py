"""The project: what is known of it, and what has to be right before an update begins."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from agent_update.processes import Refused, git, git_result, status
from agent_update.refusals import require_all_files, require_own_folder, require_package

ANSWERS = ".copier-answers.yml"
OWNERSHIP = ".template.toml"
LOCK = "uv.lock"
# this template asks the first, in each of its releases; another may, too, but not all of them
QUESTIONS = ("agent_name", "knowledge", "memory")
STORES = {"knowledge": ("sqlite", "pgvector"), "memory": ("sqlite", "redis")}
IN_PROGRESS = ("MERGE_HEAD", "CHERRY_PICK_HEAD", "REVERT_HEAD", "rebase-merge", "rebase-apply")


@dataclass(frozen=True)
class Project:
    """A committed project: a repository, or a folder in one."""

    home: Path
    top: Path  # of the repository
    head: str
    source: str  # the template's address, as Copier takes it
    version: str
    ownership: dict[str, Any]
    paths: tuple[str, ...]  # what an update may change: the project, and locks of a workspace


def find_home() -> Path:
    """The nearest folder, from here upwards, that is a project; raises Refused."""
    here = Path.cwd().resolve()
    for folder in (here, *here.parents):
        if (folder / ANSWERS).is_file() or (folder / OWNERSHIP).is_file():
            return folder
    raise Refused(f"{here} is in no project of the template: run this in the project's folder")


def examine(home: Path) -> Project:
    """The project, of which everything is committed; raises Refused otherwise."""
    found = git_result(home, "rev-parse", "--show-toplevel", "HEAD")
    if found.returncode:
        complaint = found.stderr.decode(errors="replace").splitlines()[0]
        require_own_folder(complaint)
        raise Refused(why_no_commit(home, complaint))
    top, head = found.stdout.decode().splitlines()
    require_all_files(home)
    recorded = home / answers_file(home)
    for name in (recorded.name, OWNERSHIP):
        if git_result(home, "ls-files", "--error-unmatch", "--", name).returncode:
            raise Refused(
                f"{home / name} is missing, or ignored by git: restore it, or `git add --force` it,"
                " and commit; a project that has left its template has no updates"
            )
        require_merged(home / name)
    answers, ownership = read_answers(home), read_ownership(home)
    source, version = str(answers.get("_src_path", "")), str(answers.get("_commit", ""))
    if source and not version:
        raise Refused(
            f"{recorded} does not say which version it is, because the template was no git"
            " repository (a zip, say): write its release there, such as `_commit: v1.2.0`, and its"
            " address as _src_path, such as gh:OWNER/REPO, and commit"
        )
    if not source:
        raise Refused(
            f"{recorded} does not say which version of which template: restore it from"
            " version control"
        )
    # an address, or a path that means the same in the copy
    if not re.match(r"[^/]+:|/|~", source):
        raise Refused(
            f"{recorded} has the relative _src_path {source}: write an address or a whole"
            " path there, such as gh:OWNER/REPO, and commit it"
        )
    if not ownership:
        raise Refused(f"{home / OWNERSHIP} cannot be read: restore it from version control")
    require_true_answers(recorded, answers, ownership)
    require_package(home, ownership)
    asked = [part for name in IN_PROGRESS for part in ("--git-path", name)]
    states = git(home, "rev-parse", *asked)
    if begun := [name for name in map(Path, states.splitlines()) if (home / name).exists()]:
        problem = f"{top} is in the middle of a merge or the like ({begun[0].name})"
        raise Refused(f"{problem}: finish it, then update")
    paths = what_may_change(home, Path(top).resolve())
    if dirty := [name for _, name in status(home, paths=paths)]:
        others = f"and {len(dirty) - 1} more are" if len(dirty) > 1 else "is"
        problem = f"{dirty[0]} {others} not committed"
        raise Refused(f"{problem}: commit or stash your work, then update")
    brought = {*ownership["template"], *ownership["shared"], recorded.name, LOCK, *paths}
    if hidden := [one for one in hidden_from_git(home, paths).items() if one[0] in brought]:
        name, mark = hidden[0]
        others = f"and {len(hidden) - 1} more are" if len(hidden) > 1 else "is"
        problem = f"{name} {others} marked as {mark}, so that git sees no edit there"
        cure = f"`git update-index --no-{mark} {shlex.quote(name)}`, then commit or stash your work"
        raise Refused(f"{problem} (see `git ls-files -v`): {cure}")
    for name in (*ownership["template"], *ownership["shared"]):
        if not is_text(home / name):
            problem = f"{home / name} is not UTF-8 text, so that Copier would drop lines of it"
            raise Refused(f"{problem}: save it as UTF-8 and commit it")
        require_merged(home / name)
    return Project(home, Path(top).resolve(), head, source, version, ownership, paths)


def read_answers(home: Path) -> dict[str, Any]:
    """What Copier has recorded; empty if it cannot be read."""
    try:
        answers = yaml.safe_load((home / answers_file(home)).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return answers if isinstance(answers, dict) else {}


def read_ownership(home: Path) -> dict[str, Any]:
    """What `.template.toml` says of the files that the template brings; empty if unreadable."""
    try:
        said = tomllib.loads((home / OWNERSHIP).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        return {}
    # up to v0.4.0 the template's own files were called `ours`, and none had moved
    return {"template": said.get("ours", []), "shared": [], "sha256": {}, "moved": {}} | said


def answers_file(home: Path) -> str:
    """The name of the answers to this template's questions.

    Where there were answers to another template, Copier was told another name (`--answers-file`).
    """
    answered: dict[str, int] = {}
    for path in (home / ANSWERS, *sorted(home.glob(".*.y*ml"))):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            text = "\n" + path.read_text(encoding="utf-8")
            if f"\n{QUESTIONS[0]}:" in text:
                answered[path.name] = sum(f"\n{name}:" in text for name in QUESTIONS)
    return max(answered, key=lambda name: answered[name], default=ANSWERS)


def made_with(ownership: dict[str, Any]) -> dict[str, str]:
    """The answers that the project's files come from."""
    if "answers" in ownership:
        return dict(ownership["answers"])
    # up to v0.5.0 only its modules tell
    found = [re.match(r"src/agent/(\w+)/(\w+)", name) for name in ownership["template"]]
    modules = {(module[1], module[2]) for module in found if module}
    return {
        question: next((store for store in stores if (question, store) in modules), "none")
        for question, stores in STORES.items()
    }


def require_true_answers(file: Path, answers: dict[str, Any], ownership: dict[str, Any]) -> None:
    """Raise Refused if an answer is not the one that the project was made with.

    Copier believes the answers, and that the owner has deleted what they should have brought.
    """
    if QUESTIONS[0] not in answers:
        raise Refused(
            f"{file} has the answers to another template, and there are none to this one: restore"
            " them from version control, or leave the template (docs/agent/ownership.md)"
        )
    for name, made in made_with(ownership).items():
        if (answer := str(answers.get(name, made))) != made:
            back = f"write {name}: {made} there again and commit"
            raise Refused(
                f"{file} says {name}: {answer}, but the project was made with {made}: {back}, then"
                f" run `agent update -d {shlex.quote(f'{name}={answer}')}`"
            )


def require_merged(path: Path) -> None:
    """Raise Refused if a file has the marks of a conflict that somebody has committed."""
    text = path.read_bytes() if path.is_file() else b""
    if re.search(rb"^<<<<<<< (?s:.*)^>>>>>>> ", text, re.MULTILINE):
        raise Refused(f"{path} has conflict markers (<<<<<<<): finish that merge, and commit")


def why_no_commit(home: Path, complaint: str) -> str:
    """Why an update of this folder could not be undone, and what to do about it."""
    found = [folder / ".git" for folder in (home, *home.parents)]
    link = next((path for path in found if os.path.lexists(path)), None)
    committed = git_result(home, "rev-list", "--max-count=1", "--all")
    if link and (committed.returncode or committed.stdout):
        return (
            f"git cannot read the repository of {home} ({complaint}): put {link} right, or look"
            " where it leads. For a work tree or its repository that was moved, run `git worktree"
            " repair` in the repository"
        )
    return (
        f"nothing of {home} is committed ({complaint}): run `git init && git add --all &&"
        " git commit -m start` there, so that an update can be undone"
    )


def what_may_change(home: Path, top: Path) -> tuple[str, ...]:
    """What an update may change, seen from the project: itself, and a lock of its workspace."""
    above = [folder / LOCK for folder in home.parents if folder.is_relative_to(top)]
    locks = [os.path.relpath(path, home) for path in above if path.is_file()]
    tracked = git(home, "ls-files", "-z", "--", *locks).split("\0") if locks else []
    return (".", *(name for name in locks if name in tracked))


def hidden_from_git(home: Path, paths: Sequence[str]) -> dict[str, str]:
    """The files that `git update-index` has marked, so that git takes them for unchanged."""
    listed = [
        entry.partition(" ") for entry in git(home, "ls-files", "-vz", "--", *paths).split("\0")
    ]
    marks = {name: mark for mark, _, name in listed if mark.islower() or mark == "S"}
    return {
        name: "assume-unchanged" if mark.islower() else "skip-worktree"
        for name, mark in marks.items()
    }


def is_text(path: Path) -> bool:
    """Whether a file can be merged as text; one that does not exist can."""
    try:
        return not path.is_file() or "\0" not in path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return False
