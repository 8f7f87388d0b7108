"""The promises of every store of callers, and code that the tests of memory share."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from agent.memory import (
    KEPT,
    MOST_FACTS,
    RECALLED_TURNS,
    CallRecord,
    Item,
    Memory,
    Note,
    Profile,
    Turn,
    call_memory,
    spool,
)
from agent.memory.call_memory import StoredCallMemory
from agent.reasons import Reason
from agent.settings import Settings
from agent.telemetry import LogJournal

SECRET = "my words are nobody's business"


def turn(number: int, *, call: str = "call-1", text: str = "") -> Turn:
    words = text or f"turn {number}"
    return Turn(call=call, item=f"item-{number}", role="user", text=words, at=1000.0 + number)


def note(number: int, *, name: str | None = None, fact: str | None = None) -> Note:
    return Note("call-1", 1000.0 + number, name, fact)


def ended(call: str = "call-1", at: float = 1000.0) -> CallRecord:
    return CallRecord(call=call, room="room", reason="caller left", seconds=60.0, turns=2, at=at)


@asynccontextmanager
async def calling(
    settings: Settings, caller: str | None = "ann"
) -> AsyncIterator[StoredCallMemory]:
    """The memory of a call of this caller."""
    async with call_memory.opened(settings, LogJournal()) as memory:
        memory.identify(caller)
        yield memory


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def degraded(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What is counted as a call without its memory."""
    counted = [record for record in caplog.records if "degraded" in getattr(record, "fields", {})]
    return [record.getMessage() for record in counted]


def spooled(settings: Settings) -> list[Item]:
    """What waits in the spool."""
    return [item for file in spool.waiting(settings) for _, item in spool.entries_of(file)]


class FakeStore:
    """A store in a list, which raises `trouble`, and waits while it is not `answering`."""

    def __init__(self) -> None:
        self.kept: list[Item] = []
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

    async def write(self, caller: str, item: Item) -> None:
        await self._answer()
        if isinstance(item, Turn) and item.text == SECRET:
            raise ValueError(item.text)
        self.kept.append(item)
        self.written.set()

    async def forget(self, caller: str) -> int:
        return 0


