"""What it costs to know what happened in a call: all of it on, beside all of it off.

    PYTHONPATH=template/src python -m benchmarks.reports [--quick]

On: reports are kept and sent, numbers left out of them, metrics and traces exported, both sides
recorded. Off: none of it. Times are of one project, with the same models, documents and memory.
First both have a spoken call at the same time, on one server, and are asked in turn, as in
spoken_turn.py. Then typed turns without a server: how long each keeps the thread of the call's
event loop at work, in processes of either kind, one after another.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import statistics
import sys
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from aiohttp import web

from agent.models import local
from benchmarks.calls import AGENT_SECONDS, ATTEMPTS, CALLER, Side, first_audio
from benchmarks.report import Progress, Results, command, describe, finish, machine, make_project
from benchmarks.run import ratio, spread
from benchmarks.spoken_turn import LATE_PERSONA, Sample, turn
from benchmarks.spoken_turn import SETTINGS as SPOKEN
from tests.support.collector import Collector, collector
from tests.support.projects import Project, clean_environment
from tests.support.server import LiveKit, free_port, livekit_server
from tests.support.speech import SpeakingCaller, pause
from tests.support.templates import WORK_TREE
from tests.support.worker import worker
from tools.history import ROOT

ON, OFF, UNTRACED = "on", "off", "on but traces"
PART, LOOP = "last word to first sound", "loop seconds"
MOST_MORE, MOST_MILLISECONDS = 1.02, 1.0
QUESTION = "Where can I park my bicycle?"
NOTHING = {"AGENT_CALLS_KEPT": "0"}
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
# before what is counted
WARM_TURNS = 20


@contextlib.asynccontextmanager
async def receiver() -> AsyncIterator[str]:
    """The address of a webhook that takes everything."""

    async def take(request: web.Request) -> web.Response:
        await request.read()
        return web.Response()

    port, app = free_port(), web.Application()
    app.router.add_post("/calls", take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield f"http://127.0.0.1:{port}/calls"
    finally:
        await runner.cleanup()


def everything(spans: Collector, webhook: str) -> dict[str, str]:
    """The settings with which nothing is left out."""
    return {
        **spans.environment,
        "AGENT_WEBHOOK_URL": webhook,
        "AGENT_WEBHOOK_SECRET": SECRET,
        "AGENT_METRICS_PORT": str(free_port()),
        "AGENT_REDACT": "numbers",
        "AGENT_RECORD": "audio",
    }


def untraced(settings: dict[str, str]) -> dict[str, str]:
    """The same without traces: the SDK's own spans are what costs most."""
    return {name: value for name, value in settings.items() if not name.startswith("OTEL_")}


# ---------------------------------------------------------------------- spoken turns


@contextlib.asynccontextmanager
async def sides(
    project: Project, server: LiveKit, wanted: dict[str, dict[str, str]]
) -> AsyncIterator[dict[str, Side]]:
    """A worker of each kind, each with its own data; ended on exit."""
    async with contextlib.AsyncExitStack() as stack:
        started: dict[str, Side] = {}
        for name, settings in wanted.items():
            agent = f"bench-{name}"
            own = {"AGENT_NAME": agent, "AGENT_DATA_DIR": str(project.path / f"data-{name}")}
            running = await stack.enter_async_context(
                worker(project.path, project.agent, server, **{**SPOKEN, **own, **settings})
            )
            started[name] = Side(agent, running, server)
        for side in started.values():
            await first_audio(side)
        yield started


@contextlib.asynccontextmanager
async def spoken_with(side: Side, sentences: int) -> AsyncIterator[SpeakingCaller]:
    """A caller who has been greeted, and calls again where a busy worker gets no job."""
    for _ in range(ATTEMPTS):
        room = f"bench-{uuid.uuid4().hex[:8]}"
        async with SpeakingCaller(side.server, room, identity=CALLER) as caller:
            await caller.switch_on(side.agent_name, pause(0.1))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(AGENT_SECONDS):
                    await caller.agent_here.wait()
            if caller.agent_here.is_set():
                await caller.answer(sentences)
                yield caller
                return
    raise AssertionError(f"no agent came; the worker said: {side.running.records[-5:]}")


