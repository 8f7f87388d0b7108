"""The worker's metrics for Prometheus; docs/agent/logs.md names each.

A counter begins at 0, for every label that is known beforehand: Prometheus sees no increase in one
that begins at 1, so that an alert would miss the first error of a worker. What is named by owners
is known when it is counted for the first time; then it is 0 when Prometheus asks next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, Metric

from agent.settings import Settings
from agent.telemetry import END

CALL_BUCKETS = (1, 5, 15, 30, 60, 120, 300, 600, 1800, 3600)
# of what a caller waits for: the first word, an answer, its stages
WAIT_BUCKETS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10)
LOOKUP_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)

CLOSES = ("ok", "error", "timeout", "cut")
LOOKUPS = ("ok", "late", "error")
RECALLS = ("known", "unknown", "error")


class FirstCounts:
    """Counts of what was not known beforehand, added when Prometheus has seen it at 0."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._new: list[Callable[[], None]] = []
        self._seen: list[Callable[[], None]] = []
        # before what it counts for, so that this is asked first
        registry.register(self)

    def describe(self) -> list[Metric]:
        """Nothing of its own."""
        return []

    def collect(self) -> list[Metric]:
        """Prometheus asks."""
        for count in self._seen:
            count()
        self._seen, self._new = self._new, []
        return []

    def add(self, count: Callable[[], None]) -> None:
        """Count at the time after the next."""
        self._new.append(count)


