"""What an update cannot work with, said in a sentence before anything is begun."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from agent_update.processes import Refused, git, git_result

PACKAGE = "src/agent/"
CURRENT = ":current:"  # Copier's name for the version that the project is at
SHOWN_VERSIONS = 5


def require_own_folder(complaint: str) -> None:
    """Refuse a repository that git does not read because of whose it is."""
    if found := re.search(r"dubious ownership in repository at '(.+)'", complaint):
        cure = f"`git config --global --add safe.directory {shlex.quote(found[1])}`"
        problem = f"{found[1]} belongs to another user, so git does not read it"
        raise Refused(f"{problem}: update as that user, or {cure}")


def require_all_files(home: Path) -> None:
    """Refuse a sparse checkout that has only some of the project's files."""
    if git_result(home, "config", "--type=bool", "core.sparseCheckout").stdout.strip() != b"true":
        return
    listed = git(home, "ls-files", "-t", "-z").split("\0")
    if away := [entry[2:] for entry in listed if entry.startswith("S ")]:
        problem = f"{home} is a sparse checkout ({away[0]} is not in it)"
        raise Refused(f"{problem}: `git sparse-checkout disable`, then update")


def require_package(home: Path, ownership: dict[str, Any]) -> None:
    """Refuse a project in which the template's package has another place: fixes have none."""
    files = [name for name in ownership["template"] if name.startswith(PACKAGE)]
    if not any((home / name).exists() for name in files):
        found = sorted((home / "src").glob("*/entrypoint.py"))
        move = f"`git mv {found[0].parent.relative_to(home)} src/agent`" if found else "restore it"
        problem = f"{home / 'src/agent'} is not there, and updates bring their fixes to that folder"
        raise Refused(f"{problem}: {move} and commit, then update")


def require_marks(home: Path, ownership: dict[str, Any], conflicting: Sequence[str]) -> None:
    """Refuse conflicts in files that were there before the template, and so have nothing of it."""
    mark, shared = ownership.get("mark", ""), set(ownership["shared"])
    for name in conflicting:
        if name in shared and mark not in (home / name).read_text(encoding="utf-8"):
            problem = f"{name} has no line `{mark}`: it is older than the template, or has lost it"
            page = "docs/agent/ownership.md, A repository that has files already"
            raise Refused(f"{problem}, and cannot be merged: see {page}")


def require_versions(source: str, version: str, to: str | None, known: Sequence[str]) -> None:
    """Refuse a version that the template's repository does not have, if that could be asked."""
    tags = [name.removeprefix("refs/tags/") for name in known if name.startswith("refs/tags/")]
    names = {*tags, *(name.removeprefix("refs/heads/") for name in known), CURRENT, "HEAD"}
    # a commit, by its hash or as `git describe` and Copier name it
    commit = re.fullmatch(r"(.+-\d+-g)?[0-9a-f]{7,64}", to or "")
    if to and known and to not in names and not commit:
        newest = ", ".join(sorted(filter(is_release, tags), key=numbers)[-SHOWN_VERSIONS:])
        cure = f"choose one of {newest}, or leave --to out" if newest else "leave --to out"
        raise Refused(f"{source} has no version {to}: {cure}")
    if known and is_release(version) and version not in tags:
        problem = f"{source} has no tag {version}, the version of this project"
        cure = "push that tag there, or write the address that has it as _src_path"
        raise Refused(f"{problem}: {cure}")


def is_release(tag: str) -> bool:
    """Whether a tag is a release of the template."""
    return bool(re.fullmatch(r"v\d+\.\d+\.\d+", tag))


def numbers(release: str) -> list[int]:
    """What releases are sorted by."""
    return [int(part) for part in release[1:].split(".")]


@contextlib.contextmanager
def alone(home: Path) -> Iterator[None]:
    """Inside, no other update of this project runs; a lock of a folder leaves nothing behind."""
    import fcntl  # Windows has none

    folder = os.open(home, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refused(f"another update of {home} is running: wait until it has ended") from None
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(folder)
