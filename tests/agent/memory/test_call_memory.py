"""Callers are remembered under the right key or not at all, and no store can hurt a call."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import sqlite3
import string
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from livekit.agents import AgentServer

from agent import server, telemetry
from agent import sqlite_thread as sqlite_thread_module
from agent.lifecycle import Reason, timeouts
from agent.memory import (
    STORES,
    CallMemory,
    CallRecord,
    Memory,
    MemoryUnavailable,
    Note,
    Profile,
    Turn,
    call_memory,
    delivery,
    keys_of,
    open_memory_of,
    remembered_as,
    spool,
)
from agent.memory.store import (
    BROKE_OFF,
    KEPT,
    LONGEST_FACT,
    LONGEST_NAME,
    MOST_FACTS,
    RECALLED_TURNS,
)
from agent.settings import Settings
from agent.sqlite_thread import SqliteThread

SECRET = "my words are nobody's business"


def turn(number: int, *, call: str = "call-1", text: str = "") -> Turn:
    return Turn(
        call=call,
        item=f"item-{number}",
        role="user",
        text=text or f"turn {number}",
        at=1000.0 + number,
    )


def note(number: int, *, name: str | None = None, fact: str | None = None) -> Note:
    return Note("call-1", 1000.0 + number, name, fact)


def ended(call: str = "call-1", at: float = 1000.0) -> CallRecord:
    return CallRecord(call=call, room="room", reason="caller left", seconds=60.0, turns=2, at=at)


class StoreContract:
    """What every store promises; each store's own tests inherit it."""

    async def test_it_can_be_written(self, store: Memory) -> None:
        await store.check()

    async def test_a_stranger_is_unknown(self, store: Memory) -> None:
        assert await store.recall("ann") is None

    async def test_a_caller_is_known_by_calls_and_turns(self, store: Memory) -> None:
        for number in (1, 2, 3):
            await store.remember("ann", turn(number, text='"quoted" 🦊 \0 words'))
        await store.record("ann", ended(at=990.0))
        await store.record("ann", ended("call-2", at=2000.0))

        turns = [turn(number, text='"quoted" 🦊 \0 words') for number in (1, 2, 3)]
        assert await store.recall("ann") == Profile("ann", 2, 2000.0, turns)

    async def test_a_call_that_was_cut_off_is_known_by_its_turns(self, store: Memory) -> None:
        await store.remember("ann", turn(1))
        await store.remember("ann", turn(2))

        assert await store.recall("ann") == Profile("ann", 1, 1001.0, [turn(1), turn(2)])

    async def test_the_same_item_again_changes_nothing(self, store: Memory) -> None:
        await store.remember("ann", turn(1))
        await store.remember("ann", turn(2))
        await store.remember("ann", Turn("call-1", "item-1", "user", "something else", 5000.0))

        profile = await store.recall("ann")
        assert profile is not None
        assert profile.turns == [turn(1), turn(2)]

    async def test_the_same_record_again_counts_once(self, store: Memory) -> None:
        await store.record("ann", ended())
        await store.record("ann", ended())

        assert await store.recall("ann") == Profile("ann", 1, 1000.0)

    async def test_the_last_turns_are_recalled(self, store: Memory) -> None:
        for number in range(RECALLED_TURNS + 7):
            await store.remember("ann", turn(number))

        profile = await store.recall("ann")
        assert profile is not None
        assert profile.turns == [turn(number) for number in range(7, RECALLED_TURNS + 7)]

    async def test_no_more_than_a_bounded_number_is_kept_of_a_caller(self, store: Memory) -> None:
        for number in range(KEPT + 3):
            await store.remember("ann", turn(number))
        await store.record("ann", ended())

        assert await store.forget("ann") == KEPT + 1

    async def test_what_is_forgotten_is_gone_and_nobody_else_is(self, store: Memory) -> None:
        for caller in ("ann", "bob"):
            await store.remember(caller, turn(1))
            await store.record(caller, ended())

        assert await store.forget("ann") == 2
        assert await store.forget("ann") == 0
        assert await store.recall("ann") is None
        assert await store.recall("bob") is not None

    async def test_a_caller_is_known_by_name_and_facts(self, store: Memory) -> None:
        await store.note("ann", note(1, name="Ada", fact="Likes tea."))
        await store.note("ann", note(2, fact="Has a red bicycle."))
        await store.note("bob", note(3, name="Bob"))

        facts = ["Likes tea.", "Has a red bicycle."]
        assert await store.recall("ann") == Profile("ann", 1, 1001.0, name="Ada", facts=facts)
        assert await store.recall("bob") == Profile("bob", 1, 1003.0, name="Bob")

    async def test_the_same_note_again_changes_nothing(self, store: Memory) -> None:
        for number, again in (1, 1), (2, 2), (1, 3), (1, 1):
            await store.note("ann", note(again, name="Ada", fact=f"fact {number}"))

        assert await store.recall("ann") == Profile(
            "ann", 1, 1001.0, name="Ada", facts=["fact 1", "fact 2"]
        )

    async def test_the_newest_name_counts_even_if_an_older_one_is_delivered_late(
        self, store: Memory
    ) -> None:
        for number, name in (2, "Ada"), (1, "Adele"), (3, "Ann"), (2, "Ada"):
            await store.note("ann", note(number, name=name))

        profile = await store.recall("ann")
        assert profile is not None
        assert profile.name == "Ann"

    async def test_the_newest_facts_are_kept_and_no_more_of_them(self, store: Memory) -> None:
        for number in (*range(MOST_FACTS + 3), 0):  # the oldest once more: delivered late
            await store.note("ann", note(number, fact=f"fact {number}"))

        profile = await store.recall("ann")
        assert profile is not None
        assert profile.facts == [f"fact {number}" for number in range(3, MOST_FACTS + 3)]

    async def test_names_and_facts_are_forgotten_too(self, store: Memory) -> None:
        await store.note("ann", note(1, name="Ada", fact="Likes tea."))

        assert await store.forget("ann") == 3  # with their call
        await store.remember("ann", turn(1))
        assert await store.recall("ann") == Profile("ann", 1, 1001.0, [turn(1)])

    @pytest.mark.parametrize(
        ("reason", "ago", "resumed"),
        [
            ("caller dropped", 60, True),
            ("caller dropped", 140, False),
            ("worker died", 60, True),
            ("job died", 60, True),
            ("error in step 7 (stay for the conversation)", 60, True),
            (None, 60, True),
            (None, 140, False),
            ("caller left", 0, False),
            ("agent hung up", 0, False),
            ("too silent", 0, False),
        ],
    )
    async def test_a_call_that_broke_off_a_moment_ago_is_resumed(
        self, store: Memory, reason: str | None, ago: float, resumed: bool
    ) -> None:
        ended_at = time.time() - ago
        await store.record("ann", ended("call-0", at=ended_at - 5000))
        await store.remember("ann", Turn("call-0", "item", "user", "hello", ended_at - 4990))
        await store.remember("ann", Turn("call-1", "item-1", "user", "hello", ended_at - 190))
        await store.remember("ann", Turn("call-1", "item-2", "assistant", "hi", ended_at))
        if reason is not None:
            await store.record(
                "ann", replace(ended("call-1", at=ended_at - 200), reason=reason, seconds=200)
            )

        profile = await store.recall("ann")
        assert profile is not None
        assert profile.resumed is resumed
        assert [turn.text for turn in profile.cut_off] == (["hello", "hi"] if resumed else [])

    async def test_a_call_that_broke_off_before_a_word_is_resumed_without_those_of_another(
        self, store: Memory
    ) -> None:
        now = time.time()
        await store.remember("ann", Turn("call-0", "item", "user", "hello", now - 50))
        await store.record("ann", ended("call-0", at=now - 55))
        await store.record(
            "ann", replace(ended("call-1", at=now - 10), reason="caller dropped", seconds=5)
        )

        profile = await store.recall("ann")
        assert profile is not None
        assert (profile.resumed, profile.cut_off) == (True, [])

    async def test_no_sequence_of_calls_shows_a_caller_what_is_anothers(
        self, store: Memory
    ) -> None:
        chance = random.Random(7)
        said: dict[str, list[Turn]] = {}
        for step in range(150):
            caller = chance.choice(
                [
                    "ann",
                    "Ann",
                    "an",
                    "n",
                    "ann:turns",
                    "{ann}",
                    "tel:+15551234567",
                    "+15551234567",
                    "ann%",
                ]
            )
            match chance.randrange(8):
                case 0:
                    await store.forget(caller)
                    said.pop(caller, None)
                case 1:
                    profile = await store.recall(caller)
                    assert (profile.turns if profile else []) == said.get(caller, [])[
                        -RECALLED_TURNS:
                    ]
                case _:
                    new = Turn(
                        f"call-{chance.randrange(2)}",
                        f"item-{step // 9}",
                        "user",
                        f"{caller} says {step}",
                        step,
                    )
                    await store.remember(caller, new)
                    mine = said.setdefault(caller, [])
                    if (new.call, new.item) not in [(old.call, old.item) for old in mine]:
                        mine.append(new)
        for caller, turns in said.items():
            profile = await store.recall(caller)
            assert profile is not None
            assert profile.turns == turns[-RECALLED_TURNS:]

    async def test_a_cancelled_question_leaves_the_store_usable(self, store: Memory) -> None:
        await store.remember("ann", turn(1))
        asked = [asyncio.create_task(store.recall("ann")) for _ in range(5)]
        await asyncio.sleep(0)
        for one in asked:
            one.cancel()
        await asyncio.wait(asked)

        assert await store.recall("ann") == Profile("ann", 1, 1001.0, [turn(1)])


