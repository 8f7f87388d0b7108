"""Documents in a real PostgreSQL: searches, ingests, and failures of the server."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import socket
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing, suppress
from typing import Any

import asyncpg
import numpy as np
import pytest
from numpy.typing import NDArray

from agent.knowledge import IndexManifest, Knowledge, KnowledgeUnavailable, index_of
from agent.knowledge.embeddings import QuestionEmbedder
from agent.knowledge.pgvector import PgvectorIndex, connection, errors, schema_of
from agent.knowledge.pgvector.search import COMMON, _Snapshot, query_of
from agent.settings import Settings
from agent.telemetry import LogJournal
from tests.support.postgres import PASSWORD, Postgres

PARKING = (
    "Visiting us > Parking",
    "Twelve spaces behind the house cost 2 euros an hour. The house has a bell.",
)
DOGS = ("Visiting us > Dogs", "Dogs are welcome in the house if they are quiet.")
REFUNDS = (
    "Tickets > Refunds",
    "A ticket that was cancelled a day before is refunded. The house keeps the fee.",
)
WHO = ("Tickets > Who are you?", "The museum of clocks.")
DOCUMENTS: dict[str, list[tuple[str, str]]] = {
    "visit.md": [PARKING, DOGS],
    "prices/tickets.md": [REFUNDS, WHO],
}


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A server that a test may kill and stop, and leaves running."""
    with closing(Postgres()) as running:
        yield running


@pytest.fixture(scope="module")
def url(server: Postgres) -> str:
    return server.url


def settings_for(url: str, **more: str) -> Settings:
    name = (
        # a schema of its own: tests share a database and no index
        f"test-{secrets.token_hex(6)}"
    )
    return Settings.model_validate(
        {"name": name, "knowledge": "pgvector", "knowledge_url": url, **more}
    )


@pytest.fixture
async def settings(url: str) -> AsyncIterator[Settings]:
    made = settings_for(url)
    yield made
    async with raw(url) as connection:
        await connection.execute(f"DROP SCHEMA IF EXISTS {schema_of(made.name)} CASCADE")


@pytest.fixture
async def index(settings: Settings) -> PgvectorIndex:
    found = index_of(settings)
    assert isinstance(found, PgvectorIndex)
    return found


