"""Documents, cut into passages small enough to be spoken about."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

WORDS = 170  # a passage; questions find short passages better, and a model reads three of them
OVERLAP = 30  # words that a passage repeats, so that a fact on the cut is whole in one of the two

_HEADING = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*?))?(?:[ \t]+#+)?[ \t]*")
_UNDERLINE = re.compile(r" {0,3}(=+|-+)[ \t]*")
_FENCE = re.compile(r"[ \t]*(`{3,}|~{3,})(.*)")
_BLOCK = re.compile(r"\s*(?:[-*+>|]|\d+[.)]\s|#)")  # a line that an underline cannot turn into a heading
_WORD = re.compile(r"\S{1,24}")  # cut, because a script without spaces has words as long as its sentences


def chunk(source: str, markdown: str) -> Iterator[tuple[str, str]]:
    """Title and text of each passage; the title is the path of headings, or the file's name above the first one."""
    path: list[tuple[int, str]] = []
    sections = list(_sections(markdown))
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


def _sections(markdown: str) -> Iterator[tuple[int, str, str]]:
    """Level, heading and text of each section; level 0 has no heading."""
    level, heading, fence = 0, "", ""
    body: list[str] = []
    for line in _without_front_matter(markdown.splitlines()):
        mark = _FENCE.fullmatch(line)
        if fence:  # in a code block a comment is no heading
            if mark and mark[1].startswith(fence) and not mark[2].strip():
                fence = ""
        elif mark and not (mark[1][0] == "`" and "`" in mark[2]):
            fence = mark[1]
        elif found := _HEADING.fullmatch(line):
            yield level, heading, "\n".join(body)
            level, heading, body = len(found[1]), (found[2] or "").strip(), []
            continue
        elif (under := _UNDERLINE.fullmatch(line)) and body and body[-1].strip() and not _BLOCK.match(body[-1]):
            name = body.pop().strip()
            yield level, heading, "\n".join(body)
            level, heading, body = (1 if under[1][0] == "=" else 2), name, []
            continue
        body.append(line)
    yield level, heading, "\n".join(body)


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