class Metrics:
    """What is counted from the records of calls, and what is looked at when Prometheus asks.

    `reasons` are all that a call can end for, `stages` all that an answer can wait for, and
    `currencies` those of the table of prices.
    """

    def __init__(
        self,
        settings: Settings,
        reasons: Iterable[str],
        stages: Iterable[str] = (),
        currencies: Iterable[str] = (),
        *,
        registry: CollectorRegistry = REGISTRY,
    ) -> None:
        self._registry, self._first = registry, FirstCounts(registry)
        self._resources, self._parts = set[str](), set[str]()
        remembers, knows = settings.memory != "none", settings.knowledge != "none"
        self._calls = self._counter("agent_calls", "Calls that have ended, by reason.", "reason")
        self._seconds = self._histogram(
            "agent_call_seconds",
            "Seconds from the job until everything was closed.",
            CALL_BUCKETS,
        )
        self._turns = self._counter("agent_turns", "Finished turns of both sides.")
        self._first_word = self._histogram(
            "agent_first_word_seconds",
            "Seconds from when the caller was there until the agent's first sound.",
            WAIT_BUCKETS,
        )
        self._answers = self._histogram(
            "agent_answer_seconds",
            "Seconds from the end of the caller's words to the first sound of the answer.",
            WAIT_BUCKETS,
        )
        self._stages = self._histogram(
            "agent_answer_stage_seconds",
            "What these seconds were spent on, by stage.",
            WAIT_BUCKETS,
            "stage",
        )
        self._lookups = self._counter(
            "agent_lookups", "Times that documents were looked up, by outcome.", "outcome"
        )
        self._lookup_seconds = self._histogram(
            "agent_lookup_seconds", "Seconds that looking up documents took.", LOOKUP_BUCKETS
        )
        self._recalls = self._counter(
            "agent_recalls", "Callers who were looked up in memory, by outcome.", "outcome"
        )
        self._unwritten = self._counter(
            "agent_unwritten",
            "Turns and records that memory did not take in their call: spooled, or lost.",
            "outcome",
        )
        self._closes = self._counter(
            "agent_closes", "Closed resources, by outcome.", "resource", "outcome"
        )
        self._degraded = self._counter(
            "agent_degraded", "Calls that went on without a part of theirs, by part.", "part"
        )
        self._cost = self._counter("agent_cost", "What calls have cost, by currency.", "currency")
        for reason in reasons:
            self._calls.labels(reason)
        for stage in stages:
            self._stages.labels(stage)
        for currency in currencies:
            self._cost.labels(currency)
        parts = [name for name, on in (("memory", remembers), ("knowledge", knows)) if on]
        for part in [*parts, *(["embedder"] if settings.embeddings != "none" else [])]:
            self._degraded.labels(part)
            self._parts.add(part)
        for resource in ("session", "room", *parts):
            self._zero_closes(resource)
            self._resources.add(resource)
        for outcome in LOOKUPS if knows else ():
            self._lookups.labels(outcome)
        for outcome in RECALLS if remembers else ():
            self._recalls.labels(outcome)
        for outcome in ("spooled", "lost") if remembers else ():
            self._unwritten.labels(outcome)

    def count(self, record: str, fields: dict[str, Any]) -> None:
        """Count what a record of the logger `record` says; others say nothing that is counted."""
        if "degraded" in fields:
            part = fields["degraded"]
            self._count_named(self._parts, part, self._degraded.labels(part))
        elif record == "agent.call":
            self._count_call(fields)
        elif record == "agent.knowledge" and "outcome" in fields:
            self._lookups.labels(fields["outcome"]).inc()
            self._lookup_seconds.observe(fields["ms"] / 1000)
        elif record == "agent.memory" and "recall" in fields:
            self._recalls.labels(fields["recall"]).inc()
        elif record == "agent.memory":
            for outcome in fields.keys() & {"spooled", "lost"}:
                self._unwritten.labels(outcome).inc(fields[outcome])

    def _count_call(self, fields: dict[str, Any]) -> None:
        if "resource" in fields:
            resource, outcome = fields["resource"], fields["outcome"]
            if resource not in self._resources:
                self._zero_closes(resource)
            self._count_named(self._resources, resource, self._closes.labels(resource, outcome))
        elif "first_word_ms" in fields:
            self._first_word.observe(fields["first_word_ms"] / 1000)
        elif "heard_ms" in fields:
            self._answers.observe(fields["heard_ms"] / 1000)
            for stage, ms in fields["stages"].items():
                self._stages.labels(stage).observe(ms / 1000)
        elif fields.keys() >= END:
            seconds, turns = float(fields["seconds"]), fields["turns"] or 0
            self._turns.inc(turns)  # first, since it is what can refuse
            self._seconds.observe(seconds)
            self._calls.labels(fields["reason"]).inc()
            if fields.get("cost"):
                self._cost.labels(fields["currency"]).inc(fields["cost"])

    def watch(self, name: str, help: str, look: Callable[[], float]) -> None:
        """Look at a value whenever Prometheus asks."""
        Gauge(name, help, registry=self._registry).set_function(look)

    def watch_each(
        self, name: str, help: str, label: str, looks: dict[str, Callable[[], float]]
    ) -> None:
        """Look at several values, by label, whenever Prometheus asks."""
        gauge = Gauge(name, help, [label], registry=self._registry)
        for value, look in looks.items():
            gauge.labels(value).set_function(look)

    def watch_outages(self, settings: Settings) -> None:
        """Look at the marks of stores that have failed calls, until one finds them working."""
        marked = {
            "memory": settings.memory == "redis",
            "knowledge": settings.knowledge == "pgvector",
            "embedder": settings.knowledge != "none" and settings.embeddings != "none",
        }
        looks = {
            part: _is_there(settings.data / f"{part}.outage") for part, on in marked.items() if on
        }
        help = "1 from a failure of a store until it works."
        self.watch_each("agent_outage", help, "part", looks)

    def _count_named(self, known: set[str], name: str, counter: Counter) -> None:
        if name in known:
            counter.inc()
        else:
            known.add(name)
            self._first.add(counter.inc)

    def _zero_closes(self, resource: str) -> None:
        for outcome in CLOSES:
            self._closes.labels(resource, outcome)

    def _counter(self, name: str, help: str, *labels: str) -> Counter:
        return Counter(name, help, labels, registry=self._registry)

    def _histogram(
        self, name: str, help: str, buckets: tuple[float, ...], *labels: str
    ) -> Histogram:
        return Histogram(name, help, labels, buckets=buckets, registry=self._registry)


def _is_there(file: Path) -> Callable[[], float]:
    return lambda: float(file.exists())


def files_in(folder: Path, pattern: str) -> Callable[[], float]:
    """How many files wait in a folder, whenever it is asked."""
    return lambda: float(sum(1 for _ in folder.glob(pattern)))