@asynccontextmanager
async def raw(url: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    """The server itself, without the store."""
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


class Hashed:
    """An `Embedder` without a model: words that begin alike are alike."""

    def __init__(self, model: str = "hashed", dimension: int = 64) -> None:
        self.model, self.dimension = model, dimension
        self.fails = False

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        if self.fails:
            raise KnowledgeUnavailable("no embedder here")
        vectors = np.full((len(texts), self.dimension), 0.001, dtype=np.float32)
        for row, text in zip(vectors, texts, strict=True):
            for word in re.findall(r"\w+", text.lower()):
                alike = {"price": "euros", "fare": "euros", "puppy": "dogs", "hound": "dogs"}.get(
                    word, word
                )
                row[sum(map(ord, alike[:4])) * 7919 % self.dimension] += len(alike) / 10
        scaled: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return scaled


async def ingest(
    index: PgvectorIndex,
    documents: Mapping[str, Sequence[tuple[str, str]]] = DOCUMENTS,
    embedder: Hashed | None = None,
    keep: Sequence[str] = (),
) -> list[int]:
    """Ingest these documents; how many passages each one of `keep` has."""
    digests = dict.fromkeys([*documents, *keep], "digest")
    model, dimension = (embedder.model, embedder.dimension) if embedder else ("", 0)
    async with index.rebuild(
        IndexManifest(1, model, dimension, ("/documents",), digests)
    ) as writer:
        kept = [await writer.keep(source) for source in keep]
        for source, passages in documents.items():
            vectors = (
                await embedder.embed([f"{title}\n{text}" for title, text in passages])
                if embedder
                else None
            )
            await writer.add(source, passages, vectors)
    return kept


@asynccontextmanager
async def searching(
    index: PgvectorIndex, embedder: Hashed | None = None
) -> AsyncIterator[Knowledge]:
    """The open index; the journal is that of a command."""
    questions = QuestionEmbedder(embedder, Settings(), LogJournal())
    async with index.open(questions) as knowledge:
        yield knowledge


async def titles(knowledge: Knowledge, question: str, limit: int = 10) -> list[str]:
    return [passage.title for passage in await knowledge.search(question, limit)]


async def found_by(
    index: PgvectorIndex, question: str, embedder: Hashed | None = None
) -> list[str]:
    async with searching(index, embedder) as knowledge:
        return await titles(knowledge, question)


# ---------------------------------------------------------------------- questions


@pytest.mark.parametrize("embedder", [None, Hashed()], ids=["words", "words and meaning"])
@pytest.mark.parametrize(
    ("question", "source", "passage"),
    [
        ("Hi, um, where can I park my car, please?", "visit.md", PARKING),
        ("could you tell me whether my dog may come with me", "visit.md", DOGS),
        ("I've cancelled my ticket, what about the money?", "prices/tickets.md", REFUNDS),
        ("PARKING", "visit.md", PARKING),
    ],
)
async def test_a_spoken_question_finds_its_passage(
    index: PgvectorIndex,
    embedder: Hashed | None,
    question: str,
    source: str,
    passage: tuple[str, str],
) -> None:
    await ingest(index, embedder=embedder)
    async with searching(index, embedder) as knowledge:
        best, *rest = await knowledge.search(question)
    assert (best.source, best.title, best.text) == (source, *passage)
    assert [passage.score for passage in rest] == sorted(
        [passage.score for passage in rest], reverse=True
    )
    assert all(passage.score <= best.score for passage in rest)
    assert 0 < best.relevance <= 1


async def test_a_question_is_answered_by_its_meaning_too(index: PgvectorIndex) -> None:
    await ingest(index, embedder=Hashed())
    assert await found_by(index, "puppy") == []
    assert (await found_by(index, "puppy", Hashed()))[0] == DOGS[0]


async def test_function_words_alone_are_answered_by_a_heading_that_says_just_that(
    index: PgvectorIndex,
) -> None:
    await ingest(index)
    assert await found_by(index, "Who are you?") == [WHO[0]]
    assert await found_by(index, "how are you") == []


async def test_a_question_reads_its_own_words_and_no_others(
    settings: Settings, index: PgvectorIndex
) -> None:
    """Of a large index, and although PostgreSQL has no statistics of its small tables."""
    common = [f"word{number}" for number in range(400)]
    pages = [(f"Page {n}", f"house {' '.join(common[n % 40 :: 9])}") for n in range(3000)]
    await ingest(index, {"pages.md": pages, "bell.md": [("Bell", "The bell of the house.")]})

    async with raw(settings.knowledge_url.get_secret_value()) as connection:
        await connection.execute(f"SET search_path = {schema_of(settings.name)}, public")
        made = await connection.fetchrow("SELECT revision, generation FROM about")
        assert made is not None
        manifest = IndexManifest(1, "", 0, (), {})
        snapshot = _Snapshot(made["revision"], made["generation"], manifest)
        query = query_of(snapshot, by_words=True, by_meaning=False)
        asked = ["bell", "word7", "house"]
        plan = await connection.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) {query}", asked)

    reading = [
        node
        for node in nodes(json.loads(plan)[0]["Plan"])
        if node.get("Relation Name") == "postings"
    ]
    assert all("word =" in node.get("Index Cond", "") for node in reading)
    # "house" is in every passage, the others are in few
    assert 3000 < sum(node["Actual Loops"] * node["Actual Rows"] for node in reading) < 5000


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for part in plan.get("Plans", []):
        yield from nodes(part)


async def test_all_words_decide_which_of_many_passages_with_the_rare_one_are_best(
    index: PgvectorIndex,
) -> None:
    """Also a word that is too common to propose passages by itself."""
    await ingest(
        index,
        {
            "bells.md": [("Bells", "It rings.")] * 100,
            "garages.md": [("Garages", "For parking.")] * (COMMON + 1),
            "others.md": [("Others", "The house.")] * COMMON,
            "both.md": [("Bells", "For parking here.")],
        },
    )
    async with searching(index) as knowledge:
        best, *_ = await knowledge.search("Parking and a bell?")
    assert best.source == "both.md"


