"""What a caller says is in no log, no metric and no file but those that are to keep it."""

from __future__ import annotations

import logging
from logging.handlers import QueueHandler
from pathlib import Path
from queue import Queue
from typing import Any

import pytest
from livekit.agents import function_tool
from prometheus_client import CollectorRegistry, generate_latest

from agent import entrypoint
from agent.conversation import CallAgent
from agent.lifecycle import Call
from agent.metrics import Metrics
from agent.reasons import REASONS
from agent.reports import STAGES
from agent.reports.delivery import KEPT, deliver
from agent.settings import load_settings
from agent.telemetry import CallLogHandler, JsonLines, Readable, exception_of, without_number
from agent.transport import Caller
from template.tests.talk import talk
from tests.support.secrets import CARD, NAME, PHONE, ROOM, SAID, WORD, files_with_secrets, found_in

# what is to keep it: memory, the kept calls, and the reports that wait to be kept
KEEPERS = ["memory.db", "memory.db-wal", "calls.db", "reports"]


class Clerk(CallAgent):
    """Has tools that say what they are given, also when they fail."""

    def __init__(self, call: Call) -> None:
        super().__init__(call, instructions="Be a clerk.")

    @function_tool
    async def find(self, name: str) -> str:
        """Find a customer."""
        return f"{name} pays with {CARD}."

    @function_tool
    async def miss(self, name: str) -> str:
        """Find a customer who is not there."""
        return {"Ann": "a customer"}[name]


@pytest.fixture(autouse=True)
def clerk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entrypoint, "build_persona", Clerk)


async def the_call(**changes: Any) -> Call:
    """A stranger on the telephone says all of it, and has two tools used."""
    stranger = Caller(f"sip_{PHONE}", NAME, "sip", {"sip.phoneNumber": PHONE})
    async with talk(stranger, **changes) as call:
        await call.say(SAID)
        await call.say(f'/tool find {{"name": "{NAME}"}}')
        await call.say(f'/tool miss {{"name": "{NAME}"}}')
    return call.call


async def test_no_record_and_no_metric_has_what_was_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    # `agent call`, tested before in this process, silences it
    caplog.set_level(logging.DEBUG, "livekit")
    call = await the_call()

    registry = CollectorRegistry()
    counting = CallLogHandler(Metrics(load_settings(), REASONS, STAGES, registry=registry))
    lines = []
    for record in caplog.records:
        # the caller's own, which no worker shows
        if record.name.split(".")[0] in {"agent", "livekit"}:
            # in this process, and as it arrives from a job's
            for sent in (record, QueueHandler(Queue()).prepare(record)):
                lines += [JsonLines().format(sent), Readable().format(sent)]
            counting.handle(record)
    assert len(lines) > 100
    assert sum("KeyError" in line for line in lines) == 4
    assert {line: found for line in lines if (found := found_in(line))} == {}
    assert found_in(generate_latest(registry).decode()) == set()
    # and all of it was said
    assert found_in(call.report().to_json().decode()) >= {NAME, WORD}


async def test_only_what_is_to_keep_it_has_what_was_said() -> None:
    call = await the_call(keep_strangers_words=True)
    data = call.settings.data

    assert files_with_secrets(data, KEEPERS) == {}
    assert set(files_with_secrets(data)) != set()
    await deliver(call.settings, KEPT)
    assert files_with_secrets(data, KEEPERS) == {}
    # deleted files leave nothing behind
    assert files_with_secrets(data / "reports") == {}


@pytest.mark.parametrize("changes", [{}, {"keep_strangers_words": True, "keep_transcripts": False}])
async def test_nothing_has_it_of_a_stranger_or_where_no_transcripts_are_kept(
    changes: dict[str, bool],
) -> None:
    call = await the_call(**changes)
    await deliver(call.settings, KEPT)

    assert files_with_secrets(call.settings.data) == {}


async def test_kept_reports_have_no_cards_and_no_numbers_if_they_are_left_out() -> None:
    call = await the_call(redact="numbers", keep_strangers_words=True)
    await deliver(call.settings, KEPT)

    (found,) = files_with_secrets(call.settings.data).values()
    assert found == {NAME, WORD}


def test_a_phones_room_is_shown_without_its_number() -> None:
    assert without_number(ROOM) == "call-_[number]_a1B2c3D4e5F6"
    for name in ("room-12345678", "order_1234567", "call-_abc_123", "2024_11_30"):
        assert without_number(name) == name
    record = logging.makeLogRecord({"name": "agent", "msg": "x", "fields": {"room": ROOM}})
    assert found_in(JsonLines().format(record)) == set()


ERROR = f"""Traceback (most recent call last):
  File "/home/persona.py", line 12, in miss
    return customers["Ann"]
KeyError: '{NAME}
  and {WORD}'"""


def test_an_error_in_a_tool_is_shown_by_its_type_and_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("LIVEKIT_TELEMETRY_ALLOW_PII", raising=False)
    in_tool = logging.makeLogRecord({"msg": "exception occurred while executing tool"})

    shown = exception_of(in_tool, ERROR)

    assert shown.splitlines() == [
        '  File "/home/persona.py", line 12, in miss',
        "KeyError (not shown: it may say what the caller said; `agent report` does)",
    ]
    assert exception_of(logging.makeLogRecord({"msg": "another"}), ERROR) == ERROR
    monkeypatch.setenv("LIVEKIT_TELEMETRY_ALLOW_PII", "true")
    assert exception_of(in_tool, ERROR) == ERROR


def test_the_search_finds_what_it_looks_for(tmp_path: Path) -> None:
    assert found_in(SAID) == {NAME, WORD, "491715550042", CARD.replace(" ", "")}
    (tmp_path / "file").write_bytes(b"\x00\xff" + SAID.encode())
    assert set(files_with_secrets(tmp_path)) == {"file"}
