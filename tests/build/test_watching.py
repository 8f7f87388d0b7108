"""The alert rules and the dashboard: a real Prometheus reads what a worker exports."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, start_http_server

from agent.reports import STAGES
from agent.server import Server
from agent.settings import Settings
from agent.telemetry import CallLogHandler
from tests.support.prometheus import Prometheus, prometheus, promtool
from tests.support.server import free_port
from tests.support.templates import ROOT

RULES = ROOT / "template" / "deploy" / "prometheus-alerts.yaml"
DASHBOARD = ROOT / "template" / "deploy" / "grafana-dashboard.json"


class Worker:
    """The metrics of a worker that is free, and its calls' records."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.registry = CollectorRegistry()
        server: Any = Server(Settings(memory_url="redis://localhost", data_dir=data, port=0))
        server._proc_pool = SimpleNamespace(processes=[])
        server._devmode = server._simulation = False
        server._worker_load, server._reserved_slots = 0.0, 0
        server._registered()
        self._log = CallLogHandler(server.measured(self.registry))

    def record(self, name: str, **fields: object) -> None:
        """A call's record arrives."""
        about = {**fields, "call": "a", "room": "r"}
        self._log.handle(logging.makeLogRecord({"name": name, "fields": about}))


@pytest.fixture
def worker(tmp_path: Path) -> Worker:
    return Worker(tmp_path / "data")


@pytest.fixture
def watched(worker: Worker, tmp_path: Path) -> Iterator[Prometheus]:
    port = free_port()
    server, thread = start_http_server(port, "127.0.0.1", worker.registry)
    with prometheus(port, RULES, tmp_path) as watching:
        yield watching
    server.shutdown()
    thread.join()


def queries() -> dict[str, str]:
    """The dashboard's queries, by panel and letter, as Grafana would send them."""
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    return {
        f"{panel['title']} {target['refId']}": target["expr"].replace("$__rate_interval", "5s")
        for panel in panels
        for target in panel["targets"]
    }


def test_every_query_finds_what_a_worker_exports(worker: Worker, watched: Prometheus) -> None:
    exported = {
        sample.name for family in worker.registry.collect() for sample in family.samples
    } | {family.name for family in worker.registry.collect()}
    rules = [r["expr"] for r in yaml.safe_load(RULES.read_text())["groups"][0]["rules"]]
    for query in [*queries().values(), *rules]:
        assert set(re.findall(r"agent_[a-z_]+", query)) <= exported, query
    watched.wait_for(lambda: watched.ask("query", query="agent_takes_calls")["result"])
    for query in queries().values():
        watched.ask("query", query=query)  # an error would be raised
    watched.wait_for(lambda: all(rule["health"] == "ok" for rule in watched.rules().values()))


# one of each that calls record
DAY: list[tuple[str, dict[str, object]]] = [
    ("agent.call", {"reason": "caller left", "seconds": 61.0, "turns": 7, "cost": 0.5}),
    ("agent.call", {"first_word_ms": 700}),
    ("agent.call", {"heard_ms": 900, "stages": dict.fromkeys(STAGES, 100)}),
    ("agent.call", {"resource": "pool", "outcome": "timeout", "ms": 2000}),
    ("agent.knowledge", {"outcome": "ok", "passages": [], "ms": 12}),
    ("agent.memory", {"recall": "known"}),
    ("agent.memory", {"spooled": 3}),
    ("agent.memory", {"degraded": "memory"}),
]


def test_every_panel_shows_what_calls_have_recorded(worker: Worker, watched: Prometheus) -> None:
    def shown(query: str) -> bool:
        values = [float(one["value"][1]) for one in watched.ask("query", query=query)["result"]]
        return any(not math.isnan(value) for value in values)

    worker.data.mkdir()
    (worker.data / "memory.outage").touch()

    def everything() -> bool:
        for logger, fields in DAY:
            worker.record(logger, **{"currency": "USD", **fields} if "cost" in fields else fields)
        return all(shown(query) for query in queries().values())

    watched.wait_for(everything)


