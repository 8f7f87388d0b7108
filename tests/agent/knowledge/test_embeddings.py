"""Documents are found by meaning, and by their words if the embedder fails."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.knowledge import KnowledgeUnavailable, local_embedder
from agent.knowledge.embeddings import UNIX, embedder_of
from agent.knowledge.ingest import ingest, stale
from agent.knowledge.lookup import open_index
from agent.settings import Settings
from agent.telemetry import LogJournal
from tests.support.embeddings_server import EmbeddingsServer, embeddings_server

DOCUMENTS = {
    "visit.md": "# Parking\n\nTwelve spaces behind the house.\n\n"
    "# Dogs\n\nDogs are welcome if they are quiet.\n",
    "tickets.md": "# Refunds\n\nWhat was cancelled a day before is reimbursed.\n",
}


@pytest.fixture
async def server() -> AsyncIterator[EmbeddingsServer]:
    async with embeddings_server() as serving:
        yield serving


@pytest.fixture
def settings(tmp_path: Path, server: EmbeddingsServer) -> Settings:
    (tmp_path / "knowledge").mkdir()
    for name, text in DOCUMENTS.items():
        (tmp_path / "knowledge" / name).write_text(text, encoding="utf-8")
    return Settings.model_validate(
        {
            "home": tmp_path,
            "data_dir": tmp_path / "data",
            "knowledge": "sqlite",
            "embeddings": server.url,
            "embeddings_key": "sk-secret",
            "knowledge_seconds": 5,
        }
    )


async def titles(settings: Settings, *questions: str) -> list[list[str]]:
    async with open_index(settings, LogJournal()) as knowledge:
        return [
            [passage.title for passage in await knowledge.search(question)]
            for question in questions
        ]


# ---------------------------------------------------------------------- by meaning


async def test_a_passage_that_shares_no_word_with_the_question_is_found(settings: Settings) -> None:
    await ingest(settings)

    [found] = await titles(settings, "may my poodle come in")

    assert found[0] == "Dogs"


async def test_the_words_of_a_question_count_beside_its_meaning(settings: Settings) -> None:
    (settings.documents / "b.md").write_text(
        "# Hounds\n\nA hound sleeps.\n\n# Basset\n\nThe hound Basil sleeps.\n"
    )
    await ingest(settings)

    [found] = await titles(settings, "where is the hound Basil")

    assert found[0] == "Basset"


async def test_the_server_gets_the_key_and_vectors_in_any_order_are_put_right(
    settings: Settings, server: EmbeddingsServer
) -> None:
    async with embedder_of(settings) as embedder:
        assert embedder is not None
        vectors = await embedder.embed(["my dog", "my car"])

    assert vectors.shape == (2, 4)
    assert vectors[0].argmax() == 0
    assert vectors[1].argmax() == 1
    assert (vectors**2).sum(axis=1).tolist() == pytest.approx([1, 1])
    assert server.keys == ["Bearer sk-secret"]


async def test_only_documents_that_have_changed_are_embedded_again(
    settings: Settings, server: EmbeddingsServer
) -> None:
    await ingest(settings)
    server.texts.clear()
    (settings.documents / "tickets.md").write_text(
        "# Refunds\n\nNothing is reimbursed.\n", encoding="utf-8"
    )

    report = await ingest(settings)

    assert [text for text in server.texts if "vector" not in text] == [
        "Refunds\nNothing is reimbursed."
    ]
    assert (report.documents, report.passages, report.unchanged) == (2, 3, 1)
    assert (await titles(settings, "may my poodle come in"))[0][0] == "Dogs"
    assert not await stale(settings)


async def test_a_document_that_could_not_be_read_is_skipped_every_time(settings: Settings) -> None:
    (settings.documents / "scan.pdf").write_bytes(b"%PDF-1.7 nothing")
    for change in ("", "\n\nMore."):
        with (settings.documents / "visit.md").open("a", encoding="utf-8") as file:
            file.write(change)
        report = await ingest(settings)
        assert ([skipped.source for skipped in report.skipped], report.documents) == (
            ["scan.pdf"],
            2,
        )


async def test_documents_that_were_given_are_not_replaced_because_their_disk_is_away(
    settings: Settings, tmp_path: Path
) -> None:
    given = tmp_path / "mounted"
    given.mkdir()
    (given / "garden.md").write_text("# Garden\n\nThe roses are red.\n", encoding="utf-8")
    await ingest(settings, [given])
    given.rename(tmp_path / "away")

    assert not await stale(settings)
    with pytest.raises(KnowledgeUnavailable, match="mounted"):
        await ingest(settings)
    (tmp_path / "away").rename(given)
    assert not await stale(settings)
    assert (await titles(settings, "roses"))[0] == ["Garden"]


async def test_a_server_that_has_had_enough_for_a_moment_costs_no_ingest(
    settings: Settings, server: EmbeddingsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.knowledge.ingest.PAUSES", (0.0, 0.0))
    server.refusals = {2: 429, 3: 503}

    assert (await ingest(settings)).passages == 3


async def test_a_document_that_is_gone_is_no_longer_found(settings: Settings) -> None:
    await ingest(settings)
    (settings.documents / "visit.md").unlink()

    report = await ingest(settings)

    assert (report.documents, report.passages, report.removed) == (1, 1, 1)
    assert [set(found) for found in await titles(settings, "dogs", "parking")] == [
        {"Refunds"},
        {"Refunds"},
    ]


async def test_many_passages_are_embedded_a_few_at_a_time(
    settings: Settings, server: EmbeddingsServer
) -> None:
    for number in range(40):
        (settings.documents / f"{number}.md").write_text(
            f"# Number {number}\n\nIt is {number}.\n", encoding="utf-8"
        )
    (settings.documents / "long.md").write_text("word " * 10_000, encoding="utf-8")

    report = await ingest(settings)

    assert (
        report.passages == len([text for text in server.texts if "vector" not in text]) == 43 + 72
    )
    assert len(server.keys) >= (43 + 72) / 16


async def test_an_ingest_that_nothing_embeds_leaves_the_old_index(
    settings: Settings, server: EmbeddingsServer
) -> None:
    await ingest(settings)
    (settings.documents / "visit.md").unlink()
    server.status = 500

    with pytest.raises(KnowledgeUnavailable, match="HTTP 500"):
        await ingest(settings)

    assert await stale(settings)
    assert (await titles(settings, "dogs"))[0][0] == "Dogs"


# ---------------------------------------------------------------------- by words alone


async def test_an_embedder_that_stalls_costs_a_share_of_one_deadline_and_one_warning(
    settings: Settings, server: EmbeddingsServer, caplog: pytest.LogCaptureFixture
) -> None:
    await ingest(settings)
    server.texts.clear()
    server.stalled.clear()

    found = await titles(
        settings.model_copy(update={"knowledge_seconds": 0.2}), "dogs", "refunds", "dogs"
    )

    assert [titles[0] for titles in found] == ["Dogs", "Refunds", "Dogs"]
    # then it is left alone
    assert [text for text in server.texts if text != "Hello"] == ["dogs"]
    [warning] = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert warning.__dict__["fields"] == {"degraded": "embedder"}


async def test_an_embedder_is_asked_again_a_while_after_it_failed(
    settings: Settings, server: EmbeddingsServer
) -> None:
    await ingest(settings)
    server.status = 503
    assert await titles(settings, "poodle") == [[]]
    server.status = 200
    assert await titles(settings, "poodle") == [[]]
    outage = settings.data / "embedder.outage"
    os.utime(outage, (outage.stat().st_mtime - 60,) * 2)

    [found] = await titles(settings, "poodle")

    assert found[0] == "Dogs"
    assert not outage.exists()


async def test_an_index_of_another_model_is_searched_by_words_and_says_what_to_do(
    settings: Settings, server: EmbeddingsServer, caplog: pytest.LogCaptureFixture
) -> None:
    await ingest(settings)
    other = settings.model_copy(update={"embeddings_model": "another"})

    assert await titles(other, "dogs", "poodle") == [["Dogs"], []]
    assert caplog.text.count("run `agent ingest`") == 1
    assert await stale(other)
    await ingest(other)
    assert not await stale(other)
    assert (await titles(other, "poodle"))[0][0] == "Dogs"


@pytest.mark.parametrize(
    ("status", "answer", "sentence"),
    [
        (401, None, "AGENT_EMBEDDINGS_KEY"),
        (404, None, "ends in /v1"),
        (500, None, "its own log"),
        (200, {"data": "x"}, "does not answer as /v1/embeddings does"),
        (200, {"data": []}, "0 vectors for 1 texts"),
        (200, [], "does not answer as /v1/embeddings does"),
    ],
)
async def test_what_a_server_answers_instead_of_vectors_is_one_sentence_without_the_key(
    settings: Settings, server: EmbeddingsServer, status: int, answer: object, sentence: str
) -> None:
    server.status, server.answer = status, answer
    async with embedder_of(settings) as embedder:
        assert embedder is not None
        with pytest.raises(KnowledgeUnavailable, match=sentence) as raised:
            await embedder.embed(["dogs"])
    assert "sk-secret" not in str(raised.value)


async def test_no_server_at_all_is_one_sentence_without_the_password(settings: Settings) -> None:
    nobody = settings.model_copy(update={"embeddings": "http://user:pa55word@127.0.0.1:1/v1"})
    async with embedder_of(nobody) as embedder:
        assert embedder is not None
        with pytest.raises(KnowledgeUnavailable, match="AGENT_EMBEDDINGS") as raised:
            await embedder.embed(["dogs"])
    assert "pa55word" not in str(raised.value)


async def test_the_connection_is_made_before_the_first_question(
    settings: Settings, server: EmbeddingsServer
) -> None:
    await ingest(settings)
    server.texts.clear()
    server.asked.clear()
    async with open_index(settings, LogJournal()):
        await server.asked.wait()
    assert server.texts == ["Hello"]


async def test_a_process_that_cannot_be_started_for_a_moment_is_one_sentence(
    local: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing_left(*command: object, **options: object) -> None:
        raise BlockingIOError("no more processes")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", nothing_left)
    with pytest.raises(KnowledgeUnavailable, match="no more processes"):
        async with local_embedder(local, wait=True):
            pass


# ---------------------------------------------------------------------- the process by the worker

# A stand-in for fastembed, so that a project without it can test the process.
STAND_IN = """
import numpy as np
class TextEmbedding:
    def __init__(self, name, **options):
        if name == "missing": raise ValueError("no such file")
    def embed(self, texts, batch_size):
        for text in texts:
            yield np.array([1.0, float(len(text))])
