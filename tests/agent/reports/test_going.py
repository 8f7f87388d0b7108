"""A call whose process is killed is reported by a worker: once, and as long as it was seen."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from pathlib import Path

import pytest

from agent import entrypoint
from agent.conversation import CallAgent
from agent.reports import Report, going
from agent.reports.delivery import KEPT, leave, read, waiting
from agent.reports.going import Going, folder_of, report_deaths
from agent.settings import Settings, load_settings
from template.tests.talk import talk
from tests.agent.reports.made import report
from tests.support.processes import process


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("AGENT_DATA_DIR", str(tmp_path))
    load_settings.cache_clear()
    return load_settings()


def left(settings: Settings) -> list[Report]:
    found = [read(file) for file in waiting(settings, KEPT)]
    return [one.report for one in found if one is not None]


def begin_and_be_killed() -> None:
    held = Going(load_settings(), report("AJ_1", reason="", seconds=0, ago=60))
    assert held
    os.kill(os.getpid(), signal.SIGKILL)


def report_and_be_killed() -> None:
    held = Going(load_settings(), report("AJ_1", reason="", seconds=0, ago=60))
    leave(load_settings(), report("AJ_1", reason="caller left"), [])
    assert held
    os.kill(os.getpid(), signal.SIGKILL)


async def test_a_call_that_was_killed_is_reported_once(settings: Settings) -> None:
    with process(begin_and_be_killed) as call:
        await asyncio.to_thread(call.join)

    assert [report_deaths(settings) for _ in range(3)] == [1, 0, 0]
    (made,) = left(settings)
    assert (made.call, made.reason, made.room) == ("AJ_1", "job died", "room of AJ_1")
    assert made.failures[0].problem.startswith("it was killed, or has crashed")
    # it began a minute before it was last seen
    assert 60 <= made.seconds < 90


async def test_a_call_that_was_killed_when_it_had_reported_is_not_reported_again(
    settings: Settings,
) -> None:
    with process(report_and_be_killed) as call:
        await asyncio.to_thread(call.join)

    assert report_deaths(settings) == 0
    assert [made.reason for made in left(settings)] == ["caller left"]
    assert not list(folder_of(settings).iterdir())


def test_a_call_that_goes_on_is_seen_and_left_alone(settings: Settings) -> None:
    held = Going(settings, report("AJ_1", reason="", seconds=0, ago=60))
    (file,) = folder_of(settings).iterdir()
    os.utime(file, (1, 1))

    assert report_deaths(settings) == 0
    # so that the next worker knows how long it went on, should this one die, too
    assert file.stat().st_mtime > 1
    held.over()
    assert report_deaths(settings) == 0
    assert left(settings) == []


async def test_a_call_is_known_while_it_goes_on_and_reports_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    build = lambda call: CallAgent(call, instructions="Be brief.")  # noqa: E731
    monkeypatch.setattr(entrypoint, "build_persona", build)
    async with talk() as call:
        await call.say("Hello")
        assert report_deaths(load_settings()) == 0
        assert len(list(folder_of(load_settings()).iterdir())) == 1

    assert not list(folder_of(load_settings()).iterdir())
    assert [made.reason for made in left(load_settings())] == ["caller left"]


async def test_a_death_that_cannot_be_reported_is_reported_later(
    settings: Settings, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with process(begin_and_be_killed) as call:
        await asyncio.to_thread(call.join)
    # no report can be left where there is a file of this name
    KEPT.folder(settings).touch()
    looks = 0

    async def after_a_look(seconds: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 2:
            KEPT.folder(settings).unlink()
        if looks == 3:
            raise asyncio.CancelledError

    monkeypatch.setattr("agent.reports.going.asyncio.sleep", after_a_look)
    with pytest.raises(asyncio.CancelledError):
        await going.keep_reporting_deaths(settings)

    assert [made.reason for made in left(settings)] == ["job died"]
    warned = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warned) == 1
