"""The log contract of docs/agent/logs.md: JSON lines for machines, one readable line for people."""

from __future__ import annotations

import json
import logging

from agent.telemetry import JsonLines, Readable


def record(**attributes: object) -> logging.LogRecord:
    """A record of ours, a second and a half after the epoch."""
    standard = {"msg": "step 2: connect", "levelname": "INFO", "levelno": 20, "name": "agent.call", "created": 1.5}
    return logging.makeLogRecord({**standard, **attributes})


def test_a_record_is_one_json_object_with_its_time_in_utc_milliseconds() -> None:
    fields = {"step": 2, "name": "connect", "ms": 101}
    line = JsonLines().format(record(fields=fields, room="room"))
    assert json.loads(line) == {
        "time": "1970-01-01T00:00:01.500+00:00",
        "level": "INFO",
        "logger": "agent.call",
        "message": "step 2: connect",
        "room": "room",
        **fields,
    }


def test_what_a_record_cannot_say_in_json_does_not_break_the_log() -> None:
    assert json.loads(JsonLines().format(record(fields={"odd": object})))["odd"] == "<class 'object'>"


def test_a_person_reads_what_went_wrong_and_how_long_it_took() -> None:
    line = Readable().format(record(fields={"step": 2, "outcome": "error", "ms": 8500, "call": "job", "room": "room"}))
    assert line.endswith("step 2: connect  outcome=error  ms=8500")
