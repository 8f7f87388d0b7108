"""Tag the commits that released a version, with annotated tags: users update by them.

    python tools/tags.py [--check] [--push REMOTE]

A version was released by the first commit of this branch whose releases/history.bundle holds it. A
commit is tagged only if its template is, byte by byte, the one in the bundle, and no tag is ever
moved, here or at the remote. `--check` changes nothing, and exits with 1 where a tag is missing.
Exit 1 also for a tag that is no release and that Copier would take for one, such as 20261127.
Exit 2: this clone or this remote cannot be used.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.history import (
    PARTS,
    ROOT,
    Trouble,
    bundle_of,
    git,
    open_releases,
    releases,
    stray_tags,
)

TAGS = "refs/tags/"


class Unusable(Trouble):
    """Why nothing could begin."""


@dataclass(frozen=True)
class Release:
    """A released version and the commit that has, or should have, its tag."""

    version: str
    commit: str
    tagged: bool


# ---------------------------------------------------------------------- this repository


def extract_bundle(root: Path, commit: str, folder: Path) -> Path:
    """Write that commit's bundle into `folder`; raises Trouble where it has none."""
    bundle = bundle_of(folder)
    bundle.parent.mkdir(parents=True, exist_ok=True)
    name = bundle_of(root).relative_to(root).as_posix()
    # tools.history.git returns text, and a bundle is binary
    with bundle.open("wb") as file:
        done = subprocess.run(
            ["git", "cat-file", "blob", f"{commit}:{name}"],
            cwd=root,
            stdout=file,
            stderr=subprocess.DEVNULL,
        )
    if done.returncode:
        raise Trouble(f"{commit[:12]} has no {name}")
    return bundle


def held_by(bundle: Path) -> dict[str, str]:
    """The versions in a bundle, and their tag objects."""
    lines = [
        line.split()
        for line in git(bundle.parent, "bundle", "list-heads", bundle.name).splitlines()
    ]
    return {name.removeprefix(TAGS): found for found, name in lines if name.startswith(TAGS)}


def released_by(root: Path, scratch: Path) -> dict[str, str]:
    """The commit that released each version: the first whose bundle holds what HEAD's does."""
    name = bundle_of(root).relative_to(root).as_posix()
    commits = git(root, "rev-list", "--first-parent", "--reverse", "HEAD", "--", name).split()
    wanted = held_by(extract_bundle(root, "HEAD", scratch))
    found: dict[str, str] = {}
    for commit in commits:
        # the bundle was missing for a while
        if not git(root, "ls-tree", commit, "--", name):
            continue
        held = held_by(extract_bundle(root, commit, scratch / "then"))
        for version, tag in wanted.items():
            if held.get(version) == tag:
                found.setdefault(version, commit)
    return found


def same_template(root: Path, commit: str, history: Path, version: str) -> bool:
    """Whether that commit's template is the released one."""
    ours, released = (
        git(where, "ls-tree", "-r", ref, "--", *PARTS)
        for where, ref in ((root, commit), (history, version))
    )
    return ours == released


def tags_of(root: Path) -> dict[str, str]:
    """The tags of this repository, and their commits."""
    listed = git(root, "for-each-ref", "--format=%(refname) %(objectname) %(*objectname)", TAGS)
    fields = [line.split() for line in listed.splitlines()]
    return {found[0].removeprefix(TAGS): found[-1] for found in fields}


def find_releases(root: Path, known: dict[str, str]) -> list[Release]:
    """Every version in HEAD's bundle, oldest first; `known` are the tags. Raises Trouble."""
    if git(root, "rev-parse", "--is-shallow-repository").strip() == "true":
        raise Unusable(
            "this clone is shallow, so the commits that released cannot be found: run"
            " `git fetch --unshallow --tags` (in a workflow: `fetch-depth: 0`)"
        )
    if not git(root, "ls-tree", "HEAD", "--", str(bundle_of(root).relative_to(root))):
        raise Unusable(
            "HEAD has no releases/history.bundle, so there is nothing to tag: check out a branch"
            " that has it"
        )
    found: list[Release] = []
    problems: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        scratch, history = Path(folder), Path(folder, "history")
        commits = released_by(root, scratch)
        history.mkdir()
        open_releases(history, scratch)
        for version in releases(history):
            commit = known.get(version) or commits[version]
            if same_template(root, commit, history, version):
                found.append(Release(version, commit, version in known))
            elif version in known:
                problems.append(
                    f"the tag {version} is on {commit}, whose template is not the released one;"
                    f" {commits[version]} released it: delete the tag (`git tag -d {version}`, and"
                    " where it was pushed) and run this again"
                )
            else:
                problems.append(
                    f"{commit} added {version} to the bundle, but its template is not the released"
                    " one: tag the commit that has it yourself (`git tag -a -m"
                    f" {version} {version} COMMIT`), or release again"
                )
    if problems:
        raise Trouble("\n".join(problems))
    return found