async def test_a_passage_with_the_rare_word_comes_first(index: PgvectorIndex) -> None:
    documents = {f"{number}.md": [(f"Page {number}", "The house is old.")] for number in range(20)}
    await ingest(index, {**documents, "bell.md": [("Bell", "It rings.")]})
    assert (await found_by(index, "Has the house got a bell?"))[0] == "Bell"


@pytest.mark.parametrize("embedder", [None, Hashed()], ids=["words", "words and meaning"])
async def test_a_long_section_leaves_room_for_others(
    index: PgvectorIndex, embedder: Hashed | None
) -> None:
    long = [("Parrot", f"The parrot sings, {number}.") for number in range(5)]
    others = [("Garden", "A parrot was seen there."), ("Owl", "A parrot, unlike it, is no owl.")]
    await ingest(index, {"long.md": long, "others.md": others}, embedder)
    found = await found_by(index, "Does your parrot sing?", embedder)
    assert sorted(found[:3]) == ["Garden", "Owl", "Parrot"]
    assert found[3:] == ["Parrot"] * 4


async def test_no_more_passages_come_back_than_were_asked_for(index: PgvectorIndex) -> None:
    await ingest(index, embedder=Hashed())
    async with searching(index, Hashed()) as knowledge:
        assert len(await knowledge.search("house", 10)) == 4
        assert len(await knowledge.search("house", 2)) == 2


@pytest.mark.parametrize(
    "question", ["What is the capital of France?", "why", "", "?!", "營業時間", "🦊", "a" * 100_000]
)
async def test_a_question_that_no_document_answers_finds_nothing(
    index: PgvectorIndex, question: str
) -> None:
    await ingest(index)
    assert await found_by(index, question) == []


@pytest.mark.parametrize(
    "question",
    [
        "parking' OR 1=1; DROP SCHEMA public CASCADE; --",
        "parking & !dogs | (x <-> y):*A",
        "parking \\' $1 {0} %s",
        "par\0king parking \ud800",
        "İ ﬀ ½ ² _ ٣ नमस्ते parking",
        "parking " * 500,
    ],
)
async def test_what_a_caller_says_is_never_a_query_language(
    index: PgvectorIndex, question: str
) -> None:
    await ingest(index, embedder=Hashed())
    assert PARKING[0] in await found_by(index, question)
    assert PARKING[0] in await found_by(index, question, Hashed())


async def test_a_dead_embedder_leaves_the_words_and_one_warning(
    index: PgvectorIndex, caplog: pytest.LogCaptureFixture
) -> None:
    await ingest(index, embedder=Hashed())
    broken = Hashed()
    broken.fails = True
    async with searching(index, broken) as knowledge:
        for _ in range(3):
            assert (await titles(knowledge, "parking"))[0] == PARKING[0]
    assert [
        record.message.count("no embedder here")
        for record in caplog.records
        if record.levelname == "WARNING"
    ] == [1]


