"""Many calls: nothing is lost or left behind, and workers can be restarted during calls."""

from __future__ import annotations

import os

import pytest

from benchmarks import rolling, soak
from tests.support.projects import Project
from tests.support.server import LiveKit

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.slow,
    pytest.mark.timeout(5400),
]

CALLS = int(os.environ.get("SOAK_CALLS", soak.CALLS))
ROUNDS = int(os.environ.get("ROLLING_ROUNDS", rolling.ROUNDS))


async def test_many_calls_through_one_worker_lose_nothing_and_leave_nothing_behind(
    default_project: Project, livekit: LiveKit
) -> None:
    assert soak.problems(await soak.soak(default_project, livekit, CALLS)) == []


async def test_workers_that_are_restarted_in_turn_drop_no_call_and_leave_none_unanswered(
    default_project: Project, livekit: LiveKit
) -> None:
    assert rolling.problems(await rolling.rolling(default_project, livekit, ROUNDS)) == []