class StoreContract:
    """The promises of every store; each store's own tests inherit them."""

    async def test_it_can_be_written(self, store: Memory) -> None:
        await store.check()

    async def test_a_stranger_is_unknown(self, store: Memory) -> None:
        assert await store.recall("ann") is None

    async def test_a_caller_is_known_by_calls_and_turns(self, store: Memory) -> None:
        for number in (1, 2, 3):
            await store.write("ann", turn(number, text='"quoted" 🦊 \0 words'))
        await store.write("ann", ended(at=990.0))
        await store.write("ann", ended("call-2", at=2000.0))

        turns = [turn(number, text='"quoted" 🦊 \0 words') for number in (1, 2, 3)]
        assert await store.recall("ann") == Profile("ann", 2, 2000.0, turns)

    async def test_a_call_that_was_cut_off_is_known_by_its_turns(self, store: Memory) -> None:
        await store.write("ann", turn(1))
        await store.write("ann", turn(2))

        assert await store.recall("ann") == Profile("ann", 1, 1001.0, [turn(1), turn(2)])

    async def test_a_call_that_nobody_answered_is_none_that_the_caller_has_had(
        self, store: Memory
    ) -> None:
        missed = [replace(ended(f"out-{n}", at=2000.0 + n), reason=Reason.BUSY) for n in range(2)]
        for record in missed:
            await store.write("ann", record)
        assert await store.recall("ann") is None
        await store.write("ann", turn(1))
        await store.write("ann", ended())
        profile = await store.recall("ann")
        assert profile is not None
        assert (profile.calls, profile.last_call, profile.resumed) == (1, 1000.0, False)
        assert await store.forget("ann") == 4

    async def test_the_same_item_again_changes_nothing(self, store: Memory) -> None:
        await store.write("ann", turn(1))
        await store.write("ann", turn(2))
        await store.write("ann", Turn("call-1", "item-1", "user", "something else", 5000.0))

        profile = await store.recall("ann")
        assert profile is not None
        assert profile.turns == [turn(1), turn(2)]

    async def test_the_same_record_again_counts_once(self, store: Memory) -> None:
        await store.write("ann", ended())
        await store.write("ann", ended())

        assert await store.recall("ann") == Profile("ann", 1, 1000.0)

    async def test_the_last_turns_are_recalled(self, store: Memory) -> None:
        for number in range(RECALLED_TURNS + 7):
            await store.write("ann", turn(number))

        profile = await store.recall("ann")
        assert profile is not None
        assert profile.turns == [turn(number) for number in range(7, RECALLED_TURNS + 7)]

    async def test_no_more_than_a_bounded_number_is_kept_of_a_caller(self, store: Memory) -> None:
        for number in range(KEPT + 3):
            await store.write("ann", turn(number))
        await store.write("ann", ended())

        assert await store.forget("ann") == KEPT + 1

    async def test_what_is_forgotten_is_gone_and_nobody_else_is(self, store: Memory) -> None:
        for caller in ("ann", "bob"):
            await store.write(caller, turn(1))
            await store.write(caller, ended())

        assert await store.forget("ann") == 2
        assert await store.forget("ann") == 0
        assert await store.recall("ann") is None
        assert await store.recall("bob") is not None

    async def test_a_caller_is_known_by_name_and_facts(self, store: Memory) -> None:
        await store.write("ann", note(1, name="Ada", fact="Likes tea."))
        await store.write("ann", note(2, fact="Has a red bicycle."))
        await store.write("bob", note(3, name="Bob"))

        facts = ["Likes tea.", "Has a red bicycle."]
        assert await store.recall("ann") == Profile("ann", 1, 1001.0, name="Ada", facts=facts)
        assert await store.recall("bob") == Profile("bob", 1, 1003.0, name="Bob")

    async def test_the_same_note_again_changes_nothing(self, store: Memory) -> None:
        for number, again in (1, 1), (2, 2), (1, 3), (1, 1):
            await store.write("ann", note(again, name="Ada", fact=f"fact {number}"))

        assert await store.recall("ann") == Profile(
            "ann", 1, 1001.0, name="Ada", facts=["fact 1", "fact 2"]
        )

    async def test_the_newest_name_counts_even_if_an_older_one_is_delivered_late(
        self, store: Memory
    ) -> None:
        for number, name in (2, "Ada"), (1, "Adele"), (3, "Ann"), (2, "Ada"):
            await store.write("ann", note(number, name=name))

        profile = await store.recall("ann")
        assert profile is not None
        assert profile.name == "Ann"

    async def test_the_newest_facts_are_kept_and_no_more_of_them(self, store: Memory) -> None:
        # the oldest once more: delivered late
        for number in (*range(MOST_FACTS + 3), 0):
            await store.write("ann", note(number, fact=f"fact {number}"))

        profile = await store.recall("ann")
        assert profile is not None
        assert profile.facts == [f"fact {number}" for number in range(3, MOST_FACTS + 3)]

    async def test_names_and_facts_are_forgotten_too(self, store: Memory) -> None:
        await store.write("ann", note(1, name="Ada", fact="Likes tea."))

        # with their call
        assert await store.forget("ann") == 3
        await store.write("ann", turn(1))
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
        await store.write("ann", ended("call-0", at=ended_at - 5000))
        await store.write("ann", Turn("call-0", "item", "user", "hello", ended_at - 4990))
        await store.write("ann", Turn("call-1", "item-1", "user", "hello", ended_at - 190))
        await store.write("ann", Turn("call-1", "item-2", "assistant", "hi", ended_at))
        if reason is not None:
            await store.write(
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
        await store.write("ann", Turn("call-0", "item", "user", "hello", now - 50))
        await store.write("ann", ended("call-0", at=now - 55))
        await store.write(
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
                    await store.write(caller, new)
                    mine = said.setdefault(caller, [])
                    if (new.call, new.item) not in [(old.call, old.item) for old in mine]:
                        mine.append(new)
        for caller, turns in said.items():
            profile = await store.recall(caller)
            assert profile is not None
            assert profile.turns == turns[-RECALLED_TURNS:]

    async def test_a_cancelled_question_leaves_the_store_usable(self, store: Memory) -> None:
        await store.write("ann", turn(1))
        asked = [asyncio.create_task(store.recall("ann")) for _ in range(5)]
        await asyncio.sleep(0)
        for one in asked:
            one.cancel()
        await asyncio.wait(asked)

        assert await store.recall("ann") == Profile("ann", 1, 1001.0, [turn(1)])
