"""A call's items are written in order, or spooled, or their loss is reported."""

from __future__ import annotations

import asyncio
import logging

import pytest

from agent.lifecycle import timeouts
from agent.memory import MemoryUnavailable, Profile, spool, write_queue
from agent.settings import Settings
from tests.agent.memory.stores import (
    SECRET,
    FakeStore,
    calling,
    degraded,
    ended,
    spooled,
    turn,
    warnings,
)


async def test_what_a_call_gives_is_written_in_order(
    store: FakeStore, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    async with calling(settings) as memory:
        assert await memory.recall() == Profile("ann", 1, 0.0)
        memory.add_turn(turn(1))
        assert await memory.queue.flush(5)
        assert store.kept == [turn(1)]
        memory.add_turn(turn(2))
        memory.add_call(ended())

    assert store.kept == [turn(1), turn(2), ended()]
    assert (memory.queue.lost, warnings(caplog)) == (0, [])


async def test_what_could_not_be_written_is_written_when_the_store_is_back(
    store: FakeStore, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    store.trouble = MemoryUnavailable("the store is on fire")
    async with calling(settings) as memory:
        memory.add_turn(turn(1))
        await store.asked.wait()
        memory.add_turn(turn(2))
        store.trouble = None
        assert await memory.queue.flush(5)

    assert store.kept == [turn(1), turn(2)]
    assert (memory.queue.lost, len(warnings(caplog))) == (0, 1)


async def test_an_outage_and_its_end_are_reported_once_and_counted_once(
    store: FakeStore, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with calling(settings) as memory:
        store.trouble = MemoryUnavailable("the store is on fire")
        await memory.recall()
        memory.add_turn(turn(1))
        store.trouble = None
        assert await memory.queue.flush(5)

    said = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert said == [
        ("WARNING", "memory: the store is on fire; the caller is taken for an unknown one"),
        ("INFO", "asked the memory"),
        ("INFO", "memory: the store answers again"),
    ]
    assert len(degraded(caplog)) == 1


async def test_a_turn_that_cannot_be_written_holds_up_no_other(
    store: FakeStore, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    async with calling(settings) as memory:
        memory.add_turn(turn(1, text=SECRET))
        memory.add_turn(turn(2))
        assert await memory.queue.flush(5)

    assert (store.kept, memory.queue.lost) == ([turn(2)], 1)
    assert warnings(caplog) == ["memory: a turn cannot be written (ValueError)"]
    assert SECRET not in caplog.text


async def test_what_waits_for_a_dead_store_is_bounded(
    store: FakeStore,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(write_queue, "MOST_WAITING", 3)
    store.answering.clear()
    async with calling(settings) as memory:
        for number in range(5):
            memory.add_turn(turn(number))
        store.answering.set()
        assert await memory.queue.flush(5)

    assert (store.kept, memory.queue.lost) == ([turn(0), turn(1), turn(2)], 2)
    assert warnings(caplog) == ["memory: 3 turns are waiting to be written, and more are lost"]


async def test_what_a_call_leaves_is_spooled_also_where_the_store_could_not_be_opened(
    settings: Settings, store: FakeStore, broken: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with calling(settings) as memory:
        memory.add_turn(turn(1))
    assert (memory.queue.lost, spooled(settings)) == (0, [turn(1)])


async def test_a_spool_that_is_full_takes_no_more(
    store: FakeStore,
    shared: Settings,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(spool, "MOST_BYTES", 1000)
    spool.keep(spool.folder_of(shared), [("ann", turn(1))])
    store.trouble = MemoryUnavailable("the store is on fire")
    async with calling(shared) as memory:
        memory.add_turn(turn(2, text="x" * 1000))

    assert (memory.queue.lost, spooled(shared)) == (1, [turn(1)])
    assert "1 turns and records are lost" in warnings(caplog)[-1]
    assert "MB already" in warnings(caplog)[-1]


async def test_a_data_folder_that_cannot_be_written_is_one_warning(
    store: FakeStore, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    settings.data.write_text("a file where the folder should be")
    store.trouble = MemoryUnavailable("the store is on fire")
    async with calling(settings) as memory:
        assert await memory.recall() is None
        memory.add_turn(turn(1))

    assert memory.queue.lost == 1
    assert len(warnings(caplog)) == 1
    assert caplog.records[-1].__dict__["fields"] == {"lost": 1}


def test_closing_takes_less_time_than_a_resource_may() -> None:
    for seconds in (write_queue.LAST_SECONDS, write_queue.LAST_SECONDS_IN_OUTAGE):
        assert seconds + write_queue.SPOOL_SECONDS < timeouts.CLOSE_SECONDS


@pytest.mark.parametrize("first", ["resource", "writer"])
async def test_a_dying_process_writes_the_record_in_whatever_order_its_tasks_are_cancelled(
    first: str, store: FakeStore, settings: Settings
) -> None:
    opened = asyncio.Event()

    async def hold() -> None:
        async with calling(settings) as memory:
            opened.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                memory.add_call(ended())

    holding = asyncio.create_task(hold(), name="resource")
    await opened.wait()
    (writer,) = [task for task in asyncio.all_tasks() if task.get_name() == "memory writer"]
    for task in sorted((holding, writer), key=lambda task: first not in task.get_name()):
        task.cancel()
    await holding
    assert store.kept == [ended()]
