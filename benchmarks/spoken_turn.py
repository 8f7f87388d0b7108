"""How long a caller waits from the last word of a spoken question to the first sound of an answer.

    PYTHONPATH=template/src python -m benchmarks.spoken_turn [--quick]

Ours looks the answer up in its documents and remembers what is said; the rival is a bare
AgentSession with the same ears, voice and turn taking, and the same model, which takes as long to
its first word. Both are in a call at the same time, on one server, and are asked in turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import statistics
import sys
import time
import uuid
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from agent.models import local
from benchmarks.calls import AGENT_SECONDS, ATTEMPTS, BARE_NAME, CALLER, OURS, Side, sides
from benchmarks.report import (
    Progress,
    Results,
    command,
    describe,
    finish,
    machine,
    make_project,
)
from benchmarks.run import ratio, spread
from tests.support.projects import Project
from tests.support.server import LiveKit, livekit_server
from tests.support.speech import SpeakingCaller, pause, voice
from tests.support.templates import WORK_TREE

LATE_PERSONA = Path(__file__).with_name("late_persona.py")
FIRST_WORD_SECONDS = 0.4
GOAL = 1.0  # of the bare agent's
MORE_MEGABYTES = 5
QUESTION = "How far is the railway station on foot?"
PART, MEMORY = "last word to first sound", "memory"
SETTINGS = {
    "AGENT_MODELS": "local",
    "AGENT_IDLE_PROCESSES": "1",
    "BENCH_LLM": "agent.persona:LateLLM",
    "BENCH_FIRST_WORD": str(FIRST_WORD_SECONDS),
}

Sample = dict[str, Any]


@contextlib.asynccontextmanager
async def spoken_with(side: Side) -> AsyncIterator[SpeakingCaller]:
    """A caller who has been greeted, and calls again where a busy worker gets no job."""
    for _ in range(ATTEMPTS):
        room = f"bench-{uuid.uuid4().hex[:8]}"
        async with SpeakingCaller(side.server, room, identity=CALLER) as caller:
            await caller.switch_on(side.agent_name, pause(0.1))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(AGENT_SECONDS):
                    await caller.agent_here.wait()
            if caller.agent_here.is_set():
                await caller.answer()
                yield caller
                return
    raise AssertionError(f"no agent came; the worker said: {side.running.records[-5:]}")


async def turn(caller: SpeakingCaller) -> Sample:
    """Ask aloud, and hear the answer to its end."""
    await caller.make(voice(QUESTION))
    ended, caller.first_sound_at = time.monotonic(), None
    await caller.begin_to_hear()
    assert caller.first_sound_at is not None
    waited = caller.first_sound_at - ended
    said = await caller.hear_text()
    await caller.until(lambda: caller.agent_state == "listening" and caller.is_quiet)
    return {"seconds": round(waited, 4), "from documents": "river" in said}


def processes(side: Side) -> list[psutil.Process]:
    """The worker's own processes, the oldest first."""
    found = psutil.Process(side.running.process.pid).children(recursive=True)
    return sorted(found, key=lambda process: process.create_time())


def weight(side: Side, before: set[int]) -> Sample:
    """Of the process of the call, which was there before it: the largest of these by now."""
    job = max(
        (process for process in processes(side) if process.pid in before),
        key=lambda process: process.memory_info().rss,
    )
    of = job.memory_full_info()
    return {
        "processes": len(processes(side)),
        "resident MB": round(of.rss / 1e6, 1),
        "own MB": round(of.uss / 1e6, 1),
    }


def load_seconds(side: Side) -> list[float]:
    """How long each process of our worker took to be ready for a call."""
    at: dict[str, list[float]] = {"initializing process": [], "process initialized": []}
    for record in side.running.records:
        if (message := str(record.get("message"))) in at:
            at[message].append(datetime.fromisoformat(record["time"]).timestamp())
    pairs = zip(at["initializing process"], at["process initialized"], strict=False)
    return [round(ready - begun, 2) for begun, ready in pairs]


