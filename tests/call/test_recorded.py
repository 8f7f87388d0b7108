"""Calls to a real worker are recorded into a real bucket, and forgotten there."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import pytest_asyncio

from tests.call.scene import Scene, scene
from tests.support.projects import PAIRS, Project, render
from tests.support.s3 import S3Server
from tests.support.server import LiveKit
from tests.support.templates import Template
from tests.support.worker import PATIENCE, Record

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.xdist_group("recorded")]

NOTICE = "recorded"
CALLER = "ann-lee"


@pytest.fixture(scope="module")
def project(template: Template, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose owner has added what a bucket needs."""
    made = render(template, tmp_path_factory.mktemp("recorded") / "front-desk", PAIRS[0])
    made.run("uv", "add", "--quiet", "obstore>=0.12,<1")
    made.install()
    return made


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    server = S3Server(tmp_path_factory.mktemp("s3"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def settings(bucket: S3Server, tmp_path: Path) -> dict[str, Any]:
    return {
        **bucket.environment,
        "AGENT_RECORD": "audio",
        "AGENT_RECORDINGS_URL": f"s3://{bucket.bucket}/of-ours",
        "AGENT_DATA_DIR": str(tmp_path),
    }


@pytest_asyncio.fixture(loop_scope="session")
async def stage(
    project: Project, livekit: LiveKit, settings: dict[str, Any]
) -> AsyncIterator[Scene]:
    async with scene(project, livekit, **settings) as started:
        yield started


async def until(happened: Callable[[], bool]) -> None:
    """Wait until it has happened, in another process, which tells nobody."""
    async with asyncio.timeout(PATIENCE):
        while not happened():  # noqa: ASYNC110
            await asyncio.sleep(0.2)


async def called(stage: Scene) -> Record:
    """A call in which something is asked and answered; its last record."""
    room = f"room-{uuid.uuid4().hex[:8]}"
    async with stage.caller(room, identity=CALLER) as caller:
        assert NOTICE in await caller.hear_text()
        await caller.hear_text()
        await caller.ask("Where can I park my bicycle?", "bicycle")
        await caller.hear_sound()
    return await stage.running.ended(room)


async def test_a_call_is_in_the_bucket_when_it_is_over_also_if_that_was_away(
    stage: Scene, bucket: S3Server, settings: dict[str, Any], tmp_path: Path
) -> None:
    def agent(*arguments: str) -> str:
        env = {**settings, "AGENT_NAME": stage.agent}
        return stage.project.run(*stage.project.agent, *arguments, env=env).stdout

    end = await called(stage)
    name = f"of-ours/{stage.agent}/{end['call']}.ogg"
    await until(lambda: name in bucket.objects)
    with av.open(str(bucket.objects[name])) as opened:
        sound = np.concatenate([frame.to_ndarray() for frame in opened.decode(audio=0)], axis=1)
    assert sound.shape[0] == 2
    assert np.abs(sound[1]).max() > 0.01  # the agent
    await until(lambda: not list((tmp_path / "recordings").glob("*.ogg")))
    report = json.loads(await asyncio.to_thread(agent, "report", "last", "--json"))
    assert report["recording"] == f"s3://{bucket.bucket}/{name}"
    assert report["failures"] == []

    bucket.stop()
    end = await called(stage)
    await stage.running.wait_for(
        lambda record: (
            record.get("call") == end["call"] and "is not at" in str(record.get("message"))
        )
    )
    bucket.start()
    report = json.loads(await asyncio.to_thread(agent, "report", end["call"], "--json"))
    (failure,) = report["failures"]
    assert (failure["part"], failure["done"]) == ("recording", "a worker tries again")
    other = f"of-ours/{stage.agent}/{end['call']}.ogg"
    await until(lambda: other in bucket.objects)

    await asyncio.to_thread(agent, "forget", CALLER)
    assert bucket.objects == {}
