"""The command `agent-update`: what it does, in order, and what it prints."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
from collections.abc import Sequence

from agent_update.patch import apply, ignored_files
from agent_update.preview import (
    Outcome,
    copy_of,
    install_and_test,
    is_at_least,
    newest_release,
    references,
    render,
)
from agent_update.processes import (
    Failed,
    Refused,
    clean_environment,
    exiting_on_signals,
    git,
    masked,
    run,
    say,
    uv,
)
from agent_update.project import Project, examine, find_home
from agent_update.refusals import CURRENT, alone, require_versions

SHOWN_FILES = 40
CHANGES = {"A": "new", "D": "deleted"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Update the project; 0 done, 1 it does not fit, 2 nothing was begun, 128 + n for signal n."""
    parser = argparse.ArgumentParser(prog="agent-update", description="Update this project.")
    parser.add_argument("--to", metavar="VERSION", help="such as v1.2.0; by default the newest")
    parser.add_argument(
        "-d",
        "--data",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="answer a question again, such as memory=redis; may be repeated",
    )
    parser.add_argument("--preview", action="store_true", help="only say what would change")
    options = parser.parse_args(arguments)
    try:
        with exiting_on_signals():
            update(options.to, options.data, preview=options.preview)
    except (Failed, Refused) as error:
        say(f"agent: {error}")
        return 2 if isinstance(error, Refused) else 1
    return 0


def update(to: str | None, data: Sequence[str], *, preview: bool) -> None:
    """Look whether the update can begin, and do it; raises Refused and Failed."""
    for answer in data:
        if not re.fullmatch(r"[A-Za-z]\w*=.*", answer):
            cure = "write a question and its answer, such as -d memory=redis"
            raise Refused(f"-d {answer}: {cure}")
    project = examine(find_home())
    known = references(project.source)
    newest = None if to else newest_release(known)
    to = re.sub(r"^(?=\d+(\.\d+)+$)", "v", to) if to else newest
    require_versions(masked(project.source), project.version, to, known)
    if newest and is_at_least(project.version, newest):
        to = CURRENT
    if to in (project.version, CURRENT) and not data:
        print(nothing_to_do(project))
        return
    with alone(project.home):
        bring_update(project, to, data, preview=preview)


def bring_update(project: Project, to: str | None, data: Sequence[str], *, preview: bool) -> None:
    """Try the update in a copy, then apply it; raises Failed."""
    with copy_of(project) as copy:
        outcome = render(project, copy, to, data)
        if not outcome.files:
            print(nothing_to_do(project))
            return
        install_and_test(copy, outcome.version)
    way = f"from {project.version} to {outcome.version}"
    if outcome.version == project.version:
        way = f"at {outcome.version}"
    if preview:
        print(f"The update {way} fits and passes the project's tests. It would bring:")
        print(listing(outcome.files))
        print("Nothing was changed. `agent update` without --preview does it.")
        return
    apply(project, outcome)
    print(f"Updated {way}, not committed yet:")
    report(project, outcome)
    venv = os.environ.get("UV_PROJECT_ENVIRONMENT", ".venv")
    if (project.home / venv).is_dir():
        # --inexact: what the owner has installed as well stays
        command = uv("sync", "--inexact")
        environment = clean_environment() | {"UV_PROJECT_ENVIRONMENT": venv}
        problem = "The update is in the project, but cannot be installed: run `uv sync`."
        run("installing the updated project", command, project.home, environment, problem)


def nothing_to_do(project: Project) -> str:
    """What is said where nothing is newer."""
    return f"Nothing to do: the project is at {project.version}, and nothing newer is asked for."


def report(project: Project, outcome: Outcome) -> None:
    """Print what has changed, and what is left to the owner."""
    print(listing(outcome.files))
    if outcome.settled:
        print("Raised by you and by the template, and now:")
        print("\n".join(f"  {line}" for line in outcome.settled))
    print(f"What is new: CHANGELOG.md of {masked(project.source)} at {outcome.version}")
    # Copier updates nothing that is deleted, behind a link, or in no commit
    paths = {name: project.home / name for name in outcome.shipped}
    gone = [name for name, path in paths.items() if path.is_symlink() or not path.is_file()]
    if gone:
        print(f"Not updated, because you deleted or moved them: {', '.join(gone)}")
    tracked = {*git(project.home, "ls-files", "-z").split("\0"), *outcome.files, *gone}
    if outside := [name for name in outcome.shipped if name not in tracked]:
        command = f"git add --force {shlex.join(outside)}"
        print(f"Not updated, because git ignores them: run `{command}`, commit, and update again")
    if ignored := ignored_files(project, outcome):
        print(f"Staged already, because you have git ignore it: {', '.join(ignored)}")
    where = shlex.join(project.paths)
    print(f"Review it:  git add --all -- {where} && git diff --cached")
    print("Keep it:    git commit -m 'Update the template'")
    print(f"Undo it:    git stash --include-untracked -- {where}")


def listing(files: dict[str, str]) -> str:
    """One line for each file, and how many there are."""
    lines = [f"  {CHANGES.get(kind, 'changed'):<8} {name}" for name, kind in files.items()]
    if len(lines) > SHOWN_FILES:
        lines[SHOWN_FILES - 1 :] = [f"  and {len(lines) - SHOWN_FILES + 1} more"]
    return "\n".join([*lines, f"  files: {len(files)}"])


if __name__ == "__main__":
    sys.exit(main())
