"""A server whose phones a test plays."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.support.room_service import RoomService, room_service


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RoomService]:
    async with room_service() as running:
        for name, value in running.environment.items():
            monkeypatch.setenv(name, value)
        yield running