FIRST_TROUBLE: dict[str, tuple[str, dict[str, object]]] = {
    "AgentCallsEndInError": (
        "agent.call",
        {"reason": "error in step 5 (start the session)", "seconds": 3.0, "turns": 0},
    ),
    # as an owner has named them: nothing is known of them beforehand
    "AgentGoesOnWithoutAPart": ("agent.call", {"degraded": "tools of shop"}),
    "AgentDoesNotClose": ("agent.call", {"resource": "pool", "outcome": "timeout", "ms": 9}),
    "AgentLosesWhatWasSaid": ("agent.memory", {"lost": 2}),
}


def test_the_first_trouble_of_a_worker_raises_an_alert(worker: Worker, watched: Prometheus) -> None:
    watched.wait_for(
        lambda: (
            len(watched.ask("query", query="agent_turns_total[1m]")["result"][0]["values"]) > 1
            if watched.ask("query", query="agent_turns_total")["result"]
            else False
        )
    )
    assert {name for name, rule in watched.rules().items() if rule["state"] == "firing"} == set()
    for logger, fields in FIRST_TROUBLE.values():
        worker.record(logger, **fields)
    watched.wait_for(
        lambda: all(watched.rules()[name]["state"] == "firing" for name in FIRST_TROUBLE)
    )


# rule, a series as promtool writes it, and when it has to have been raised
LASTING = [
    ("AgentTakesNoCalls", "agent_takes_calls", "0x30", "3m"),
    ("AgentTakesNoCalls", "another_metric", "0x30", "3m"),
    ("AgentDeliversNothing", 'agent_waiting{what="memory"}', "1+1x40", "25m"),
    ("AgentAnswersSlowly", 'agent_answer_seconds_bucket{le="3"}', "0x40", "20m"),
    ("AgentGreetsSlowly", 'agent_first_word_seconds_bucket{le="3"}', "0x40", "20m"),
]


@pytest.mark.parametrize(("alert", "series", "values", "at"), LASTING)
def test_a_lasting_trouble_raises_an_alert(
    alert: str, series: str, values: str, at: str, tmp_path: Path
) -> None:
    given = [{"series": series, "values": values}]
    if "bucket" in series:
        given += [
            {"series": series.replace('"3"', bound), "values": "0+5x40"}
            for bound in ('"5"', '"+Inf"')
        ]
    if alert == "AgentDeliversNothing":  # on this machine alone
        given[0]["series"] = series.replace("}", ',instance="one"}')
        given.append({"series": series.replace("}", ',instance="another"}'), "values": "0x40"})
    if alert != "AgentTakesNoCalls":
        given.append({"series": "agent_takes_calls", "values": "1x40"})
    rule = {
        "rule_files": [str(RULES)],
        "tests": [
            {
                "interval": "1m",
                "input_series": given,
                "promql_expr_test": [
                    {
                        "expr": f'count(ALERTS{{alertname="{alert}",alertstate="firing"}})',
                        "eval_time": at,
                        "exp_samples": [{"labels": "{}", "value": 1}],
                    }
                ],
            }
        ],
    }
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(rule), encoding="utf-8")
    done = promtool("test", "rules", "test.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_days_cost_is_that_of_all_workers_also_of_one_that_was_started_again(
    tmp_path: Path,
) -> None:
    # of a minute each, for more than a day: yesterday's 9 do not count
    first = "0x9 9x1500 9.25x700 0x10 1x800"
    given = {"one": first, "another": "0x1500 0.5x1500"}
    day = queries()["Cost of the last 24 hours A"]
    test = {
        "interval": "1m",
        "input_series": [
            {"series": f'agent_cost_total{{currency="EUR",instance="{name}"}}', "values": values}
            for name, values in given.items()
        ],
        "promql_expr_test": [
            {
                "expr": f"round({day}, 0.01)",
                "eval_time": "2900m",
                "exp_samples": [{"labels": '{currency="EUR"}', "value": 1.75}],
            }
        ],
    }
    rule = {"rule_files": [str(RULES)], "tests": [test]}
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(rule), encoding="utf-8")
    done = promtool("test", "rules", "test.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_rules_are_valid(tmp_path: Path) -> None:
    done = promtool("check", "rules", str(RULES), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
