"""What a tool of an owner's may be and give back, and what becomes of it when the call ends."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import threading
from collections import UserDict
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from livekit.agents import function_tool
from livekit.agents.llm import ChatChunk, ChoiceDelta, FunctionToolCall
from pydantic import BaseModel

from agent import entrypoint
from agent.conversation import CallAgent
from agent.conversation.tools import MOST_RESULT_CHARACTERS
from agent.lifecycle import Call, Reason
from template.tests.talk import Talk, talk


class Booking(BaseModel):
    table: int
    at: datetime


@dataclass
class Price:
    amount: Decimal
    per: str


def row() -> sqlite3.Row:
    with closing(sqlite3.connect(":memory:")) as database:
        database.row_factory = sqlite3.Row
        found: sqlite3.Row = database.execute("SELECT 4 AS seats").fetchone()
        return found


async def forgotten() -> str:
    return "awaited after all"


class Unreadable:
    def __str__(self) -> str:
        raise RuntimeError("not open")


ENDLESS: dict[str, Any] = {}
ENDLESS["again"] = ENDLESS
NOON = datetime(2026, 11, 28, 12)
RESULTS: dict[str, tuple[Any, str]] = {
    "a mapping": ({"free": True, "seats": None}, '{"free":true,"seats":null}'),
    "a list": (["a", 1], '["a",1]'),
    "a set": ({1}, "[1]"),
    "a model": (Booking(table=4, at=NOON), '{"table":4,"at":"2026-11-28T12:00:00"}'),
    "a dataclass": (Price(Decimal("9.50"), "night"), '{"amount":"9.50","per":"night"}'),
    "a list of models": ([Booking(table=4, at=NOON)], '[{"table":4,"at":"2026-11-28T12:00:00"}]'),
    "what JSON does not know": ({"at": NOON, "x": range(2)}, '"2026-11-28T12:00:00"'),
    "text": ("Table 4.", "Table 4."),
    "a number": (4, "4"),
    "nothing": (None, "Done."),
    "a row of a database": ([row()], '[{"seats":4}]'),
    "a mapping of one's own": (UserDict(seats=4), '{"seats":4}'),
    "numbers of numpy": ({"seats": np.arange(2), "free": np.int64(1)}, '{"seats":[0,1],"free":1}'),
    "bytes": ({"name": b"Ada"}, '{"name":"Ada"}'),
    "bytes that are no text": ({"image": b"\xff"}, '{"image":"_w=="}'),
    "not a number": ([float("nan")], "[null]"),
    "half a character": ("a\udcff", "a?"),
    "what holds itself": (ENDLESS, "It is done, but its result cannot be read."),
    "what cannot be read": (Unreadable(), "It is done, but its result cannot be read."),
}


class Desk(CallAgent):
    """Has a tool of every kind."""

    result: Any = None

    def __init__(self, call: Call) -> None:
        super().__init__(call, instructions="Be quick.")
        self.began, self.saved, self.cut = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.go_on = asyncio.Event()
        self.thread: int | None = None
        self.digs, self.dug = threading.Event(), threading.Event()

    @function_tool
    async def give(self) -> Any:
        """Give back the result that the test wants."""
        return self.result

    # mypy refuses what many write
    @function_tool  # type: ignore[type-var]
    def look(self) -> str:
        """A plain function."""
        self.thread = threading.get_ident()
        return "seen"

    @function_tool  # type: ignore[type-var]
    def dig(self) -> str:
        """A plain function that takes as long as the test lets it."""
        self.digs.set()
        self.dug.wait()
        return "dug"

    @function_tool
    async def leave(self) -> str:
        """What was written for a command line leaves so."""
        sys.exit(3)

    @function_tool
    async def save_booking(self) -> str:
        """Save it, when the test lets it."""
        self.began.set()
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.cut.set()
            raise
        self.saved.set()
        return "saved"


@pytest.fixture
def desks(monkeypatch: pytest.MonkeyPatch) -> list[Desk]:
    """Replace the owner's persona; every agent that is made."""
    made: list[Desk] = []

    def build(call: Call) -> CallAgent:
        made.append(Desk(call))
        return made[-1]

    monkeypatch.setattr(entrypoint, "build_persona", build)
    return made


@pytest.mark.parametrize("kind", RESULTS)
async def test_the_model_reads_any_result_as_text_or_json(desks: list[Desk], kind: str) -> None:
    result, expected = RESULTS[kind]
    async with talk() as call:
        desks[0].result = result
        answer = await call.say("/tool give {}")
        assert expected in call.tool_output("give")
        # and goes on
        assert answer