@pytest.mark.parametrize(
    "other", [Hashed("another"), Hashed(dimension=32)], ids=["model", "dimension"]
)
async def test_an_index_of_another_model_is_searched_by_words_and_says_so(
    index: PgvectorIndex, other: Hashed, caplog: pytest.LogCaptureFixture
) -> None:
    await ingest(index, embedder=Hashed())
    async with searching(index, other) as knowledge:
        assert (await titles(knowledge, "parking"))[0] == PARKING[0]
        assert await titles(knowledge, "puppy") == []
    (warning,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert "run `agent ingest`" in warning


async def test_a_cancelled_search_leaves_the_next_one_alone(index: PgvectorIndex) -> None:
    await ingest(index)
    async with searching(index) as knowledge:
        asked = [asyncio.create_task(knowledge.search("parking")) for _ in range(5)]
        await asyncio.sleep(0)
        for one in asked[:4]:
            one.cancel()
        assert [passage.title for passage in await asked[4]] == [PARKING[0]]


# ---------------------------------------------------------------------- ingests


async def test_an_index_says_what_it_is_made_from(index: PgvectorIndex) -> None:
    assert await index.manifest() is None
    await ingest(index, embedder=Hashed())
    assert await index.manifest() == IndexManifest(
        1, "hashed", 64, ("/documents",), dict.fromkeys(DOCUMENTS, "digest")
    )


async def test_what_is_kept_is_not_touched_and_what_is_not_named_is_gone(
    settings: Settings, index: PgvectorIndex
) -> None:
    await ingest(index, embedder=Hashed())
    await index.manifest()
    before = await rows(settings, "visit.md")
    new = {"zoo.md": [("Zoo", "The giraffe eats at noon.")]}

    assert await ingest(index, new, Hashed(), keep=["visit.md"]) == [2]
    assert await rows(settings, "visit.md") == before
    assert await found_by(index, "giraffe") == ["Zoo"]
    assert await found_by(index, "refund") == []
    about = await index.manifest()
    assert about is not None
    assert set(about.digests) == {"visit.md", "zoo.md"}


async def rows(settings: Settings, source: str) -> list[asyncpg.Record]:
    async with raw(settings.knowledge_url.get_secret_value()) as connection:
        passages = f"{schema_of(settings.name)}.passages"
        return await connection.fetch(
            f"SELECT id, xmin::text, text FROM {passages} WHERE source = $1 ORDER BY id", source
        )


async def test_a_document_that_is_added_again_takes_the_place_of_the_old_one(
    index: PgvectorIndex,
) -> None:
    await ingest(index)
    await ingest(index, {**DOCUMENTS, "visit.md": [("Visiting us", "The parking is closed.")]})
    assert await found_by(index, "parking") == ["Visiting us"]


async def test_nothing_is_kept_of_an_index_that_another_ingest_changed(
    settings: Settings, index: PgvectorIndex
) -> None:
    await ingest(index)
    await index.manifest()
    await ingest(PgvectorIndex(settings), {"visit.md": [("Other", "Other words.")]})
    assert await ingest(index, {}, keep=["visit.md"]) == [0]


@pytest.mark.parametrize(
    "then",
    [Hashed("another"), Hashed(dimension=32), Hashed(dimension=2500), None],
    ids=["another model", "another dimension", "too many numbers to index", "none"],
)
async def test_another_model_embeds_every_passage_again(
    settings: Settings, index: PgvectorIndex, then: Hashed | None
) -> None:
    await ingest(index, embedder=Hashed())
    async with searching(index, then) as knowledge:
        assert (await titles(knowledge, "parking"))[0] == PARKING[0]
        await index.manifest()
        await ingest(index, embedder=then)
        assert (await titles(knowledge, "dog"))[0] == DOGS[0]
        assert ((await titles(knowledge, "puppy"))[:1] == [DOGS[0]]) is (then is not None)
    async with raw(settings.knowledge_url.get_secret_value()) as connection:
        near = await connection.fetch(
            "SELECT indexdef FROM pg_indexes WHERE schemaname = $1 AND indexdef LIKE '%hnsw%'",
            schema_of(settings.name),
        )
    assert [re.findall(r"(\w+)\((\d+)\)", row["indexdef"])[-1] for row in near] == (
        [("halfvec" if then.dimension > 2000 else "vector", str(then.dimension))] if then else []
    )


@pytest.mark.parametrize(
    "embedder", [None, Hashed(dimension=8)], ids=["words", "words and meaning"]
)
async def test_many_new_passages_are_sorted_again_beside_those_that_are_kept(
    settings: Settings, index: PgvectorIndex, embedder: Hashed | None
) -> None:
    house = {f"{number}.md": [(f"Page {number}", "The house is old.")] * 20 for number in range(30)}
    await ingest(index, {**DOCUMENTS, **house}, embedder)
    await index.manifest()
    assert await ingest(index, house, embedder, keep=["visit.md"]) == [2]

    assert (await found_by(index, "parking", embedder))[0] == PARKING[0]
    assert "Tickets" not in str(await found_by(index, "refund", embedder))
    about = await index.manifest()
    assert about is not None
    assert len(about.digests) == 31
    async with raw(settings.knowledge_url.get_secret_value()) as connection:
        schema = schema_of(settings.name)
        found = await connection.fetch(
            f"SELECT generation, count(*) FROM {schema}.passages GROUP BY generation"
        )
        near = await connection.fetch(
            "SELECT 1 FROM pg_indexes WHERE schemaname = $1 AND indexdef ~ 'hnsw'", schema
        )
    assert [row["count"] for row in found] == [602]
    assert len(near) == (1 if embedder else 0)


@pytest.mark.parametrize(("version", "found"), [("", 50), ("0.7.4", 0)])
async def test_passages_that_are_gone_hide_none_that_are_left_before_a_vacuum(
    server: Postgres, version: str, found: int
) -> None:
    """With pgvector 0.8 or newer; an older one has nothing else than the vacuum."""
    database = f"db_{secrets.token_hex(4)}"
    address = server.create(database)
    settings = settings_for(address, knowledge_seconds="30")
    index, meaning = PgvectorIndex(settings), Hashed()
    # no two alike, and all nearer to the question than those that stay
    old = [("", f"{'euros ' * (1 + n % 30)}{'bell ' * (n // 30)}") for n in range(600)]
    await ingest(index, {"old.md": old} | pages(60), meaning)
    await index.manifest()
    async with raw(address) as reader:
        # as with an index that is too large to be read whole
        await reader.execute(f"ALTER DATABASE {database} SET enable_seqscan = off")
        if version:
            await reader.execute("UPDATE pg_extension SET extversion = $1", version)
        # a vacuum leaves what somebody may still read
        async with reader.transaction(isolation="repeatable_read"):
            await reader.fetchval("SELECT count(*) FROM pg_class")
            await ingest(index, {}, meaning, keep=list(pages(60)))
            async with searching(PgvectorIndex(settings), meaning) as knowledge:
                # no passage has this word
                assert len(await knowledge.search("fare", 50)) == found


def pages(count: int) -> dict[str, list[tuple[str, str]]]:
    return {f"{number}.md": [(f"Page {number}", "The house is old.")] for number in range(count)}


async def test_readers_see_the_old_index_or_the_new_one_and_never_wait(
    settings: Settings, index: PgvectorIndex
) -> None:
    versions = [
        {f"{number}.md": [(f"{colour} {number}", f"The {colour} parking.")] for number in range(30)}
        for colour in ("red", "blue")
    ]
    await ingest(index, versions[0], Hashed())
    seen, slowest, done = set[str](), 0.0, asyncio.Event()

    async def read() -> None:
        nonlocal slowest
        async with searching(PgvectorIndex(settings), Hashed()) as knowledge:
            while not done.is_set():
                began = time.monotonic()
                found = await titles(knowledge, "parking", 50)
                slowest = max(slowest, time.monotonic() - began)
                colours = {title.split()[0] for title in found}
                assert len(found) == 30
                assert len(colours) == 1
                seen.update(colours)

    readers = [asyncio.create_task(read()) for _ in range(3)]
    for version in range(1, 7):
        await ingest(
            index, versions[version % 2], Hashed("hashed", 32 if version in (3, 4) else 64)
        )
        await asyncio.sleep(0.05)
    done.set()
    await asyncio.gather(*readers)
    assert seen == {"red", "blue"}
    assert slowest < connection.SEARCH_SECONDS


async def test_an_ingest_that_fails_or_is_killed_leaves_the_old_index(
    settings: Settings, index: PgvectorIndex
) -> None:
    await ingest(index, embedder=Hashed())
    before = await index.manifest()
    about = IndexManifest(2, "another", 8, (), {})

    async def broken_off(*, by_the_server: bool) -> None:
        async with index.rebuild(about) as writer:
            await writer.add("zoo.md", [("Zoo", "Giraffe")] * 600, np.ones((600, 8), np.float32))
            if not by_the_server:
                raise OSError("the disk is gone")
            async with raw(settings.knowledge_url.get_secret_value()) as connection:
                await connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"
                )

    with pytest.raises(OSError, match="the disk is gone"):
        await broken_off(by_the_server=False)
    with pytest.raises(KnowledgeUnavailable, match="no connection"):
        await broken_off(by_the_server=True)
    assert await index.manifest() == before
    assert await found_by(index, "giraffe") == []
    assert (await found_by(index, "puppy", Hashed()))[0] == DOGS[0]


