"""Every readable document below the roots is found once, with a unique name."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.knowledge import KnowledgeUnavailable
from agent.knowledge.documents import documents_in, roots_of
from agent.settings import Settings


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