async def test_a_result_that_is_too_long_is_cut_and_the_owner_warned(
    desks: list[Desk], caplog: pytest.LogCaptureFixture
) -> None:
    async with talk() as call:
        desks[0].result = "x" * 1_000_000
        await call.say("/tool give {}")
        given = call.tool_output("give")
        assert given.startswith("x" * MOST_RESULT_CHARACTERS + " [cut; 1000000 ")
    assert "the result of the tool give was cut to 20000 of its 1000000 characters" in caplog.text


async def test_a_plain_function_runs_in_a_thread_and_its_result_is_given(
    desks: list[Desk],
) -> None:
    async with talk() as call:
        await call.say("/tool look {}")
        assert call.tool_output("look") == "seen"
        assert desks[0].thread not in {None, threading.get_ident()}


async def test_a_tool_that_would_end_the_process_ends_no_call(desks: list[Desk]) -> None:
    async with talk() as call:
        await call.say("/tool leave {}")
        assert await call.say("Thank you.") == "You are welcome."


async def test_a_plain_function_that_is_late_is_not_said_to_have_failed(
    desks: list[Desk],
) -> None:
    async with talk(tool_seconds=0.01) as call:
        answer = await call.say("/tool dig {}")
        desks[0].dug.set()
        assert answer
        assert "do not try it again" in call.tool_output("dig")


async def test_a_plain_function_that_outlives_its_call_is_not_said_to_be_cut(
    desks: list[Desk], caplog: pytest.LogCaptureFixture
) -> None:
    async with talk(tool_finish_seconds=0.01) as call:
        asking = asyncio.create_task(call.say("/tool dig {}"))
        await asyncio.to_thread(desks[0].digs.wait)
        call.transport.leave()
        await call.ended()
        await asking
        desks[0].dug.set()
    assert "the tool dig was left running in its thread: its call has ended" in caplog.text


async def test_a_forgotten_await_is_made_good(desks: list[Desk]) -> None:
    async with talk() as call:
        desks[0].result = forgotten()
        await call.say("/tool give {}")
        assert call.tool_output("give") == "awaited after all"


async def begin_to_book(call: Talk, desk: Desk) -> asyncio.Task[str]:
    asking = asyncio.create_task(call.say("/tool save_booking {}"))
    await desk.began.wait()
    return asking


async def test_what_a_tool_has_begun_it_finishes_after_the_call_has_ended(
    desks: list[Desk], caplog: pytest.LogCaptureFixture
) -> None:
    async with talk(tool_finish_seconds=60) as call:
        asking = await begin_to_book(call, desks[0])
        call.transport.leave()
        desks[0].go_on.set()
        await call.ended()
        await asking
    assert desks[0].saved.is_set()
    assert "cut short" not in caplog.text


async def test_a_tool_that_is_cut_short_is_named_in_the_log(
    desks: list[Desk], caplog: pytest.LogCaptureFixture
) -> None:
    async with talk(tool_finish_seconds=0.01) as call:
        asking = await begin_to_book(call, desks[0])
        call.transport.leave()
        await call.ended()
        await asking
    assert desks[0].cut.is_set()
    assert "the tool save_booking was cut short: its call has ended" in caplog.text


async def test_a_tool_that_must_finish_has_its_whole_deadline(
    desks: list[Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Desk, "must_finish_tools", frozenset({"save_booking"}))
    async with talk(tool_finish_seconds=0, tool_seconds=60) as call:
        asking = await begin_to_book(call, desks[0])
        call.transport.leave()
        await call.call.wait_ended()
        desks[0].go_on.set()
        await call.ended()
        await asking
    assert desks[0].saved.is_set()


@pytest.mark.parametrize("order", [("save_booking", "end_call"), ("end_call", "save_booking")])
async def test_a_tool_that_is_called_with_the_end_of_the_call_finishes_before_the_goodbye(
    desks: list[Desk], monkeypatch: pytest.MonkeyPatch, order: tuple[str, str]
) -> None:
    async def both(*_: object) -> AsyncIterator[ChatChunk]:
        calls = [FunctionToolCall(name=name, arguments="{}", call_id=name) for name in order]
        yield ChatChunk(id="both", delta=ChoiceDelta(role="assistant", tool_calls=calls))

    async with talk(tool_finish_seconds=60) as call:
        monkeypatch.setattr(Desk, "llm_node", both)
        asking = asyncio.create_task(call.say("Book it, and goodbye!"))
        await call.call.wait_ended()
        await desks[0].began.wait()
        assert call.said[-1] != desks[0].goodbye(Reason.AGENT_HUNG_UP)
        desks[0].go_on.set()
        await call.ended()
        await asking
    assert desks[0].saved.is_set()
    assert call.said[-1] == desks[0].goodbye(Reason.AGENT_HUNG_UP)
