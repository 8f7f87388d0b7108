"""The memory of rehearsals and tests promises what every store does."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.memory import Memory, open_store
from agent.memory.scratch import store_of
from agent.settings import Settings
from template.tests.talk import talk
from tests.agent.memory.stores import StoreContract, note


def settings_of(name: str, tmp_path: Path) -> Settings:
    return Settings.model_validate({"home": tmp_path, "memory_url": f"scratch:{name}"})


class TestScratchMemory(StoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Memory:
        return store_of(settings_of(tmp_path.name, tmp_path))


async def test_each_name_is_a_memory_of_its_own(tmp_path: Path) -> None:
    async with open_store(settings_of("one", tmp_path)) as one:
        assert one is not None
        await one.write("ann", note(1, name="Ada"))
    async with open_store(settings_of("two", tmp_path)) as two:
        assert two is not None
        assert await two.recall("ann") is None
    async with open_store(settings_of("one", tmp_path)) as again:
        assert again is not None
        assert await again.recall("ann") is not None


async def test_a_caller_is_known_again_in_the_next_call(tmp_path: Path) -> None:
    url = f"scratch:{tmp_path.name}"
    async with talk(memory_url=url) as call:
        await call.say('/tool remember_caller {"name": "Ada"}')
    async with talk(memory_url=url) as call:
        assert call.said == ["Welcome back, Ada! How can I help you today?"]
    assert not (tmp_path / "data" / "memory.db").exists()
