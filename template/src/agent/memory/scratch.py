"""A memory of this process alone, for rehearsals and tests: nothing is written anywhere.

`AGENT_MEMORY_URL=scratch:NAME`: each name is a memory of its own, and empty at first.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

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
    broke_off,
)
from agent.reasons import NOT_REACHED
from agent.settings import Settings

SETTING = "AGENT_MEMORY_URL"

_stores: dict[str, ScratchMemory] = {}


@asynccontextmanager
async def open_store(settings: Settings) -> AsyncIterator[Memory]:
    """Yield the memory of this name, which stays when a call ends."""
    yield store_of(settings)


def store_of(settings: Settings) -> ScratchMemory:
    """The memory that the settings name."""
    return _stores.setdefault(settings.memory_url, ScratchMemory(settings.resume_seconds))


@dataclass
class _Caller:
    turns: dict[tuple[str, str], Turn] = field(default_factory=dict)
    facts: dict[str, float] = field(default_factory=dict)  # when each was noted
    name: tuple[float, str] | None = None
    calls: dict[str, CallRecord] = field(default_factory=dict)


class ScratchMemory:
    """A `Memory` in a dict. What is written for nobody, "", is known of everybody."""

    def __init__(self, resume_seconds: float) -> None:
        self._resume_seconds = resume_seconds
        self.callers: dict[str, _Caller] = {}

    async def check(self) -> None:
        return

    async def recall(self, caller: str) -> Profile | None:
        known = self.callers.get(caller) or self.callers.get("")
        if known is None:
            return None
        # a call that nobody answered is none that the caller has had
        calls = [call for call in known.calls.values() if call.reason not in NOT_REACHED]
        if not calls:
            return None
        turns = sorted(known.turns.values(), key=lambda turn: turn.at)
        last = max(calls, key=lambda call: call.at)
        said = [turn.at for turn in turns if turn.call == last.call]
        ended = max([last.at + last.seconds, *said])
        return Profile(
            caller,
            len(calls),
            last_call=last.at,
            turns=turns[-RECALLED_TURNS:],
            name=known.name and known.name[1],
            facts=sorted(known.facts, key=known.facts.__getitem__),
            resumed=broke_off(last.reason or None, ended, self._resume_seconds),
        )

    async def write(self, caller: str, item: Item) -> None:
        kept = self.callers.setdefault(caller, _Caller())
        if isinstance(item, CallRecord):
            kept.calls[item.call] = item
        else:
            # a call that leaves no record is known by what was said in it
            kept.calls.setdefault(item.call, CallRecord(item.call, "", "", 0.0, 0, item.at))
        if isinstance(item, Turn):
            kept.turns.setdefault((item.call, item.item), item)
        elif isinstance(item, Note):
            if item.name and (kept.name is None or item.at >= kept.name[0]):
                kept.name = item.at, item.name
            if item.fact:
                kept.facts.setdefault(item.fact, item.at)
        for oldest in list(kept.turns)[:-KEPT]:
            del kept.turns[oldest]
        for fact in sorted(kept.facts, key=kept.facts.__getitem__)[:-MOST_FACTS]:
            del kept.facts[fact]

    async def forget(self, caller: str) -> int:
        kept = self.callers.pop(caller, _Caller())
        return len(kept.turns) + len(kept.calls) + len(kept.facts) + (kept.name is not None)