# ---------------------------------------------------------------------- the memory of one call


class FakeStore:
    """A store in a list, whose `trouble` is raised, and which answers nothing while it is `stalled`."""

    def __init__(self) -> None:
        self.kept: list[Turn | CallRecord | Note] = []
        self.trouble: BaseException | None = None
        self.answering = asyncio.Event()
        self.answering.set()
        self.asked, self.written = asyncio.Event(), asyncio.Event()

    async def _answer(self) -> None:
        self.asked.set()
        await self.answering.wait()
        if self.trouble is not None:
            raise self.trouble

    async def check(self) -> None:
        await self._answer()

    async def recall(self, caller: str) -> Profile | None:
        await self._answer()
        return Profile(caller, 1, 0.0)

    async def remember(self, caller: str, turn: Turn) -> None:
        await self._answer()
        if turn.text == SECRET:
            raise ValueError(turn.text)
        self.kept.append(turn)
        self.written.set()

    async def record(self, caller: str, call: CallRecord) -> None:
        await self._answer()
        self.kept.append(call)

    async def note(self, caller: str, note: Note) -> None:
        await self._answer()
        self.kept.append(note)

    async def forget(self, caller: str) -> int:
        return 0


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
    monkeypatch.setattr(call_memory, "LAST_SECONDS", 0.05)
    monkeypatch.setattr(call_memory, "LAST_SECONDS_IN_OUTAGE", 0.05)
    monkeypatch.setattr(call_memory, "FIRST_PAUSE", 0.001)
    return FAKE[-1]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.model_validate(
        {"home": tmp_path, "memory_url": "sqlite", "memory_seconds": 0.05}
    )


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def kept(settings: Settings) -> list[Turn | CallRecord | Note]:
    """What waits in the spool."""
    return [item for file in spool.waiting(settings) for _, item in spool.items_of(file)]


