"""A question for a number, answered by keys and by voice."""

from __future__ import annotations

import logging

import pytest
from livekit.agents import function_tool

from agent import entrypoint
from agent.conversation import CallAgent
from agent.lifecycle import Call
from agent.telephony.ask import AskNumber
from template.tests.talk import Talk, talk


class Desk(CallAgent):
    def __init__(self, call: Call) -> None:
        super().__init__(call, instructions="Be the desk.")

    @function_tool
    async def look_up(self) -> str:
        """Look a customer up."""
        return f"Found {await AskNumber(self.call, 'your number', least=3, most=4)}."


@pytest.fixture(autouse=True)
def desk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entrypoint, "build_persona", Desk)


async def press(call: Talk, keys: str) -> str:
    """Press keys; the last that is said then."""
    assert call.call.session is not None
    agent = call.call.session.current_agent
    assert isinstance(agent, CallAgent)
    await agent.on_keys(keys)
    return call.said[-1]


async def test_a_number_that_is_keyed_in_is_read_back_and_confirmed() -> None:
    async with talk() as call:
        assert "your number" in await call.say("/tool look_up {}")
        assert "1, 2, 3, 4" in await press(call, "1234")
        # a new one, before the other is confirmed
        assert "9, 8, 7" in await press(call, "987")
        await press(call, "1")
        await call.say("Thanks")
        assert "Found 987." in call.said


async def test_a_number_that_is_wrong_is_asked_for_again() -> None:
    async with talk() as call:
        await call.say("/tool look_up {}")
        assert "no number of 3 to 4 digits" in await press(call, "12")
        assert "no number of 3 to 4 digits" in await press(call, "12*")
        # there is nothing to confirm
        assert "no number of 3 to 4 digits" in await press(call, "1")
        await press(call, "123")
        assert "Please tell me your number" in await press(call, "2")


async def test_a_number_that_is_said_is_read_back_and_confirmed() -> None:
    async with talk() as call:
        await call.say("/tool look_up {}")
        assert "There is no number yet" in await call.say('/tool confirm {"is_right": true}')
        assert "no number of 3 to 4 digits" in await call.say('/tool heard {"number": "12"}')
        assert "1, 2, 3" in await call.say('/tool heard {"number": "123"}')
        assert "Please tell me" in await call.say('/tool confirm {"is_right": false}')
        await call.say('/tool heard {"number": "124"}')
        assert await call.say('/tool confirm {"is_right": true}') == "Found 124."


async def test_keys_of_an_answer_are_in_no_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with talk() as call:
        await call.say("/tool look_up {}")
        await press(call, "4829")
    said = [(record.getMessage(), getattr(record, "fields", None)) for record in caplog.records]
    assert "4829" not in str(said)
