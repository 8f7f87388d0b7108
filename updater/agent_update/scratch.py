"""Where Copier merges: the project's files as committed, in a repository of their own.

What the owner's repository is set to do with line ends, filters, attributes, hashes or a part of
the files is of no effect here: Copier notices nothing when git makes something else of a file.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from pathlib import Path

from agent_update.merge import settled
from agent_update.processes import (
    END_SECONDS,
    Failed,
    git,
    git_result,
    ignoring_signals,
    last_words,
)
from agent_update.project import Project

PLAIN = "* !text !crlf !eol !filter !ident !working-tree-encoding !diff !merge !whitespace\n"
IDENTITY = ("-c", "user.name=agent-update", "-c", "user.email=agent-update@localhost")
DELETED = "000000"  # as a file's mode


@dataclass(frozen=True)
class Scratch:
    """The repository, with Unix line ends throughout."""

    tree: Path
    with_windows_ends: dict[str, bytes] = field(default_factory=dict)  # as they are committed
    settled: list[str] = field(default_factory=list)  # what was decided for the owner

    @property
    def temporary(self) -> Path:
        """The folder for what Copier leaves behind when it is killed."""
        return self.tree.parent / "temporary"


@contextlib.contextmanager
def scratch_of(project: Project) -> Iterator[Scratch]:
    """A repository with the project's files, which is removed, however this is left."""
    folder = Path(tempfile.mkdtemp(prefix="agent-update-")).resolve()
    scratch = Scratch(folder / project.home.name)
    try:
        scratch.temporary.mkdir()
        git(folder, "init", "--quiet", str(scratch.tree), copy=True)
        attributes = scratch.tree / ".git" / "info" / "attributes"
        attributes.parent.mkdir(exist_ok=True)
        attributes.write_text(PLAIN, encoding="utf-8")
        fill(project, scratch)
        git(scratch.tree, "add", "--all", "--force", copy=True)
        commit = ("commit", "--quiet", "--allow-empty", "--message=The project")
        git(scratch.tree, *IDENTITY, *commit, copy=True)
        yield scratch
    finally:
        remove(folder)


def fill(project: Project, scratch: Scratch) -> None:
    """Write the files that are committed."""
    listed = git(project.home, "ls-tree", "-r", "-z", project.head, "--", ".").split("\0")[:-1]
    entries = [(*entry.partition("\t")[0].split(), entry.partition("\t")[2]) for entry in listed]
    entries = [entry for entry in entries if entry[1] == "blob"]  # none of another repository
    wanted = "".join(f"{blob}\n" for _, _, blob, _ in entries)
    done = git_result(project.home, "cat-file", "--batch", given=wanted.encode())
    if done.returncode:
        raise Failed(f"git cannot read what is committed:\n{last_words(done.stderr)}")
    rest = memoryview(done.stdout)
    for mode, _, _, name in entries:
        path = scratch.tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        head, _, _ = bytes(rest[:200]).partition(b"\n")
        start = len(head) + 1
        size = int(head.rpartition(b" ")[2])
        content = bytes(rest[start : start + size])
        rest = rest[start + size + 1 :]
        if mode == "120000":
            path.symlink_to(os.fsdecode(content))
            continue
        if b"\r\n" in content and b"\0" not in content:
            scratch.with_windows_ends[name] = content
            content = content.replace(b"\r\n", b"\n")
        path.write_bytes(content)
        path.chmod(0o755 if mode == "100755" else 0o644)


