"""What the agent remembers of its callers: types, protocols, and the way in.

A project that remembers nobody has this file alone: everything else of the package is imported
when it is asked for.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Protocol, cast

from agent.reasons import BROKE_OFF
from agent.settings import Settings
from agent.telemetry import Journal

# "module:factory"; a module that the project was made without is not there
STORES = {
    "sqlite": "agent.memory.sqlite:open_store",
    "redis": "agent.memory.redis:open_store",
    "scratch": "agent.memory.scratch:open_store",
}

# parts of words in Persian, Hindi and others
JOINERS = "\u200c\u200d"
# the last turns of all earlier calls
RECALLED_TURNS = 20
# turns, and calls, of one caller
KEPT = 200
# facts of one caller, the newest
MOST_FACTS = 20
# characters
LONGEST_FACT, LONGEST_NAME = 200, 80


@dataclass(frozen=True)
class Turn:
    """One finished turn, `at` seconds since the epoch; `role` is "user" or "assistant".

    `item` is its id in the conversation: together with the call it makes writing idempotent.
    """

    call: str
    item: str
    role: str
    text: str
    at: float


@dataclass(frozen=True)
class Note:
    """What a caller wants to be known by, noted `at` seconds since the epoch.

    The newest name counts, and so do the newest facts.
    """

    call: str
    at: float
    name: str | None = None
    fact: str | None = None

    @classmethod
    def of(cls, call: str, name: str | None, fact: str | None) -> Note | None:
        """A note of now, on one line and no longer than is kept; None if nothing is left of it."""
        name, fact = _on_one_line(name, LONGEST_NAME), _on_one_line(fact, LONGEST_FACT)
        return cls(call, time.time(), name, fact) if name or fact else None


@dataclass(frozen=True)
class CallRecord:
    """One ended call, begun `at` seconds since the epoch; `usage` is what its models consumed."""

    call: str
    room: str
    reason: str
    seconds: float
    turns: int
    at: float
    usage: dict[str, int] = field(default_factory=dict)


Item = Turn | Note | CallRecord


@dataclass(frozen=True)
class Profile:
    """What is known of a caller when a call begins.

    Of earlier calls: how many are kept, when the last began (seconds since the epoch), and their
    last turns. Turns and facts are in order, oldest first. `resumed` says that the last call broke
    off a moment ago, and that this one continues it.
    """

    caller: str
    calls: int
    last_call: float
    turns: list[Turn] = field(default_factory=list)
    name: str | None = None
    facts: list[str] = field(default_factory=list)
    resumed: bool = False

    @property
    def cut_off(self) -> list[Turn]:
        """The turns of the call that is resumed, oldest first."""
        last = self.turns[-1] if self.turns else None
        # a last turn that is older is of another call: the one that broke off had none
        if not self.resumed or last is None or last.at < self.last_call:
            return []
        return [turn for turn in self.turns if turn.call == last.call]


class MemoryUnavailable(Exception):
    """The store cannot be used: which, where, what to do; never a password or a caller's words."""


class CallMemory(Protocol):
    """The memory of one call. No method raises what a store raises.

    Until `identify` names the caller nothing is recalled or written.
    """

    def key_of(self, identity: str, kind: str, attributes: Mapping[str, str]) -> str | None:
        """The key of a participant, None for one who must not be remembered.

        `kind` is the participant's kind, such as "standard" or "sip".
        """
        ...

    def identify(self, key: str | None) -> None:
        """From now on the caller has this key; None is a stranger who leaves no trace."""
        ...

    async def recall(self) -> Profile | None:
        """What is known of the caller.

        None for a stranger, and when the store does not answer within `memory_seconds`.
        """
        ...

    def add_turn(self, turn: Turn) -> None:
        """Have a finished turn written, now or as soon as the store can; returns at once."""
        ...

    def add_note(self, note: Note) -> bool:
        """Have a name or a fact written likewise; False for a caller who is not remembered."""
        ...

    def add_call(self, record: CallRecord) -> None:
        """Have the record of the call written, after its turns; returns at once."""
        ...


