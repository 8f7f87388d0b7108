"""The update in copies of the project: Copier brings it, what it leaves is judged and tested."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.version import InvalidVersion, Version

from agent_update.processes import (
    Failed,
    clean_environment,
    copier_environment,
    git,
    git_result,
    ignoring_signals,
    run,
    status,
    uv,
)
from agent_update.project import ANSWERS, LOCK, Project, answers_file, read_answers, read_ownership
from agent_update.refusals import is_release, numbers, require_marks
from agent_update.scratch import bring, remove, scratch_of, settle

UNMERGED = {"DD", "AU", "UD", "UA", "DU", "AA", "UU"}  # as `git status --porcelain` marks them
WHOLE_FILE = 1_000_000
SHOWN_LINES = 60
TEST_LINES = 40
BY_HAND = "or update by hand, as docs/agent/ownership.md says"
MOVE = f"""\
The project is as it was. Move your change to persona.py, resources.py, a file of your own or below
a shared file's mark, put the template's lines back, commit, and update again; {BY_HAND}."""
REMOVE = """\
The project is as it was. Run `git rm` for each of these files, commit, and update again: then
`git show HEAD~1:FILE` still has your lines."""
TESTS = f"""\
so the project was left as it is. Do they pass without the update (`uv run pytest`)?
Correct what they find in your own code, {BY_HAND}:"""


@dataclass(frozen=True)
class Outcome:
    """What an update comes to: the changes by file, as one patch."""

    version: str
    files: dict[str, str]  # path in the project: A, M, T or D
    patch: bytes
    shipped: list[str]  # what the template brings and updates
    settled: list[str]  # lines that both had changed, as they are now


@contextlib.contextmanager
def copy_of(project: Project) -> Iterator[Path]:
    """The project in a worktree of its own, which is removed, however this is left."""
    folder = Path(tempfile.mkdtemp(prefix="agent-update-")).resolve()
    tree = folder / project.top.name
    try:
        add = ("worktree", "add", "--quiet", "--detach", str(tree), project.head)
        git(project.top, *add, copy=True)
        bring_submodules(project.top, tree)
        yield tree / project.home.relative_to(project.top)
    finally:
        with ignoring_signals():
            remove(folder)
            # never `prune`: a work tree of the owner's may be away for a while
            git_result(project.top, "worktree", "remove", "--force", "--force", str(tree))


def bring_submodules(top: Path, tree: Path) -> None:
    """Put what is committed of the submodules into the copy: a dependency may be there."""
    for entry in git(tree, "ls-files", "--stage", "-z", copy=True).split("\0"):
        known, _, name = entry.partition("\t")
        if known.startswith("160000") and (top / name / ".git").exists():
            shared = ("clone", "--quiet", "--shared", "--no-checkout")
            git(tree, *shared, str(top / name), str(tree / name), copy=True)
            git(tree / name, "checkout", "--quiet", "--detach", known.split()[1], copy=True)
            bring_submodules(top / name, tree / name)


def render(project: Project, copy: Path, to: str | None, data: Sequence[str]) -> Outcome:
    """Have Copier update the project; raises Failed for all that the owner has to decide."""
    command = [sys.executable, "-m", "copier", "update", "--defaults", "--conflict", "inline"]
    # A patch with three lines of context goes wherever these lines come first, even into a block
    # that is new. With the whole file as context it fits that file only, and where the template has
    # changed it, Copier has git merge the three versions; `settle` gets what is then unmerged.
    recorded = answers_file(project.home)
    command += ["--context-lines", str(WHOLE_FILE), "--answers-file", recorded]
    if to:
        command += ["--vcs-ref", to]
    for answer in data:
        command += ["--data", answer]
    with scratch_of(project) as scratch:
        doing = "rendering the update in a copy of the project"
        problem = "Copier cannot update, and the project is as it was:"
        environment = copier_environment(project.home) | {"TMPDIR": str(scratch.temporary)}
        run(doing, command, scratch.tree, environment, problem)
        settle(scratch)
        require_marks(project.home, project.ownership, unmerged(scratch.tree))
        answers, ownership = read_answers(scratch.tree), read_ownership(scratch.tree)
        version = str(answers.get("_commit"))
        for name in (answer.partition("=")[0] for answer in data):
            if name not in answers:
                questions = ", ".join(known for known in answers if not known.startswith("_"))
                raise Failed(f"the template {version} has no question {name}, only {questions}")
        conflicting = conflicts(scratch.tree)
        # all of it is Copier's work: nothing else has run there
        git(scratch.tree, "add", "--all", "--force", "--", ".", copy=True)
        files = changes(scratch.tree)
        deleted = [name for name, kind in files.items() if kind == "D"]
        if problems := conflicting + deletions(project, deleted, ownership.get("moved", {})):
            raise Failed("\n".join([f"the update to {version} does not fit:", *problems]))
        bring(scratch, project, copy)
    if files and git(copy, "ls-files", "--", LOCK, *project.paths[1:], copy=True):
        problem = "Its dependencies cannot be resolved, and the project is as it was:"
        run("resolving its dependencies", uv("lock"), copy, clean_environment(), problem)
        git(copy, "add", "--update", "--", ":/", copy=True)
    wanted = ("--cached", "--binary", "--full-index", "--no-ext-diff", "--no-textconv", "HEAD")
    patch = git_result(copy, "diff-index", *wanted, copy=True).stdout
    shipped = [*ownership.get("shared", []), *ownership.get("template", [])]
    shipped = [recorded if name == ANSWERS else name for name in shipped]
    return Outcome(version, changes(copy), patch, shipped, scratch.settled)


def install_and_test(copy: Path, version: str) -> None:
    """Install the updated copy and run the project's tests there; raises Failed."""
    problem = "Its dependencies cannot be installed, and the project is as it was:"
    run("installing the updated copy", uv("sync"), copy, clean_environment(), problem)
    doing = "running the project's tests in the copy; this takes as long as `uv run pytest`"
    problem = f"the project's tests fail with {version}, {TESTS}"
    run(doing, uv("run", "pytest"), copy, clean_environment(), problem, TEST_LINES)


