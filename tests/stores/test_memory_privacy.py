"""No caller ever gets another one's words, through outages and `agent forget`.

Every stored word names the person who said it. Some people can be recognised, by their own identity
or number; people who share one, or have a new one in every call, are new in every call.
"""

from __future__ import annotations

import asyncio
import secrets
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Literal

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from agent.memory import (
    STORES,
    CallRecord,
    Item,
    Memory,
    MemoryUnavailable,
    Note,
    Profile,
    Turn,
    call_memory,
    open_store,
    spool,
    write_queue,
)
from agent.memory.identity import key_of, keys_of
from agent.memory.redis import open_store as open_redis
from agent.memory.sqlite import open_store as open_sqlite
from agent.settings import Settings
from agent.telemetry import LogJournal
from tests.support.redis import RedisServer

# ---------------------------------------------------------------------- who calls


@dataclass(frozen=True)
class Caller:
    """A participant and their person; None is a new person in every call."""

    identity: str
    person: str | None
    kind: str = "standard"
    number: str = ""


NAMED = [
    "ann",
    "Ann",
    "an",
    "bob",
    "ann:turns",
    "{ann}",
    "ann%",
    "ann@example.com",
    "Ada Lovelace",
    "user-ann",
    "田中",
]
SHARED = [
    "anonymous",
    "guest",
    "guest-17",
    "user-4821",
    "identity-AbCd",
    "playground",
    "undefined",
    "",
    "caller",
]
PHONES = ["+15551234567", "+1 (555) 123-4567", "+15551234568", "+4930123456"]
WITHHELD = ["", "anonymous", "Restricted", "+266696687", "0000000000", "unknown"]

FAMILIAR = [
    Caller("ann", "ann"),
    Caller("Ann", "Ann"),
    Caller("sip_+15551234567", "+15551234567", "sip", PHONES[0]),
]
CALLERS = st.one_of(
    # otherwise few people would call twice
    *[st.sampled_from(FAMILIAR)] * 5,
    st.sampled_from([Caller(name, person=name) for name in NAMED]),
    st.sampled_from([Caller(name, person=None) for name in SHARED]),
    st.uuids(version=4).map(lambda made_up: Caller(f"user-{made_up}", person=None)),
    st.sampled_from(
        [
            Caller(f"sip_{number}", "+" + "".join(filter(str.isdigit, number)), "sip", number)
            for number in PHONES
        ]
    ),
    st.sampled_from([Caller("sip_anonymous", None, "sip", number) for number in WITHHELD]),
    # strangers who put a phone's number, or its key, into their own token
    st.sampled_from(
        [Caller(name, person=None) for number in PHONES for name in (number, f"tel:{number}")]
    ),
)


@dataclass(frozen=True)
class ACall:
    """A person calls, and says so many things; the store may fail in mid-call."""

    caller: Caller
    says: list[Literal["words", "name", "fact"]]
    ends: Literal["caller left", "caller dropped", "killed"]
    fails_after: int | None = None


@dataclass(frozen=True)
class Forget:
    """`agent forget`, for a person who can be named."""

    caller: Caller


Step = ACall | Forget | Literal["outage", "back", "deliver", "two deliver"]
SAYS = st.lists(st.sampled_from(["words", "words", "name", "fact"]), max_size=4)
STEPS: st.SearchStrategy[list[Step]] = st.lists(
    st.one_of(
        st.builds(
            ACall,
            CALLERS,
            SAYS,
            st.sampled_from(["caller left", "caller dropped", "killed"]),
            st.none() | st.none() | st.integers(0, 3),
        ),
        st.builds(ACall, CALLERS, SAYS, st.sampled_from(["caller left", "caller dropped"])),
        st.builds(Forget, CALLERS.filter(lambda caller: caller.person is not None)),
        st.sampled_from(["outage", "back", "deliver", "two deliver"]),
    ),
    min_size=4,
    max_size=30,
)


# ---------------------------------------------------------------------- a store that may be down


class Switch:
    """Whether the store is down."""

    down = False


class Unreliable:
    """A store that can be down."""

    def __init__(self, store: Memory) -> None:
        self._store = store

    def _up(self) -> Memory:
        if Switch.down:
            raise MemoryUnavailable("down")
        return self._store

    async def check(self) -> None:
        await self._up().check()

    async def recall(self, caller: str) -> Profile | None:
        return await self._up().recall(caller)

    async def write(self, caller: str, item: Item) -> None:
        await self._up().write(caller, item)

    async def forget(self, caller: str) -> int:
        return await self._up().forget(caller)


@asynccontextmanager
async def open_unreliable(settings: Settings) -> AsyncIterator[Memory]:
    """The memory that the settings choose, behind the switch."""
    opener = open_redis if settings.memory == "redis" else open_sqlite
    async with opener(settings) as store:
        yield Unreliable(store)


# ---------------------------------------------------------------------- the invariant


