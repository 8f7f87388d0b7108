"""A caller's key, profile and turns: nothing about them can harm a call."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys

import pytest

from agent.memory import (
    LONGEST_FACT,
    LONGEST_NAME,
    STORES,
    CallRecord,
    MemoryUnavailable,
    Note,
    Profile,
    broke_off,
    keep_delivering,
    load,
    open_memory,
    open_store,
    spool,
    write_queue,
)
from agent.reasons import Reason
from agent.settings import Settings
from agent.telemetry import LogJournal
from tests.agent.memory.stores import (
    SECRET,
    FakeStore,
    calling,
    degraded,
    ended,
    note,
    spooled,
    turn,
    warnings,
)


async def test_an_unknown_caller_leaves_no_trace(store: FakeStore, settings: Settings) -> None:
    async with calling(settings, None) as memory:
        assert await memory.recall() is None
        memory.add_turn(turn(1))
        assert not memory.add_note(note(1, name="Ada"))
        memory.add_call(ended())

    assert (store.kept, store.asked.is_set()) == ([], False)


async def test_an_empty_key_is_nobodys(store: FakeStore, settings: Settings) -> None:
    async with calling(settings, "") as memory:
        assert await memory.recall() is None
        memory.add_turn(turn(1))

    assert (store.kept, store.asked.is_set()) == ([], False)


async def test_a_store_that_says_nothing_makes_an_unknown_caller_and_one_warning(
    store: FakeStore, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    store.answering.clear()
    async with asyncio.timeout(5), calling(settings) as memory:
        assert await memory.recall() is None
        memory.add_turn(turn(1))
        memory.add_call(ended())

    assert (memory.queue.lost, spooled(settings)) == (0, [turn(1), ended()])
    assert warnings(caplog) == [
        "memory: no answer from the store within 0.05 s; the caller is taken for an unknown one"
    ]


@pytest.mark.parametrize(
    "trouble",
    [
        MemoryUnavailable("the store is on fire"),
        OSError(SECRET),
        asyncio.CancelledError(),
        TimeoutError(),
    ],
    ids=lambda trouble: type(trouble).__name__,
)
async def test_an_outage_is_one_warning_without_words(
    store: FakeStore, settings: Settings, caplog: pytest.LogCaptureFixture, trouble: BaseException
) -> None:
    caplog.set_level(logging.DEBUG)
    store.trouble = trouble
    async with asyncio.timeout(5), calling(settings) as memory:
        assert await memory.recall() is None
        for number in (1, 2, 3):
            memory.add_turn(turn(number, text=SECRET))
        memory.add_call(ended())

    assert memory.queue.lost + len(spooled(settings)) == 4
    assert len(warnings(caplog)) == 1
    assert SECRET not in caplog.text


async def test_a_store_that_cannot_be_opened_is_one_warning(
    settings: Settings, broken: None, caplog: pytest.LogCaptureFixture
) -> None:
    async with calling(settings) as memory:
        assert await memory.recall() is None
        memory.add_turn(turn(1))

    assert warnings(caplog) == ["memory: the store is on fire"]


async def test_without_transcripts_no_word_is_written_anywhere(
    store: FakeStore, settings: Settings
) -> None:
    settings = settings.model_copy(update={"keep_transcripts": False})
    for trouble in (None, MemoryUnavailable("the store is on fire")):
        store.trouble = trouble
        async with calling(settings) as memory:
            memory.add_turn(turn(1, text=SECRET))
            memory.add_note(note(1, name="Ada"))
            memory.add_call(ended())

    assert store.kept == spooled(settings) == [note(1, name="Ada"), ended()]


async def test_turns_from_before_transcripts_were_switched_off_are_neither_recalled_nor_delivered(
    settings: Settings, store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def recall(caller: str) -> Profile:
        return Profile(caller, 1, 0.0, [turn(1)], name="Ada")

    monkeypatch.setattr(store, "recall", recall)
    spool.keep(spool.folder_of(settings), [("ann", turn(1)), ("ann", ended())])
    settings = settings.model_copy(update={"keep_transcripts": False})
    async with calling(settings) as memory:
        assert await memory.recall() == Profile("ann", 1, 0.0, name="Ada")

    assert await spool.deliver(settings) == 1
    assert store.kept == [ended()]


# ---------------------------------------------------------------------- outages


async def recalled_by_the_next_call(store: FakeStore, settings: Settings) -> Profile | None:
    """The profile in the next call, when the store works again."""
    store.trouble = None
    async with calling(settings) as memory:
        return await memory.recall()


async def test_a_store_that_has_just_failed_a_call_is_not_asked_by_the_next(
    store: FakeStore, shared: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    store.trouble = MemoryUnavailable("the store is on fire")
    async with calling(shared) as memory:
        assert await memory.recall() is None
    store.asked.clear()

    assert await recalled_by_the_next_call(store, shared) is None
    assert not store.asked.is_set()
    # one a call
    assert len(degraded(caplog)) == len(warnings(caplog)) == 2


async def test_a_file_of_this_machine_that_failed_one_call_is_asked_by_the_next(
    store: FakeStore, settings: Settings
) -> None:
    store.trouble = MemoryUnavailable("this call was late")
    async with calling(settings) as memory:
        assert await memory.recall() is None

    assert await recalled_by_the_next_call(store, settings) == Profile("ann", 1, 0.0)


async def test_a_call_that_knows_of_an_outage_does_not_wait_long_when_it_is_closed(
    store: FakeStore, shared: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write_queue, "LAST_SECONDS", 1000.0)
    spool.breaker_of(shared).failed()
    store.answering.clear()
    async with asyncio.timeout(30), calling(shared) as memory:
        assert await memory.recall() is None
        memory.add_turn(turn(1))

    assert (memory.queue.lost, spooled(shared)) == (0, [turn(1)])


@pytest.mark.parametrize("who", ["another call's writer", "the worker"])
async def test_when_anything_finds_the_store_working_the_next_call_asks_it(
    store: FakeStore, shared: Settings, who: str
) -> None:
    store.trouble = MemoryUnavailable("the store is on fire")
    async with calling(shared) as memory:
        await memory.recall()
        memory.add_turn(turn(1))
    store.trouble = None
    if who == "the worker":
        await spool.deliver(shared)
    else:
        async with calling(shared, "bob") as other:
            other.add_turn(turn(1))
            assert await other.queue.flush(5)

    assert await recalled_by_the_next_call(store, shared) == Profile("ann", 1, 0.0)


async def test_a_store_that_can_be_read_but_not_written_goes_on_being_asked(
    store: FakeStore, shared: Settings
) -> None:
    async with calling(shared) as memory:
        store.trouble = MemoryUnavailable("the store is full")
        memory.add_turn(turn(1))
        await store.asked.wait()

    assert await recalled_by_the_next_call(store, shared) == Profile("ann", 1, 0.0)


# ---------------------------------------------------------------------- what is known


def test_what_is_noted_is_one_short_line() -> None:
    noted = Note.of("call-1", "  Ada\n\0 Lovelace ", "x" * 300)
    assert noted is not None
    assert (noted.name, noted.fact) == ("Ada Lovelace", "x" * LONGEST_FACT)
    noted = Note.of("call-1", "A" * 300, "\ud800")
    assert noted is not None
    assert (noted.name, noted.fact) == ("A" * LONGEST_NAME, None)
    assert Note.of("call-1", " ", None) is None


@pytest.mark.parametrize(
    "name", ["\u0645\u06cc\u200c\u0646\u0627", "क्\u200dषमा", "ශ්\u200dරී", "👩\u200d💻"]
)
def test_the_joiners_within_a_name_are_kept(name: str) -> None:
    noted = Note.of("call-1", f" {name}\n", f"Is called {name}.")
    assert noted is not None
    assert (noted.name, noted.fact) == (name, f"Is called {name}.")


def test_the_calls_that_broke_off_are_those_that_nobody_meant_to_end() -> None:
    reasons = {value for name, value in vars(Reason).items() if name.isupper()}
    reasons.add(Reason.error(3, "build"))
    resumed = {reason for reason in reasons if broke_off(reason, 2e9, 60)}
    dropped = {Reason.CALLER_DROPPED, Reason.WORKER_DIED, Reason.JOB_DIED}
    assert resumed == {*dropped, Reason.error(3, "build")}


# ---------------------------------------------------------------------- options


def test_a_call_without_memory_has_none(settings: Settings) -> None:
    without = settings.model_copy(update={"memory_url": "none"})
    load(without)
    assert open_memory(without, LogJournal()) is None


async def test_a_call_has_the_memory_that_the_settings_choose(
    store: FakeStore, settings: Settings
) -> None:
    load(settings)
    opening = open_memory(settings, LogJournal())
    assert opening is not None
    async with opening as memory:
        memory.identify(memory.key_of("ann", "standard", {}))
        memory.add_call(CallRecord("call-1", "room", "caller left", 1.0, 0, 1000.0))

    assert [type(item) for item in store.kept] == [CallRecord]


async def test_a_store_that_the_project_was_made_without_is_one_sentence(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(STORES, "sqlite", "agent.memory.left_out:open_store")
    with pytest.raises(MemoryUnavailable, match="agent update -d memory=sqlite"):
        load(settings)
    with pytest.raises(MemoryUnavailable, match="agent update -d memory=sqlite"):
        async with open_store(settings):
            pass


async def test_a_project_that_was_made_without_memory_says_how_to_add_it(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("call_memory", "spool"):
        monkeypatch.setitem(sys.modules, f"agent.memory.{module}", None)
    opening = open_memory(settings, LogJournal())
    assert opening is not None
    with pytest.raises(MemoryUnavailable, match="agent update -d memory=sqlite"):
        async with opening:
            pass
    async with asyncio.timeout(5):
        await keep_delivering(settings)


def test_commands_that_need_no_call_start_without_livekit() -> None:
    code = "import sys, agent.memory.spool, agent.knowledge.lookup; "
    code += "sys.exit(any(name.split('.')[0] == 'livekit' for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
