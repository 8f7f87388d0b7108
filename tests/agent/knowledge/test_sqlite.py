"""Spoken questions find their passage, and no file or process damages the index."""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.knowledge import STORES, Knowledge, KnowledgeUnavailable, index_of, sqlite
from agent.knowledge.evaluate import Question, evaluate
from agent.knowledge.ingest import ingest, stale
from agent.knowledge.lookup import open_index
from agent.settings import Settings
from agent.telemetry import LogJournal

DOCUMENTS = {
    "visit.md": """# Visiting us

We are in the old mill.

## Parking

Twelve spaces behind the house cost 2 euros an hour. The house has a bell.

## Dogs

Dogs are welcome in the house if they are quiet.
""",
    "prices/tickets.md": """# Tickets

## Refunds

A ticket that was cancelled a day before is refunded. The house keeps the fee.

## Who are you?

The museum of clocks.
""",
}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    made = Settings.model_validate(
        {"home": tmp_path, "data_dir": tmp_path / "data", "knowledge": "sqlite"}
    )
    for source, text in DOCUMENTS.items():
        write(made, source, text)
    return made


@pytest.fixture
async def knowledge(settings: Settings) -> AsyncIterator[Knowledge]:
    await ingest(settings)
    async with open_index(settings, LogJournal()) as opened:
        yield opened


def write(settings: Settings, source: str, content: str | bytes) -> None:
    path = settings.documents / source
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def index_file(settings: Settings) -> Path:
    return settings.data / "knowledge.db"


async def titles(knowledge: Knowledge, question: str, limit: int = 3) -> list[str]:
    return [passage.title for passage in await knowledge.search(question, limit)]


# ---------------------------------------------------------------------- questions


@pytest.mark.parametrize(
    ("question", "source", "title"),
    [
        ("Hi, um, where can I park my car, please?", "visit.md", "Visiting us > Parking"),
        ("could you tell me whether my dog may come with me", "visit.md", "Visiting us > Dogs"),
        (
            "I've cancelled my ticket, what about the money?",
            "prices/tickets.md",
            "Tickets > Refunds",
        ),
        ("PARKING", "visit.md", "Visiting us > Parking"),
        ("Who are you?", "prices/tickets.md", "Tickets > Who are you?"),
    ],
)
async def test_a_spoken_question_finds_its_passage(
    knowledge: Knowledge, question: str, source: str, title: str
) -> None:
    best, *rest = await knowledge.search(question)
    assert (best.source, best.title) == (source, title)
    assert [passage.score for passage in rest] == sorted(
        [passage.score for passage in rest], reverse=True
    )
    assert all(passage.score <= best.score for passage in rest)


async def test_a_long_section_leaves_room_for_others_and_headings_make_sections(
    settings: Settings,
) -> None:
    write(settings, "long.txt", "The parrot sings. " * 400)
    write(
        settings, "short.md", "A parrot was seen in the garden, where it ate what it found there."
    )
    write(settings, "birds.md", f"# Owl\n\n{'A parrot is no owl. ' * 9}\n\n# Parrot\n\nIt sings.")
    await ingest(settings)
    async with open_index(settings, LogJournal()) as knowledge:
        found = await knowledge.search("Does your parrot sing?", 6)
    places = [(passage.source, passage.title) for passage in found]
    assert sorted(places[:4]) == [
        ("birds.md", "Owl"),
        ("birds.md", "Parrot"),
        ("long.txt", "Long"),
        ("short.md", "Short"),
    ]
    assert places[4:] == [("long.txt", "Long")] * 2


@pytest.mark.parametrize(
    "question",
    [
        "What is the capital of France?",
        "How are you?",
        "why",
        "",
        "?!",
        "營業時間",
        "🦊",
        "a" * 100_000,
    ],
)
async def test_a_question_that_no_document_answers_finds_nothing(
    knowledge: Knowledge, question: str
) -> None:
    assert await knowledge.search(question) == []


async def test_no_more_passages_come_back_than_were_asked_for(knowledge: Knowledge) -> None:
    assert len(await knowledge.search("house", 10)) == 3
    assert len(await knowledge.search("house", 2)) == 2


async def test_a_word_in_a_heading_counts_more(settings: Settings) -> None:
    write(
        settings,
        "a.md",
        "# Lamps\n\nEvery lantern is lit at dusk by somebody.\n\n"
        "# Lantern\n\nIt is lit at dusk by hand.",
    )
    await ingest(settings)
    async with open_index(settings, LogJournal()) as knowledge:
        assert await titles(knowledge, "lantern") == ["Lantern", "Lamps"]


