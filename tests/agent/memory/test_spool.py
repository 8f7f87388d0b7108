"""Items that a store could not take are kept, delivered once, and forgotten on request."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from dataclasses import replace

import pytest
from livekit.agents import AgentServer

from agent import telemetry
from agent.memory import MemoryUnavailable, spool
from agent.outbox import locked
from agent.server import Server
from agent.settings import Settings
from tests.agent.memory.stores import (
    SECRET,
    FakeStore,
    calling,
    ended,
    note,
    spooled,
    turn,
    warnings,
)


async def test_what_a_call_leaves_is_delivered_in_order_and_once(
    store: FakeStore, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    words = "line\u2028separator, next\x85line, half a \ud83d, 🦊 \0"
    record = replace(ended(), usage={"llm_input_tokens": 12})
    left = [turn(1, text=words), note(2, name="Ada"), turn(3), record]
    store.trouble = MemoryUnavailable("the store is on fire")
    async with calling(settings) as memory:
        memory.add_turn(turn(1, text=words))
        assert memory.add_note(note(2, name="Ada"))
        memory.add_turn(turn(3))
        memory.add_call(record)
    assert (memory.queue.lost, spooled(settings)) == (0, left)

    with pytest.raises(MemoryUnavailable):
        await spool.deliver(settings)
    assert spooled(settings) == left
    store.trouble = None
    assert await spool.deliver(settings) == 4
    assert store.kept == left
    assert (await spool.deliver(settings), spooled(settings)) == (0, [])
    assert len(warnings(caplog)) == 1


async def test_a_worker_goes_on_delivering_and_reports_an_outage_once(
    store: FakeStore,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(spool, "DELIVERY_SECONDS", 0.001)
    store.trouble = MemoryUnavailable("the store is on fire")
    spool.keep(spool.folder_of(settings), [("ann", turn(1))])
    worker = asyncio.create_task(spool.keep_delivering(settings))
    async with asyncio.timeout(30):
        for _ in range(3):
            await store.asked.wait()
            store.asked.clear()
        store.trouble = None
        await store.written.wait()
        store.written.clear()
        spool.keep(spool.folder_of(settings), [("ann", turn(2))])
        await store.written.wait()
    worker.cancel()

    assert store.kept == [turn(1), turn(2)]
    assert warnings(caplog) == [
        "memory: what earlier calls left is not delivered yet: the store is on fire"
    ]


async def test_a_worker_delivers_from_its_start_to_its_end(
    store: FakeStore, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run(server: AgentServer, **options: bool) -> None:
        await store.written.wait()

    monkeypatch.setattr(AgentServer, "run", run)
    monkeypatch.setattr(telemetry, "format_root", lambda **options: None)
    spool.keep(spool.folder_of(settings), [("ann", turn(1))])
    before = asyncio.all_tasks()
    async with asyncio.timeout(30):
        await Server(settings).run()
        assert store.kept == [turn(1)]
        for task in asyncio.all_tasks() - before:
            assert task.cancelling()
            await asyncio.wait([task])


async def test_two_workers_that_deliver_at_once_double_nothing(
    store: FakeStore, settings: Settings
) -> None:
    for caller in ("ann", "bob"):
        spool.keep(spool.folder_of(settings), [(caller, turn(1)), (caller, ended())])
    store.answering.clear()
    workers = [asyncio.create_task(spool.deliver(settings)) for _ in range(2)]
    await store.asked.wait()
    store.answering.set()

    assert sorted(await asyncio.gather(*workers)) == [0, 4]
    assert store.kept == [turn(1), ended()] * 2


async def test_a_worker_that_dies_while_it_delivers_loses_nothing(
    store: FakeStore, settings: Settings
) -> None:
    spool.keep(spool.folder_of(settings), [("ann", turn(1)), ("ann", turn(2))])
    store.answering.clear()
    worker = asyncio.create_task(spool.deliver(settings))
    await store.asked.wait()
    worker.cancel()
    await asyncio.wait([worker])
    store.answering.set()

    assert await spool.deliver(settings) == 2
    assert store.kept == [turn(1), turn(2)]


async def test_what_waits_for_a_caller_is_forgotten_and_nobody_elses(
    store: FakeStore, settings: Settings
) -> None:
    folder = spool.folder_of(settings)
    spool.keep(folder, [("ann", turn(1, text=SECRET)), ("bob", turn(2)), ("tel:+1555", ended())])
    spool.keep(folder, [("ann", ended())])

    assert spool.forget(settings, ["ann", "tel:+1555"]) == 3
    assert spool.forget(settings, ["ann"]) == 0
    assert [file.name for file in folder.iterdir() if SECRET.encode() in file.read_bytes()] == []
    assert await spool.deliver(settings) == 1
    assert store.kept == [turn(2)]


async def test_nobody_is_forgotten_while_a_worker_delivers_what_it_has_read(
    store: FakeStore, settings: Settings
) -> None:
    spool.keep(spool.folder_of(settings), [("ann", turn(1))])
    store.answering.clear()
    worker = asyncio.create_task(spool.deliver(settings))
    await store.asked.wait()
    forgetting = asyncio.create_task(asyncio.to_thread(spool.forget, settings, ["ann"]))
    await asyncio.wait([forgetting], timeout=0.2)

    assert not forgetting.done()
    store.answering.set()
    # so that forgetting in the store, which follows, finds it
    assert (await worker, await forgetting) == (1, 0)


def test_a_delivery_that_takes_too_long_is_an_error_and_nothing_is_forgotten(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "FORGET_LOCK_SECONDS", 0.05)
    spool.keep(spool.folder_of(settings), [("ann", turn(1))])
    with (
        locked(spool.folder_of(settings) / ".lock", 0),
        pytest.raises(TimeoutError, match="is held"),
    ):
        spool.forget(settings, ["ann"])
    assert spooled(settings) == [turn(1)]


async def test_the_spool_is_no_older_than_the_memory_and_nobody_elses(
    settings: Settings, store: FakeStore
) -> None:
    folder = spool.folder_of(settings)
    old, new = (spool.keep(folder, [("ann", turn(number))]) for number in (1, 2))
    half = folder / "half.part"
    half.write_text(SECRET)
    for file, seconds in (old, 31 * 86400), (half, 3600):
        os.utime(file, (time.time() - seconds,) * 2)

    assert (folder.stat().st_mode & 0o777, new.stat().st_mode & 0o777) == (0o700, 0o600)
    assert await spool.deliver(settings) == 1
    assert store.kept == [turn(2)]
    assert sorted(file.name for file in folder.iterdir()) == [".lock"]


async def test_a_damaged_line_of_the_spool_holds_up_no_other(
    store: FakeStore, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    file = spool.keep(spool.folder_of(settings), [("ann", turn(1)), ("ann", turn(2))])
    first, second = file.read_text().splitlines()
    half = first[: len(first) // 2]
    wrong = ["", "[]", "{}", '{"caller": "ann", "turn": {"text": 1}}', SECRET, half]
    file.write_text("\n".join([*wrong, second]))

    assert await spool.deliver(settings) == 1
    assert store.kept == [turn(2)]
    assert len(warnings(caplog)) == len(wrong)
    assert SECRET not in caplog.text


async def test_a_turn_that_cannot_be_delivered_holds_up_no_other(
    store: FakeStore, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    spool.keep(spool.folder_of(settings), [("ann", turn(1, text=SECRET)), ("ann", turn(2))])

    assert await spool.deliver(settings) == 1
    assert (store.kept, spooled(settings)) == ([turn(2)], [])
    assert warnings(caplog) == ["memory: a spooled turn cannot be written (ValueError)"]
