"""The whole machine leaves a failed store alone for a while, and no question waits for ever."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from agent import circuit_breaker
from agent.circuit_breaker import CircuitBreaker, Late, LeftAlone, Unanswered, within


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "data" / "store.outage"


@pytest.fixture
def breaker(file: Path) -> CircuitBreaker:
    return CircuitBreaker("the store", file, opened_by=(ConnectionError,))


def age(file: Path, seconds: float) -> None:
    """Let the failure be so long ago."""
    os.utime(file, (time.time() - seconds,) * 2)


# ---------------------------------------------------------------------- asking


async def answer() -> str:
    return "an answer"


async def silence() -> str:
    await asyncio.Event().wait()
    return ""


async def gives_up() -> str:
    """Fail like a library whose own future is cancelled."""
    raise asyncio.CancelledError


def test_an_answer_is_passed_on(breaker: CircuitBreaker) -> None:
    assert asyncio.run(breaker.ask(answer, 5)) == "an answer"
    assert not breaker.open


async def test_what_is_late_is_left_alone_until_it_works_again(
    breaker: CircuitBreaker, file: Path
) -> None:
    with pytest.raises(Late, match=r"no answer from the store within 0\.01 s"):
        await breaker.ask(silence, 0.01)
    with pytest.raises(LeftAlone, match="the store did not answer a moment ago"):
        await breaker.ask(answer, 5)

    age(file, 6)
    assert await breaker.ask(answer, 5) == "an answer"
    assert not breaker.open


async def test_only_the_errors_that_cost_time_open_it(breaker: CircuitBreaker) -> None:
    async def raises(error: Exception) -> None:
        raise error

    with pytest.raises(ValueError, match="a mistake"):
        await breaker.ask(lambda: raises(ValueError("a mistake")), 5)
    assert not breaker.open
    with pytest.raises(ConnectionRefusedError):
        await breaker.ask(lambda: raises(ConnectionRefusedError()), 5)
    assert breaker.open


async def test_an_answer_that_a_library_cancels_is_none() -> None:
    with pytest.raises(Unanswered, match="the store cancelled its own answer"):
        await within(5, gives_up(), "the store")


async def test_a_question_can_be_cancelled(breaker: CircuitBreaker) -> None:
    asking = asyncio.create_task(breaker.ask(silence, 5))
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert not breaker.open


async def test_without_a_file_nothing_is_left_alone() -> None:
    breaker = CircuitBreaker("the store", None)
    with pytest.raises(Late):
        await breaker.ask(silence, 0.01)
    assert await breaker.ask(answer, 5) == "an answer"


# ---------------------------------------------------------------------- leaving alone


def test_what_has_failed_is_left_alone_until_its_seconds_are_over(
    breaker: CircuitBreaker, file: Path
) -> None:
    assert not breaker.open

    breaker.failed()

    assert breaker.open
    age(file, 4)
    assert breaker.open
    age(file, 6)
    assert not breaker.open
    breaker.failed()
    assert breaker.open


def test_what_one_finds_to_fail_or_to_work_all_know(file: Path) -> None:
    one, other = CircuitBreaker("the store", file), CircuitBreaker("the store", file)

    one.failed()

    assert other.open
    other.worked()
    assert not one.open
    assert not file.exists()


def test_what_works_again_and_fails_again_is_left_alone_again(breaker: CircuitBreaker) -> None:
    for _ in range(2):
        breaker.failed()
        assert breaker.open
        breaker.worked()
        assert not breaker.open


def test_nothing_is_left_alone_that_never_failed(breaker: CircuitBreaker, file: Path) -> None:
    breaker.worked()
    assert not breaker.open
    assert not file.parent.exists()


def test_a_folder_that_cannot_be_written_leaves_it_alone_in_this_process(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.parent.write_text("a file where the folder should be", encoding="utf-8")
    now = 1000.0
    monkeypatch.setattr(circuit_breaker, "time", SimpleNamespace(time=lambda: now))
    one, other = CircuitBreaker("the store", file), CircuitBreaker("the store", file)

    one.failed()

    assert (one.open, other.open) == (True, False)
    now += 4
    assert one.open
    now += 2
    assert not one.open
    one.failed()
    assert one.open
    one.worked()
    assert not one.open


def test_a_date_in_the_future_leaves_nothing_alone_for_ever(
    breaker: CircuitBreaker, file: Path
) -> None:
    """This happens after a clock was set back."""
    breaker.failed()
    age(file, -3600)
    assert not breaker.open
