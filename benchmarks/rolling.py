"""Two workers of one agent, restarted in turn under load: is a call dropped, or not answered?

    python -m benchmarks.rolling [--quick] [--rounds 5] [--version v0.1.0]

Each worker in turn gets SIGTERM, finishes its live calls and exits, while its replacement starts.
The signal comes just after a call has begun, each time a little later: a restart could lose a call
that is being assigned to a worker.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import statistics
import sys
import time
import uuid
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.callers import calling
from benchmarks.report import (
    Progress,
    Results,
    arguments,
    describe,
    finish,
    has_server,
    machine,
    make_project,
    report,
    workshop,
)
from tests.support.projects import Project
from tests.support.server import LiveKit, livekit_server
from tests.support.worker import Worker, worker

ROUNDS, QUICK_ROUNDS = 5, 1
# a process each, one call at a time
CALLERS = ["ann", "ben", "cleo"]
# from the greeting to the hang-up, on average
STAY_SECONDS = 3.0
# from one restart to the next, while both workers take calls
BETWEEN_SECONDS = 3.0
# each restart comes so much later after the beginning of a call, up to a second
STEP_SECONDS = 0.1
# longer than any call here
DRAIN_SECONDS = 60.0


@dataclass
class Started:
    """A worker and its times, which are of time.time()."""

    # A1 and B1 come first, A2 replaces A1
    name: str
    running: Worker
    started: float
    registered: float
    stopping: float | None = None
    exited: float | None = None


async def rolling(project: Project, server: LiveKit, rounds: int) -> Results:
    """Restart both workers so many times while callers call; return all observations."""
    agent = f"rolling-{uuid.uuid4().hex[:8]}"
    command = [str(project.path / ".venv" / "bin" / "agent")]
    everyone: list[Started] = []
    began = time.time()
    async with AsyncExitStack() as stack:

        async def start(name: str) -> Started:
            at = time.time()
            running = await stack.enter_async_context(
                worker(project.path, command, server, AGENT_NAME=agent)
            )
            everyone.append(Started(name, running, at, time.time()))
            return everyone[-1]

        fleet = {place: await start(f"{place}1") for place in "AB"}
        async with calling(server, agent, CALLERS, "--stay", str(STAY_SECONDS)) as callers:
            for number in range(2, rounds + 2):
                for place in fleet:
                    await asyncio.sleep(BETWEEN_SECONDS)
                    await callers.another()
                    await asyncio.sleep(len(everyone) * STEP_SECONDS % 1)
                    fleet[place] = await replaced(fleet[place], start, f"{place}{number}")
                    Progress.dot()
            await asyncio.sleep(BETWEEN_SECONDS)
            callers.hang_up_soon()
            await callers.finished()
        for last in fleet.values():
            await stopped(last)
    return {
        "rounds": rounds,
        "restarts": rounds * len(fleet),
        "callers said": callers.said[-20:],
        "workers": [in_short(one, began) for one in everyone],
        "calls": [by_worker(call, everyone, began) for call in callers.calls],
        "complaints": [
            f"{one.name}: {record.get('message')}"
            for one in everyone
            for record in one.running.complaints()
        ][:50],
    }


async def replaced(old: Started, start: Any, name: str) -> Started:
    """Stop a worker while its replacement starts; return the replacement once both are done."""
    new, _ = await asyncio.gather(start(name), stopped(old))
    replacement: Started = new
    return replacement


async def stopped(one: Started) -> None:
    """Stop a worker, and wait until its calls have ended and it has exited."""
    one.stopping = time.time()
    await one.running.stop(signal.SIGTERM, seconds=DRAIN_SECONDS)
    one.exited = time.time()


def in_short(one: Started, began: float) -> dict[str, Any]:
    """One worker, its times as seconds of the run."""
    times = {name: getattr(one, name) for name in ("started", "registered", "stopping", "exited")}
    ends = [record for record in one.running.records if "reason" in record and "turns" in record]
    return {
        "name": one.name,
        **{name: None if at is None else round(at - began, 3) for name, at in times.items()},
        "exit code": one.running.process.returncode,
        "calls": len(ends),
    }


def by_worker(call: dict[str, Any], everyone: list[Started], began: float) -> dict[str, Any]:
    """One call, its workers and its end reasons; its times as seconds of the run."""
    whens = ("joined", "greeted", "left", "over")
    times: dict[str, float] = {name: round(call[name] - began, 3) for name in whens if name in call}
    answered = [one for one in everyone if one.running.of(call["room"])]
    reasons = [
        str(r["reason"]) for one in answered for r in one.running.of(call["room"]) if "turns" in r
    ]
    return {
        "room": call["room"],
        **times,
        "workers": [one.name for one in answered],
        "reasons": reasons,
        "problem": call["problem"],
    }


# ---------------------------------------------------------------------- the verdict


def problems(results: Results) -> list[str]:
    """Every failure, in a sentence each. No threshold is a time."""
    found = [f"{call['room']}: {call['problem']}" for call in results["calls"] if call["problem"]]
    found += [
        f"{call['room']}: ended as {call['reasons']} by {call['workers']}"
        for call in results["calls"]
        if not call["problem"] and (call["reasons"] != ["caller left"] or len(call["workers"]) != 1)
    ]
    found += [
        f"{one['name']}: exit code {one['exit code']}"
        for one in results["workers"]
        if one["exit code"]
    ]
    if not results["calls"]:
        found.append(f"no calls: {results['callers said']}")
    return found


def table(results: Results) -> str:
    """The results as Markdown."""
    calls, workers = results["calls"], results["workers"]
    waits = sorted(call["greeted"] - call["joined"] for call in calls if "greeted" in call)
    drains = [one["exited"] - one["stopping"] for one in workers]
    dropped = sum(call["problem"].startswith("dropped") for call in calls)
    unanswered = sum(call["problem"].startswith("no ") for call in calls)
    stopping = {one["name"]: one["stopping"] for one in workers}
    live = [
        (call, stopping[name])
        for call in calls
        for name in call["workers"]
        if stopping[name] < call["over"]
    ]
    greeted = sum(at > call.get("greeted", call["over"]) for call, at in live)
    lines = [
        f"{describe(results)} {results['restarts']} restarts, {len(calls)} calls,"
        f" {len(CALLERS)} at a time.",
        "",
        "| calls | dropped | unanswered | talking when their worker was stopped"
        " | just beginning then | greeted after joining | from SIGTERM to exit |",
        "|---|---|---|---|---|---|---|",
        f"| {len(calls)} | {dropped} | {unanswered} | {greeted} | {len(live) - greeted} |"
        f" {spread(waits)} | {spread(drains)} |",
        "",
        "Found wrong: " + ("; ".join(problems(results)) or "nothing") + ".",
    ]
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    """Median, smallest and largest."""
    return f"{statistics.median(values):.2f} s ({min(values):.2f} to {max(values):.2f})"


async def measure(scratch: Path, *, version: str, rounds: int) -> Results:
    """Every raw number."""
    tell = Progress()
    tell("making a template and a project")
    project = make_project(scratch, version)
    results: Results = {"machine": machine(), "version": version}
    async with livekit_server(scratch) as server:
        tell(f"{rounds} rounds")
        results |= await rolling(project, server, rounds)
    tell("done")
    finish(results, tell.seconds)
    return results


def main() -> int:
    """Measure, report, judge; 1 if there was a failure, or if no server is available."""
    parser = argparse.ArgumentParser(description="Restart workers while calls keep coming.")
    arguments(parser)
    parser.add_argument(
        "--rounds",
        type=int,
        default=None,
        help=f"how many (default {ROUNDS}, quick {QUICK_ROUNDS})",
    )
    options = parser.parse_args()
    if not has_server():
        return 1
    rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    with workshop() as scratch:
        results = asyncio.run(measure(scratch, version=options.version, rounds=rounds))
    report("rolling", results, table, quick=options.quick)
    return 1 if problems(results) else 0


if __name__ == "__main__":
    sys.exit(main())
