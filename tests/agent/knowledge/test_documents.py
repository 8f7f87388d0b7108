"""Documents of every kind become passages with the headings above them, and what cannot be read says why."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path

import pytest

from agent.knowledge import KnowledgeUnavailable
from agent.knowledge.documents import Document, documents_in, roots_of
from agent.settings import Settings

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("agent.knowledge.formats") is None, reason="made without knowledge"
)


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


# ---------------------------------------------------------------------- kinds


def test_html_is_cut_at_its_headings_without_what_surrounds_the_text() -> None:
    page = """<!doctype html><html><head><title>The mill</title><style>p { color: red }</style></head><body>
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


# ---------------------------------------------------------------------- which


def settings_in(home: Path) -> Settings:
    return Settings.model_validate({"home": home, "data_dir": "data", "knowledge": "sqlite"})


def write(path: Path, text: str = "Something.") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_documents_are_every_file_of_a_known_kind_below_the_roots(tmp_path: Path) -> None:
    for name in (
        "b.MD",
        "a/c.html",
        "a/d.pdf",
        "e.txt",
        ".hidden/f.md",
        "g.png",
        "questions.jsonl",
    ):
        write(tmp_path / "knowledge" / name)

    found = list(documents_in(roots_of(settings_in(tmp_path), ())))

    assert [document.source for document in found] == ["a/c.html", "a/d.pdf", "b.MD", "e.txt"]


def test_paths_are_read_instead_of_the_folder_and_names_do_not_collide(tmp_path: Path) -> None:
    write(tmp_path / "knowledge" / "own.md")
    first, second = (
        write(tmp_path / "x" / "hours.md", "One."),
        write(tmp_path / "y" / "hours.md", "Two."),
    )

    found = list(documents_in(roots_of(settings_in(tmp_path), [first, tmp_path / "y"])))

    assert [(document.source, document.content) for document in found] == [
        ("hours.md", b"One."),
        ("y/hours.md", b"Two."),
    ]
    assert second.exists()


@pytest.mark.parametrize("given", ["docs", "docs/hours.md"])
def test_no_file_of_three_roots_with_one_name_is_lost(tmp_path: Path, given: str) -> None:
    for name in ("x", "y", "z"):
        write(tmp_path / name / "docs" / "hours.md", f"In {name}.")

    found = list(
        documents_in(
            roots_of(settings_in(tmp_path), [tmp_path / name / given for name in ("x", "y", "z")])
        )
    )

    assert [(document.source, document.content) for document in found] == [
        ("hours.md", b"In x."),
        ("docs/hours.md", b"In y."),
        ("z/docs/hours.md", b"In z."),
    ]


@pytest.mark.parametrize(
    ("given", "sentence"), [("nowhere", "there is no"), ("picture.png", "of no kind")]
)
def test_a_path_that_cannot_be_read_is_one_sentence(
    tmp_path: Path, given: str, sentence: str
) -> None:
    write(tmp_path / "picture.png")
    with pytest.raises(KnowledgeUnavailable, match=sentence):
        roots_of(settings_in(tmp_path), [tmp_path / given])
