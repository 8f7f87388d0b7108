"""Documents, read and cut into passages small enough to be spoken about.

The only module that knows formats of files; its libraries take most of a second to import.
"""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import PurePosixPath
from typing import NamedTuple

from bs4 import BeautifulSoup
from markdown_it import MarkdownIt
from markdownify import MarkdownConverter
from pypdf import PdfReader

# of a passage; questions find short passages better, and a model reads three of them
WORDS = 170
# words that a passage repeats, so that a fact on the cut is whole in one of the two
OVERLAP = 30
NOT_CONTENT = (
    *("script", "style", "noscript", "template", "nav", "header", "footer", "aside", "form"),
    *("svg", "iframe"),
)

_MARKDOWN = MarkdownIt("commonmark")
# what Markdown counts as the end of a line, so that its numbers of lines are right
_LINE_END = re.compile(r"\r\n|\n|\r")
# cut, because a script without spaces has words as long as its sentences
_WORD = re.compile(r"\S{1,24}")


class Unreadable(Exception):
    """Why a document has to be left out, as the end of a sentence that begins with its name."""


class Section(NamedTuple):
    """What is between two headings; `level` is 1 to 6, or 0 where there is no heading above."""

    level: int
    heading: str
    body: str


def passages_of(source: str, suffix: str, content: bytes) -> Iterator[tuple[str, str]]:
    """Title and text of each passage of a document; raises Unreadable.

    The title is the path of headings, or the file's name where there is no heading above.
    """
    sections = _sections(suffix, content)
    path: list[tuple[int, str]] = []
    for number, (level, heading, body) in enumerate(sections):
        while path and path[-1][0] >= level:
            path.pop()
        if heading:
            path.append((level, heading))
        title = " > ".join(name for _, name in path) or _spoken(source)
        following = sections[number + 1].level if number + 1 < len(sections) else 0
        text = body.strip()
        # "Closed on Mondays" may be all that a section says
        if not text and heading and following <= level:
            text = heading
        for piece in _pieces(text):
            yield title, piece


def _sections(suffix: str, content: bytes) -> Sequence[Section]:
    if suffix == ".pdf":
        sections = _sections_of_pdf(content)
    elif suffix in {".html", ".htm"}:
        sections = list(_sections_of_markdown(_markdown_of_html(_decoded(content))))
    elif suffix == ".txt":
        # no line of it is a heading, whatever it looks like
        sections = [Section(0, "", _decoded(content))]
    else:
        sections = list(_sections_of_markdown(_decoded(content)))
    if not any(section.heading or section.body.strip() for section in sections):
        raise Unreadable(
            "holds no text, as a scan does: recognise its text first (OCR)"
            if suffix == ".pdf"
            else "is empty: write something into it, or delete it"
        )
    return sections


def _decoded(content: bytes) -> str:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unreadable(f"is not UTF-8 (byte {error.start}): save it as UTF-8") from error
    if "\0" in text:
        raise Unreadable("is not text: save it as text in UTF-8")
    return text


def _sections_of_markdown(markdown: str) -> Iterator[Section]:
    lines = _without_front_matter(_LINE_END.split(markdown))
    tokens = _MARKDOWN.parse("\n".join(lines))
    level, heading, begin = 0, "", 0
    for opened, inline in pairwise(tokens):
        # not a heading inside a list or a quotation
        if opened.type == "heading_open" and opened.level == 0 and opened.map:
            yield Section(level, heading, "\n".join(lines[begin : opened.map[0]]))
            level, heading = int(opened.tag[1:]), " ".join(inline.content.split())
            begin = opened.map[1]
    yield Section(level, heading, "\n".join(lines[begin:]))


def _without_front_matter(lines: list[str]) -> list[str]:
    if lines and lines[0].rstrip() == "---":
        for number, line in enumerate(lines[1:], start=1):
            if line.rstrip() in {"---", "..."}:
                return lines[number + 1 :]
    return lines


def _markdown_of_html(text: str) -> str:
    page = BeautifulSoup(text, "html.parser")
    title = page.title.get_text(" ", strip=True) if page.title else ""
    content = page.find("main") or page.find("article") or page.body or page
    for element in content.find_all(NOT_CONTENT):
        element.decompose()
    markdown = MarkdownConverter(heading_style="ATX", strip=["a", "img"]).convert_soup(content)
    markdown = re.sub(r"\n{3,}", "\n\n", markdown).strip()
    # a page that begins without a heading is about what its title says
    if title and markdown and not re.match(r"# ", markdown):
        return f"# {title}\n\n{markdown}"
    return markdown


def _sections_of_pdf(content: bytes) -> list[Section]:
    """Each page under a heading of its own, since the headings of a PDF are only larger letters."""
    # it warns of every file that is a little out of order
    logging.getLogger("pypdf").setLevel(logging.ERROR)
    try:
        reader = PdfReader(io.BytesIO(content))
        if reader.is_encrypted and not reader.decrypt(""):
            raise Unreadable("needs a password: save it without one")
        title = " ".join(str(reader.metadata.title or "").split()) if reader.metadata else ""
        pages = [
            Section(2, f"Page {number}", page.extract_text())
            for number, page in enumerate(reader.pages, start=1)
        ]
    except Unreadable:
        raise
    except Exception as error:
        # a damaged file makes the reader raise more than its own errors
        raise Unreadable(
            f"is no PDF that can be read ({type(error).__name__}): save it as PDF once more"
        ) from error
    pages = [page for page in pages if page.body.strip()]
    return [Section(1, title, ""), *pages] if title and pages else pages


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
