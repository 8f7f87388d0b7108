"""What happened in a call, as one value: its turns and their times, tools, failures, closes, cost.

A report is made of every call. It is plain data, the same in the store, in JSON and in an owner's
code; docs/agent/reports.md describes each field.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import TypeAdapter

# of the layout of a report: a field that is added leaves it, one that changes its meaning does not
VERSION = 1
NEWER = "written by a newer version of this project: update this one"

# What a caller waits for, in this order; together they are the time until the first sound is heard.
STAGES = {
    "transcript": "speech-to-text",
    "turn": "the decision that the turn was over",
    "documents": "looking up documents",
    "model": "the language model",
    "tools": "tools",
    "voice": "the voice",
    "other": "everything else",
}


class NotDelivered(Exception):
    """A place does not take a report now: which, why, what to do; never a caller's words."""


class ReportRefused(NotDelivered):
    """It is this report that a place does not take; others may be."""


class NewerReport(ReportRefused, ValueError):
    """Its layout is one that only a newer version can read."""


@dataclass(frozen=True)
class Said:
    """One finished turn of either side, begun `at` seconds after the call; `role` as in memory.

    What answers the caller's words has `heard_ms`, from the end of these words until the first
    sound of the answer, and `stages`, which it is made of: see STAGES.
    """

    at: float
    role: str
    text: str
    interrupted: bool = False
    heard_ms: int | None = None
    stages: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ToolUse:
    """A tool that the model used: its arguments as JSON, and what it gave back or raised.

    `outcome` is ok, error, or unfinished for one that the end of the call left behind.
    """

    at: float
    name: str
    arguments: str
    result: str
    outcome: str
    ms: int


@dataclass(frozen=True)
class LookUp:
    """Documents that were asked before a reply, or by the model; `outcome` as in the log."""

    at: float
    question: str
    passages: list[str]
    outcome: str
    ms: int


@dataclass(frozen=True)
class Failure:
    """What failed, why, and what the call did about it."""

    at: float
    part: str
    problem: str
    done: str


@dataclass(frozen=True)
class StepTaken:
    """One of the eight steps, done `at` seconds after the call began."""

    at: float
    number: int
    name: str
    outcome: str


@dataclass(frozen=True)
class Close:
    """A resource that was closed; `outcome` as in the log."""

    name: str
    outcome: str
    ms: int


@dataclass(frozen=True)
class Cost:
    """What a call cost, by the prices of `priced` (a date), in `currency`.

    `parts` are by what is paid for, such as "llm gpt-6-luna" or "telephone". `unpriced` are those
    for which there is no price: the total is then too low.
    """

    total: float
    currency: str
    priced: str
    parts: dict[str, float] = field(default_factory=dict)
    unpriced: list[str] = field(default_factory=list)

    @property
    def is_known(self) -> bool:
        """Whether at least a part of it is: the total of parts without a price is not 0."""
        return bool(self.parts) or not self.unpriced


@dataclass(frozen=True)
class Report:
    """One call, `began` seconds since the epoch; all `at` below count from then.

    `caller` is the key under which they are remembered, None for a stranger; `kind` is what they
    called with: standard (a token), sip (a telephone), terminal; empty if nobody came.
    """

    call: str
    room: str
    agent: str
    began: float
    seconds: float
    reason: str
    caller: str | None = None
    kind: str = ""
    said: list[Said] = field(default_factory=list)
    tools: list[ToolUse] = field(default_factory=list)
    lookups: list[LookUp] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    steps: list[StepTaken] = field(default_factory=list)
    closes: list[Close] = field(default_factory=list)
    usage: dict[str, int] = field(default_factory=dict)
    cost: Cost | None = None
    recording: str | None = None
    version: int = VERSION

    def to_json(self) -> bytes:
        """The report as JSON, on one line."""
        return json.dumps(self.to_dict()).encode("ascii")

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, text: bytes | str) -> Report:
        """The report of such JSON; fields that a newer version has added are left out.

        Raises ValueError, NewerReport if the layout is a newer one.
        """
        layout, report = _adapters()
        if layout.validate_json(text).version > VERSION:
            raise NewerReport(f"a report was {NEWER}")
        return report.validate_json(text)

    @property
    def slowest(self) -> Said | None:
        """The answer that the caller waited longest for; None if nothing was timed."""
        timed = [said for said in self.said if said.heard_ms is not None]
        return max(timed, key=lambda said: said.heard_ms or 0, default=None)


@dataclass(frozen=True)
class _Layout:
    """What is read first."""

    version: int = VERSION


@lru_cache(maxsize=1)
def _adapters() -> tuple[TypeAdapter[_Layout], TypeAdapter[Report]]:
    # here, because only those who read reports need it, and it takes a while
    from pydantic import TypeAdapter

    return TypeAdapter(_Layout), TypeAdapter(Report)
