"""Reports that tests make."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from agent.reports import (
    VERSION,
    Close,
    Failure,
    LookUp,
    Report,
    Said,
    StepTaken,
    ToolUse,
)
from agent.reports.delivery import Waiting
from agent.reports.delivery import leave as leave_waiting
from agent.settings import Settings

HEARD = {"turn": 300, "model": 600, "voice": 200}


def report(call: str = "AJ_1", *, ago: float = 60, **fields: Any) -> Report:
    """A report of a call that began so many seconds ago, and went well."""
    return Report(
        **{
            **{"call": call, "room": f"room of {call}", "agent": "agent"},
            **{"began": time.time() - ago, "seconds": 12.5, "reason": "caller left"},
            **fields,
        }
    )


def full_report(call: str = "AJ_1", **fields: Any) -> Report:
    """One with something of everything."""
    return report(
        call,
        **{
            "caller": "ann",
            "kind": "standard",
            "said": [
                Said(1.0, "assistant", "Hello!"),
                Said(3.0, "user", "When do you <b>open</b>?"),
                Said(5.1, "assistant", "At nine.", heard_ms=1100, stages=HEARD),
                Said(5.6, "assistant", "And on Sunday", interrupted=True),
            ],
            "tools": [ToolUse(4.2, "book", '{"day":"Monday"}', '{"id":7}', "ok", 80)],
            "lookups": [LookUp(4.0, "When do you open?", ["hours.md > Hours"], "ok", 12)],
            "failures": [Failure(6.0, "text-to-speech", "APIError: 503", "the caller was told")],
            "steps": [StepTaken(0.1, 1, "open infrastructure", "ok")],
            "closes": [Close("session", "ok", 3), Close("http", "timeout", 2000)],
            "usage": {"llm_input_tokens": 120},
            **fields,
        },
    )


def newer_report(call: str = "AJ_newer", **fields: Any) -> Report:
    """One of a layout that only a newer version can read."""
    one: Any = "a list no more"
    return report(call, **{"steps": one, "version": VERSION + 1, **fields})


def leave(settings: Settings, made: Report, keys: Iterable[str] = ()) -> None:
    """Leave it as a call does whose caller is known by these keys."""
    leave_waiting(settings, Waiting.of(settings, made, keys))
