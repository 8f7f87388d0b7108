"""What has failed is left alone for a while by all of a machine, and never for longer."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from agent import circuit_breaker
from agent.circuit_breaker import CircuitBreaker


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "data" / "store.outage"


def age(file: Path, seconds: float) -> None:
    """Let the failure be so long ago."""
    os.utime(file, (time.time() - seconds,) * 2)


def test_what_has_failed_is_left_alone_until_its_seconds_are_over(file: Path) -> None:
    breaker = CircuitBreaker(file, 5)
    assert not breaker.open

    breaker.failed()

    assert breaker.open
    age(file, 4)
    assert breaker.open
    age(file, 6)
    assert not breaker.open
    breaker.failed()
    assert breaker.open


def test_what_one_has_found_to_fail_or_to_work_all_know(file: Path) -> None:
    one, other = CircuitBreaker(file), CircuitBreaker(file)

    one.failed()

    assert other.open
    other.worked()
    assert not one.open
    assert not file.exists()


def test_what_works_again_and_fails_again_is_left_alone_again(file: Path) -> None:
    breaker = CircuitBreaker(file)
    for _ in range(2):
        breaker.failed()
        assert breaker.open
        breaker.worked()
        assert not breaker.open


def test_nothing_is_left_alone_that_never_failed(file: Path) -> None:
    breaker = CircuitBreaker(file)
    breaker.worked()
    assert not breaker.open
    assert not file.parent.exists()


def test_a_folder_that_cannot_be_written_leaves_it_alone_in_this_process(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.parent.write_text("a file where the folder should be", encoding="utf-8")
    now = 1000.0
    monkeypatch.setattr(circuit_breaker, "time", SimpleNamespace(time=lambda: now))
    one, other = CircuitBreaker(file, 5), CircuitBreaker(file, 5)

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


def test_a_date_in_the_future_leaves_nothing_alone_for_ever(file: Path) -> None:
    """As after a clock that was set back."""
    breaker = CircuitBreaker(file)
    breaker.failed()
    age(file, -3600)
    assert not breaker.open
