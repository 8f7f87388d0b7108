"""Documents as sections, which passages are cut from. The only module that knows formats of files."""

from __future__ import annotations

import io
import logging
import re

from bs4 import BeautifulSoup
from markdownify import MarkdownConverter
from pypdf import PdfReader

from agent.knowledge.chunks import Section, sections_of

NOT_CONTENT = [
    "script",
    "style",
    "noscript",
    "template",
    "nav",
    "header",
    "footer",
    "aside",
    "form",
    "svg",
    "iframe",
]


class Unreadable(Exception):
    """Why a document has to be left out, as the end of a sentence that begins with its name, and what to do."""


def read(suffix: str, content: bytes) -> list[Section]:
    """The document's sections; `suffix` is one of `agent.knowledge.documents.SUFFIXES`. Raises Unreadable."""
    if suffix == ".pdf":
        sections = _of_pdf(content)
    elif suffix in {".html", ".htm"}:
        sections = list(sections_of(_of_html(_decoded(content))))
    elif suffix == ".txt":
        sections = [
            Section(0, "", _decoded(content))
        ]  # no line of it is a heading, whatever it looks like
    else:
        sections = list(sections_of(_decoded(content)))
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


def _of_html(text: str) -> str:
    page = BeautifulSoup(text, "html.parser")
    title = page.title.get_text(" ", strip=True) if page.title else ""
    content = page.find("main") or page.find("article") or page.body or page
    for element in content.find_all(NOT_CONTENT):
        element.decompose()
    markdown = MarkdownConverter(heading_style="ATX", strip=["a", "img"]).convert_soup(content)
    markdown = re.sub(r"\n{3,}", "\n\n", markdown).strip()
    if title and markdown and not re.match(r"# ", markdown):
        return f"# {title}\n\n{markdown}"  # a page that begins without a heading is about what its title says
    return markdown


def _of_pdf(content: bytes) -> list[Section]:
    """Each page under a heading of its own, since the headings of a PDF are only larger letters."""
    logging.getLogger("pypdf").setLevel(
        logging.ERROR
    )  # it warns of every file that is a little out of order
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
    except Exception as error:  # what a damaged file does to the reader is not only its own errors
        raise Unreadable(
            f"is no PDF that can be read ({type(error).__name__}): save it as PDF once more"
        ) from error
    pages = [page for page in pages if page.body.strip()]
    return [Section(1, title, ""), *pages] if title and pages else pages