@pytest.mark.parametrize(
    "question",
    [
        'parking" OR title:*',
        "NEAR(parking dogs, 2)",
        "parking AND NOT dogs",
        "^parking + {title}: x -",
        "par*ing \0 parking",
        "'; --",
    ],
)
async def test_what_a_caller_says_is_never_a_query_language(
    knowledge: Knowledge, question: str
) -> None:
    found = await titles(knowledge, question)
    assert ("Visiting us > Parking" in found) == ("parking" in question)


async def test_no_text_makes_a_search_fail(knowledge: Knowledge) -> None:
    chance = random.Random(3)
    strange = [
        '"',
        "'",
        "*",
        "^",
        "(",
        ")",
        "-",
        ":",
        "\0",
        "\ud800",
        "½",
        "²",
        "_",
        "٣",
        "नमस्ते",
        "İ",
        "ﬀ",
        "東京",
        "a\u0301",
        " ",
        "NOT",
        "park",
    ]
    for _ in range(500):
        await knowledge.search("".join(chance.choices(strange, k=chance.randrange(1, 12))))


async def test_a_cancelled_search_leaves_the_next_one_alone(knowledge: Knowledge) -> None:
    asked = [asyncio.create_task(knowledge.search("parking")) for _ in range(5)]
    await asyncio.sleep(0)
    for one in asked[:4]:
        one.cancel()

    assert [passage.title for passage in await asked[4]] == ["Visiting us > Parking"]


# ---------------------------------------------------------------------- documents


async def test_what_was_read_is_reported(settings: Settings) -> None:
    lines: list[str] = []
    report = await ingest(
        settings, progress=lambda line, done, total: lines.append(line) if line else None
    )

    assert (report.documents, report.passages, report.skipped) == (2, 5, [])
    assert lines == ["prices/tickets.md: 2 passages", "visit.md: 3 passages"]


async def test_bad_files_are_named_and_skipped(settings: Settings) -> None:
    write(settings, "latin.md", "Öffnungszeiten".encode("latin-1"))
    write(settings, "large.md", b"words " * 4_000_000)
    write(settings, "binary.md", b"PK\0\3")
    write(settings, "empty.md", " \n")
    (settings.documents / "broken.md").symlink_to("nowhere")
    lines: list[str] = []
    report = await ingest(
        settings, progress=lambda line, done, total: lines.append(line) if line else None
    )

    assert report.documents == 2
    assert [(skipped.source, skipped.reason.split(":")[0]) for skipped in report.skipped] == [
        ("binary.md", "is not text"),
        ("broken.md", "cannot be read (No such file or directory)"),
        ("empty.md", "is empty"),
        ("large.md", "is larger than 10 MiB"),
        ("latin.md", "is not UTF-8 (byte 0)"),
    ]
    assert all(any(skipped.source in line for line in lines) for skipped in report.skipped)
    assert not await stale(settings)


async def test_hidden_and_other_files_are_left_out(settings: Settings) -> None:
    write(settings, ".drafts/secret.md", "# Secret\n\nNot for callers.")
    write(settings, "picture.png", b"\x89PNG")

    assert (await ingest(settings)).documents == 2


@pytest.mark.parametrize(
    "only", [None, {}, {"latin.md": b"\xff"}], ids=["no folder", "empty folder", "nothing readable"]
)
async def test_nothing_to_read_is_one_sentence_and_the_old_index_stays(
    settings: Settings, knowledge: Knowledge, only: dict[str, bytes] | None
) -> None:
    replace_documents(settings, only)

    with pytest.raises(KnowledgeUnavailable, match=r"knowledge.* put (your )?documents there"):
        await ingest(settings)
    assert await stale(settings)
    assert await titles(knowledge, "parking") == ["Visiting us > Parking"]


def replace_documents(settings: Settings, only: dict[str, bytes] | None) -> None:
    settings.documents.rename(settings.home / "before")
    if only is not None:
        settings.documents.mkdir()
        for source, content in only.items():
            write(settings, source, content)


# ---------------------------------------------------------------------- the index


async def test_an_index_is_stale_when_documents_change_and_only_then(settings: Settings) -> None:
    assert await stale(settings)
    await ingest(settings)
    assert not await stale(settings)
    os.utime(settings.documents / "visit.md", (1, 1))
    assert not await stale(settings)
    for change in (
        lambda: write(settings, "visit.md", DOCUMENTS["visit.md"].replace("Twelve", "Eleven")),
        lambda: write(settings, "new.md", "# New\n\nSomething."),
        lambda: (settings.documents / "new.md").rename(settings.documents / "renamed.md"),
        lambda: (settings.documents / "renamed.md").unlink(),
    ):
        change()
        assert await stale(settings)
        await ingest(settings)
        assert not await stale(settings)


async def test_a_new_index_is_used_without_opening_it_again(
    settings: Settings, knowledge: Knowledge
) -> None:
    assert await titles(knowledge, "giraffe") == []
    write(settings, "zoo.md", "# Zoo\n\nThe giraffe eats at noon.")
    await ingest(settings)
    assert await titles(knowledge, "giraffe") == ["Zoo"]


