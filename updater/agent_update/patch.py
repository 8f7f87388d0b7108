"""The update is applied to the project: all of it or nothing."""

from __future__ import annotations

import contextlib
import os
import shlex
import stat
from pathlib import Path

from agent_update.preview import Outcome
from agent_update.processes import Failed, git, git_result, ignoring_signals, last_words, status
from agent_update.project import Project

State = tuple[int, bytes] | None  # the mode of a file or link and its bytes; None: there is none


def apply(project: Project, outcome: Outcome) -> None:
    """Change the project's files, all of them or none; raises Failed."""
    head = git(project.home, "rev-parse", "HEAD").strip()
    if head != project.head or status(project.home, paths=project.paths):
        raise Failed(
            "the project was changed while the update was tried, and was left alone:"
            " commit, and try again"
        )
    before = {project.home / name: read_state(project.home / name) for name in outcome.files}
    folders = {folder for path in before for folder in path.parents if folder.is_dir()}
    # git ignores them too: it would stop in the middle of the files
    with ignoring_signals():
        command = ("apply", "--whitespace=nowarn", "-")
        applied = git_result(project.top, *command, given=outcome.patch)
        left = restore(before, folders) if applied.returncode else []
    problem = "the update cannot be applied to the project, which is as it was:"
    cure = "Is a file that git ignores in its way? Move that file, and update again."
    if left:
        problem = "the update stopped half-way, and not all of it could be undone:"
        cure = f"Move what is in the way, then `git restore {shlex.join(map(str, left))}`"
    if applied.returncode:
        raise Failed(f"{problem}\n{last_words(applied.stderr)}\n{cure}")
    stage_ignored(project, outcome)


def stage_ignored(project: Project, outcome: Outcome) -> None:
    """Stage the new files that the owner has git ignore: they would be in no commit and no stash.

    Copier takes for deleted what is not committed: no later update would bring them.
    """
    if ignored := ignored_files(project, outcome):
        added = git_result(project.home, "add", "--force", "--", *ignored)
        if added.returncode:
            problem = "The update is in the project, but git ignores some of it, so run"
            command = f"git add --force {shlex.join(ignored)}"
            raise Failed(f"{problem} `{command}`:\n{last_words(added.stderr)}")


def ignored_files(project: Project, outcome: Outcome) -> list[str]:
    """The new files that match a pattern of the owner's .gitignore, or of another one of theirs."""
    new = "\0".join(name for name, kind in outcome.files.items() if kind == "A")
    asked = ("check-ignore", "--no-index", "-z", "--stdin")
    listed = git_result(project.home, *asked, given=os.fsencode(new)).stdout
    return os.fsdecode(listed).split("\0")[:-1]


def read_state(path: Path) -> State:
    """What is at a path; of a folder, only its mode."""
    try:
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            return mode, os.fsencode(path.readlink())
        return mode, path.read_bytes() if stat.S_ISREG(mode) else b""
    except (FileNotFoundError, NotADirectoryError):
        return None


def restore(before: dict[Path, State], folders: set[Path]) -> list[Path]:
    """Undo what git did before it stopped, from copies: what git does not see, HEAD lacks.

    Git checks a patch before it changes a file, but it does not foresee all that is in its way.
    Returns what could not be undone.
    """
    # what is new goes first: it may be in the place of what was there
    for path, state in sorted(before.items(), key=lambda one: one[1] is not None):
        if read_state(path) != state:
            with contextlib.suppress(OSError):
                put_back(path, state, folders)
    return [path for path, state in before.items() if read_state(path) != state]


def put_back(path: Path, state: State, folders: set[Path]) -> None:
    """Make a path what it was; only `folders` were there, of those above it."""
    path.unlink(missing_ok=True)
    if state is None:
        for folder in path.parents:
            if folder in folders:
                break
            folder.rmdir()
        return
    mode, content = state
    path.parent.mkdir(parents=True, exist_ok=True)
    if stat.S_ISLNK(mode):
        path.symlink_to(os.fsdecode(content))
    else:
        path.write_bytes(content)
        path.chmod(stat.S_IMODE(mode))
