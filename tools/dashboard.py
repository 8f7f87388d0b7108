"""Draw the dashboard of deploy/ as it looks after some calls, into docs/pictures/dashboard.png.

    PYTHONPATH=template/src:. python tools/dashboard.py

A real Prometheus scrapes a worker whose calls are made up, and answers the dashboard's own queries.
What it answers is drawn by matplotlib, by the titles, places, units and legends of the dashboard:
Grafana, which would draw it more nicely, is not needed.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import matplotlib as mpl
from prometheus_client import start_http_server

mpl.use("Agg")

import matplotlib.pyplot as plt

from agent.reports import STAGES
from tests.build.test_watching import DASHBOARD, RULES, Worker
from tests.support.prometheus import Prometheus, prometheus
from tests.support.server import free_port
from tools.history import ROOT

PICTURE = ROOT / "docs" / "pictures" / "dashboard.png"
SECONDS, INTERVAL = 90, "10s"
# a row of the dashboard's grid, in inches, and its columns
ROW, COLUMN = 0.33, 0.62


def live(worker: Worker, chance: random.Random, *, trouble: bool) -> None:
    """A second of calls."""
    for _ in range(chance.randrange(3)):
        stages = {stage: int(chance.expovariate(1 / 160)) for stage in STAGES}
        worker.record("agent.call", heard_ms=sum(stages.values()), stages=stages)
        outcome = chance.choices(["ok", "late", "error"], [20, 2, 1])[0]
        worker.record("agent.knowledge", outcome=outcome, passages=[], ms=chance.randrange(4, 90))
    if chance.random() < 0.4:
        reason = chance.choices(["caller left", "agent hung up", "no-show"], [8, 3, 1])[0]
        seconds, cost = chance.uniform(20, 300), round(chance.uniform(0.01, 0.2), 3)
        ended = {"seconds": seconds, "turns": 9, "cost": cost, "currency": "USD"}
        worker.record("agent.call", reason=reason, **ended)
        worker.record("agent.call", first_word_ms=chance.randrange(300, 1400))
        worker.record("agent.memory", recall=chance.choice(["known", "unknown"]))
    if trouble:
        worker.record("agent.memory", degraded="memory")
        worker.record("agent.memory", spooled=3)
        worker.record("agent.call", resource="pool", outcome="timeout", ms=2000)


def answers(watched: Prometheus, query: str, since: float) -> list[dict[str, Any]]:
    """The series of a query, since then."""
    asked = query.replace("$__rate_interval", INTERVAL)
    span = {"start": str(since), "end": str(time.time()), "step": "1"}
    found: list[dict[str, Any]] = watched.ask("query_range", query=asked, **span)["result"]
    return found


def draw(panel: dict[str, Any], axes: Any, watched: Prometheus, since: float) -> None:
    """One panel."""
    unit = panel["fieldConfig"]["defaults"]["unit"]
    axes.set_title(panel["title"], fontsize=8, loc="left")
    axes.tick_params(labelsize=6)
    for target in panel["targets"]:
        for series in answers(watched, target["expr"], since):
            labels = series["metric"]
            legend = target["legendFormat"]
            for name, value in labels.items():
                legend = legend.replace(f"{{{{{name}}}}}", value)
            times, values = zip(*series["values"], strict=True)
            when, how_much = [at - since for at in times], [float(value) for value in values]
            if "custom" in panel["fieldConfig"]["defaults"]:
                axes.bar(when, how_much, width=1, alpha=0.6, label=legend)
            else:
                axes.plot(when, how_much, label=legend)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("seconds" if unit == "s" else "", fontsize=6)
    axes.set_xlim(0, SECONDS)
    axes.legend(fontsize=6, loc="upper left")


def main() -> int:
    """Let calls happen, and draw."""
    chance = random.Random(1)
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    with tempfile.TemporaryDirectory() as folder:
        worker, port = Worker(Path(folder) / "data"), free_port()
        server, _ = start_http_server(port, "127.0.0.1", worker.registry)
        with prometheus(port, RULES, Path(folder)) as watched:
            since = time.time()
            for second in range(SECONDS):
                live(worker, chance, trouble=second in (40, 70))
                time.sleep(1)
            figure = plt.figure(figsize=(24 * COLUMN, rows * ROW), layout="constrained")
            grid = figure.add_gridspec(rows, 24)
            for panel in panels:
                at = panel["gridPos"]
                place = grid[at["y"] : at["y"] + at["h"], at["x"] : at["x"] + at["w"]]
                draw(panel, figure.add_subplot(place), watched, since)
            figure.savefig(PICTURE, dpi=90)
        server.shutdown()
    print(PICTURE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
