"""Which documents there are, and what has changed in them since they were indexed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

from agent.knowledge import KnowledgeUnavailable
from agent.settings import Settings

SUFFIXES = (".md", ".markdown", ".txt", ".html", ".htm", ".pdf")
READABLE = "Markdown, text, HTML or PDF"
# a library, as text; a PDF is mostly pictures
LARGEST_MIB, LARGEST_PDF_MIB = 10, 100


@dataclass(frozen=True)
class Document:
    """A file as it was when it was read; `problem` is why it has to be left out.

    `source` is its posix path below the folder it was found in.
    """

    source: str
    suffix: str
    content: bytes
    problem: str = ""

    @property
    def digest(self) -> str:
        """Of the content and what is wrong with it: times differ in every checkout and image."""
        return hashlib.sha256(self.content + self.problem.encode()).hexdigest()

    def passages(self) -> list[tuple[str, str]]:
        """Title and text of each; raises KnowledgeUnavailable with what is wrong."""
        if self.problem:
            raise KnowledgeUnavailable(self.problem)
        # here, because it takes most of a second, and usually no document has changed
        formats = import_module("agent.knowledge.passages")
        try:
            return list(formats.passages_of(self.source, self.suffix, self.content))
        except formats.Unreadable as error:
            raise KnowledgeUnavailable(str(error)) from error


def roots_of(settings: Settings, given: Sequence[Path]) -> tuple[Path, ...]:
    """The folders and files to read, absolute; raises KnowledgeUnavailable for a missing one."""
    if not given and not settings.documents.is_dir():
        raise KnowledgeUnavailable(
            f"there is no folder {settings.documents}: make it and put your documents there "
            f"({READABLE})"
        )
    paths = given or (settings.documents,)
    roots = tuple(dict.fromkeys(path.expanduser().resolve() for path in paths))
    for root in roots:
        if not root.exists():
            raise KnowledgeUnavailable(f"there is no {root}: correct the path")
        if root.is_file() and root.suffix.lower() not in SUFFIXES:
            raise KnowledgeUnavailable(
                f"{root} is of no kind that can be read: give {READABLE}, or a folder of them"
            )
    return roots


def documents_in(roots: Sequence[Path]) -> Iterator[Document]:
    """Every document below the roots, by name, one at a time; hidden files are left out."""
    taken: set[str] = set()
    for root in roots:
        folder = root.parent if root.is_file() else root
        for path in [root] if root.is_file() else sorted(root.rglob("*")):
            inside = path.relative_to(folder)
            hidden = any(part.startswith(".") for part in inside.parts)
            if hidden or path.suffix.lower() not in SUFFIXES:
                continue
            if (document := _read(path, inside)) is None:
                continue
            # several roots may hold files of one name
            above = folder
            while document.source in taken and above.name:
                document = replace(document, source=f"{above.name}/{document.source}")
                above = above.parent
            # otherwise it is the very same file
            if document.source not in taken:
                taken.add(document.source)
                yield document


def _read(path: Path, inside: Path) -> Document | None:
    source = inside.as_posix().encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    suffix = path.suffix.lower()
    try:
        if path.is_dir():
            return None
        size = path.stat().st_size
        if not path.is_file():
            return Document(source, suffix, b"", "is no regular file: replace it with one")
        if size > (largest := LARGEST_PDF_MIB if suffix == ".pdf" else LARGEST_MIB) * 1024 * 1024:
            return Document(source, suffix, b"%d" % size, f"is larger than {largest} MiB: split it")
        return Document(source, suffix, path.read_bytes())
    except OSError as error:
        problem = f"cannot be read ({error.strerror or error}): let this user read it"
        return Document(source, suffix, b"", problem)