"""


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    package = tmp_path / "installed" / "fastembed"
    (package / "common").mkdir(parents=True)
    (package / "__init__.py").write_text(STAND_IN, encoding="utf-8")
    (package / "common" / "__init__.py").touch()
    (package / "common" / "model_description.py").touch()
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    given = {"home": tmp_path, "data_dir": "data", "knowledge": "sqlite", "embeddings": "local"}
    return Settings.model_validate(given)


async def numbers(settings: Settings) -> list[list[float]]:
    async with embedder_of(settings) as embedder:
        assert embedder is not None
        found: list[list[float]] = (await embedder.embed(["four"])).tolist()
        return found


async def answering(settings: Settings) -> None:
    """Wait until the process answers a call."""
    async with asyncio.timeout(30):
        while True:
            try:
                await numbers(settings)
            except KnowledgeUnavailable:
                await asyncio.sleep(0.05)
            else:
                return


def socket_of(inside: Settings) -> Path:
    return Path(inside.embeddings.removeprefix(UNIX))


def process_of(socket: Path) -> int:
    """The process that serves the socket, found by its arguments."""
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = entry.read_bytes().split(b"\0")
        except OSError:
            continue
        if str(socket).encode() in arguments:
            return int(entry.parent.name)
    raise AssertionError(f"nothing serves {socket}")


async def gone(process: int) -> None:
    """Poll until the process has ended: it is not our child, so it cannot be awaited."""

    def there() -> bool:
        try:
            return (
                Path(f"/proc/{process}/stat")
                .read_text(encoding="utf-8")
                .rpartition(")")[2]
                .split()[0]
                != "Z"
            )
        except OSError:
            return False

    async with asyncio.timeout(20):
        for _ in iter(there, False):
            await asyncio.sleep(0.02)


needs_proc = pytest.mark.skipif(
    not Path("/proc/self").exists(), reason="looks for processes in /proc, as Linux has it"
)


async def test_the_process_serves_every_client_while_it_is_open(local: Settings) -> None:
    async with local_embedder(local, wait=True) as inside:
        assert (await numbers(inside))[0] == pytest.approx([1 / 17**0.5, 4 / 17**0.5])
        folder = socket_of(inside).parent
        assert [path.name for path in folder.iterdir()] == ["embedder.sock"]
    assert not folder.exists()
    with pytest.raises(KnowledgeUnavailable, match="AGENT_EMBEDDINGS"):
        await numbers(inside)
    with pytest.raises(KnowledgeUnavailable, match="not running"):
        await numbers(local)


async def test_only_the_outermost_starts_a_process(local: Settings) -> None:
    async with local_embedder(local, wait=True) as inside, local_embedder(inside) as same:
        assert same is inside
    served = local.model_copy(update={"embeddings": "http://127.0.0.1:1/v1"})
    without = local.model_copy(update={"knowledge": "none"})
    for settings in (served, without):
        async with local_embedder(settings, wait=True) as same:
            assert same is settings


@needs_proc
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
async def test_a_process_that_dies_or_hangs_is_started_again(
    local: Settings, how: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.knowledge.embedder_process.SILENT_SECONDS", 0.5)
    monkeypatch.setattr("agent.knowledge.embedder_process.LOOK_SECONDS", 0.1)
    async with local_embedder(local, wait=True) as inside:
        first = process_of(socket_of(inside))
        os.kill(first, how)
        await gone(first)
        await answering(inside)
        assert process_of(socket_of(inside)) != first


@needs_proc
async def test_the_process_ends_with_its_worker_however_that_ends(
    local: Settings, tmp_path: Path
) -> None:
    worker = """
