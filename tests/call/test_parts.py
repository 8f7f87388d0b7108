"""A worker's own duties: it delivers what calls could not write, and runs their embedder."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path

import aiohttp
import psutil
import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families

from tests.call.scene import Scene, scene
from tests.support.embedding import minilm
from tests.support.projects import PAIRS, Answers, Project, render
from tests.support.redis import RedisServer
from tests.support.server import LiveKit
from tests.support.templates import Template
from tests.support.worker import Record

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.xdist_group("parts of a call")]

QUESTION, FACT = "Where can I park my bicycle?", "bicycle"
# of opening-hours.md, without any of its words
PARAPHRASE = "At what times may customers come by?"


@pytest.fixture
def valkey() -> Iterator[RedisServer]:
    server = RedisServer("valkey")
    try:
        yield server
    finally:
        server.close()


def degraded(text: str) -> dict[str, float]:
    """The worker's count of calls without a part."""
    return {
        sample.labels["part"]: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "agent_degraded_total"
    }


async def metrics(stage: Scene) -> dict[str, float]:
    async with (
        aiohttp.ClientSession() as http,
        http.get(f"http://127.0.0.1:{stage.metrics_port}/metrics") as answer,
    ):
        return degraded(await answer.text())


async def test_what_a_call_could_not_write_is_delivered_by_the_next_worker(
    projects: dict[Answers, Project], livekit: LiveKit, valkey: RedisServer, tmp_path: Path
) -> None:
    project = projects[
        next(chosen for chosen in PAIRS if (chosen.knowledge, chosen.memory) == ("sqlite", "redis"))
    ]
    worker = partial(
        scene, project, livekit, AGENT_MEMORY_URL=valkey.url, AGENT_DATA_DIR=str(tmp_path)
    )
    room = f"room-{uuid.uuid4().hex[:8]}"
    async with worker() as stage:
        async with stage.caller(room, identity="ann-lee") as caller:
            assert "welcome back" not in (await caller.hear_text()).lower()
            valkey.kill()
            await caller.ask(QUESTION, FACT)
        end = await stage.running.ended(room)
        assert (end["reason"], end["turns"]) == ("caller left", 3)
        await stage.running.free()
        assert await metrics(stage) == {"memory": 1, "knowledge": 0}
    assert [
        len(file.read_text().splitlines()) for file in (tmp_path / "spool").glob("*.jsonl")
    ] != []

    valkey.start()
    async with worker() as stage:
        await stage.running.wait_for(
            lambda record: "have been delivered" in str(record.get("message"))
        )
        assert list((tmp_path / "spool").glob("*.jsonl")) == []
        room = f"room-{uuid.uuid4().hex[:8]}"
        async with stage.caller(room, identity="ann-lee") as caller:
            assert "welcome back" in (await caller.hear_text()).lower()
        await stage.running.ended(room)
        assert await metrics(stage) == {"memory": 0, "knowledge": 0}


@pytest.fixture(scope="module")
def embedding(template: Template, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with the dependencies of AGENT_EMBEDDINGS=local."""
    project = render(template, tmp_path_factory.mktemp("embedding") / "front-desk", PAIRS[0])
    project.install()
    project.run("uv", "sync", "--quiet", "--group", "local")
    return project


@pytest_asyncio.fixture(loop_scope="session")
async def stage(embedding: Project, livekit: LiveKit, tmp_path: Path) -> AsyncIterator[Scene]:
    model = await asyncio.to_thread(minilm, tmp_path / "minilm")
    chosen = partial(
        scene,
        AGENT_EMBEDDINGS="local",
        AGENT_EMBEDDINGS_MODEL=str(model),
        AGENT_KNOWLEDGE_SECONDS="2",
    )
    async with chosen(embedding, livekit) as started:
        await answers(started)
        yield started


async def answers(stage: Scene, start: int = 0) -> int:
    """Wait until the embedder answers, from record `start`; return the next record's number."""
    wanted = "the local embedder answers"
    await stage.running.wait_for(lambda record: str(record.get("message")) == wanted, start=start)
    return len(stage.running.records)


def embedders(stage: Scene) -> list[psutil.Process]:
    """The embedder processes below this worker, also if another command started it."""
    family = psutil.Process(stage.running.process.pid).children(recursive=True)
    return [process for process in family if "agent.knowledge.embedder" in process.cmdline()]


async def looked_up(stage: Scene, room: str, start: int) -> Record:
    return await stage.running.wait_for(
        lambda record: record.get("room") == room and record.get("message") == "looked up",
        start=start,
    )


async def test_one_embedder_serves_all_calls_and_is_started_again_when_it_is_killed(
    stage: Scene,
) -> None:
    rooms = [f"room-{uuid.uuid4().hex[:8]}" for _ in range(2)]
    async with stage.caller(rooms[0]) as caller, stage.caller(rooms[1]) as other:
        for one, room in ((caller, rooms[0]), (other, rooms[1])):
            await one.hear_text()
            start = len(stage.running.records)
            await one.write(PARAPHRASE)
            found = await looked_up(stage, room, start)
            assert found["outcome"] == "ok"
            assert "opening-hours.md" in str(found["passages"])
        (process,) = embedders(stage)

        start = len(stage.running.records)
        process.kill()
        await caller.ask(QUESTION, FACT)
        await answers(stage, start)
        (again,) = embedders(stage)
        assert again.pid != process.pid
    for room in rooms:
        assert (await stage.running.ended(room))["reason"] == "caller left"
        call = await stage.spans.call(room)
        spans = [
            span
            for span in stage.spans.spans
            if span.trace == call.trace and span.name == "look up"
        ]
        assert "opening-hours.md" in str(spans[0].attributes["passages"])
    await stage.running.stop()
    await asyncio.to_thread(psutil.wait_procs, [again], timeout=10)
    assert not again.is_running()
