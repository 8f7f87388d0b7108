"""Documents of every kind become passages below their headings; unreadable ones give a reason."""

from __future__ import annotations

import io
from itertools import pairwise
from pathlib import Path

import pytest

from agent.knowledge import KnowledgeUnavailable
from agent.knowledge.documents import Document
from agent.knowledge.passages import OVERLAP, WORDS


def passages(name: str, content: str | bytes) -> list[tuple[str, str]]:
    raw = content if isinstance(content, bytes) else content.encode()
    return Document(name, Path(name).suffix, raw).passages()


def pdf(*pages: str, title: str = "", password: str = "") -> bytes:
    """A PDF of these lines, a page each."""
    from pypdf import PdfWriter
    from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

    writer = PdfWriter()
    font = DictionaryObject(
        {
            NameObject("/Type"): NameObject("/Font"),
            NameObject("/Subtype"): NameObject("/Type1"),
            NameObject("/BaseFont"): NameObject("/Helvetica"),
        }
    )
    for text in pages:
        page = writer.add_blank_page(width=300, height=300)
        stream = DecodedStreamObject()
        stream.set_data(f"BT /F1 12 Tf 20 200 Td ({text}) Tj ET".encode())
        page[NameObject("/Contents")] = writer._add_object(stream)
        fonts = DictionaryObject({NameObject("/F1"): writer._add_object(font)})
        page[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): fonts})
    if title:
        writer.add_metadata({"/Title": title})
    if password:
        writer.encrypt(password, algorithm="RC4-128")
    file = io.BytesIO()
    writer.write(file)
    return file.getvalue()


def cut(markdown: str, name: str = "a.md") -> list[tuple[str, str]]:
    return passages(name, markdown)


# ---------------------------------------------------------------------- kinds


def test_html_is_cut_at_its_headings_without_what_surrounds_the_text() -> None:
    page = """<!doctype html><html><head><title>The mill</title>
    <style>p { color: red }</style></head><body>
    <nav><a href="/">Home</a></nav><header>Cookies?</header>
    <main><h1>Visit</h1><p>We are in the <b>old</b> mill.</p>
    <h2>Parking</h2><ul><li>Twelve <a href="/spaces">spaces</a></li><li>Two euros</li></ul>
    <script>track()</script></main><footer>Imprint</footer></body></html>"""

    assert passages("visit.html", page) == [
        ("Visit", "We are in the **old** mill."),
        ("Visit > Parking", "* Twelve spaces\n* Two euros"),
    ]


def test_html_without_a_heading_is_about_what_its_title_says() -> None:
    page = (
        "<html><head><title>Opening hours</title></head><body><p>From ten to six.</p></body></html>"
    )
    assert passages("page.htm", page) == [("Opening hours", "From ten to six.")]


def test_no_line_of_plain_text_is_a_heading() -> None:
    assert passages("notes_2024.txt", "# 1 priority\n\nCall back.\n----\nDone.") == [
        ("Notes 2024", "# 1 priority\n\nCall back.\n----\nDone.")
    ]


def test_every_page_of_a_pdf_is_a_section_below_its_title() -> None:
    content = pdf("We open at ten.", "", "Dogs are welcome.", title="House  rules")
    assert passages("rules.pdf", content) == [
        ("House rules > Page 1", "We open at ten."),
        ("House rules > Page 3", "Dogs are welcome."),
    ]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.txt", "Grüße".encode("latin-1"), r"not UTF-8 \(byte 2\)"),
        ("a.md", b"PK\0\3", "is not text"),
        ("a.html", b"<html><body><script>1</script></body></html>", "is empty"),
        ("a.txt", b" \n", "is empty"),
        ("a.pdf", b"", "is no PDF that can be read"),
        ("a.pdf", b"%PDF-1.7\n\x00\xff garbage", "is no PDF that can be read"),
        ("a.pdf", pdf(""), "holds no text, as a scan does"),
        ("a.pdf", pdf("Secret.", password="open sesame"), "needs a password"),
    ],
)
def test_what_cannot_be_read_says_why(name: str, content: bytes, sentence: str) -> None:
    with pytest.raises(KnowledgeUnavailable, match=sentence):
        passages(name, content)


def test_a_pdf_that_anybody_may_read_needs_no_password() -> None:
    from pypdf import PdfReader, PdfWriter

    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(pdf("For all."))))
    writer.encrypt(user_password="", owner_password="mine", algorithm="RC4-128")
    file = io.BytesIO()
    writer.write(file)
    assert passages("a.pdf", file.getvalue()) == [("Page 1", "For all.")]


@pytest.mark.parametrize("cut", [0.3, 0.6, 0.9])
def test_a_torn_pdf_is_read_or_skipped_and_never_an_error(cut: float) -> None:
    whole = pdf(*["We open at ten."] * 20)
    try:
        found = passages("a.pdf", whole[: int(len(whole) * cut)])
    except KnowledgeUnavailable:
        return
    assert found


# ---------------------------------------------------------------------- where they are cut


def test_passages_follow_the_headings() -> None:
    text = "Before.\n\n# One\n\nFirst.\n\n### Deep #\n\nDeeper.\n\n"
    text += "## Two\n\nSecond.\n\n# Next\n\nLast."
    assert cut(text, "a/opening-hours_2.md") == [
        ("Opening hours 2", "Before."),
        ("One", "First."),
        ("One > Deep", "Deeper."),
        ("One > Two", "Second."),
        ("Next", "Last."),
    ]


def test_underlined_headings_are_headings_and_rules_are_not() -> None:
    text = "One\n===\n\nFirst.\n\n---\n\nStill first.\n\nTwo\n---\n\n- a list\n---\nSecond."
    assert cut(text) == [
        ("One", "First.\n\n---\n\nStill first."),
        ("One > Two", "- a list\n---\nSecond."),
    ]


@pytest.mark.parametrize("fence", ["```", "~~~~", "  ```"])
def test_a_comment_in_a_code_block_is_no_heading(fence: str) -> None:
    code = f"{fence}sh\n# no heading\nls ```\n{fence}"
    assert cut(f"# Code\n\nLook:\n\n{code}\n\n# After\n\nText.") == [
        ("Code", f"Look:\n\n{code}"),
        ("After", "Text."),
    ]


def test_front_matter_is_not_spoken() -> None:
    assert cut("---\ntitle: Secret\n---\n# One\n\nFirst.") == [("One", "First.")]


def test_a_heading_that_says_it_all_is_a_passage() -> None:
    assert cut("# Hours\n\n## Closed on Mondays\n\n## Open\n\nElse.") == [
        ("Hours > Closed on Mondays", "Closed on Mondays"),
        ("Hours > Open", "Else."),
    ]


def test_a_long_section_is_cut_into_overlapping_passages_that_lose_nothing() -> None:
    words = [f"w{number}" for number in range(1000)]
    passages = [text.split() for _, text in cut("# Long\n\n" + " \n".join(words))]

    assert all(len(passage) <= WORDS for passage in passages)
    assert all(a[-OVERLAP:] == b[:OVERLAP] for a, b in pairwise(passages))
    assert passages[0] + [word for passage in passages[1:] for word in passage[OVERLAP:]] == words


def test_a_text_without_spaces_is_cut_too() -> None:
    passages = [text for _, text in cut("# 長\n\n" + "字" * 20_000)]
    assert max(map(len, passages)) <= WORDS * 24
