"""A store of callers: the protocol, and the table of modules behind it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import Protocol, cast

from agent.settings import Settings

# "module:factory"; a module that the project was made without is simply not there
STORES = {"sqlite": "agent.memory.sqlite:open_memory", "redis": "agent.memory.redis:open_memory"}

JOINERS = "\u200c\u200d"  # parts of words in Persian, Hindi and others
RECALLED_TURNS = 20  # of all earlier calls, the last ones
KEPT = 200  # turns, and calls, of one caller
MOST_FACTS = 20  # of one caller, the newest
LONGEST_FACT, LONGEST_NAME = 200, 80  # characters

# how the reason of a call begins that broke off: see agent.lifecycle.Reason, which cannot be imported here
BROKE_OFF = ("caller dropped", "worker died", "job died", "error")


@dataclass(frozen=True)
class Turn:
    """One finished turn. `item` is its id in the conversation: with the call it makes writing idempotent."""

    call: str
    item: str
    role: str  # "user" or "assistant"
    text: str
    at: float  # seconds since the epoch


@dataclass(frozen=True)
class CallRecord:
    """One ended call."""

    call: str
    room: str
    reason: str
    seconds: float
    turns: int
    at: float  # seconds since the epoch, when it began
    usage: dict[str, int] = field(
        default_factory=dict
    )  # what its models were used for: see agent.lifecycle.usage


@dataclass(frozen=True)
class Note:
    """What a caller wants to be known by: a name, a fact, or both. The newest name counts, and the newest facts."""

    call: str
    at: float  # seconds since the epoch
    name: str | None = None
    fact: str | None = None

    @classmethod
    def of(cls, call: str, name: str | None, fact: str | None) -> Note | None:
        """A note of now, each on one line and no longer than is kept; None if there is nothing to note."""
        name, fact = _line(name, LONGEST_NAME), _line(fact, LONGEST_FACT)
        return cls(call, time.time(), name, fact) if name or fact else None


@dataclass(frozen=True)
class Profile:
    """What is known of a caller when a call begins."""

    caller: str
    calls: int  # how many calls are known, at most KEPT
    last_call: float  # seconds since the epoch, when the last of them began
    turns: list[Turn] = field(default_factory=list)  # the last RECALLED_TURNS, oldest first
    name: str | None = None
    facts: list[str] = field(default_factory=list)  # at most MOST_FACTS, oldest first
    resumed: bool = False  # the last call broke off a moment ago, and this one goes on where it was

    @property
    def cut_off(self) -> list[Turn]:
        """The turns of the call that is resumed, oldest first."""
        if not self.resumed or not self.turns or self.turns[-1].at < self.last_call:  # it had none
            return []
        return [turn for turn in self.turns if turn.call == self.turns[-1].call]


class MemoryUnavailable(Exception):
    """The store cannot be reached or read: which, where, what to do; never a password, never a caller's words."""


class Memory(Protocol):
    """A store of callers, by key. Every method may raise MemoryUnavailable and is safe to cancel.

    Everything of a caller goes `memory_days` after the last thing that was written of them.
    """

    async def check(self) -> None:
        """Raise MemoryUnavailable unless the store can be written."""
        ...

    async def recall(self, caller: str) -> Profile | None:
        """What is known; None of a stranger, and of whom nothing was heard for `memory_days`."""
        ...

    async def remember(self, caller: str, turn: Turn) -> None:
        """Keep a turn; the same call and item again changes nothing."""
        ...

    async def record(self, caller: str, call: CallRecord) -> None:
        """Keep an ended call; the same call again replaces it."""
        ...

    async def note(self, caller: str, note: Note) -> None:
        """Keep a name, unless a newer one is there, and a fact; the same again changes nothing."""
        ...

    async def forget(self, caller: str) -> int:
        """Delete everything of a caller; how many turns, calls, facts and names that were."""
        ...


def broke_off(reason: str | None, ended: float, within: float) -> bool:
    """Whether a call that ended then, for that reason, is to be resumed; None is a call that left no record."""
    return (reason is None or reason.startswith(BROKE_OFF)) and time.time() - ended < within


def _line(text: str | None, longest: int) -> str | None:
    """The text on one line, without what cannot be printed or stored; None if nothing is left."""
    words = " ".join(
        "".join(
            letter if letter.isprintable() or letter in JOINERS else " " for letter in text or ""
        ).split()
    )
    return words[:longest].rstrip() or None


OpenMemory = Callable[[Settings], AbstractAsyncContextManager[Memory]]
"""What a store's module offers. Opening waits for nothing: a store that is down is told by its first use."""


def opener_of(settings: Settings) -> OpenMemory | None:
    """The `open_memory` of the store that the settings choose, None if they choose none; raises MemoryUnavailable.

    It imports the store's module, which a worker's process had better do before its call.
    """
    if settings.memory == "none":
        return None
    module, _, factory = STORES[settings.memory].partition(":")
    try:
        return cast(OpenMemory, getattr(import_module(module), factory))
    except ModuleNotFoundError as error:
        raise MemoryUnavailable(
            f"AGENT_MEMORY_URL asks for {settings.memory}, but this project was made without it ({error.name} is "
            f"missing): run `agent update -d memory={settings.memory}`, or set AGENT_MEMORY_URL=none"
        ) from error


@asynccontextmanager
async def open_memory_of(settings: Settings) -> AsyncIterator[Memory | None]:
    """Yield the store that the settings choose, None if they choose none, and close it on exit.

    Raises MemoryUnavailable for a missing module or an address that is none.
    """
    if (open_memory := opener_of(settings)) is None:
        yield None
        return
    async with open_memory(settings) as store:
        yield store
