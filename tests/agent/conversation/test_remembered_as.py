"""The persona decides who is remembered, before anything is said."""

from __future__ import annotations

import pytest

from agent import entrypoint
from agent.conversation import CallAgent
from agent.lifecycle import Call
from agent.memory import Turn, open_store
from agent.memory.call_memory import StoredCallMemory
from agent.memory.identity import key_of
from agent.settings import load_settings
from agent.transport import Caller
from template.tests.talk import FakeTransport, talk


class Customers(CallAgent):
    """Knows callers only by the number of their contract."""

    def remembered_as(self, caller: Caller) -> str | None:
        word, _, number = caller.identity.partition("/")
        return f"contract {number}" if word == "guest" and number else None


@pytest.fixture
def customers(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(call: Call) -> CallAgent:
        return Customers(call, instructions="")

    monkeypatch.setattr(entrypoint, "build_persona", build)


async def turns_of(key: str) -> list[Turn]:
    async with open_store(load_settings()) as store:
        assert store is not None
        profile = await store.recall(key)
    return profile.turns if profile else []


@pytest.mark.usefixtures("customers")
async def test_an_owner_decides_under_which_key_a_caller_is_remembered() -> None:
    async with talk("guest/4711") as call:
        await call.say("hello")
    async with talk("guest/4711") as call:
        assert call.said[0].startswith("Welcome back")
    assert "hello" in [turn.text for turn in await turns_of("contract 4711")]
    assert await turns_of("guest/4711") == []


@pytest.mark.usefixtures("customers")
async def test_whom_the_owner_does_not_name_is_not_remembered() -> None:
    for _ in range(2):
        async with talk("ann") as call:
            assert call.said[0].startswith("Hello")
    assert await turns_of("ann") == []


@pytest.mark.parametrize(
    "caller",
    [
        Caller("ann"),
        Caller("guest-17"),
        Caller("user-4821"),
        Caller("", kind="standard"),
        Caller("sip_+15551234567", kind="sip", attributes={"sip.phoneNumber": "+15551234567"}),
        Caller("sip_anonymous", kind="sip", attributes={"sip.phoneNumber": "anonymous"}),
        Caller("ann", kind="agent"),
    ],
    ids=lambda caller: f"{caller.kind} {caller.identity}",
)
@pytest.mark.parametrize("phones", [False, True])
async def test_by_default_the_rule_of_the_memory_decides(caller: Caller, phones: bool) -> None:
    async with talk(remember_phone_numbers=phones) as call:
        agent = CallAgent(call.call, instructions="")
        rule = key_of(caller.identity, caller.kind, caller.attributes, phones=phones)
        assert agent.remembered_as(caller) == rule


async def test_no_word_of_a_known_caller_is_lost_before_they_are_recalled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first turns may finish while the profile is still loading."""

    async def recall(call: Call) -> None:
        assert call.memory is not None
        call.memory.add_turn(Turn(call.transport.call_id, "early", "user", "very early words", 1.0))

    monkeypatch.setattr(entrypoint, "recall", recall)
    async with talk() as call:
        assert isinstance(call.call.memory, StoredCallMemory)
    assert "very early words" in [turn.text for turn in await turns_of("ann")]


async def test_a_call_without_memory_knows_callers_for_its_report_by_the_same_rules() -> None:
    call = Call(FakeTransport(), load_settings())
    agent = CallAgent(call, instructions="")
    phone = Caller("sip_+15550001234", kind="sip")
    assert agent.remembered_as(Caller("ann")) == "ann"
    assert agent.remembered_as(Caller("guest-1")) is None
    assert agent.remembered_as(phone) is None