import asyncio
from agent.knowledge import local_embedder
from agent.settings import load_settings
async def main():
    async with local_embedder(load_settings(), wait=True) as inside:
        print(inside.embeddings.removeprefix("unix:"), flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""
    environment = {
        **os.environ,
        "AGENT_HOME": str(tmp_path),
        "AGENT_EMBEDDINGS": "local",
        "AGENT_KNOWLEDGE": "sqlite",
        "TMPDIR": str(tmp_path),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", worker, stdout=asyncio.subprocess.PIPE, env=environment
    )
    assert process.stdout is not None
    socket = (await process.stdout.readline()).decode().strip()
    embedder = process_of(Path(socket))
    process.kill()
    await process.wait()
    await gone(embedder)


@needs_proc
async def test_signals_for_the_worker_are_not_for_the_process(local: Settings) -> None:
    async with local_embedder(local, wait=True) as inside:
        process = process_of(socket_of(inside))
        for one in (signal.SIGINT, signal.SIGTERM):
            os.kill(process, one)
        await numbers(inside)
        assert process_of(socket_of(inside)) == process


async def test_a_model_that_is_not_there_is_one_sentence(local: Settings) -> None:
    missing = local.model_copy(update={"embeddings_model": "missing"})
    with pytest.raises(KnowledgeUnavailable, match="run `agent download-files`"):
        async with local_embedder(missing, wait=True):
            pass


async def test_a_library_that_is_not_there_is_one_sentence(local: Settings, tmp_path: Path) -> None:
    (tmp_path / "installed" / "fastembed" / "__init__.py").write_text(
        "raise ModuleNotFoundError('No module', name='fastembed')", encoding="utf-8"
    )
    with pytest.raises(KnowledgeUnavailable, match="uv sync --group local"):
        async with local_embedder(local, wait=True):
            pass


async def test_calls_need_not_wait_for_the_process(local: Settings) -> None:
    missing = local.model_copy(update={"embeddings_model": "missing"})
    async with local_embedder(missing) as inside:
        with pytest.raises(KnowledgeUnavailable):
            await numbers(inside)
