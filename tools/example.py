"""Commit the default project to the branch `example`, for reading only.

    python tools/example.py [--address gh:OWNER/REPO]

It renders HEAD and does not touch the work tree. The branch shares no history with the others and
has one commit for each change; the message names the template's commit. Without a change there is
no commit. `--address` is the template's address in the example's answers file.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from pathlib import Path

import copier

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.history import ROOT, Trouble, git

BRANCH = "refs/heads/example"
# A folder: at the root its workflows would be this repository's, and GitHub's own token may not
# push workflows.
PROJECT = "my-agent"
ANSWERS = ".copier-answers.yml"
ADDRESS = "gh:OWNER/REPO"
# This line changes with every commit of the template.
VERSION = re.compile(r"^_commit: .*\n", re.MULTILINE)


def render(root: Path, commit: str, project: Path, address: str) -> None:
    """Render that commit into `project`, as `copier copy --defaults` of `address` would."""
    empty = copier.Settings()
    copier.run_copy(str(root), project, vcs_ref=commit, defaults=True, quiet=True, settings=empty)
    answers = project / ANSWERS
    text = answers.read_text(encoding="utf-8")
    named = re.sub(r"^_src_path: .*$", f"_src_path: {address}", text, flags=re.MULTILINE)
    answers.write_text(named, encoding="utf-8")


def tree_of(root: Path, folder: Path, index: Path) -> str:
    """The git tree that holds these files, in the repository `root`."""
    where = {
        "GIT_DIR": git(root, "rev-parse", "--absolute-git-dir").strip(),
        "GIT_WORK_TREE": str(folder),
        "GIT_INDEX_FILE": str(index),
    }
    git(folder, "add", "--all", "--force", **where)
    return git(folder, "write-tree", **where).strip()


def is_there(root: Path, tree: str) -> bool:
    """Whether the branch already has that tree, except for the template's version."""
    if not git(root, "for-each-ref", BRANCH):
        return False
    answers = f"{PROJECT}/{ANSWERS}"
    changed = git(root, "diff-tree", "-r", "--name-only", BRANCH, tree).splitlines()
    if changed != [answers]:
        return not changed
    there, here = (
        VERSION.sub("", git(root, "show", f"{found}:{answers}")) for found in (BRANCH, tree)
    )
    return there == here


def commit_example(root: Path, address: str) -> str | None:
    """Commit the example and return the commit, None without a change; raises Trouble."""
    commit = git(root, "rev-parse", "HEAD").strip()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "tree")
        render(root, commit, folder / PROJECT, address)
        tree = tree_of(root, folder, Path(scratch, "index"))
    if is_there(root, tree):
        return None
    before = git(root, "for-each-ref", "--format=%(objectname)", BRANCH).strip()
    parent = ["-p", before] if before else []
    # the same template makes the same commit on every machine
    when = git(root, "show", "--no-patch", "--format=%cI", commit).strip()
    who = {
        f"GIT_{role}_{field}": value
        for role in ("AUTHOR", "COMMITTER")
        for field, value in (("NAME", "livekit-agent-template"), ("EMAIL", ""), ("DATE", when))
    }
    message = f"What the template renders at {commit}"
    made = git(root, "commit-tree", tree, *parent, "-m", message, **who).strip()
    git(root, "update-ref", BRANCH, made, before or "0" * 40)
    return made


def main() -> int:
    """Commit the example; return the exit status."""
    parser = argparse.ArgumentParser(description="Put the default project on the branch example.")
    parser.add_argument("--address", default=ADDRESS, help=f"of the template; else {ADDRESS}")
    try:
        made = commit_example(ROOT, parser.parse_args().address)
    except Trouble as trouble:
        print(f"example: {trouble}", file=sys.stderr)
        return 1
    if made is None:
        print("The branch example is up to date: nothing to do.")
    else:
        print(f"The branch example is at {made}. To see it: git worktree add ../example example")
    return 0


if __name__ == "__main__":
    sys.exit(main())