class Memory(Protocol):
    """A store of callers, by key. Every method may raise MemoryUnavailable; all can be cancelled.

    A caller's data is deleted `memory_days` after the last write.
    """

    async def check(self) -> None:
        """Raise MemoryUnavailable unless the store can be written."""
        ...

    async def recall(self, caller: str) -> Profile | None:
        """What is known; None for a stranger, and for whom `memory_days` have passed."""
        ...

    async def write(self, caller: str, item: Item) -> None:
        """Keep an item. The same again changes nothing, but a record replaces an earlier one.

        Of several names the newest stays.
        """
        ...

    async def forget(self, caller: str) -> int:
        """Delete everything of a caller; how many turns, calls, facts and names that were."""
        ...


OpenStore = Callable[[Settings], AbstractAsyncContextManager[Memory]]
"""What the module of a store offers. Opening never blocks: a store that is down fails when used."""


def open_memory(
    settings: Settings, journal: Journal
) -> AbstractAsyncContextManager[CallMemory] | None:
    """The memory of a call, to be entered for as long as the call lasts; None if none is chosen.

    Entering raises MemoryUnavailable only where the project was made without a memory.
    """
    if settings.memory == "none":
        return None
    opened: AbstractAsyncContextManager[CallMemory] = _open_call_memory(settings, journal)
    return opened


@asynccontextmanager
async def _open_call_memory(settings: Settings, journal: Journal) -> AsyncIterator[CallMemory]:
    async with _module("agent.memory.call_memory", settings).opened(settings, journal) as memory:
        yield memory


@asynccontextmanager
async def open_store(settings: Settings) -> AsyncIterator[Memory | None]:
    """Yield the store that the settings choose, None if they choose none, and close it on exit.

    Raises MemoryUnavailable for a missing module or a malformed address.
    """
    if settings.memory == "none":
        yield None
        return
    async with _store_opener(settings)(settings) as store:
        yield store


def load(settings: Settings) -> None:
    """Import what a call uses, so that the first one need not; raises MemoryUnavailable."""
    if settings.memory != "none":
        _module("agent.memory.call_memory", settings)
        _store_opener(settings)


async def keep_delivering(settings: Settings) -> None:
    """Deliver what earlier calls could not write, until cancelled; a worker runs this beside calls.

    Returns at once in a project that was made without a memory.
    """
    try:
        spool = import_module("agent.memory.spool")
    except ModuleNotFoundError:
        return
    await spool.keep_delivering(settings)


def forget_waiting(settings: Settings, callers: Iterable[str]) -> int:
    """Delete what waits of a caller, by every key of theirs; how many items that were.

    Raises OSError. None wait in a project that was made without a memory.
    """
    try:
        spool = import_module("agent.memory.spool")
    except ModuleNotFoundError:
        return 0
    return int(spool.forget(settings, callers))


def broke_off(reason: str | None, ended: float, within: float) -> bool:
    """Whether a call that ended then is to be resumed; the reason is None if it left no record."""
    return (reason is None or reason.startswith(BROKE_OFF)) and time.time() - ended < within


def _store_opener(settings: Settings) -> OpenStore:
    module, _, factory = STORES[settings.memory].partition(":")
    return cast(OpenStore, getattr(_module(module, settings), factory))


def _module(name: str, settings: Settings) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise MemoryUnavailable(
            f"AGENT_MEMORY_URL asks for {settings.memory}, but this project was made without it "
            f"({error.name} is missing): run `agent update -d memory={settings.memory}`, or set "
            "AGENT_MEMORY_URL=none"
        ) from error


def _on_one_line(text: str | None, longest: int) -> str | None:
    """The text without what cannot be printed or stored; None if nothing is left."""
    plain = [letter if letter.isprintable() or letter in JOINERS else " " for letter in text or ""]
    return " ".join("".join(plain).split())[:longest].rstrip() or None