async def spoken(
    project: Project, server: LiveKit, wanted: dict[str, dict[str, str]], pairs: int
) -> dict[str, list[Sample]]:
    """Both in a call, asked in turn; who is asked first alternates."""
    samples: dict[str, list[Sample]] = {ON: [], OFF: []}
    async with (
        sides(project, server, wanted) as workers,
        contextlib.AsyncExitStack() as stack,
    ):
        # who is recorded is told so before the greeting
        callers = {
            name: await stack.enter_async_context(spoken_with(side, 2 if name == ON else 1))
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
    kept = sorted(project.path.glob("data-*/recordings/*.ogg"))
    assert {file.parents[1].name for file in kept} == {f"data-{ON}"}, kept
    return samples


# ---------------------------------------------------------------------- typed turns


async def typed(scratch: Path, wanted: dict[str, dict[str, str]], rounds: int, turns: int) -> Any:
    """Seconds of the loop's thread for each typed turn, by kind; who is first alternates."""
    home = scratch / "home"
    shutil.copytree(ROOT / "template" / "knowledge", home / "knowledge")
    seconds: dict[str, list[float]] = {name: [] for name in wanted}
    for number in range(rounds):
        for name in sorted(wanted, reverse=bool(number % 2)):
            own = {
                "AGENT_HOME": str(home),
                "AGENT_DATA_DIR": str(scratch / f"typed-{name.replace(' ', '-')}"),
                "AGENT_MODELS": "scripted",
                "AGENT_KNOWLEDGE_SECONDS": "5",
                "PYTHONPATH": f"{ROOT / 'template' / 'src'}{os.pathsep}{ROOT}",
            }
            environment = clean_environment(**{**own, **wanted[name]})
            for arguments in (["agent", "ingest"], ["benchmarks.reports", "--turns", str(turns)]):
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", *arguments),
                    cwd=ROOT,
                    env=environment,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.PIPE,
                )
                out, complaints = await process.communicate()
                if process.returncode:
                    raise RuntimeError(f"{arguments}: {complaints.decode()[-1000:]}")
            seconds[name] += json.loads(out.splitlines()[-1])
        Progress.dot()
    return seconds


async def take_turns(turns: int) -> list[float]:
    """In a process of its own: what each of so many turns of a call costs."""
    # needs the settings of this process
    from agent.telemetry import export_spans
    from template.tests.talk import talk

    export_spans()
    costs = []
    async with talk(CALLER) as call:
        for number in range(-WARM_TURNS, turns):
            began = time.thread_time()
            await call.say(QUESTION)
            if number >= 0:
                costs.append(round(time.thread_time() - began, 6))
    return costs


# ---------------------------------------------------------------------- the whole


async def measure(scratch: Path, *, quick: bool) -> Results:
    """Pairs of turns, in seconds."""
    tell = Progress()
    tell("making a template and a project")
    project = make_project(scratch, WORK_TREE)
    shutil.copyfile(LATE_PERSONA, project.path / "src" / "agent" / "persona.py")
    project.install("--group", "speech")
    results: Results = {"machine": machine(), "version": WORK_TREE, "quick": quick}
    local.load()
    async with livekit_server() as server, collector() as spans, receiver() as webhook:
        wanted = {ON: everything(spans, webhook), OFF: NOTHING}
        tell("typing")
        kinds = {**wanted, UNTRACED: untraced(wanted[ON])}
        results[LOOP] = await typed(scratch, kinds, *((1, 20) if quick else (6, 60)))
        assert "agent_turn" in spans.text
        tell("asking aloud")
        results[PART] = await spoken(project, server, wanted, pairs=2 if quick else 20)
    tell("done")
    finish(results, tell.seconds)
    return results


def table(results: Results) -> str:
    """The results as Markdown."""
    on, off = ([sample["seconds"] for sample in results[PART][side]] for side in (ON, OFF))
    middle, low, high = ratio(on, off)
    met = "met" if middle <= MOST_MORE else "**missed**"
    loops = {side: [1000 * cost for cost in costs] for side, costs in results[LOOP].items()}
    medians = {side: statistics.median(costs) for side, costs in loops.items()}

    def loop(side: str, what: str) -> str:
        more = medians[side] - medians[OFF]
        cheap = "met" if more <= MOST_MILLISECONDS else "**missed**"
        return (
            f"| {what} | {medians[side]:.2f} ms | {medians[OFF]:.2f} ms | {more:+.2f} ms"
            f" | at most {MOST_MILLISECONDS:g} ms more: {cheap} |"
        )

    return "\n".join(
        [
            f"{describe(results)} {len(on)} pairs of spoken turns, {len(loops[ON])} typed ones of"
            " either kind.",
            "",
            "| | all on | all off | difference | goal |",
            "|---|---|---|---|---|",
            f"| last word to first sound, median (smallest to largest) | {spread(on)}"
            f" | {spread(off)} | ratio {middle:.3f} (95 %: {low:.3f} to {high:.3f})"
            f" | at most {MOST_MORE}: {met} |",
            loop(ON, "time of the event loop for a turn, median"),
            loop(UNTRACED, "the same without traces"),
        ]
    )


def main() -> int:
    """Measure and report; 1 if no server is available. A missed goal is not an error."""
    if sys.argv[1:2] == ["--turns"]:
        print(json.dumps(asyncio.run(take_turns(int(sys.argv[2])))))
        return 0
    return command(
        "reports",
        measure,
        table,
        about="Measure what reports, metrics, traces and recordings cost.",
        quick="two pairs and 20 turns, and keep nothing",
    )


if __name__ == "__main__":
    sys.exit(main())
