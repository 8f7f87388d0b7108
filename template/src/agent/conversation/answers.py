"""How long the caller waits for each answer, and for what: from their last word to the first sound.

Parts of the agent say when they work (lifecycle/waits.py); the SDK knows when a caller stops
speaking and when a sound is played. A reply that is only a tool call has no metrics of the SDK's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from livekit.agents.llm import ChatMessage

from agent.lifecycle import Call


class Answers:
    """Takes in the finished turns of a session and times those that answer the caller."""

    def __init__(self, call: Call) -> None:
        self._call, self._waits = call, call.journal.waits
        # when the words ended that are to be answered; None when they are
        self._asked: float | None = None
        self._answered = 0.0

    def add(self, item: ChatMessage, text: str, *, realtime: bool) -> None:
        """A turn of either side is finished."""
        metrics: Mapping[str, Any] = item.metrics or {}
        moment = float(metrics.get("started_speaking_at", item.created_at))
        if item.role == "user":
            self._caller_has_spoken(item, metrics)
            self._call.add_turn(item.id, "user", text, moment=moment)
            return
        asked = self._asked_before(metrics)
        heard_ms, stages = None, dict[str, int]()
        if asked is not None:
            self._asked, self._answered = None, asked
            if (more := metrics.get("llm_node_ttfs", 0) - metrics.get("llm_node_ttft", 0)) > 0:
                # the voice waits for a whole sentence, which is the model's time
                self._waits.extend("model", more)
            stages = self._waits.split(asked, moment, rest="model" if realtime else "other")
            heard_ms = max(0, round((moment - asked) * 1000))
        self._call.add_turn(
            item.id,
            item.role,
            text,
            moment=moment,
            interrupted=item.interrupted,
            heard_ms=heard_ms,
            stages=stages,
        )
        if heard_ms is not None and asked is not None:
            self._call.journal.answered(asked, moment, heard_ms, stages)

    def _caller_has_spoken(self, item: ChatMessage, metrics: Mapping[str, Any]) -> None:
        stopped = metrics.get("stopped_speaking_at")
        if stopped is None:
            # typed, or heard by a realtime model, whose answer says how long it took
            self._asked = item.created_at
            return
        self._asked = None
        heard, decided = (
            stopped + metrics.get(name, 0.0)
            for name in ("transcription_delay", "end_of_turn_delay")
        )
        self._waits.add("transcript", stopped, heard)
        self._waits.add("turn", heard, decided)

    def _asked_before(self, metrics: Mapping[str, Any]) -> float | None:
        """When the words ended that this answers; None if it answers none, or not as the first."""
        if "started_speaking_at" not in metrics:
            return None
        if "e2e_latency" not in metrics:
            return self._asked
        asked = float(metrics["started_speaking_at"] - metrics["e2e_latency"])
        # the reply that follows a tool answers the same words once more
        return asked if asked > self._answered + 0.001 else None
