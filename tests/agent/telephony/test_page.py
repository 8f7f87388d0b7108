"""The code of docs/agent/telephone.md works, and so does what it says of a test."""

from __future__ import annotations

from typing import Any
from unittest.mock import AsyncMock, Mock

import pytest
from livekit.agents import StopResponse, function_tool
from livekit.api import ServerError

from agent import persona
from agent.conversation import CallAgent
from agent.transport import Caller
from template.tests.talk import talk
from tests.agent.test_how_to import blocks, run
from tests.support.room_service import RoomService

PAGE = "docs/agent/telephone.md"


def show(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """The persona of this example answers calls from now on, with what is there already."""
    shown = run(code, CallAgent=CallAgent, function_tool=function_tool)["Persona"]
    monkeypatch.setattr(persona, "Persona", type("Persona", (shown, persona.Persona), {}))


async def test_the_transfer_that_is_shown_passes_the_test_that_is_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown, test = blocks(PAGE, "Hand a caller on", "python")
    show(monkeypatch, shown)
    (name,) = {name for name in run(test) if name.startswith("test_")}
    await run(test, talk=talk)[name]()


async def test_a_key_transfers_and_what_goes_wrong_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, shown, _ = blocks(PAGE, "Hear keys", "python")
    show(monkeypatch, shown)
    livekit, room = AsyncMock(), Mock()
    phone: dict[str, Any] = {"room": room, "api": livekit}
    busy = ServerError("unavailable", "busy", status=503)
    livekit.sip.transfer_sip_participant.side_effect = busy
    async with talk(Caller("sip_1", kind="sip"), **phone, calls_to="+49") as call:
        await call.call.persona.on_keys("1")
        assert livekit.sip.transfer_sip_participant.await_count == 0
        await call.call.persona.on_keys("0")
        assert call.said[-1] == "I am sorry, I cannot connect you just now."
        livekit.sip.transfer_sip_participant.side_effect = None
        with pytest.raises(StopResponse):
            await call.call.persona.on_keys("0")
        assert call.reason == "transferred"


async def test_a_key_that_is_shown_hangs_up(monkeypatch: pytest.MonkeyPatch) -> None:
    shown, _, _ = blocks(PAGE, "Hear keys", "python")
    show(monkeypatch, shown)
    async with talk() as call:
        await call.call.persona.on_keys("9")
        await call.ended()
    assert call.reason == "agent hung up"


async def test_the_question_for_a_number_that_is_shown_is_one_of_a_tool(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    *_, shown = blocks(PAGE, "Hear keys", "python")
    show(monkeypatch, shown)
    async with talk() as call:
        asking = "Please tell me your order number, or key it in and press hash."
        await call.say("/tool my_order {}")
        assert call.said[-1] == asking


async def test_the_dispatch_that_is_shown_has_the_number(server: RoomService) -> None:
    (shown,) = blocks(PAGE, "Have the agent call somebody", "python")
    await run(shown)["call_about_the_order"]()
    (made,) = server.made
    assert (made.room, made.metadata) == (
        "call-of-order-1042",
        '{"call": "+493023125000", "order": 1042}',
    )


@pytest.mark.parametrize("name", [None, "call-1"])
async def test_a_call_of_a_test_is_in_the_room_that_it_is_given(name: str | None) -> None:
    room = Mock()
    if name:
        room.name = name
    async with talk(room=room) as call:
        assert call.transport.room_name == (name or "room")
