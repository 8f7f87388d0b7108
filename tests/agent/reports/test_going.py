"""A call whose process is killed is reported by a worker: once, and as long as it was seen."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from functools import partial
from pathlib import Path

import pytest

from agent import entrypoint
from agent.conversation import CallAgent
from agent.reports import Report, delivery, going
from agent.reports.delivery import KEPT, Waiting, read, waiting
from agent.reports.going import Going, folder_of, report_deaths
from agent.settings import Settings, load_settings
from template.tests.talk import talk
from tests.agent.reports.made import leave, newer_report, report
from tests.support.processes import process


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("AGENT_DATA_DIR", str(tmp_path))
    load_settings.cache_clear()
    return load_settings()


def left(settings: Settings) -> list[Report]:
    found = [read(file) for file in waiting(settings, KEPT)]
    return [one.report for one in found if one is not None]


def begun(settings: Settings, **known: str) -> Waiting:
    made = report("AJ_1", reason="", seconds=0, ago=60, **known)
    return Waiting.of(settings, made, known.values())


def begin_and_be_killed(*, known: bool = False, reported: bool = False) -> None:
    settings = load_settings()
    going = Going(settings, begun(settings))
    if known:
        going.know(begun(settings, caller="ann"))
    if reported:
        leave(settings, report("AJ_1", reason="caller left"))
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


async def test_who_was_in_a_call_that_was_killed_is_known_and_can_be_forgotten(
    settings: Settings,
) -> None:
    with process(partial(begin_and_be_killed, known=True)) as call:
        await asyncio.to_thread(call.join)

    assert report_deaths(settings) == 1
    assert [made.caller for made in left(settings)] == ["ann"]
    assert delivery.forget(settings, ["ann"]) == 1


async def test_a_call_of_a_newer_version_is_left_to_a_worker_that_can_read_it(
    settings: Settings,
) -> None:
    file = folder_of(settings) / "AJ_newer.json"
    file.parent.mkdir(parents=True)
    file.write_bytes(Waiting(newer_report(), []).to_json())

    assert report_deaths(settings) == 0
    assert file.exists()


async def test_a_call_that_was_killed_when_it_had_reported_is_not_reported_again(
    settings: Settings,
) -> None:
    with process(partial(begin_and_be_killed, reported=True)) as call:
        await asyncio.to_thread(call.join)

    assert report_deaths(settings) == 0
    assert [made.reason for made in left(settings)] == ["caller left"]
    assert not list(folder_of(settings).iterdir())


def test_a_call_that_goes_on_is_seen_and_left_alone(settings: Settings) -> None:
    held = Going(settings, begun(settings))
    (file,) = folder_of(settings).iterdir()
    os.utime(file, (1, 1))

    assert report_deaths(settings) == 0
    # so that the next worker knows how long it went on, should this one die, too
    assert file.stat().st_mtime > 1
    held.over()
    assert report_deaths(settings) == 0
    assert left(settings) == []


def test_what_cannot_be_begun_leaves_nothing(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Going, "know", full)
    with pytest.raises(OSError, match="No space"):
        Going(settings, begun(settings))
    assert list(folder_of(settings).iterdir()) == []


async def test_a_call_is_known_while_it_goes_on_and_reports_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    build = lambda call: CallAgent(call, instructions="Be brief.")  # noqa: E731
    monkeypatch.setattr(entrypoint, "build_persona", build)
    async with talk("ann") as call:
        await call.say("Hello")
        assert report_deaths(load_settings()) == 0
        (file,) = folder_of(load_settings()).iterdir()
        assert (known := read(file)) is not None
        assert (known.report.caller, known.report.kind) == ("ann", "standard")

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