def settle(scratch: Scratch) -> None:
    """Resolve the conflicts that are none."""
    stages: dict[str, dict[str, str]] = {}
    for entry in git(scratch.tree, "ls-files", "--unmerged", "-z", copy=True).split("\0")[:-1]:
        known, _, name = entry.partition("\t")
        _, blob, stage = known.split()
        stages.setdefault(name, {})[stage] = blob
    for name, blobs in stages.items():
        if blobs.keys() != {"1", "2", "3"}:
            continue
        contents = [
            git_result(scratch.tree, "cat-file", "blob", blobs[stage], copy=True).stdout
            for stage in "123"
        ]
        try:
            base, ours, theirs = (content.decode() for content in contents)
        except UnicodeDecodeError:
            continue
        texts, lines = settled(name, base, ours, theirs)
        paths = [scratch.temporary / part for part in ("ours", "base", "theirs")]
        for path, text in zip(paths, (texts[1], texts[0], texts[2]), strict=True):
            path.write_bytes(text.encode())
        command = ("merge-file", "--quiet", "-p", *map(str, paths))
        merged = git_result(scratch.tree, *command, copy=True)
        if merged.returncode == 0:
            (scratch.tree / name).write_bytes(merged.stdout)
            git(scratch.tree, "add", "--force", "--", name, copy=True)
            scratch.settled.extend(f"{name}: {line.strip()}" for line in lines)


def bring(scratch: Scratch, project: Project, copy: Path) -> None:
    """Put what has changed in the scratch repository into the index and the files of the copy."""
    asked = ("diff-index", "--cached", "--raw", "-z", "--no-renames", "HEAD")
    said = git(scratch.tree, *asked, copy=True).split("\0")
    modes = {name: entry.split()[1] for entry, name in zip(said[0::2], said[1::2], strict=False)}
    kept = [name for name, mode in modes.items() if mode != DELETED]
    blobs = dict.fromkeys(modes, "0" * len(project.head))
    for name in kept:
        path = scratch.tree / name
        if before := scratch.with_windows_ends.get(name):
            path.write_bytes(with_line_ends_of(before, path.read_bytes()))
    paths = "".join(f"{scratch.tree / name}\n" for name in kept)
    hashing = ("hash-object", "-w", "--no-filters", "--stdin-paths")
    blobs |= zip(kept, answer(copy, *hashing, given=paths).split(), strict=True)
    top = project.home.relative_to(project.top)
    entries = [f"{modes[name]} {blobs[name]}\t{(top / name).as_posix()}\0" for name in modes]
    answer(copy, "update-index", "-z", "--index-info", given="".join(entries))
    for name in modes.keys() - set(kept):
        (copy / name).unlink(missing_ok=True)
    checkout = ("checkout-index", "--force", "-z", "--stdin")
    answer(copy, *checkout, given="".join(f"{name}\0" for name in kept))


def answer(copy: Path, *arguments: str, given: str) -> str:
    """What git says to what it is given in the copy; raises Failed."""
    done = git_result(copy, *arguments, copy=True, given=os.fsencode(given))
    if done.returncode:
        problem = f"`git {arguments[0]}` failed, and the project is as it was:"
        raise Failed(f"{problem}\n{last_words(done.stderr)}")
    return os.fsdecode(done.stdout)


def with_line_ends_of(before: bytes, text: bytes) -> bytes:
    """The text, in which known lines have the line ends of before, and new ones those of most."""
    old, new = before.splitlines(keepends=True), text.splitlines(keepends=True)
    most = b"\r\n" if 2 * before.count(b"\r\n") > before.count(b"\n") else b"\n"
    lines = [line.removesuffix(b"\n") + most if line.endswith(b"\n") else line for line in new]
    plain = [line.removesuffix(b"\r\n") + b"\n" if line.endswith(b"\r\n") else line for line in old]
    for block in SequenceMatcher(None, plain, new, autojunk=False).get_matching_blocks():
        lines[block.b : block.b + block.size] = old[block.a : block.a + block.size]
    return b"".join(lines)


def remove(folder: Path) -> None:
    """Remove a folder, in which a command that was ended may still write for a moment."""
    with ignoring_signals():
        until = time.monotonic() + END_SECONDS
        while folder.exists() and time.monotonic() < until:
            shutil.rmtree(folder, ignore_errors=True)
