"""What the report of a call will say, taken in as it happens. Nothing here decides anything."""

from __future__ import annotations

import time
from collections.abc import Mapping

from agent.reports import Close, Failure, LookUp, Said, StepTaken, ToolUse

# of one call, so that no report grows without an end; a call of an hour has some hundreds
MOST = 2000


class ReportDraft:
    """The report of one call, so far."""

    def __init__(self) -> None:
        self.began = time.time()
        self.said: list[Said] = []
        self.tools: list[ToolUse] = []
        self.lookups: list[LookUp] = []
        self.failures: list[Failure] = []
        self.steps: list[StepTaken] = []
        self.closes: list[Close] = []

    def at(self, moment: float | None = None) -> float:
        """Seconds from the beginning of the call until `moment` (time.time()), or now."""
        return round((time.time() if moment is None else moment) - self.began, 3)

    def add_said(
        self,
        role: str,
        text: str,
        moment: float,
        *,
        interrupted: bool = False,
        heard_ms: int | None = None,
        stages: Mapping[str, int] | None = None,
    ) -> None:
        """A finished turn of either side, begun at `moment` (time.time())."""
        if len(self.said) < MOST:
            times = heard_ms, dict(stages or {})
            self.said.append(Said(self.at(moment), role, plain(text), interrupted, *times))

    def add_tool(
        self, name: str, arguments: str, result: str, outcome: str, began: float, ms: int
    ) -> None:
        """A tool that was used from `began` (time.time()) on."""
        if len(self.tools) < MOST:
            given = plain(arguments), plain(result)
            self.tools.append(ToolUse(self.at(began), name, *given, outcome, ms))

    def add_lookup(self, question: str, passages: list[str], outcome: str, ms: int) -> None:
        """Documents were asked, until now."""
        if len(self.lookups) < MOST:
            at = self.at(time.time() - ms / 1000)
            self.lookups.append(LookUp(at, plain(question), passages, outcome, ms))

    def add_failure(self, part: str, problem: str, done: str) -> None:
        """A part has failed, and the call has done something about it."""
        if len(self.failures) < MOST:
            self.failures.append(Failure(self.at(), part, plain(problem), done))

    def add_step(self, number: int, name: str, outcome: str) -> None:
        """A step is done."""
        self.steps.append(StepTaken(self.at(), number, name, outcome))

    def add_close(self, name: str, outcome: str, ms: int) -> None:
        """A resource was closed."""
        self.closes.append(Close(name, outcome, ms))


def plain(text: str) -> str:
    """The text without half a surrogate pair, which is in no JSON."""
    return text.encode(errors="replace").decode()
