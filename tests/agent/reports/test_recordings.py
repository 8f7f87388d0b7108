"""Recordings that go to a bucket: what waits, what a bucket that is away costs, and who is told.

tests/stores/test_bucket.py has a bucket that works.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from agent.reports import Report, delivery, recordings
from agent.reports.delivery import KEPT, RECORDINGS
from agent.settings import Settings, SettingsError, load_settings
from tests.agent.cli.test_commands import Agent, agent, home
from tests.agent.reports.made import leave, report

__all__ = ["agent", "home"]

URL = "s3://calls/of-ours"


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Of an agent whose bucket is away."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a secret")
    changes = {"record": "audio", "recordings_url": URL, "data_dir": tmp_path}
    return load_settings().model_copy(update=changes)


def recorded(settings: Settings, call: str = "AJ_1") -> Report:
    """A call that has been recorded and is over."""
    file = recordings.prepare(settings, call, ["ann"])
    file.write_bytes(b"sound")
    recordings.finish(file)
    return report(call, recording=recordings.address_of(settings, call))


def waiting(settings: Settings, place: delivery.Place) -> list[Report]:
    files = delivery.waiting(settings, place)
    return [found.report for file in files if (found := delivery.read(file)) is not None]


async def test_a_bucket_that_is_away_delays_no_report_and_loses_no_recording(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    leave(settings, recorded(settings), ["ann"])
    assert [one.call for one in waiting(settings, RECORDINGS)] == ["AJ_1"]
    assert waiting(settings, KEPT) == []

    await delivery.deliver(settings, RECORDINGS)

    assert waiting(settings, RECORDINGS) == []
    (told,) = waiting(settings, KEPT)
    address = f"{URL}/{settings.name}/AJ_1.ogg"
    assert told.recording == address
    (failure,) = told.failures
    assert failure.part == "recording"
    assert failure.problem.startswith(
        f"the recording is not at {address} yet: the bucket {URL} does not work ("
    )
    assert failure.done == "a worker tries again"
    assert failure.problem in caplog.text
    assert recordings.file_of(settings, "AJ_1").read_bytes() == b"sound"


async def test_a_recording_that_has_been_taken_already_is_no_failure(settings: Settings) -> None:
    leave(settings, recorded(settings), ["ann"])
    # as `keep` does when it is there
    recordings.file_of(settings, "AJ_1").unlink()

    await delivery.deliver(settings, RECORDINGS)

    (told,) = waiting(settings, KEPT)
    assert told.failures == []


async def test_a_report_without_a_recording_waits_for_nothing(settings: Settings) -> None:
    leave(settings, report("AJ_1"), [])

    assert waiting(settings, RECORDINGS) == []
    assert [one.call for one in waiting(settings, KEPT)] == ["AJ_1"]


async def test_a_recording_that_is_not_finished_is_told(settings: Settings) -> None:
    recordings.prepare(settings, "AJ_1", [])
    unfinished = report("AJ_1", recording=recordings.address_of(settings, "AJ_1"))
    leave(settings, unfinished, [])

    await delivery.deliver(settings, RECORDINGS)

    (told,) = waiting(settings, KEPT)
    assert "No such file" in told.failures[0].problem


async def test_what_waits_is_tried_again_with_one_warning(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recorded(settings)
    monkeypatch.setattr(recordings, "RETRY_SECONDS", 0.01)
    tries = asyncio.Semaphore(0)
    take = recordings.take_waiting

    async def counted(settings: Settings) -> int:
        tries.release()
        return await take(settings)

    monkeypatch.setattr(recordings, "take_waiting", counted)
    monkeypatch.setattr(recordings, "TIDY_SECONDS", 1e9)
    keeping = asyncio.create_task(recordings.keep(settings))
    async with asyncio.timeout(60):
        for _ in range(3):
            await tries.acquire()
    keeping.cancel()

    warned = [one for one in caplog.records if one.levelname == "WARNING"]
    assert [one.getMessage().split(":")[0] for one in warned] == [
        "recordings wait, or are kept too long"
    ]


def test_without_its_library_no_worker_starts(
    agent: Agent, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENT_RECORD", "audio")
    monkeypatch.setenv("AGENT_RECORDINGS_URL", URL)
    monkeypatch.setitem(sys.modules, "obstore", None)

    ended = agent("start")

    assert (ended.code, ended.out) == (2, "")
    assert "run `uv add 'obstore>=0.12,<1'`" in ended.err


@pytest.mark.parametrize("url", ["calls", "https://calls", "s3://", "s3:/calls"])
def test_what_is_no_bucket_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENT_RECORDINGS_URL", url)
    load_settings.cache_clear()
    with pytest.raises(SettingsError, match="AGENT_RECORDINGS_URL: write a bucket"):
        load_settings()
