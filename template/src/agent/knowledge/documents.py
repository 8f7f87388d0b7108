"""Which documents there are, and what has changed in them since they were indexed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from agent.knowledge import KnowledgeUnavailable
from agent.knowledge.chunks import chunk
from agent.settings import Settings

SUFFIXES = (".md", ".markdown", ".txt", ".html", ".htm", ".pdf")
KINDS = "Markdown, text, HTML or PDF"
LARGEST_MIB = 10  # of text, which is a library
LARGEST_PDF_MIB = 100  # mostly of pictures


@dataclass(frozen=True)
class Document:
    """A file as it was when it was read; `problem` is why it has to be left out."""

    source: str  # posix path below its root
    suffix: str
    content: bytes
    problem: str = ""

    @property
    def digest(self) -> str:
        """Of what is in it, also of what is wrong with it: times of change differ in every checkout and image."""
        return hashlib.sha256(self.content + self.problem.encode()).hexdigest()

    def passages(self) -> list[tuple[str, str]]:
        """Title and text of each; raises KnowledgeUnavailable with what is wrong with the document."""
        formats = import_module("agent.knowledge.formats")
        try:
            return list(chunk(self.source, formats.read(self.suffix, self.content)))
        except formats.Unreadable as error:
            raise KnowledgeUnavailable(str(error)) from error


def roots_of(settings: Settings, given: Sequence[Path]) -> tuple[Path, ...]:
    """The folders and files to read, absolute; raises KnowledgeUnavailable for one that is not there."""
    if not given and not settings.documents.is_dir():
        raise KnowledgeUnavailable(
            f"there is no folder {settings.documents}: make it and put your documents there ({KINDS})"
        )
    roots = tuple(
        dict.fromkeys(path.expanduser().resolve() for path in given or (settings.documents,))
    )
    for root in roots:
        if not root.exists():
            raise KnowledgeUnavailable(f"there is no {root}: correct the path")
        if root.is_file() and root.suffix.lower() not in SUFFIXES:
            raise KnowledgeUnavailable(
                f"{root} is of no kind that can be read: give {KINDS}, or a folder of them"
            )
    return roots


def documents_in(roots: Sequence[Path]) -> Iterator[Document]:
    """Every document below the roots, by name, one at a time; hidden files are left out."""
    taken: set[str] = set()
    for root in roots:
        folder = root.parent if root.is_file() else root
        for path in [root] if root.is_file() else sorted(root.rglob("*")):
            inside = path.relative_to(folder)
            if (
                any(part.startswith(".") for part in inside.parts)
                or path.suffix.lower() not in SUFFIXES
            ):
                continue
            if (document := _read(path, inside)) is None:
                continue
            above = folder
            while (
                document.source in taken and above.name
            ):  # several roots may hold files of one name
                source = f"{above.name}/{document.source}"
                document = Document(source, document.suffix, document.content, document.problem)
                above = above.parent
            if document.source not in taken:  # else it is the very same file
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
        return Document(
            source,
            suffix,
            b"",
            f"cannot be read ({error.strerror or error}): let this user read it",
        )
