"""Many calls through one worker, four at a time: all closed, no turn lost, nothing left behind?

    python -m benchmarks.soak [--quick] [--calls 1000] [--version v0.1.0]

Four processes of callers, each with one call at a time: join, hear the greeting, ask, hear the
answer, hang up.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sqlite3
import statistics
import sys
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from contextlib import closing, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from benchmarks.callers import Callers, calling
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
from tests.support.worker import Record, Worker, worker

Sample = dict[str, float]

CALLS, QUICK_CALLS = 1000, 40
# a process each
CALLERS = ["ann", "ben", "cleo", "dora"]
# a short answer, from the documents
ASK, HEAR = "Where is the entrance?", "blue gate"
# of a call: greeting, question, answer
TURNS = 3
SAMPLE_SECONDS = 2.0
# share of the calls in which caches and the pool of idle processes fill
WARM_UP = 0.1
# asyncio's own threads, which it starts on demand and then keeps
POOL_THREADS = min(32, (os.cpu_count() or 1) + 4)
# allowed growth of memory, the larger of the two; the number of processes depends on other programs
GROWTH, GROWTH_MB = 1.1, 8.0


# ---------------------------------------------------------------------- samples


def take_sample(pid: int, ended: int, began: float) -> Sample:
    """The processes, memory, threads and files of the worker and its children now."""
    main = psutil.Process(pid)
    children = main.children(recursive=True)
    megabytes = {process.pid: memory_of(process) for process in [main, *children]}
    return {
        "seconds": round(time.time() - began, 2),
        "calls": ended,
        "processes": 1 + len(children),
        "threads": main.num_threads(),
        "fds": main.num_fds(),
        "sockets": sockets_of(pid),
        "rss MB": round(main.memory_info().rss / 2**20, 2),
        "pss MB": round(megabytes[pid], 2),
        "pss MB, with children": round(sum(megabytes.values()), 2),
    }


def memory_of(process: psutil.Process) -> float:
    """Megabytes of a process, by PSS if the system has it; 0 if it has just ended."""
    with suppress(psutil.Error, OSError):
        memory = process.memory_full_info()
        return float(getattr(memory, "pss", memory.uss)) / 2**20
    return 0.0


def sockets_of(pid: int) -> int:
    """How many of its open files are sockets; 0 if the system does not report it."""
    count = 0
    with suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                count += os.readlink(entry.path).startswith("socket:")
    return count


async def settled(running: Worker, began: float, ended: int) -> Sample:
    """A sample once no call is open and the pool of idle processes is full again."""
    await running.free(seconds=60)

    def said(message: str) -> int:
        return sum(record.get("message") == message for record in running.records)

    await running.wait_for(
        lambda _: said("process initialized") >= said("initializing process"), seconds=60
    )
    # for connections that are being closed
    await asyncio.sleep(1)
    return take_sample(running.process.pid, ended, began)


# ---------------------------------------------------------------------- the run


async def soak(project: Project, server: LiveKit, calls: int) -> Results:
    """Make so many calls through one worker of this project; return all observations."""
    agent = f"soak-{uuid.uuid4().hex[:8]}"
    data = project.path / "data" / agent
    command = [str(project.path / ".venv" / "bin" / "agent")]
    async with worker(
        project.path, command, server, AGENT_NAME=agent, AGENT_DATA_DIR=str(data)
    ) as running:
        first = ["--calls", "1", "--ask", ASK, "--hear", HEAR]
        # a worker opens more at its first call
        async with calling(server, agent, ["eve"], *first) as warming:
            await warming.finished()
        assert [call["problem"] for call in warming.calls] == [""], (warming.calls, warming.said)
        began, samples = time.time(), []
        before = await settled(running, began, 0)
        each = -(-calls // len(CALLERS))
        options = ["--calls", str(each), "--ask", ASK, "--hear", HEAR]
        async with calling(server, agent, CALLERS, *options) as callers:
            waiting = asyncio.create_task(callers.finished())
            while not waiting.done():
                samples.append(take_sample(running.process.pid, len(callers.calls), began))
                await asyncio.wait([waiting], timeout=SAMPLE_SECONDS)
            took = time.time() - began
            samples.append(take_sample(running.process.pid, len(callers.calls), began))
        after = await settled(running, began, len(callers.calls))
        done = await running.stop()
    return {
        "calls wanted": each * len(CALLERS),
        "seconds calling": round(took, 1),
        "exit code": done,
        "before": before,
        "after": after,
        **what_the_log_says(running, callers),
        **what_is_stored(data / "memory.db", callers),
        "callers said": callers.said[-20:],
        "complaints": [complaint(record, began) for record in running.complaints()][:50],
        "samples": samples,
        "calls": [in_short(call, began) for call in callers.calls],
    }


def in_short(call: dict[str, Any], began: float) -> dict[str, Any]:
    """One call, its times as seconds of the run."""
    times = {
        name: round(call[name] - began, 3)
        for name in ("joined", "greeted", "answered", "left")
        if name in call
    }
    return {
        "room": call["room"],
        "who": call["who"],
        **times,
        **({"problem": call["problem"]} if call["problem"] else {}),
    }


def complaint(record: Record, began: float) -> dict[str, Any]:
    """A warning or an error, and when in the run it was logged."""
    at = datetime.fromisoformat(record["time"]).timestamp() - began
    return {
        "seconds": round(at, 1),
        **{name: record.get(name) for name in ("level", "message", "room", "pid")},
    }


def what_the_log_says(running: Worker, callers: Callers) -> Results:
    """How the worker ended the callers' calls, and closed their resources."""
    rooms = {call["room"] for call in callers.calls}
    records = [record for record in running.records if record.get("room") in rooms]
    ends = [record for record in records if "reason" in record and "turns" in record]
    closes = [record for record in records if "resource" in record and "outcome" in record]
    return {
        "ends": dict(Counter(str(end["reason"]) for end in ends)),
        "ended more than once": [
            room for room, times in Counter(end["room"] for end in ends).items() if times > 1
        ],
        "never ended": sorted(rooms - {end["room"] for end in ends}),
        "turns of a call": {
            str(turns): count for turns, count in Counter(end["turns"] for end in ends).items()
        },
        "closes": dict(Counter(f"{close['resource']}: {close['outcome']}" for close in closes)),
    }


