"""An owner's line stays in its block, wherever in a shared file, from every release and option.

It would go wrong in silence: the groups of a Deployment's process end in a Job. So a line is put
after every line of the file, and git merges that as `agent update` has Copier do.
"""

from __future__ import annotations

import itertools
import re
import subprocess
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from tests.support import quick
from tests.support.templates import COMBINATIONS, WORK_TREE, Template, released
from tools.ownership import SHARED

OWNERS = "an owner's line, number "
HEADINGS = {"toml": r"\[.*\]", "md": "#+ .*", "Dockerfile": "FROM .*"}


class Block(NamedTuple):
    """What a line belongs to."""

    document: str
    heading: str
    above: tuple[str, ...]  # of the lines above it, the nearest of each smaller indentation


def rendered(template: Template, version: str) -> dict[str, set[str]]:
    """The shared files of a release, in each form that some answers give them."""
    archive = ["git", "archive", version, "template"]
    done = subprocess.run(archive, cwd=template.path, capture_output=True, check=True)
    answers = [quick.settle(**case) for case in COMBINATIONS]
    files: dict[str, set[str]] = {}
    with tarfile.open(fileobj=BytesIO(done.stdout)) as tar:
        for member in filter(tarfile.TarInfo.isfile, tar):
            path = member.name.removeprefix("template/")
            name = path.removesuffix(".jinja")
            if name not in SHARED:
                continue
            text = tar.extractfile(member).read().decode()  # type: ignore[union-attr]
            if path != name:
                source = quick.ENVIRONMENT.from_string(text)
                files[name] = {source.render(given) for given in answers}
            else:
                files[name] = {text}
    return files


def blocks(name: str, lines: list[str]) -> Iterator[tuple[str, Block]]:
    """Each line that is not blank, and its block; an owner's line begins none."""
    document = heading = ""
    above: list[tuple[int, str]] = []
    pattern = HEADINGS.get(re.split("[./]", name)[-1], "(?!)")
    for line in filter(str.strip, lines):
        depth = len(line) - len(line.lstrip())
        within = [(at, text) for at, text in above if at < depth]
        yield line, Block(document, heading, tuple(text for _, text in within))
        if OWNERS not in line:
            above = [*within, (depth, line)]
            document = line if line.startswith(("---", "kind:")) else document
            heading = line if re.fullmatch(pattern, line) else heading


def strays(name: str, old: str, new: str, folder: Path) -> Iterator[str]:
    """The lines that a merge puts into another block although their own is still there."""
    ours = [
        one
        for number, line in enumerate(old.splitlines())
        for one in (line, f"{line[: len(line) - len(line.lstrip())]}{OWNERS}{number}")
    ]
    for file, text in (("ours", "\n".join([*ours, ""])), ("base", old), ("theirs", new)):
        (folder / file).write_text(text, encoding="utf-8")
    merge = ["git", "merge-file", "-p", "-q", "-L", "|", "-L", "|", "-L", "|", "ours", "base"]
    merged = subprocess.run([*merge, "theirs"], cwd=folder, capture_output=True).stdout.decode()
    # an owner's line in a conflict goes nowhere: it is shown to them
    conflict = re.compile(r"^<<<<<<< \|\n.*?^=======\n(.*?)^>>>>>>> \|\n", re.DOTALL | re.MULTILINE)
    clean = conflict.sub(lambda found: found[1], merged)
    before = {line: block for line, block in blocks(name, ours) if OWNERS in line}
    known = {block for _, block in blocks(name, new.splitlines())}
    for line, block in blocks(name, clean.splitlines()):
        if OWNERS in line and block != before[line] and before[line] in known:
            yield f"{name}: from {before[line]} to {block}"


def test_no_line_of_an_owners_ends_in_another_block(template: Template, tmp_path: Path) -> None:
    newest, seen, found = rendered(template, WORK_TREE), set[tuple[str, str]](), set[str]()
    for version in [*released(), WORK_TREE]:
        for name, texts in rendered(template, version).items():
            for old, new in itertools.product(texts, newest.get(name, ())):
                if old != new and (old, new) not in seen:
                    seen.add((old, new))
                    found |= set(strays(name, old, new, tmp_path))

    assert found == set()
