"""A store that a test controls and the settings choose."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agent.memory import STORES, MemoryUnavailable, write_queue
from agent.settings import Settings
from tests.agent.memory.stores import FakeStore

FAKE: list[FakeStore] = []


@asynccontextmanager
async def open_fake(settings: Settings) -> AsyncIterator[FakeStore]:
    yield FAKE[-1]


@asynccontextmanager
async def open_broken(settings: Settings) -> AsyncIterator[FakeStore]:
    raise MemoryUnavailable("the store is on fire")
    yield


@pytest.fixture
async def store(monkeypatch: pytest.MonkeyPatch) -> FakeStore:
    FAKE.append(FakeStore())
    for kind in ("sqlite", "redis"):
        monkeypatch.setitem(STORES, kind, f"{__name__}:open_fake")
    monkeypatch.setattr(write_queue, "LAST_SECONDS", 0.05)
    monkeypatch.setattr(write_queue, "LAST_SECONDS_IN_OUTAGE", 0.05)
    monkeypatch.setattr(write_queue, "FIRST_PAUSE", 0.001)
    return FAKE[-1]


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that cannot be opened."""
    monkeypatch.setitem(STORES, "sqlite", f"{__name__}:open_broken")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    given = {"home": tmp_path, "memory_url": "sqlite", "memory_seconds": 0.05}
    return Settings.model_validate(given)


@pytest.fixture
def shared(settings: Settings) -> Settings:
    """Settings of a store that several machines share."""
    return settings.model_copy(update={"memory_url": "redis://store"})
