"""Make a git repository that holds every released template, and this checkout as v999.0.0.

    python tools/history.py DIR

Any checkout can do it, without tags and without network: releases/history.bundle has the released
trees. They hold only the parts of a template (see PARTS).
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
PARTS = (
    *("copier.yml", "cookiecutter.json", "hooks", "template", "CHANGELOG.md", "LICENSE"),
    # the tool that `agent update` fetches from a release
    "updater",
    # the answer to a Cookiecutter without hooks
    *(
        "needs_cookiecutter_2_4_or_newer_with_its_hooks__or_copier.py",
        "{{cookiecutter.needs_its_hooks}}",
    ),
)
BRANCH = "refs/heads/main"
WORK_TREE = "v999.0.0"
RELEASE = re.compile(r"v\d+\.\d+\.\d+((a|b|rc)\d+)?")
# What PEP 440 reads as a version; the package that knows it is not everywhere where this runs.
VERSION = re.compile(
    r"v?(\d+!)?\d+(\.\d+)*"
    r"([-_.]?(alpha|a|beta|b|preview|pre|c|rc)[-_.]?\d*)?"
    r"(-\d+|[-_.]?(post|rev|r)[-_.]?\d*)?"
    r"([-_.]?dev[-_.]?\d*)?"
    r"(\+[a-z0-9]+([-_.][a-z0-9]+)*)?",
    re.IGNORECASE,
)


class Trouble(Exception):
    """A problem and what to do about it, in one line."""


def git(repository: Path, *arguments: str, stdin: str | None = None, **environ: str) -> str:
    """Run git in `repository` without anyone's settings or the variables of a git hook."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    fixed = {
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "LC_ALL": "C",
    }
    command = ["git", *arguments]
    done = subprocess.run(
        command,
        cwd=repository,
        env=inherited | fixed | environ,
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise Trouble(f"`{' '.join(command)}` failed in {repository}: {done.stderr.strip()}")
    return done.stdout


def bundle_of(root: Path) -> Path:
    """Where the releases of this checkout are."""
    return root / "releases" / "history.bundle"


def open_releases(repository: Path, root: Path) -> None:
    """Make `repository`, an empty folder, a git repository that holds the releases."""
    git(repository, "init", "--quiet", "--initial-branch=main")
    if bundle_of(root).exists():
        git(
            repository,
            "fetch",
            "--quiet",
            "--update-head-ok",
            str(bundle_of(root)),
            "refs/*:refs/*",
        )


def releases(repository: Path) -> list[str]:
    """The tags of a history, oldest first."""
    return git(repository, "tag", "--sort=version:refname").split()


def stray_tags(tags: Iterable[str]) -> list[str]:
    """What is wrong with tags that are no releases, and that Copier takes for some."""
    return [
        f"the tag {tag} is no release, but Copier reads it as a version: if it is the highest,"
        f" `copier update` takes it for the newest. Delete it (`git tag -d {tag}`), also where it"
        " was pushed"
        for tag in tags
        if VERSION.fullmatch(tag) and not RELEASE.fullmatch(tag)
    ]


def template_files(root: Path, *, untracked: bool) -> list[str]:
    """The files of a template, as git lists them: ignored files are left out."""
    which = ["--cached", *(["--others", "--exclude-standard"] if untracked else [])]
    listed = git(root, "ls-files", "-z", *which, "--", *PARTS).split("\0")
    return sorted({name for name in listed if name and (root / name).exists()})


def commit(repository: Path, root: Path, files: Sequence[str], version: str, date: str) -> None:
    """Add these files of `root` as one tagged commit, which depends on nothing else."""
    tree_of = {
        "GIT_WORK_TREE": str(root.resolve()),
        "GIT_DIR": str((repository / ".git").resolve()),
    }
    tree_of["GIT_INDEX_FILE"] = str((repository / ".git" / "history-index").resolve())
    git(root, "update-index", "--add", "-z", "--stdin", stdin="\0".join(files), **tree_of)
    tree = git(root, "write-tree", **tree_of).strip()
    Path(tree_of["GIT_INDEX_FILE"]).unlink()

    when = f"{date}T00:00:00+00:00"
    who = {
        f"GIT_{role}_{field}": value
        for role in ("AUTHOR", "COMMITTER")
        for field, value in (("NAME", "livekit-agent-template"), ("EMAIL", ""), ("DATE", when))
    }
    newest = git(repository, "for-each-ref", "--format=%(objectname)", BRANCH).strip()
    parents = ["-p", newest] if newest else []
    made = git(repository, "commit-tree", tree, *parents, "-m", version, **who).strip()
    git(repository, "update-ref", BRANCH, made)
    git(repository, "tag", "--annotate", "-m", version, version, made, **who)


def make_history(folder: Path, root: Path = ROOT) -> None:
    """Fill `folder`, which is empty or absent, with the history; raises Trouble."""
    if folder.exists() and any(folder.iterdir()):
        raise Trouble(f"{folder} is not empty: name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    open_releases(folder, root)
    commit(folder, root, template_files(root, untracked=True), WORK_TREE, "2000-01-01")
    git(folder, "reset", "--quiet", "--hard")


def main() -> int:
    """Make the history; return the exit status."""
    parser = argparse.ArgumentParser(
        description="Make a git repository of every released template and this one."
    )
    parser.add_argument(
        "folder", type=Path, metavar="DIR", help="a folder that is empty or does not exist"
    )
    try:
        make_history(parser.parse_args().folder)
    except Trouble as trouble:
        print(f"history: {trouble}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
