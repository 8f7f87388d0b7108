"""YOURS: what resources.py opens is there during a call, and closed after it."""

from __future__ import annotations

from tests.talk import talk


async def test_the_http_client_is_open_during_a_call_and_closed_after_it() -> None:
    async with talk() as call:
        http = call.resources.http
        assert not http.closed
    assert http.closed
    assert ("http", "ok") in call.call.closed