def what_is_stored(file: Path, callers: Callers) -> Results:
    """The callers' calls in memory: how many, and how many turns of each."""
    rooms = {call["room"] for call in callers.calls}
    with closing(sqlite3.connect(file)) as db:
        rows = db.execute(
            "SELECT room, count(item) FROM calls LEFT JOIN turns USING (caller, call)"
            " GROUP BY caller, call"
        ).fetchall()
        (sound,) = db.execute("PRAGMA integrity_check").fetchone()
    turns = Counter(count for room, count in rows if room in rooms)
    return {
        "stored calls": sum(turns.values()),
        "stored turns": sum(count * calls for count, calls in turns.items()),
        "stored turns of a call": {str(count): calls for count, calls in sorted(turns.items())},
        "store": sound,
    }


# ---------------------------------------------------------------------- the verdict


def quarters(samples: Sequence[Sample], name: str) -> tuple[float, float]:
    """The medians of the first and the last quarter of the run, without its warm-up."""
    calls = samples[-1]["calls"]
    warm = [sample for sample in samples if WARM_UP * calls <= sample["calls"] < calls]
    length = max(1, len(warm) // 4)
    return (
        statistics.median(sample[name] for sample in warm[:length]),
        statistics.median(sample[name] for sample in warm[-length:]),
    )


def grown(first: float, last: float) -> bool:
    """Whether memory grew by more than allowed."""
    return last > max(GROWTH * first, first + GROWTH_MB)


def problems(results: Results) -> list[str]:
    """Every failure, in a sentence each. No threshold is a time."""
    found = [f"{call['room']}: {call['problem']}" for call in results["calls"] if "problem" in call]
    calls = results["calls wanted"]

    def expect(what: str, wanted: object) -> None:
        if results[what] != wanted:
            found.append(f"{what}: {results[what]} instead of {wanted}")

    if len(results["calls"]) != calls:
        found.append(
            f"{len(results['calls'])} calls were made instead of {calls}; {results['callers said']}"
        )
    expect("ends", {"caller left": calls})
    expect("ended more than once", [])
    expect("never ended", [])
    expect("turns of a call", {str(TURNS): calls})
    expect("stored turns of a call", {str(TURNS): calls})
    expect("store", "ok")
    expect("exit code", 0)
    found += [
        f"closed badly: {what} ({times})"
        for what, times in results["closes"].items()
        if not what.endswith(": ok")
    ]
    found += [
        f"{what}: {times} times in {calls} calls"
        for what, times in results["closes"].items()
        if times != calls
    ]
    for name, more in {"processes": 0, "fds": 0, "sockets": 0, "threads": POOL_THREADS}.items():
        before, after = results["before"][name], results["after"][name]
        if after > before + more or (name == "processes" and after < before):
            found.append(f"{name}: {before:g} before, {after:g} after")
    first, last = quarters(results["samples"], "rss MB")
    if grown(first, last):
        found.append(f"rss MB: {first:.1f} in the first quarter, {last:.1f} in the last")
    before, after = (results[when]["pss MB, with children"] for when in ("before", "after"))
    if grown(before, after):
        found.append(f"pss MB, with children: {before:.1f} before, {after:.1f} after")
    return found


def table(results: Results) -> str:
    """The results as Markdown."""
    took, calls = results["seconds calling"], len(results["calls"])
    waits = [call["greeted"] - call["joined"] for call in results["calls"] if "greeted" in call]
    lines = [
        f"{describe(results)} {calls} calls in {took / 60:.1f} minutes,"
        f" {60 * calls / took:.0f} a minute, {len(CALLERS)} at a time;"
        f" greeted {statistics.median(waits):.2f} s after joining"
        f" (median; longest {max(waits):.2f} s).",
        "",
        "| | before the first call | first quarter | last quarter | after the last call |",
        "|---|---|---|---|---|",
    ]
    for name in NAMES:
        first, last = quarters(results["samples"], name)
        numbers = [results["before"][name], first, last, results["after"][name]]
        lines.append(
            f"| {NAMES[name]} | " + " | ".join(f"{number:.5g}" for number in numbers) + " |"
        )
    ends = ", ".join(f"{reason}: {times}" for reason, times in results["ends"].items())
    closes = ", ".join(f"{what} {times}" for what, times in sorted(results["closes"].items()))
    lines += [
        "",
        f"Calls ended: {ends}. Closed: {closes}."
        f" Turns stored: {results['stored turns']} of {TURNS * calls}.",
        "",
        "Found wrong: " + ("; ".join(problems(results)) or "nothing") + ".",
    ]
    return "\n".join(lines)


NAMES = {
    "processes": "processes, the worker's own included",
    "threads": "threads of the worker",
    "fds": "open files of the worker",
    "sockets": "sockets among them",
    "rss MB": "resident memory of the worker, MB",
    "pss MB": "the same, with shared pages divided (PSS), MB",
    "pss MB, with children": "PSS with all its children, MB",
}


async def measure(scratch: Path, *, version: str, calls: int) -> Results:
    """Every raw number."""
    tell = Progress()
    tell("making a template and a project")
    project = make_project(scratch, version)
    results: Results = {"machine": machine(), "version": version}
    async with livekit_server(scratch) as server:
        tell(f"{calls} calls")
        results |= await soak(project, server, calls)
    tell("done")
    finish(results, tell.seconds)
    return results


def main() -> int:
    """Measure, report, judge; 1 if there was a failure, or if no server is available."""
    parser = argparse.ArgumentParser(description="Many calls through one worker.")
    arguments(parser)
    parser.add_argument(
        "--calls", type=int, default=None, help=f"how many (default {CALLS}, quick {QUICK_CALLS})"
    )
    options = parser.parse_args()
    if not has_server():
        return 1
    calls = options.calls or (QUICK_CALLS if options.quick else CALLS)
    with workshop() as scratch:
        results = asyncio.run(measure(scratch, version=options.version, calls=calls))
    report("soak", results, table, quick=options.quick)
    return 1 if problems(results) else 0


if __name__ == "__main__":
    sys.exit(main())
