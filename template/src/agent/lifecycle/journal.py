"""What is recorded of one call: log records, spans, and one warning for each part that fails.

Nothing here decides anything. docs/agent/logs.md is the contract of the records and spans.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from livekit.agents.telemetry import tracer
from opentelemetry import trace

from agent.lifecycle.draft import ReportDraft
from agent.lifecycle.timeouts import Step
from agent.lifecycle.waits import Waits
from agent.reports import STAGES, Cost
from agent.telemetry import without_number

log = logging.getLogger("agent.call")

# the fields of the SDK's usage (livekit.agents.metrics) that bills are made of
BILLED = {
    "input_tokens": "input_tokens",
    "input_cached_tokens": "cached_tokens",
    "output_tokens": "output_tokens",
    "characters_count": "characters",
    "audio_duration": "audio_seconds",
    "session_duration": "session_seconds",
    "total_requests": "requests",
}


class CallOver(Exception):
    """Something was asked of a call that has already ended."""


class CallJournal:
    """The journal of one call, an `agent.telemetry.Journal`; `began` is of time.monotonic()."""

    def __init__(self, call_id: str, room_name: str, began: float) -> None:
        self._call = {"call": call_id, "room": room_name}
        self._began = began
        self.draft, self.waits = ReportDraft(), Waits()
        self._degraded: set[str] = set()  # parts that the call was warned of
        self._span: trace.Span = trace.INVALID_SPAN
        self._closing: trace.Span = trace.INVALID_SPAN

    @property
    def age_ms(self) -> int:
        """Milliseconds since the job began."""
        return round((time.monotonic() - self._began) * 1000)

    @property
    def age_seconds(self) -> float:
        """Seconds since the job began, to the millisecond."""
        return round(self.age_ms / 1000, 3)

    def fields(self, **fields: object) -> dict[str, Any]:
        """`extra=` of a record about this call."""
        return {"fields": {**fields, **self._call}}

    def record(self, message: str, **fields: object) -> None:
        """One record of the call's course."""
        log.info(message, extra=self.fields(**fields))

    def warn_once(self, part: str, log: logging.Logger, sentence: str) -> None:
        """Warn, and count, that the call goes on without a part; what follows is for debugging."""
        known = part in self._degraded
        self._degraded.add(part)
        if not known:
            self.draft.add_failure(part, sentence, "the call went on without it")
        extra = self.fields() if known else self.fields(degraded=part)
        log.log(logging.DEBUG if known else logging.WARNING, "%s", sentence, extra=extra)

    def took(self, name: str, began: int, **attributes: str | int) -> None:
        """Add a span to the call's trace from `began` (time.time_ns) until now."""
        self._start_span(name, self._span, began, **attributes).end()

    def looked_up(self, question: str, passages: list[str], outcome: str, began: int) -> None:
        """Documents were asked, from `began` (time.time_ns) until now."""
        ended = time.time_ns()
        self.waits.add("documents", began / 1e9, ended / 1e9)
        self.draft.add_lookup(question, passages, outcome, round((ended - began) / 1e6))
        self.took("look up", began, outcome=outcome, passages="; ".join(passages))

    def answered(self, asked: float, heard: float, heard_ms: int, stages: dict[str, int]) -> None:
        """The caller has heard the answer to words that ended at `asked` (of time.time())."""
        slowest = max(stages, key=lambda stage: stages[stage], default="other")
        sentence = f"answered after {heard_ms / 1000:.2f} s"
        if stages:
            sentence += f", {stages[slowest] / 1000:.2f} s of it {STAGES[slowest]}"
        self.record(sentence, heard_ms=heard_ms, slowest=slowest, stages=stages)
        times = {f"{stage}_ms": ms for stage, ms in stages.items()}
        span = self._start_span(
            "answer", self._span, int(asked * 1e9), heard_ms=heard_ms, slowest=slowest, **times
        )
        span.end(int(heard * 1e9))

    # ------------------------------------------------------------------ the call's course

    def call_begins(self) -> None:
        """The call's own span begins."""
        room = without_number(self._call["room"])
        self._span = tracer.start_span("call", attributes={**self._call, "room": room})

    @contextmanager
    def step(self, step: Step) -> Iterator[None]:
        """One span, and one record when the step is done, both with its outcome."""
        outcome = "ok"
        span = self._start_span(f"step {step.number}: {step.title}", self._span, step=step.number)
        if step is Step.CLEAN_UP:
            self._closing = span
        try:
            yield
        except BaseException as error:
            outcome = _outcome_of(error)
            raise
        finally:
            span.set_attribute("outcome", outcome)
            span.end()
            said = {"step": step.number, "name": step.title, "outcome": outcome}
            self.record(f"step {step.number}: {step.title}", **said, ms=self.age_ms)
            self.draft.add_step(step.number, step.title, outcome)

    def first_word(self, seconds: float) -> None:
        """The caller, who has been there for so long, hears the agent."""
        ms = round(seconds * 1000)
        self.record(f"first word after {ms} ms", first_word_ms=ms)

    def call_ends(self, reason: str) -> None:
        """The moment in which the end is known."""
        self.record(f"ending: {reason}", ending=reason, ms=self.age_ms)
        self._span.add_event("ending", {"reason": reason})

    def resource_closed(self, name: str, outcome: str, began: int, seconds: float) -> None:
        """One resource was closed, from `began` (time.time_ns) on."""
        self._start_span(f"close {name}", self._closing, began, outcome=outcome).end()
        ms = round(seconds * 1000)
        self.record(f"closed {name}", resource=name, outcome=outcome, ms=ms)
        self.draft.add_close(name, outcome, ms)

    def call_ended(self, reason: str | None, turns: int, cost: Cost | None = None) -> None:
        """The last record of the call, and the end of its span."""
        fields = {"reason": reason, "seconds": self.age_seconds, "turns": turns}
        if cost is not None and cost.is_known:
            fields |= {"cost": cost.total, "currency": cost.currency}
        self.record(f"call ended: {reason}", **fields)
        self._span.set_attributes({**fields, "reason": reason or ""})
        self._span.end()

    def _start_span(
        self, name: str, within: trace.Span, began: int | None = None, **attributes: str | int
    ) -> trace.Span:
        # never the current span, or every task that begins meanwhile would hang on it
        context = trace.set_span_in_context(within)
        return tracer.start_span(name, context=context, start_time=began, attributes=attributes)


def _outcome_of(error: BaseException) -> str:
    if isinstance(error, asyncio.CancelledError):
        return "cut"
    return "over" if isinstance(error, CallOver) else "error"


def usage_of(session: Any) -> dict[str, int]:
    """A session's usage by kind of model, such as `llm_input_tokens` and `tts_characters`.

    Zeros are left out, and so is everything of a session that does not count.
    """
    total: Counter[str] = Counter()
    for usage in getattr(getattr(session, "usage", None), "model_usage", []):
        kind = str(getattr(usage, "type", "")).removesuffix("_usage")
        for field, name in BILLED.items():
            total[f"{kind}_{name}"] += getattr(usage, field, 0) or 0
    return {name: rounded for name, value in total.items() if (rounded := round(value))}