async def test_what_a_call_gives_is_written_in_order(
    store: FakeStore, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    async with CallMemory.open(settings) as memory:
        memory.identify("ann")
        assert await memory.recall() == Profile("ann", 1, 0.0)
        memory.add_turn(turn(1))
        assert await memory.flush(5)
        assert store.kept == [turn(1)]
        memory.add_turn(turn(2))
        memory.add_call(ended())

    assert store.kept == [turn(1), turn(2), ended()]
    assert (memory.lost, warnings(caplog)) == (0, [])


async def test_an_unknown_caller_leaves_no_trace(store: FakeStore, settings: Settings) -> None:
    async with CallMemory.open(settings) as memory:
        memory.identify(None)
        assert await memory.recall() is None
        memory.add_turn(turn(1))
        memory.add_call(ended())

    assert (store.kept, store.asked.is_set()) == ([], False)


async def test_a_store_that_says_nothing_makes_an_unknown_caller_and_one_warning(
    store: FakeStore, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    store.answering.clear()
    async with asyncio.timeout(5), CallMemory.open(settings) as memory:
        memory.identify("ann")
        assert await memory.recall() is None
        memory.add_turn(turn(1))
        memory.add_call(ended())

    assert (memory.lost, kept(settings)) == (0, [turn(1), ended()])
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
    async with asyncio.timeout(5), CallMemory.open(settings) as memory:
        memory.identify("ann")
        assert await memory.recall() is None
        for number in (1, 2, 3):
            memory.add_turn(turn(number, text=SECRET))
        memory.add_call(ended())

    assert memory.lost + len(kept(settings)) == 4
    assert len(warnings(caplog)) == 1
    assert SECRET not in caplog.text


async def test_what_could_not_be_written_is_written_when_the_store_is_back(
    store: FakeStore, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    store.trouble = MemoryUnavailable("the store is on fire")
    async with CallMemory.open(settings) as memory:
        memory.identify("ann")
        memory.add_turn(turn(1))
        await store.asked.wait()
        memory.add_turn(turn(2))
        store.trouble = None
        assert await memory.flush(5)

    assert store.kept == [turn(1), turn(2)]
    assert (memory.lost, len(warnings(caplog))) == (0, 1)


async def test_a_turn_that_cannot_be_written_holds_up_no_other(
    store: FakeStore, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    async with CallMemory.open(settings) as memory:
        memory.identify("ann")
        memory.add_turn(turn(1, text=SECRET))
        memory.add_turn(turn(2))
        assert await memory.flush(5)

    assert (store.kept, memory.lost) == ([turn(2)], 1)
    assert warnings(caplog) == ["memory: a turn cannot be written (ValueError)"]


async def test_what_waits_for_a_dead_store_is_bounded(
    store: FakeStore, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call_memory, "MOST_WAITING", 3)
    store.answering.clear()
    async with CallMemory.open(settings) as memory:
        memory.identify("ann")
        for number in range(5):
            memory.add_turn(turn(number))
        store.answering.set()
        assert await memory.flush(5)

    assert (store.kept, memory.lost) == ([turn(0), turn(1), turn(2)], 2)


async def test_a_store_that_cannot_be_opened_is_one_warning(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(STORES, "sqlite", f"{__name__}:open_broken")
    async with CallMemory.open(settings) as memory:
        memory.identify("ann")
        assert await memory.recall() is None
        memory.add_turn(turn(1))

    assert warnings(caplog) == ["memory: the store is on fire"]


async def test_a_call_without_memory_says_nothing(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    async with CallMemory.open(settings.model_copy(update={"memory_url": "none"})) as memory:
        memory.identify("ann")
        assert await memory.recall() is None
        memory.add_turn(turn(1))

    assert caplog.records == []


async def test_a_store_that_the_project_was_made_without_is_one_sentence(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(STORES, "sqlite", "agent.memory.left_out:open_memory")
    with pytest.raises(MemoryUnavailable, match="agent update -d memory=sqlite"):
        async with open_memory_of(settings):
            pass


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


def test_the_reasons_of_calls_that_broke_off_are_the_lifecycles() -> None:
    reasons = {
        Reason.CALLER_DROPPED,
        Reason.WORKER_DIED,
        Reason.JOB_DIED,
        Reason.error(3, "build agent and session"),
    }
    every = {value for name, value in vars(Reason).items() if name.isupper()} | reasons
    assert {reason for reason in every if reason.startswith(BROKE_OFF)} == reasons


# ---------------------------------------------------------------------- outages


def degraded(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What is counted as a call without its memory."""
    return [
        record.getMessage()
        for record in caplog.records
        if "degraded" in getattr(record, "fields", {})
    ]


async def recalled_by_the_next_call(store: FakeStore, settings: Settings) -> Profile | None:
    """What it is told of its caller; the store works again by then."""
    store.trouble = None
    async with CallMemory.open(settings) as memory:
        memory.identify("ann")
        return await memory.recall()


async def test_a_store_that_has_just_failed_a_call_is_not_asked_by_the_next(
    store: FakeStore, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    settings = settings.model_copy(update={"memory_url": "redis://store"})
    store.trouble = MemoryUnavailable("the store is on fire")
    async with CallMemory.open(settings) as memory:
        memory.identify("ann")
        assert await memory.recall() is None
    store.asked.clear()

    assert await recalled_by_the_next_call(store, settings) is None
    assert not store.asked.is_set()
    assert len(degraded(caplog)) == len(warnings(caplog)) == 2  # one a call


async def test_a_file_of_this_machines_own_that_failed_one_call_is_asked_by_the_next(
    store: FakeStore, settings: Settings
) -> None:
    store.trouble = MemoryUnavailable("this call was late")
    async with CallMemory.open(settings) as memory:
        memory.identify("ann")
        assert await memory.recall() is None

    assert await recalled_by_the_next_call(store, settings) == Profile("ann", 1, 0.0)


async def test_a_call_that_was_told_of_an_outage_does_not_wait_long_when_it_is_closed(
    store: FakeStore, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings.model_copy(update={"memory_url": "redis://store"})
    monkeypatch.setattr(call_memory, "LAST_SECONDS", 1000.0)
    call_memory.breaker_of(settings).failed()
    store.answering.clear()
    async with asyncio.timeout(30), CallMemory.open(settings) as memory:
        memory.identify("ann")
        assert await memory.recall() is None
        memory.add_turn(turn(1))

    assert (memory.lost, kept(settings)) == (0, [turn(1)])


@pytest.mark.parametrize("who", ["another call's writer", "the worker"])
async def test_whoever_finds_the_store_working_has_the_next_call_ask_it(
    store: FakeStore, settings: Settings, who: str
) -> None:
    settings = settings.model_copy(update={"memory_url": "redis://store"})
    store.trouble = MemoryUnavailable("the store is on fire")
    async with CallMemory.open(settings) as memory:
        memory.identify("ann")
        await memory.recall()
        memory.add_turn(turn(1))
    store.trouble = None
    if who == "the worker":
        await delivery.deliver(settings)
    else:
        async with CallMemory.open(settings) as other:
            other.identify("bob")
            other.add_turn(turn(1))
            assert await other.flush(5)

    assert await recalled_by_the_next_call(store, settings) == Profile("ann", 1, 0.0)


async def test_a_store_that_can_be_read_but_not_written_goes_on_being_asked(
    store: FakeStore, settings: Settings
) -> None:
    settings = settings.model_copy(update={"memory_url": "redis://store"})
    async with CallMemory.open(settings) as memory:
        memory.identify("ann")
        store.trouble = MemoryUnavailable("the store is full")
        memory.add_turn(turn(1))
        await store.asked.wait()

    assert await recalled_by_the_next_call(store, settings) == Profile("ann", 1, 0.0)


async def test_an_outage_and_its_end_are_told_once_and_counted_once(
    store: FakeStore, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with CallMemory.open(settings) as memory:
        memory.identify("ann")
        store.trouble = MemoryUnavailable("the store is on fire")
        await memory.recall()
        memory.add_turn(turn(1))
        store.trouble = None
        assert await memory.flush(5)

    said = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert said == [
        ("WARNING", "memory: the store is on fire; the caller is taken for an unknown one"),
        ("INFO", "memory: the store answers again"),
    ]
    assert len(degraded(caplog)) == 1


async def test_what_a_call_leaves_is_delivered_in_order_and_once(
    store: FakeStore, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    words = "line\u2028separator, next\x85line, half a \ud83d, 🦊 \0"
    record = replace(ended(), usage={"llm_input_tokens": 12})
    left = [turn(1, text=words), note(2, name="Ada"), turn(3), record]
    store.trouble = MemoryUnavailable("the store is on fire")
    async with CallMemory.open(settings) as memory:
        memory.identify("ann")
        memory.add_turn(turn(1, text=words))
        assert memory.add_note(note(2, name="Ada"))
        memory.add_turn(turn(3))
        memory.add_call(record)
    assert (memory.lost, kept(settings)) == (0, left)

    with pytest.raises(MemoryUnavailable):
        await spool.deliver(settings)
    assert kept(settings) == left
    store.trouble = None
    assert await spool.deliver(settings) == 4
    assert store.kept == left
    assert (await spool.deliver(settings), kept(settings)) == (0, [])
    assert len(warnings(caplog)) == 1


async def test_what_a_call_leaves_of_a_store_that_could_not_be_opened_is_delivered_too(
    settings: Settings, store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(STORES, "sqlite", f"{__name__}:open_broken")
        async with CallMemory.open(settings) as memory:
            memory.identify("ann")
            memory.add_turn(turn(1))

    assert await spool.deliver(settings) == 1
    assert store.kept == [turn(1)]


async def test_a_worker_goes_on_delivering_and_tells_an_outage_once(
    store: FakeStore,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(delivery, "DELIVERY_SECONDS", 0.001)
    store.trouble = MemoryUnavailable("the store is on fire")
    spool.keep(spool.folder_of(settings), [("ann", turn(1))])
    worker = asyncio.create_task(delivery.keep_delivering(settings))
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
        "memory: what earlier calls have left is not delivered yet: the store is on fire"
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
        await server.Server(settings).run()
        assert store.kept == [turn(1)]
        for task in asyncio.all_tasks() - before:
            assert task.cancelling()
            await asyncio.wait([task])


def test_closing_a_memory_takes_less_than_a_resource_may() -> None:
    for seconds in (call_memory.LAST_SECONDS, call_memory.LAST_SECONDS_IN_OUTAGE):
        assert seconds + call_memory.SPOOL_SECONDS < timeouts.CLOSE_SECONDS


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
    assert (await worker, await forgetting) == (
        1,
        0,
    )  # so that forgetting in the store, which follows, finds it


async def test_a_spool_that_is_full_takes_no_more(
    store: FakeStore,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(spool, "MOST_BYTES", 1000)
    spool.keep(spool.folder_of(settings), [("ann", turn(1))])
    caplog.set_level(logging.INFO)
    store.trouble = MemoryUnavailable("the store is on fire")
    async with CallMemory.open(
        settings.model_copy(update={"memory_url": "redis://localhost:1"})
    ) as memory:
        memory._store = store
        memory.identify("ann")
        memory.add_turn(turn(2, text="x" * 1000))

    assert (memory.lost, kept(settings)) == (1, [turn(1)])
    assert "1 turns and records are lost" in warnings(caplog)[-1]
    assert "MB already" in warnings(caplog)[-1]


async def test_a_data_folder_that_cannot_be_written_is_one_warning(
    store: FakeStore, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    settings.data.write_text("a file where the folder should be")
    store.trouble = MemoryUnavailable("the store is on fire")
    async with CallMemory.open(settings) as memory:
        memory.identify("ann")
        assert await memory.recall() is None
        memory.add_turn(turn(1))

    assert memory.lost == 1
    assert len(warnings(caplog)) == 1


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
    wrong = [
        "",
        "[]",
        "{}",
        '{"caller": "ann", "turn": {"text": 1}}',
        SECRET,
        first[: len(first) // 2],
    ]
    file.write_text("\n".join([*wrong, second]))

    assert await spool.deliver(settings) == 1
    assert store.kept == [turn(2)]
    assert len(warnings(caplog)) == len(wrong)
    assert SECRET not in caplog.text


async def test_without_transcripts_no_word_is_written_anywhere(
    store: FakeStore, settings: Settings
) -> None:
    settings = settings.model_copy(update={"keep_transcripts": False})
    for trouble in (None, MemoryUnavailable("the store is on fire")):
        store.trouble = trouble
        async with CallMemory.open(settings) as memory:
            memory.identify("ann")
            memory.add_turn(turn(1, text=SECRET))
            memory.add_note(note(1, name="Ada"))
            memory.add_call(ended())

    assert store.kept == kept(settings) == [note(1, name="Ada"), ended()]


async def test_what_was_said_before_transcripts_were_switched_off_is_neither_told_nor_delivered(
    settings: Settings, tmp_path: Path, store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def recall(caller: str) -> Profile:
        return Profile(caller, 1, 0.0, [turn(1)], name="Ada")

    monkeypatch.setattr(store, "recall", recall)
    spool.keep(spool.folder_of(settings), [("ann", turn(1)), ("ann", ended())])
    settings = settings.model_copy(update={"keep_transcripts": False})
    async with CallMemory.open(settings) as memory:
        memory.identify("ann")
        assert await memory.recall() == Profile("ann", 1, 0.0, name="Ada")

    assert await spool.deliver(settings) == 1
    assert store.kept == [ended()]


# ---------------------------------------------------------------------- who is remembered

CLOSED = Settings.model_construct(remember_phone_numbers=False)
OPEN = Settings.model_construct(remember_phone_numbers=True)


def phone(number: str) -> dict[str, str]:
    return {"sip.phoneNumber": number}


@pytest.mark.parametrize(
    "identity",
    [
        "ann",
        "ann-lee",
        "Ann Lee",
        "customer-1042",
        "ann@example.com",
        "user-ann",
        "JohnSmith",
        "McDonald",
        "田中",
        "terminal-ann",
    ],
)
def test_a_caller_is_known_by_the_identity_of_the_token(identity: str) -> None:
    assert remembered_as(identity, "standard", {}, CLOSED) == identity


SHARED = """
    identity-AbCd identity_x7 user-x7Kp user-4821 user_k3j9x2 user user-xkqz voice_assistant_user_4821 guest guest-17
    Guest42 anon anonymous Anonymous-3 anon_f00 visitor-12 participant-7 caller web-user-17 playground unknown client
    undefined sip_+15551234567 sip_anonymous tel:+15551234567 +15551234567 1735689600000 k3j9x2q ab1cd2ef
"""


@pytest.mark.parametrize("identity", [*SHARED.split(), "", "  ", "+1 555 123-4567", "x" * 257])
def test_shared_and_made_up_identities_are_nobodys(identity: str) -> None:
    assert remembered_as(identity, "standard", {}, OPEN) is None


def test_random_identities_are_nobodys() -> None:
    chance = random.Random(11)
    base36, base62 = string.ascii_lowercase + string.digits, string.ascii_letters + string.digits
    for _ in range(300):
        number = uuid.UUID(int=chance.getrandbits(128), version=4)
        made_up = [
            str(number),
            number.hex,
            f"ann-{number}",
            f"{chance.getrandbits(128):032x}",
            f"identity-{''.join(chance.choices(string.ascii_letters, k=4))}",
            f"user-{chance.randrange(10_000)}",
            f"user-{''.join(chance.choices(base36, k=7))}7",
            f"guest-{''.join(chance.choices(base62, k=8))}",
            "".join(chance.choices(base62, k=27)),
        ]
        assert [
            identity
            for identity in made_up
            if remembered_as(identity, "standard", {}, OPEN) is not None
        ] == []


def test_phone_callers_are_remembered_only_where_the_owner_opted_in() -> None:
    assert remembered_as("sip_+15551234567", "sip", phone("+15551234567"), CLOSED) is None
    assert (
        remembered_as("sip_+15551234567", "sip", phone("+1 (555) 123-4567"), OPEN)
        == "tel:+15551234567"
    )
    assert remembered_as("sip_+15551234567", "sip", {}, OPEN) == "tel:+15551234567"


@pytest.mark.parametrize(
    "number",
    [
        "",
        "anonymous",
        "Restricted",
        "unknown",
        "0000000000",
        "+266696687",
        "7378742883",
        "12",
        "sip:ann@example.com",
    ],
)
def test_withheld_numbers_are_nobodys(number: str) -> None:
    assert remembered_as("sip_+15551234567", "sip", phone(number), OPEN) is None


@pytest.mark.parametrize("kind", ["agent", "egress", "ingress", "connector", ""])
def test_who_is_no_caller_is_not_remembered(kind: str) -> None:
    assert remembered_as("ann", kind, phone("+15551234567"), OPEN) is None


def test_no_identity_in_a_token_has_the_key_of_a_phone() -> None:
    key = remembered_as("sip_+15551234567", "sip", phone("+15551234567"), OPEN)
    assert key is not None
    for identity in (key, key.upper(), "+15551234567", "sip_+15551234567", "15551234567"):
        assert remembered_as(identity, "standard", phone("+15551234567"), OPEN) != key


def test_whoever_is_to_be_forgotten_is_found_under_every_key() -> None:
    assert keys_of("ann") == ["ann"]
    for typed in ("+1 (555) 123-4567", "tel:+15551234567", "sip_+15551234567", "15551234567"):
        assert {typed, "tel:+15551234567"} <= set(keys_of(typed))


# ---------------------------------------------------------------------- the thread under SQLite


@pytest.fixture
async def sqlite_thread(tmp_path: Path) -> AsyncIterator[SqliteThread]:
    path = tmp_path / "some.db"
    running = SqliteThread(path, lambda: sqlite3.connect(path))
    yield running
    await running.aclose()


ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"


async def test_cancelling_interrupts_the_query_and_only_that(sqlite_thread: SqliteThread) -> None:
    loop, began = asyncio.get_running_loop(), asyncio.Event()

    def endless(db: sqlite3.Connection) -> None:
        loop.call_soon_threadsafe(began.set)
        db.execute(ENDLESS).fetchall()

    query = asyncio.create_task(sqlite_thread.run(endless))
    await began.wait()
    waiting = [asyncio.create_task(sqlite_thread.run(lambda db: "answered")) for _ in range(2)]
    waiting[0].cancel()
    query.cancel()

    async with asyncio.timeout(30):
        assert await waiting[1] == "answered"
    assert query.cancelled()


async def test_work_that_nobody_waits_for_is_not_begun(sqlite_thread: SqliteThread) -> None:
    released, done = threading.Event(), list[str]()
    blocking = asyncio.create_task(sqlite_thread.run(lambda db: released.wait()))
    waiting = asyncio.create_task(sqlite_thread.run(lambda db: done.append("waiting")))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    released.set()
    await blocking
    await sqlite_thread.run(lambda db: done.append("next"))

    assert done == ["next"]


async def test_work_that_heeds_no_interrupt_holds_up_no_closing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_thread_module, "CLOSING_SECONDS", 0.01)
    stuck, released = (
        SqliteThread(tmp_path / "some.db", lambda: sqlite3.connect(":memory:")),
        threading.Event(),
    )
    work = asyncio.create_task(stuck.run(lambda db: released.wait()))
    await asyncio.sleep(0)

    async with asyncio.timeout(30):
        await stuck.aclose()
    assert not work.done()
    released.set()
    assert await work
    with pytest.raises(RuntimeError, match="closed"):
        await stuck.run(lambda db: None)


def test_commands_that_need_no_call_start_without_livekit() -> None:
    code = "import sys, agent.memory, agent.knowledge; sys.exit(any(n.split('.')[0] == 'livekit' for n in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("first", ["keeper", "writer"])
async def test_a_dying_process_writes_the_record_in_whatever_order_its_tasks_are_cancelled(
    first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded: list[str] = []

    class Store:
        async def record(self, caller: str, call: CallRecord) -> None:
            recorded.append(call.call)

    @asynccontextmanager
    async def open_store(settings: Settings) -> AsyncIterator[Store]:
        yield Store()

    monkeypatch.setattr("agent.memory.call_memory.open_memory_of", open_store)
    opened = asyncio.Event()

    async def hold() -> None:
        async with CallMemory.open(Settings(memory_url="sqlite")) as memory:
            memory.identify("ann")
            opened.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                memory.add_call(ended())

    holding = asyncio.create_task(hold(), name="keeper")
    await opened.wait()
    (writer,) = [task for task in asyncio.all_tasks() if task.get_name() == "memory writer"]
    for task in sorted((holding, writer), key=lambda task: first not in task.get_name()):
        task.cancel()
    await holding
    assert recorded == ["call-1"]
