"""The update is applied to the project: all of it or nothing."""

from __future__ import annotations

import contextlib
import os

from agent_update.preview import Outcome
from agent_update.processes import Failed, git, git_result, ignoring_signals, last_words, status
from agent_update.project import Project


def apply(project: Project, outcome: Outcome) -> None:
    """Change the project's files, all of them or none; raises Failed."""
    head = git(project.home, "rev-parse", "HEAD").strip()
    if head != project.head or status(project.home):
        raise Failed(
            "the project was changed while the update was tried, and was left alone:"
            " commit, and try again"
        )
    there = {name for name in outcome.files if os.path.lexists(project.home / name)}
    # git ignores them too: it would stop in the middle of the files
    with ignoring_signals():
        command = ("apply", "--whitespace=nowarn", "-")
        applied = git_result(project.top, *command, given=outcome.patch)
        restored = applied.returncode == 0 or restore(project, outcome, there)
    if not restored:
        problem = "the update stopped half-way, and not all of it could be undone:"
        cure = "`git status` shows what is changed: move what is in the way, then `git restore .`"
    else:
        problem = "the update cannot be applied to the project, which is as it was:"
        cure = "Is a file that git ignores in its way? Move that file, and update again."
    if applied.returncode:
        raise Failed(f"{problem}\n{last_words(applied.stderr)}\n{cure}")


def restore(project: Project, outcome: Outcome, there: set[str]) -> bool:
    """Undo what git did before it stopped; whether all of it is undone.

    Git checks a patch before it changes a file, but it does not foresee all that is in its way.
    """
    for name in outcome.files.keys() - there:
        with contextlib.suppress(OSError):
            (project.home / name).unlink()
    if changed := [name for name, kind in outcome.files.items() if kind != "A"]:
        git_result(project.home, "checkout", "--quiet", "HEAD", "--", *changed)
    return not status(project.home)
