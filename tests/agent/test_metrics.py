"""The worker's metrics: what is known beforehand begins at zero, and records are counted."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from agent.metrics import Metrics, files_in
from agent.reasons import REASONS, Reason
from agent.reports import STAGES
from agent.server import Server
from agent.settings import Settings, load_settings
from agent.telemetry import CallLogHandler


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry) -> Metrics:
    return Metrics(load_settings(), REASONS, STAGES, registry=registry)


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        *(("agent_calls_total", {"reason": reason}) for reason in (Reason.JOB_DIED, "too long")),
        ("agent_turns_total", {}),
        ("agent_degraded_total", {"part": "memory"}),
        ("agent_closes_total", {"resource": "room", "outcome": "timeout"}),
        ("agent_lookups_total", {"outcome": "late"}),
        ("agent_recalls_total", {"outcome": "error"}),
        ("agent_unwritten_total", {"outcome": "lost"}),
        ("agent_answer_stage_seconds_count", {"stage": "model"}),
        ("agent_first_word_seconds_count", {}),
    ],
)
def test_what_is_known_beforehand_begins_at_zero(
    name: str, labels: dict[str, str], metrics: Metrics, registry: CollectorRegistry
) -> None:
    # Prometheus sees no increase in a counter that begins at one
    assert registry.get_sample_value(name, labels) == 0


@pytest.mark.parametrize(
    ("logger", "fields", "counted"),
    [
        (
            "agent.call",
            {"resource": "pool", "outcome": "timeout", "ms": 1},
            ("agent_closes_total", {"resource": "pool", "outcome": "timeout"}),
        ),
        (
            "agent.call",
            {"degraded": "tools of shop"},
            ("agent_degraded_total", {"part": "tools of shop"}),
        ),
    ],
)
def test_what_an_owner_has_named_is_seen_at_zero_before_it_is_counted(
    logger: str,
    fields: dict[str, Any],
    counted: tuple[str, dict[str, str]],
    metrics: Metrics,
    registry: CollectorRegistry,
) -> None:
    def asked() -> float | None:
        # once, as Prometheus does
        samples = [sample for family in registry.collect() for sample in family.samples]
        found = [one.value for one in samples if (one.name, one.labels) == counted]
        return found[0] if found else None

    assert asked() is None
    metrics.count(logger, fields)
    assert asked() == 0
    assert asked() == 1
    metrics.count(logger, fields)
    assert asked() == 2


@pytest.mark.parametrize(
    ("logger", "fields", "counted"),
    [
        ("agent.call", {"first_word_ms": 700}, ("agent_first_word_seconds_sum", {}, 0.7)),
        (
            "agent.call",
            {"heard_ms": 900, "stages": {"model": 600, "voice": 300}},
            ("agent_answer_stage_seconds_sum", {"stage": "voice"}, 0.3),
        ),
        (
            "agent.knowledge",
            {"outcome": "late", "passages": [], "ms": 250},
            ("agent_lookups_total", {"outcome": "late"}, 1),
        ),
        ("agent.memory", {"recall": "known"}, ("agent_recalls_total", {"outcome": "known"}, 1)),
        ("agent.memory", {"spooled": 3}, ("agent_unwritten_total", {"outcome": "spooled"}, 3)),
        ("agent.memory", {"degraded": "memory"}, ("agent_degraded_total", {"part": "memory"}, 1)),
    ],
)
def test_the_worker_counts_what_records_say(
    logger: str,
    fields: dict[str, object],
    counted: tuple[str, dict[str, str], float],
    metrics: Metrics,
    registry: CollectorRegistry,
) -> None:
    record = logging.makeLogRecord({"name": logger, "fields": {**fields, "call": "a", "room": "r"}})
    CallLogHandler(metrics).handle(record)
    name, labels, value = counted
    assert registry.get_sample_value(name, labels) == value


def test_what_waits_is_looked_at_when_it_is_asked_for(
    metrics: Metrics, registry: CollectorRegistry, tmp_path: Path
) -> None:
    metrics.watch_each("waiting", "Files.", "what", {"memory": files_in(tmp_path, "*.jsonl")})
    assert registry.get_sample_value("waiting", {"what": "memory"}) == 0
    (tmp_path / "one.jsonl").touch()
    assert registry.get_sample_value("waiting", {"what": "memory"}) == 1


def test_an_outage_is_seen_from_the_mark_that_calls_leave(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    settings = Settings(data_dir=tmp_path, memory_url="redis://localhost")
    Metrics(settings, REASONS, registry=registry).watch_outages(settings)
    outage = "agent_outage", {"part": "memory"}
    assert registry.get_sample_value(*outage) == 0
    (tmp_path / "memory.outage").touch()
    assert registry.get_sample_value(*outage) == 1


def test_a_project_without_memory_and_documents_has_no_metrics_of_them(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    settings = Settings(data_dir=tmp_path, memory_url="none", knowledge="none")
    Metrics(settings, REASONS, registry=registry)
    samples = [sample for metric in registry.collect() for sample in metric.samples]
    labels = [value for sample in samples for value in sample.labels.values()]
    assert not {"memory", "knowledge"} & set(labels)
    assert not [sample.name for sample in samples if sample.name == "agent_lookups_total"]


@pytest.mark.parametrize("telephony", [True, False])
def test_a_worker_without_a_telephone_counts_no_ends_of_telephones(
    telephony: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not telephony:
        monkeypatch.setattr("agent.server.find_spec", lambda name: None)
    registry, server = CollectorRegistry(), Server(load_settings())
    server.measured(registry)
    vars(server)["_proc_pool"] = SimpleNamespace(processes=[])
    counted = {
        reason: registry.get_sample_value("agent_calls_total", {"reason": reason})
        for reason in (Reason.CALLER_LEFT, Reason.BUSY, Reason.TRANSFERRED)
    }
    there = 0 if telephony else None
    assert counted == {
        Reason.CALLER_LEFT: 0,
        Reason.BUSY: there,
        Reason.TRANSFERRED: there,
    }


async def test_a_worker_tells_whether_it_would_take_a_call() -> None:
    registry = CollectorRegistry()
    server = Server(load_settings().model_copy(update={"max_load": 0.5}))
    server.measured(registry)
    takes = "agent_takes_calls"
    private: Any = server
    private._proc_pool = SimpleNamespace(processes=[])
    private._devmode = private._simulation = False
    server._worker_load, server._reserved_slots = 0.2, 0
    assert registry.get_sample_value(takes) == 0  # it is not registered yet
    server._registered()
    assert registry.get_sample_value(takes) == 1
    server._worker_load = 0.6
    assert registry.get_sample_value(takes) == 0
