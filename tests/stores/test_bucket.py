"""Recordings in a real bucket of S3's protocol: taken there, kept so long, and forgotten."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.reports import NotDelivered, delivery, recordings
from agent.reports.bucket import Bucket
from agent.reports.delivery import KEPT, RECORDINGS
from agent.settings import Settings
from tests.agent.reports.made import leave, report
from tests.support.s3 import S3Server


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    server = S3Server(tmp_path_factory.mktemp("s3"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def server(running: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """The server, named by the environment; emptied on exit."""
    for name, value in running.environment.items():
        monkeypatch.setenv(name, value)
    yield running
    for file in running.objects.values():
        file.unlink()


@pytest.fixture
def settings(server: S3Server, tmp_path: Path) -> Settings:
    return Settings(
        name="front-desk",
        record="audio",
        recordings_url=f"s3://{server.bucket}/of-ours",
        data_dir=tmp_path,
    )


def recorded(settings: Settings, call: str, caller: str, size: int = 100) -> None:
    """A call has been recorded, and its report waits."""
    file = recordings.prepare(settings, call, [caller])
    file.write_bytes(b"s" * size)
    recordings.finish(file)
    address = recordings.address_of(settings, call)
    leave(settings, report(call, recording=address), [caller])


async def test_a_recording_is_taken_to_the_bucket_and_its_report_passed_on(
    server: S3Server, settings: Settings
) -> None:
    recorded(settings, "AJ_1", "ann")
    # of an hour: in several parts
    recorded(settings, "AJ_2", "ben", size=12_000_000)

    assert await delivery.deliver(settings, RECORDINGS) == 2

    sizes = {name: file.stat().st_size for name, file in server.objects.items()}
    assert sizes == {
        "of-ours/front-desk/AJ_1.ogg": 100,
        "of-ours/front-desk/AJ_2.ogg": 12_000_000,
    }
    passed = [delivery.read(file) for file in delivery.waiting(settings, KEPT)]
    told = {one.report.call: (one.report.recording, one.report.failures) for one in passed if one}
    assert told == {
        call: (f"s3://{server.bucket}/of-ours/front-desk/{call}.ogg", [])
        for call in ("AJ_1", "AJ_2")
    }
    left = [file.name for file in recordings.folder_of(settings).iterdir()]
    assert left == []


async def test_what_did_not_arrive_is_taken_when_the_bucket_is_back(
    server: S3Server, settings: Settings
) -> None:
    recorded(settings, "AJ_1", "ann")
    server.stop()
    try:
        await delivery.deliver(settings, RECORDINGS)
        with pytest.raises(NotDelivered, match="does not work"):
            await recordings.take_waiting(settings)
    finally:
        server.start()
    (file,) = delivery.waiting(settings, KEPT)
    waiting = delivery.read(file)
    assert waiting is not None
    assert [failure.part for failure in waiting.report.failures] == ["recording"]

    assert await recordings.take_waiting(settings) == 1

    assert set(server.objects) == {"of-ours/front-desk/AJ_1.ogg"}
    assert await recordings.take_waiting(settings) == 0


async def test_a_caller_is_forgotten_here_and_there_and_nobody_else(
    server: S3Server, settings: Settings
) -> None:
    for call, caller in (("AJ_1", "ann"), ("AJ_2", "ben"), ("AJ_3", "ann")):
        recorded(settings, call, caller)
    await delivery.deliver(settings, RECORDINGS)
    recorded(settings, "AJ_4", "ann")
    other = settings.model_copy(update={"name": "another", "data_dir": settings.data / "other"})
    recorded(other, "AJ_5", "ann")
    await delivery.deliver(other, RECORDINGS)

    assert await recordings.forget(settings, ["ann"]) == 3

    assert set(server.objects) == {"of-ours/front-desk/AJ_2.ogg", "of-ours/another/AJ_5.ogg"}
    assert await recordings.take_waiting(settings) == 0


async def test_what_is_too_old_is_deleted_and_what_is_not_ours_is_not(
    server: S3Server, settings: Settings
) -> None:
    for call in ("AJ_1", "AJ_2"):
        recorded(settings, call, "ann")
    await delivery.deliver(settings, RECORDINGS)
    notes = server.objects["of-ours/front-desk/AJ_1.ogg"].with_name("notes.txt")
    notes.write_text("the owner's")
    for file in (notes, server.objects["of-ours/front-desk/AJ_1.ogg"]):
        os.utime(file, (1, 1))

    await recordings.tidy(settings)

    assert set(server.objects) == {
        "of-ours/front-desk/AJ_2.ogg",
        "of-ours/front-desk/notes.txt",
    }


@pytest.mark.parametrize(
    ("variable", "value"),
    [("AWS_SECRET_ACCESS_KEY", "another"), ("AWS_ACCESS_KEY_ID", "nobody")],
)
async def test_wrong_keys_are_said_before_a_call(
    variable: str, value: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    await Bucket(settings).check()
    monkeypatch.setenv(variable, value)
    with pytest.raises(NotDelivered) as refused:
        await Bucket(settings).check()
    assert "check AGENT_RECORDINGS_URL, and AWS's variables" in str(refused.value)
    assert value not in str(refused.value)


async def test_a_bucket_that_is_not_there_is_said(settings: Settings) -> None:
    missing = settings.model_copy(update={"recordings_url": "s3://nowhere"})
    with pytest.raises(NotDelivered, match="s3://nowhere"):
        await Bucket(missing).check()