@dataclass
class Town:
    """All callers, their words so far, and the words that must never be repeated."""

    settings: Settings
    numbers: Iterator[int] = field(default_factory=count)
    # by person: words, names and facts in order
    said: dict[str, list[str]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    # forgotten, except by a store that was down
    unsure: set[str] = field(default_factory=set)
    forgotten: set[str] = field(default_factory=set)

    def key(self, caller: Caller) -> str | None:
        phones = self.settings.remember_phone_numbers
        attributes = {"sip.phoneNumber": caller.number}
        return key_of(caller.identity, caller.kind, attributes, phones=phones)

    async def take(self, step: Step) -> None:
        match step:
            case ACall():
                await self.call(step)
            case Forget():
                await self.forget(step.caller)
            case "outage" | "back":
                Switch.down = step == "outage"
            case _:
                with suppress(MemoryUnavailable):
                    workers = [
                        spool.deliver(self.settings)
                        for _ in range(2 if step == "two deliver" else 1)
                    ]
                    await asyncio.gather(*workers)

    async def call(self, step: ACall) -> None:
        number = next(self.numbers)
        person = step.caller.person or f"stranger-{number}"
        mine = self.said.setdefault(person, [])
        # time passes between calls
        spool.breaker_of(self.settings).worked()
        async with call_memory.opened(self.settings, LogJournal()) as memory:
            memory.identify(self.key(step.caller))
            self.check(await memory.recall(), person)
            turns = 0
            for place, what in enumerate(step.says):
                if place == step.fails_after:
                    await memory.queue.flush(1)
                    Switch.down = True
                words, at = f"{person}|{what} {next(self.numbers)}", time.time()
                if what == "words":
                    turns += 1
                    memory.add_turn(Turn(f"call-{number}", str(place), "user", words, at))
                else:
                    note = Note(f"call-{number}", at, **{what: words})
                    assert memory.add_note(note) is (self.key(step.caller) is not None)
                    if what == "name":
                        self.names[person] = words
                mine.append(words)
            if step.ends != "killed":
                memory.add_call(
                    CallRecord(f"call-{number}", "room", step.ends, 1.0, turns, time.time())
                )

    async def forget(self, caller: Caller) -> None:
        if (key := self.key(caller)) is None:
            return
        person = caller.person
        assert person is not None
        spool.forget(self.settings, keys_of(key))
        self.unsure.add(person)
        with suppress(MemoryUnavailable):
            async with open_store(self.settings) as store:
                assert store is not None
                for one in keys_of(key):
                    await store.forget(one)
            self.forgotten.update(self.said.pop(person, []))
            self.names.pop(person, None)
            self.unsure.discard(person)

    def check(self, profile: Profile | None, person: str) -> None:
        """A caller gets only their own words that were not forgotten, or nothing."""
        if profile is None:
            return
        told = [
            *[turn.text for turn in profile.turns],
            *profile.facts,
            *([profile.name] if profile.name else []),
        ]
        assert [words for words in told if words.split("|")[0] != person] == []
        assert [words for words in told if words in self.forgotten] == []
        assert not any("|words" in words for words in told) or self.settings.keep_transcripts

    async def settle(self) -> None:
        """The store is back: now nothing is missing, and every caller has their own words."""
        Switch.down = False
        await spool.deliver(self.settings)
        assert spool.waiting(self.settings) == []
        async with open_store(self.settings) as store:
            assert store is not None
            for person in self.said.keys() | set(NAMED):
                phone = person.startswith("+")
                caller = Caller(
                    person, person, "sip" if phone else "standard", person if phone else ""
                )
                if person.startswith("stranger-") or (key := self.key(caller)) is None:
                    continue
                profile = await store.recall(key)
                self.check(profile, person)
                if person in self.unsure:
                    continue
                known = profile or Profile(key, 0, 0.0)
                kept = [words for words in self.said.get(person, []) if "|fact" in words]
                assert known.facts == kept[-20:]
                assert known.name == self.names.get(person)
                spoken = [words for words in self.said.get(person, []) if "|words" in words]
                assert [turn.text for turn in known.turns] == (
                    spoken[-20:] if self.settings.keep_transcripts else []
                )


async def live(steps: list[Step], url: str, phones: bool, transcripts: bool) -> None:
    """Run a town's history from the first call."""
    with tempfile.TemporaryDirectory() as folder:
        chosen = {
            "memory_url": url,
            "name": f"test-{secrets.token_hex(6)}",
            "home": folder,
            "memory_seconds": 5,
        }
        town = Town(
            Settings.model_validate(
                {**chosen, "remember_phone_numbers": phones, "keep_transcripts": transcripts}
            )
        )
        Switch.down = False
        for step in steps:
            await town.take(step)
        await town.settle()


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    """A server with nothing on disk."""
    with closing(RedisServer("valkey", keeps=False)) as server:
        yield server.url


@pytest.mark.parametrize("store", ["sqlite", "redis"])
def test_no_history_shows_a_caller_what_is_anothers_or_forgotten(
    store: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = request.getfixturevalue("redis_url") if store == "redis" else "sqlite"
    monkeypatch.setitem(STORES, store, f"{__name__}:open_unreliable")
    monkeypatch.setattr(write_queue, "LAST_SECONDS_IN_OUTAGE", 0.002)
    monkeypatch.setattr(write_queue, "FIRST_PAUSE", 0.001)

    ann = FAMILIAR[0]
    whole, again = (
        ACall(ann, ["words", "name", "fact"], "caller dropped"),
        ACall(ann, ["words"], "caller left"),
    )

    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(STEPS, st.booleans(), st.booleans())
    @example([whole, Forget(ann), again, again], True, True)
    @example(
        [whole, replace(whole, fails_after=0), Forget(ann), "back", "deliver", again, again],
        True,
        True,
    )
    @example(
        [
            replace(whole, fails_after=1),
            Forget(ann),
            "back",
            Forget(ann),
            "two deliver",
            again,
            again,
        ],
        True,
        True,
    )
    def history(steps: list[Step], phones: bool, transcripts: bool) -> None:
        asyncio.run(live(steps, url, phones, transcripts))

    history()