async def test_a_missing_index_is_one_sentence_until_it_is_there(settings: Settings) -> None:
    async with open_index(settings, LogJournal()) as knowledge:
        with pytest.raises(KnowledgeUnavailable, match="run `agent ingest`"):
            await knowledge.search("parking")
        await ingest(settings)
        assert await titles(knowledge, "parking") == ["Visiting us > Parking"]


@pytest.mark.parametrize("passages_only", [False, True])
async def test_a_damaged_index_is_one_sentence_and_built_again(
    settings: Settings, passages_only: bool
) -> None:
    await ingest(settings)
    damage(index_file(settings), passages_only)

    assert await stale(settings)
    async with open_index(settings, LogJournal()) as knowledge:
        with pytest.raises(KnowledgeUnavailable, match="run `agent ingest`"):
            await knowledge.search("parking")
        await ingest(settings)
        assert await titles(knowledge, "parking") == ["Visiting us > Parking"]


def damage(path: Path, passages_only: bool) -> None:
    whole = path.read_bytes()
    pages = [whole[start : start + 4096] for start in range(0, len(whole), 4096)]
    kept = [
        passages_only and (number == 0 or b"CREATE TABLE about" in page)
        for number, page in enumerate(pages)
    ]
    path.write_bytes(
        b"".join(page if keep else b"\xa5" * 4096 for page, keep in zip(pages, kept, strict=True))
    )


async def test_a_data_folder_that_cannot_be_written_is_one_sentence(settings: Settings) -> None:
    settings.data.write_text("a file where the folder should be")

    with pytest.raises(KnowledgeUnavailable, match="AGENT_DATA_DIR"):
        await ingest(settings)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
async def test_an_index_in_a_folder_that_cannot_be_written_is_read_all_the_same(
    settings: Settings, knowledge: Knowledge
) -> None:
    settings.data.chmod(0o500)

    assert await titles(knowledge, "parking") == ["Visiting us > Parking"]
    with pytest.raises(KnowledgeUnavailable, match="AGENT_DATA_DIR"):
        await ingest(settings)


async def test_ingests_and_searches_at_once_do_not_disturb_each_other(
    settings: Settings, knowledge: Knowledge
) -> None:
    failures: list[Exception] = []

    def again() -> None:
        try:
            for _ in range(8):
                asyncio.run(ingest(settings))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=again) for _ in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert await titles(knowledge, "parking") == ["Visiting us > Parking"]
    assert failures == []
    assert [path.name for path in sorted(settings.data.iterdir())] == ["knowledge.db"]
    assert not await stale(settings)


async def test_what_a_killed_ingest_left_is_cleared_away_later(settings: Settings) -> None:
    settings.data.mkdir()
    for name, age in ((".knowledge-1-old.tmp", 2), (".knowledge-2-new.tmp", 10**10)):
        (settings.data / name).touch()
        os.utime(settings.data / name, (age, age))
    await ingest(settings)

    assert sorted(path.name for path in settings.data.iterdir()) == [
        ".knowledge-2-new.tmp",
        "knowledge.db",
    ]


async def test_an_index_of_another_version_is_stale(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ingest(settings)
    monkeypatch.setattr(sqlite, "FORMAT", sqlite.FORMAT + 1)
    assert await stale(settings)


# ---------------------------------------------------------------------- options


async def test_an_agent_without_knowledge_opens_none(settings: Settings) -> None:
    without = settings.model_copy(update={"knowledge": "none"})
    assert not await stale(without)
    for use in (ingest(without), evaluate(without, [Question("When?", "hours.md")])):
        with pytest.raises(KnowledgeUnavailable, match="AGENT_KNOWLEDGE=none"):
            await use


async def test_a_store_that_the_project_was_made_without_is_one_sentence(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(STORES, "sqlite", "agent.knowledge.left_out:SqliteIndex")
    with pytest.raises(KnowledgeUnavailable, match="agent update -d knowledge=sqlite"):
        index_of(settings)


async def test_the_index_is_read_before_the_first_question(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ingest(settings)
    read, load = threading.Event(), sqlite._Opened

    def opened(index: sqlite3.Connection) -> sqlite._Opened:
        read.set()
        return load(index)

    monkeypatch.setattr(sqlite, "_Opened", opened)
    async with open_index(settings, LogJournal()):
        assert await asyncio.to_thread(read.wait, 10)


async def test_an_index_that_cannot_be_read_is_reported_by_a_question_and_not_by_opening_it(
    settings: Settings,
) -> None:
    async with open_index(settings, LogJournal()) as knowledge:
        with pytest.raises(KnowledgeUnavailable, match="there is no index"):
            await knowledge.search("Dogs?")
