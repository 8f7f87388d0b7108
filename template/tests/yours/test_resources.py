"""YOURS: what resources.py opens is there during a call, and closed after it."""

from __future__ import annotations

from agent.resources import Resources
from tests.talk import talk


async def test_the_http_client_is_open_during_a_call_and_closed_after_it() -> None:
    async with talk() as call:
        resources = call.call.resources
        assert isinstance(resources, Resources)
        assert not resources.http.closed
    assert resources.http.closed
    assert ("http", "ok") in call.call.closed
