"""Documents, cut into passages small enough to be spoken about."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import PurePosixPath
from typing import NamedTuple

from markdown_it import MarkdownIt

SCHEMA = 2  # raise it when documents are cut in another way: every index is then built anew
WORDS = 170  # a passage; questions find short passages better, and a model reads three of them
OVERLAP = 30  # words that a passage repeats, so that a fact on the cut is whole in one of the two

_MARKDOWN = MarkdownIt("commonmark")
_LINE_END = re.compile(
    r"\r\n|\n|\r"
)  # what Markdown counts as the end of a line, so that its numbers of lines hold
_WORD = re.compile(
    r"\S{1,24}"
)  # cut, because a script without spaces has words as long as its sentences


class Section(NamedTuple):
    """What is between two headings."""

    level: int  # of the heading above it, 1 to 6; 0: there is none
    heading: str
    body: str


def chunk(source: str, sections: Sequence[Section]) -> Iterator[tuple[str, str]]:
    """Title and text of each passage; the title is the path of headings, or the file's name above the first one."""
    path: list[tuple[int, str]] = []
    for number, (level, heading, body) in enumerate(sections):
        while path and path[-1][0] >= level:
            path.pop()
        if heading:
            path.append((level, heading))
        title = " > ".join(name for _, name in path) or _spoken(source)
        following = sections[number + 1][0] if number + 1 < len(sections) else 0
        text = body.strip()
        if not text and heading and following <= level:
            text = heading  # "Closed on Mondays" may be all that a section says
        for piece in _pieces(text):
            yield title, piece


def sections_of(markdown: str) -> Iterator[Section]:
    """The sections of a Markdown document, in their order."""
    lines = _without_front_matter(_LINE_END.split(markdown))
    tokens = _MARKDOWN.parse("\n".join(lines))
    level, heading, begin = 0, "", 0
    for opened, inline in pairwise(tokens):
        if (
            opened.type == "heading_open" and opened.level == 0 and opened.map
        ):  # not one inside a list or a quotation
            yield Section(level, heading, "\n".join(lines[begin : opened.map[0]]))
            level, heading, begin = (
                int(opened.tag[1:]),
                " ".join(inline.content.split()),
                opened.map[1],
            )
    yield Section(level, heading, "\n".join(lines[begin:]))


def _without_front_matter(lines: list[str]) -> list[str]:
    if lines and lines[0].rstrip() == "---":
        for number, line in enumerate(lines[1:], start=1):
            if line.rstrip() in {"---", "..."}:
                return lines[number + 1 :]
    return lines


def _pieces(text: str) -> Iterator[str]:
    words = [found.span() for found in _WORD.finditer(text)]
    start = 0
    while start < len(words):
        end = min(start + WORDS, len(words))
        yield text[words[start][0] : words[end - 1][1]]
        if end == len(words):
            return
        start = end - OVERLAP


def _spoken(source: str) -> str:
    return re.sub(r"[-_\s]+", " ", PurePosixPath(source).stem).strip().capitalize()