def tag(root: Path, release: Release) -> None:
    """Make the annotated tag; the same commit makes the same tag on every machine."""
    when = git(root, "show", "--no-patch", "--format=%cI", release.commit).strip()
    who = {"NAME": "livekit-agent-template", "EMAIL": "", "DATE": when}
    environ = {f"GIT_COMMITTER_{field}": value for field, value in who.items()}
    git(
        root, "tag", "--annotate", "-m", release.version, release.version, release.commit, **environ
    )


# ---------------------------------------------------------------------- the remote


def talk(root: Path, *arguments: str) -> str:
    """Run git with the person's settings: a remote may need credentials. Raises Trouble."""
    done = subprocess.run(
        ["git", *arguments],
        cwd=root,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise Trouble(f"`git {' '.join(arguments)}` failed: {done.stderr.strip()}")
    return done.stdout


def remote_tags(root: Path, remote: str) -> dict[str, str]:
    """The tags of a remote, and their commits; raises Unusable."""
    try:
        lines = talk(root, "ls-remote", "--tags", "--", remote).splitlines()
    except Trouble as trouble:
        raise Unusable(f"{trouble}\nName a remote or an address that you may push to.") from trouble
    found: dict[str, str] = {}
    # an annotated tag is listed twice, its commit second, as v1.0.0^{}
    for line in lines:
        commit, name = line.split("\t")
        found[name.removeprefix(TAGS).removesuffix("^{}")] = commit
    return found


def refuse_moved(found: Sequence[Release], theirs: dict[str, str], remote: str) -> None:
    """Raise Trouble if a tag of the remote is on another commit than here."""
    moved = [
        f"the tag {release.version} of {remote} is on {theirs[release.version]}, and here it"
        f" {'is' if release.tagged else 'belongs'} on {release.commit}: nothing was tagged or"
        f" pushed. Find out which is right; what users update to is {remote}'s"
        for release in found
        if theirs.get(release.version, release.commit) != release.commit
    ]
    if moved:
        raise Trouble("\n".join(moved))


# ---------------------------------------------------------------------- the command


def run(root: Path, *, remote: str | None, check: bool) -> bool:
    """Tag, and push if there is a remote; return whether all is well. Raises Trouble."""
    ours = tags_of(root)
    found = find_releases(root, ours)
    theirs: dict[str, str] = {}
    if remote is not None:
        print(f"asking {remote} for its tags ...", flush=True)
        theirs = remote_tags(root, remote)
        refuse_moved(found, theirs, remote)
    # Tags of the remote are fetched, not made again: another tag object could not be pushed.
    missing = [release for release in found if not release.tagged and release.version not in theirs]
    absent = (
        [] if remote is None else [release for release in found if release.version not in theirs]
    )
    for release in missing:
        if not check:
            tag(root, release)
        print(f"{release.version} {'belongs on' if check else 'is now on'} {release.commit}")
    if absent and not check:
        print(f"pushing {', '.join(release.version for release in absent)} ...", flush=True)
        refs = [f"{TAGS}{release.version}" for release in absent]
        talk(root, "push", "--quiet", "--", str(remote), *(f"{ref}:{ref}" for ref in refs))
    elif absent:
        print(f"{remote} lacks {', '.join(release.version for release in absent)}")
    if not missing and not absent:
        print(f"All {len(found)} releases are tagged{f', here or at {remote}' if remote else ''}.")
    strays = stray_tags(sorted({*ours, *theirs}))
    for stray in strays:
        print(f"tags: {stray}", file=sys.stderr)
    return not strays and not (check and (missing or absent))


def main() -> int:
    """Tag; return the exit status."""
    parser = argparse.ArgumentParser(description="Tag the commits that released a version.")
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit 1 where a tag is missing"
    )
    parser.add_argument(
        "--push", metavar="REMOTE", help="push the tags that this remote lacks, and no others"
    )
    options = parser.parse_args()
    try:
        complete = run(ROOT, remote=options.push, check=options.check)
    except Trouble as trouble:
        for line in str(trouble).splitlines():
            print(f"tags: {line}", file=sys.stderr)
        return 2 if isinstance(trouble, Unusable) else 1
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