async def compare(project: Project, server: LiveKit, pairs: int) -> Results:
    """Both sides in a call, asked in turn; who is asked first alternates."""
    samples: dict[str, list[Sample]] = {OURS: [], BARE_NAME: []}
    async with sides(project, server, list(samples), **SETTINGS) as workers:
        before = {name: {one.pid for one in processes(side)} for name, side in workers.items()}
        async with contextlib.AsyncExitStack() as stack:
            callers = {
                name: await stack.enter_async_context(spoken_with(side))
                for name, side in workers.items()
            }
            for side in workers.values():
                await side.another_process()
            for pair in range(-1, pairs):
                for name in sorted(workers, reverse=bool(pair % 2)):
                    sample = await turn(callers[name])
                    if pair >= 0:  # the first turn of a call is its slowest
                        samples[name].append(sample)
                Progress.dot()
            held = {name: weight(side, before[name]) for name, side in workers.items()}
        loaded = load_seconds(workers[OURS])
    return {PART: samples, MEMORY: held, "seconds to load a process": loaded}


async def measure(scratch: Path, *, quick: bool) -> Results:
    """Pairs of turns, in seconds."""
    tell = Progress()
    tell("making a template and a project")
    project = make_project(scratch, WORK_TREE)
    shutil.copyfile(LATE_PERSONA, project.path / "src" / "agent" / "persona.py")
    project.install("--group", "speech")
    results: Results = {"machine": machine(), "version": WORK_TREE, "quick": quick}
    results["first word seconds"] = FIRST_WORD_SECONDS
    local.load()
    async with livekit_server() as server:
        tell("asking aloud")
        results |= await compare(project, server, pairs=2 if quick else 20)
    tell("done")
    finish(results, tell.seconds)
    return results


def table(results: Results) -> str:
    """The results as Markdown."""
    ours, bare = (
        [sample["seconds"] for sample in results[PART][side]] for side in (OURS, BARE_NAME)
    )
    found = sum(sample["from documents"] for sample in results[PART][OURS])
    middle, low, high = ratio(ours, bare)
    met = "met" if round(middle, 2) <= GOAL else "**missed**"
    held, rival = results[MEMORY][OURS], results[MEMORY][BARE_NAME]
    more = held["own MB"] - rival["own MB"]
    cheap = "met" if more <= MORE_MEGABYTES else "**missed**"
    loaded = results["seconds to load a process"]
    return "\n".join(
        [
            f"{describe(results)} {len(ours)} pairs of turns, {found} of ours answered from the"
            f" documents; the model takes {results['first word seconds'] * 1000:.0f} ms to its"
            " first word.",
            "",
            "| median (smallest to largest) | ours | bare | ratio of medians (95 %) | goal |",
            "|---|---|---|---|---|",
            f"| last word to first sound | {spread(ours)} | {spread(bare)}"
            f" | {middle:.2f} ({low:.2f} to {high:.2f}) | at most {GOAL}: {met} |",
            f"| memory of the call's process, its own | {held['own MB']:.0f} MB"
            f" | {rival['own MB']:.0f} MB | {more:+.1f} MB | at most {MORE_MEGABYTES} MB more:"
            f" {cheap} |",
            f"| the same with what it shares | {held['resident MB']:.0f} MB"
            f" | {rival['resident MB']:.0f} MB | | |",
            f"| processes of the worker | {held['processes']} | {rival['processes']} | | |",
            f"| a process has loaded ears and voice in | {statistics.median(loaded):.1f} s | | | |",
        ]
    )


def main() -> int:
    """Measure and report; 1 if no server is available. A missed goal is not an error."""
    return command(
        "spoken-turn",
        measure,
        table,
        about="Measure how soon a spoken question is answered.",
        quick="two pairs, and keep nothing",
    )


if __name__ == "__main__":
    sys.exit(main())
