"""The project: what is known of it, and what has to be right before an update begins."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from agent_update.processes import Refused, git, git_result, status
from agent_update.refusals import require_all_files, require_own_folder, require_package

ANSWERS = ".copier-answers.yml"
OWNERSHIP = ".template.toml"
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
        raise Refused(
            f"nothing of {home} is committed ({complaint}): run `git init && git add --all &&"
            " git commit -m start` there, so that an update can be undone"
        )
    top, head = found.stdout.decode().splitlines()
    for name in (ANSWERS, OWNERSHIP):
        if git_result(home, "ls-files", "--error-unmatch", "--", name).returncode:
            raise Refused(
                f"{home / name} is missing, or ignored by git: restore it, or `git add --force` it,"
                " and commit; a project that has left its template has no updates"
            )
    answers, ownership = read_answers(home), read_ownership(home)
    source, version = str(answers.get("_src_path", "")), str(answers.get("_commit", ""))
    if source and not version:
        raise Refused(
            f"{home / ANSWERS} does not say which version it is, because the template was no git"
            " repository (a zip, say): write its release there, such as `_commit: v1.2.0`, and its"
            " address as _src_path, such as gh:OWNER/REPO, and commit"
        )
    if not source:
        raise Refused(
            f"{home / ANSWERS} does not say which version of which template: restore it from"
            " version control"
        )
    # an address, or a path that means the same in the copy
    if not re.match(r"[^/]+:|/|~", source):
        raise Refused(
            f"{home / ANSWERS} has the relative _src_path {source}: write an address or a whole"
            " path there, such as gh:OWNER/REPO, and commit it"
        )
    if not ownership:
        raise Refused(f"{home / OWNERSHIP} cannot be read: restore it from version control")
    require_package(home, ownership)
    asked = [part for name in IN_PROGRESS for part in ("--git-path", name)]
    paths = git(home, "rev-parse", *asked)
    if begun := [name for name in map(Path, paths.splitlines()) if (home / name).exists()]:
        problem = f"{top} is in the middle of a merge or the like ({begun[0].name})"
        raise Refused(f"{problem}: finish it, then update")
    require_all_files(home)
    if dirty := [name for _, name in status(home)]:
        others = f"and {len(dirty) - 1} more are" if len(dirty) > 1 else "is"
        problem = f"{dirty[0]} {others} not committed"
        raise Refused(f"{problem}: commit or stash your work, then update")
    for name in (*ownership["template"], *ownership["shared"]):
        if not is_text(home / name):
            problem = f"{home / name} is not UTF-8 text, so that Copier would drop lines of it"
            raise Refused(f"{problem}: save it as UTF-8 and commit it")
    return Project(home, Path(top).resolve(), head, source, version, ownership)


def read_answers(home: Path) -> dict[str, Any]:
    """What Copier has recorded; empty if it cannot be read."""
    try:
        answers = yaml.safe_load((home / ANSWERS).read_text(encoding="utf-8"))
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


def is_text(path: Path) -> bool:
    """Whether a file can be merged as text; one that does not exist can."""
    try:
        return not path.is_file() or "\0" not in path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return False