async def test_two_ingests_at_once_take_turns(settings: Settings) -> None:
    await asyncio.gather(*(ingest(PgvectorIndex(settings), embedder=Hashed()) for _ in range(3)))
    assert await found_by(PgvectorIndex(settings), "parking") == [PARKING[0]]


async def test_a_second_ingest_that_waits_too_long_says_so(
    settings: Settings, index: PgvectorIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(errors, "LOCK_SECONDS", 0.2)
    async with index.rebuild(IndexManifest(1, "", 0, (), {})):
        with pytest.raises(KnowledgeUnavailable, match=r"is being ingested into for 0\.2 s"):
            await ingest(PgvectorIndex(settings))


async def test_two_agents_in_one_database_share_no_passage(url: str, index: PgvectorIndex) -> None:
    other = settings_for(url)
    await ingest(index)
    await ingest(PgvectorIndex(other), {"zoo.md": [("Zoo", "The giraffe eats at noon.")]}, Hashed())
    assert await found_by(index, "giraffe") == []
    assert await found_by(PgvectorIndex(other), "parking") == []
    async with raw(url) as connection:
        await connection.execute(f"DROP SCHEMA {schema_of(other.name)} CASCADE")


@pytest.mark.parametrize(
    "name", ["front-desk", "Front-Desk", "front.desk", "pg_catalog", "public", "a" * 63, "1e3", "é"]
)
def test_every_agent_has_a_schema_of_its_own(name: str) -> None:
    others = {"front_desk", "front desk", "a" * 62, "pg-catalog"} - {name}
    assert re.fullmatch(r"agent_[a-z0-9_]{1,57}", schema_of(name))
    assert schema_of(name) not in map(schema_of, others)


async def test_an_index_of_a_newer_version_is_not_touched(
    settings: Settings, index: PgvectorIndex
) -> None:
    await ingest(index)
    async with raw(settings.knowledge_url.get_secret_value()) as connection:
        await connection.execute(f"INSERT INTO {schema_of(settings.name)}.layout VALUES (999)")
    with pytest.raises(KnowledgeUnavailable, match="newer version"):
        await ingest(index)
    assert await found_by(index, "parking") == [PARKING[0]]


# ---------------------------------------------------------------------- what goes wrong


async def test_a_missing_index_is_one_sentence_until_it_is_there(
    settings: Settings, index: PgvectorIndex
) -> None:
    async with searching(index) as knowledge:
        for _ in range(2):
            with pytest.raises(
                KnowledgeUnavailable, match=r"there is no index .* run `agent ingest`"
            ):
                await knowledge.search("parking")
        await ingest(PgvectorIndex(settings))
        assert await titles(knowledge, "parking") == [PARKING[0]]


async def sentence(url: str) -> str:
    """The same error of a search and an ingest for this address, without the password."""
    said = []
    for attempt in (
        found_by(PgvectorIndex(settings_for(url)), "parking"),
        ingest(PgvectorIndex(settings_for(url))),
    ):
        with pytest.raises(KnowledgeUnavailable) as refused:
            await attempt
        said.append(str(refused.value))
    assert PASSWORD not in str(said)
    assert "another-secret" not in str(said)
    return said[0] if said[0] == said[1] else " / ".join(said)


async def test_what_refuses_a_connection_is_one_sentence_without_the_password(
    server: Postgres,
) -> None:
    where = f"the database postgres of PostgreSQL at 127.0.0.1:{server.port}"
    wrong = server.url_of("postgres", password="another-secret")
    assert (
        await sentence(wrong)
        == f"{where} refuses the user or password: correct them in AGENT_KNOWLEDGE_URL"
    )
    assert await sentence(server.url_of("nowhere")) == (
        f"{where.replace('postgres ', 'nowhere ')} does not exist: create it, or correct "
        "AGENT_KNOWLEDGE_URL"
    )
    assert await sentence(f"{server.url}?sslmode=require") == (
        f"{where} speaks no TLS: switch it on there, or take sslmode out of AGENT_KNOWLEDGE_URL"
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert "no connection to the database" in await sentence(
        server.url.replace(str(server.port), str(port))
    )


@pytest.mark.parametrize(
    "address",
    [
        f"postgresql://postgres:{PASSWORD}/x@localhost:5432/postgres",
        f"postgresql://postgres:{PASSWORD}#x@localhost:5432/postgres",
        f"postgresql://postgres:{PASSWORD}",
        f"postgresql://localhost:{PASSWORD}/postgres",
        f"postgresql://postgres:12345#{PASSWORD}@localhost:5432/postgres",
        f"postgresql://localhost/postgres?sslmode={PASSWORD}",
    ],
)
async def test_an_address_that_is_none_is_one_sentence_without_the_password(address: str) -> None:
    assert (
        "AGENT_KNOWLEDGE_URL is no address of a PostgreSQL: write postgresql://"
        in await sentence(address)
    )


async def test_too_many_connections_are_one_sentence_until_there_are_fewer(
    server: Postgres,
) -> None:
    index = PgvectorIndex(settings_for(server.url))
    await ingest(index)
    taken: list[asyncpg.Connection[asyncpg.Record]] = []
    try:
        with suppress(asyncpg.TooManyConnectionsError):
            while True:
                taken.append(await asyncpg.connect(server.url))
        async with searching(index) as knowledge:
            with pytest.raises(KnowledgeUnavailable, match="takes no more connections"):
                await knowledge.search("parking")
            for connection in taken:
                await connection.close()
            assert await eventually(knowledge, "parking") == [PARKING[0]]
    finally:
        for connection in taken:
            connection.terminate()


async def eventually(knowledge: Knowledge, question: str) -> list[str]:
    for _ in range(100):
        try:
            return await titles(knowledge, question)
        except KnowledgeUnavailable:
            await asyncio.sleep(0.05)
    return await titles(knowledge, question)


async def test_a_database_that_is_read_only_is_searched_and_not_ingested_into(
    server: Postgres,
) -> None:
    settings = settings_for(server.url)
    await ingest(PgvectorIndex(settings))
    async with raw(server.url) as connection:
        await connection.execute("ALTER DATABASE postgres SET default_transaction_read_only = on")
        try:
            assert await found_by(PgvectorIndex(settings), "parking") == [PARKING[0]]
            with pytest.raises(KnowledgeUnavailable, match=r"may only be read: .* the primary"):
                await ingest(PgvectorIndex(settings))
        finally:
            await connection.execute("SET default_transaction_read_only = off")
            await connection.execute("ALTER DATABASE postgres RESET default_transaction_read_only")


async def test_an_extension_that_may_not_be_created_is_one_sentence(server: Postgres) -> None:
    user, database = f"user_{secrets.token_hex(4)}", f"db_{secrets.token_hex(4)}"
    async with raw(server.url) as connection:
        await connection.execute(f"CREATE USER {user} PASSWORD '{PASSWORD}'")
        await connection.execute(f"CREATE DATABASE {database}")
    address = server.url_of(database, user=user)
    with pytest.raises(
        KnowledgeUnavailable, match="have its administrator run `CREATE EXTENSION vector` there"
    ):
        await ingest(PgvectorIndex(settings_for(address)))
    async with raw(server.url_of(database)) as connection:
        await connection.execute(
            "CREATE SCHEMA elsewhere; CREATE EXTENSION vector SCHEMA elsewhere"
        )
    with pytest.raises(KnowledgeUnavailable, match="to ingest, CREATE on the database"):
        await ingest(PgvectorIndex(settings_for(address)))
    async with raw(server.url) as connection:
        await connection.execute(f"GRANT CREATE ON DATABASE {database} TO {user}")
    with pytest.raises(KnowledgeUnavailable, match="may not use: grant it USAGE there"):
        await ingest(PgvectorIndex(settings_for(address)))
    async with raw(server.url_of(database)) as connection:
        await connection.execute(f"GRANT USAGE ON SCHEMA elsewhere TO {user}")
    index = PgvectorIndex(settings_for(address))
    await ingest(index, embedder=Hashed())
    assert (await found_by(index, "puppy", Hashed()))[0] == DOGS[0]


async def test_a_killed_server_is_one_sentence_and_found_again_when_it_is_back(
    server: Postgres,
) -> None:
    index = PgvectorIndex(settings_for(server.url))
    await ingest(index, embedder=Hashed())
    async with searching(index, Hashed()) as knowledge:
        assert (await titles(knowledge, "puppy"))[0] == DOGS[0]
        server.kill()
        try:
            for _ in range(2):
                with pytest.raises(
                    KnowledgeUnavailable,
                    match="no connection to the database postgres of PostgreSQL",
                ):
                    await knowledge.search("puppy")
        finally:
            server.start()
        assert (await titles(knowledge, "puppy"))[0] == DOGS[0]


async def test_a_server_that_restarted_between_two_questions_is_not_noticed(
    server: Postgres,
) -> None:
    index = PgvectorIndex(settings_for(server.url))
    await ingest(index)
    async with searching(index) as knowledge:
        assert await titles(knowledge, "parking") == [PARKING[0]]
        server.kill()
        server.start()
        assert await titles(knowledge, "parking") == [PARKING[0]]


async def test_connections_that_the_server_ends_are_not_noticed(server: Postgres) -> None:
    index = PgvectorIndex(settings_for(server.url))
    await ingest(index)
    async with searching(index) as knowledge, raw(server.url) as connection:
        for _ in range(3):
            assert await titles(knowledge, "parking") == [PARKING[0]]
            await connection.execute(
                "SELECT pg_terminate_backend(pid, 1000) FROM pg_stat_activity"
                " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            )


async def test_a_stalled_server_is_one_sentence_and_closing_waits_for_nothing(
    server: Postgres,
) -> None:
    index = PgvectorIndex(settings_for(server.url))
    await ingest(index)
    async with searching(index) as knowledge:
        assert await titles(knowledge, "parking") == [PARKING[0]]
        server.stop()
        try:
            # on a connection that was open, and on one that is not answered
            for _ in range(2):
                async with asyncio.timeout(20):
                    with pytest.raises(KnowledgeUnavailable, match=r"no answer from .* within 1 s"):
                        await knowledge.search("parking")
            # a caller of the index may wait less
            began = time.monotonic()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(knowledge.search("parking"), 0.05)
            assert time.monotonic() - began < connection.SEARCH_SECONDS
        finally:
            server.go_on()
        assert await eventually(knowledge, "parking") == [PARKING[0]]


async def test_opening_and_closing_wait_for_nothing_while_the_server_is_stalled(
    server: Postgres,
) -> None:
    index = PgvectorIndex(settings_for(server.url))
    await ingest(index)
    server.stop()
    try:
        began = time.monotonic()
        async with searching(index) as knowledge:
            asked = asyncio.create_task(knowledge.search("parking"))
            await asyncio.sleep(0.05)
        assert time.monotonic() - began < connection.SEARCH_SECONDS
        with pytest.raises((KnowledgeUnavailable, asyncio.CancelledError)):
            await asked
    finally:
        server.go_on()


async def test_no_connection_is_left_behind(server: Postgres) -> None:
    index = PgvectorIndex(settings_for(server.url))
    await ingest(index)
    async with raw(server.url) as connection:
        async with searching(index) as knowledge:
            await asyncio.gather(*(titles(knowledge, "parking") for _ in range(20)))
            assert await connections(connection) <= 2
        for _ in range(100):
            if not await connections(connection):
                return
            await asyncio.sleep(0.02)
        assert await connections(connection) == 0


async def connections(connection: asyncpg.Connection[asyncpg.Record]) -> int:
    found: int = await connection.fetchval(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
    )
    return found