def references(source: str) -> list[str]:
    """The branches and tags of the template's repository; none if it cannot be asked."""
    address = source.removeprefix("git+")
    for short, host in (("gh:", "https://github.com/"), ("gl:", "https://gitlab.com/")):
        if address.startswith(short):
            address = host + address.removeprefix(short).strip("/").removesuffix(".git") + ".git"
    asked = ("ls-remote", "--heads", "--tags", "--refs", "--", os.path.expanduser(address))
    listed = os.fsdecode(git_result(Path.cwd(), *asked).stdout)
    return re.findall(r"\t(refs/\S+)$", listed, re.MULTILINE)


def newest_release(known: Sequence[str]) -> str | None:
    """The newest tag of the form v1.2.3; None, and Copier decides, if there is none."""
    tags = [name.removeprefix("refs/tags/") for name in known]
    return max(filter(is_release, tags), key=numbers, default=None)


def is_at_least(version: str, release: str) -> bool:
    """Whether a project is at this release or at something newer.

    It may be at a commit between two releases (v1.2.0-3-g1a2b3c4), or before one (v1.2.0rc1).
    """
    try:
        return Version(re.sub(r"-(\d+)-g[0-9a-f]+$", r".post\1", version)) >= Version(release)
    except InvalidVersion:
        return False


def changes(copy: Path) -> dict[str, str]:
    """What is in the index and not in HEAD, with git's letter for it; seen from the project."""
    prefix = git(copy, "rev-parse", "--show-prefix", copy=True).strip("\n")
    asked = ("--cached", "--name-status", "-z", "HEAD")
    parts = git(copy, "diff-index", *asked, copy=True).split("\0")
    names = [os.path.relpath(name, prefix or ".") for name in parts[1::2]]
    return dict(sorted(zip(names, parts[0::2], strict=False)))


def conflicts(copy: Path) -> list[str]:
    """What could not be merged, as git shows it; Copier's exit status says nothing of it."""
    left = status(copy, "--ignored", copy=True)
    names = unmerged(copy)
    rejected = [name for code, name in left if code in {"??", "!!"} and name.endswith(".rej")]
    if not names and not rejected:
        return []
    shown = git(copy, "diff-files", "--patch", "--cc", "--diff-filter=U", copy=True).splitlines()
    return [
        *(f"  {name} was changed by you and by the template" for name in names),
        *(f"  {name.removesuffix('.rej')} has no place for your change" for name in rejected),
        *(f"    {line}" for line in shown[:SHOWN_LINES]),
        *["    …"] * (len(shown) > SHOWN_LINES),
        MOVE,
    ]


def unmerged(copy: Path) -> list[str]:
    """The files that git calls unmerged."""
    return [name for code, name in status(copy, copy=True) if code in UNMERGED]


def deletions(project: Project, names: list[str], moved: dict[str, str]) -> list[str]:
    """The deleted files that hold, or may hold, something of the owner's."""
    hashes, lines = project.ownership["sha256"], []
    for name in names:
        content = git_result(project.home, "show", f"{project.head}:./{name}").stdout
        if name not in project.ownership["template"]:
            lines.append(f"  {name} is not one of the template's files, and would be deleted")
        elif name not in hashes:
            lines.append(f"  {name} may hold a change of yours, and would be deleted")
        elif hashlib.sha256(content.replace(b"\r\n", b"\n")).hexdigest() == hashes[name]:
            continue
        elif name in moved:
            lines.append(f"  {name} is now {moved[name]}: put your change there")
        else:
            lines.append(f"  {name} was changed by you, and would be deleted")
    return [*lines, REMOVE] if lines else []
