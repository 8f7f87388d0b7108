"""Ours and five other shapes of an entrypoint, through every end of a call.

    python -m benchmarks.shapes [--quick] [--version v0.1.0]

When is everything closed, and the slot free? Every shape runs on the same server with the same
models and opens the same two resources, a pool and a client, which note when they are closed.
Seconds count from the cause.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import shutil
import signal
import statistics
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from livekit import api

from benchmarks import shape_parts
from benchmarks.callers import TextCaller, calling
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

Sample = dict[str, float | str | None]

HERE = Path(__file__).parent
OURS = "ours"
SHAPES = [OURS, "one door", "kept alive", "starter, delete_room_on_close", "starter", "copied cure"]
# for everything after the cause
LIMIT_SECONDS, QUICK_LIMIT_SECONDS = 65.0, 25.0
# the next call waits so long for a quick end; slower ends continue beside it
HOLD_SECONDS = 3.0
# for a caller who never joins, and for one who may come back
WAIT_SECONDS = "5"
ATTEMPTS = 3

RESOURCES = '''"""Two resources that note when they are closed."""

from agent import bench_parts

bench_parts.fail_when_asked()


async def open_resources(call):
    pool = await call.open("pool", bench_parts.Resource("pool", call.transport.room_name))
    await call.open("client", bench_parts.Resource("client", call.transport.room_name))
    return pool
'''
TOOL = '''
    @function_tool
    async def look_up(self) -> str:
        """Ask the pool."""
        return self.call.resources.ask()
'''


@dataclass
class Notes:
    """The notes of the resources, in the order of writing."""

    file: Path
    lines: list[dict[str, Any]] = field(default_factory=list)
    _read: int = 0

    def of(self, room: str) -> list[dict[str, Any]]:
        """The notes about the call in this room so far."""
        if self.file.exists():
            with self.file.open("rb") as file:
                file.seek(self._read)
                for line in file.readlines():
                    if line.endswith(b"\n"):
                        self._read += len(line)
                        self.lines.append(json.loads(line))
        return [line for line in self.lines if line["room"] == room]


@dataclass(frozen=True)
class Side:
    """A running worker of one shape."""

    shape: str
    agent: str
    running: Worker
    server: LiveKit
    notes: Notes

    async def ready(self) -> None:
        """Wait until the process for the next call is ready."""

        def said(message: str) -> int:
            return sum(record.get("message") == message for record in self.running.records)

        await self.running.wait_for(
            lambda _: said("process initialized") >= said("initializing process")
        )


@dataclass(frozen=True)
class Cause:
    """The cause of a call's end: its room, its time, and the caller who is still there."""

    room: str
    at: float
    caller: TextCaller | None = None


@asynccontextmanager
async def started(
    project: Project, server: LiveKit, shape: str, notes: Notes, *, dev: bool = False
) -> AsyncIterator[Side]:
    """A worker of this shape, ended on exit."""
    agent, bin_folder = f"shape-{uuid.uuid4().hex[:8]}", project.path / ".venv" / "bin"
    environment = {
        "AGENT_NAME": agent,
        "AGENT_LOG_FORMAT": "json",
        "AGENT_CALLER_WAIT_SECONDS": WAIT_SECONDS,
        "AGENT_REJOIN_SECONDS": WAIT_SECONDS,
        "BENCH_SHAPE": shape,
        "BENCH_NOTES": str(notes.file),
    }
    if shape == OURS:
        command, verb = [str(bin_folder / "agent")], "dev" if dev else "start"
    else:
        command = [
            str(bin_folder / "python"),
            "-m",
            "livekit.agents",
            "start",
            *(["--dev"] if dev else []),
        ]
        verb = str(HERE / "shape_agent.py")
    async with worker(project.path, command, server, verb=verb, **environment) as running:
        yield Side(shape, agent, running, server, notes)


def furnish(project: Project) -> None:
    """Give the project the parts that every shape has."""
    shutil.copy(HERE / "shape_parts.py", project.path / "src" / "agent" / "bench_parts.py")
    project.write("src/agent/resources.py", RESOURCES)
    project.write("src/agent/persona.py", project.read("src/agent/persona.py") + TOOL)


# ---------------------------------------------------------------------- the ends


@asynccontextmanager
async def greeted(side: Side, prefix: str = "call") -> AsyncIterator[TextCaller]:
    """A caller who has been greeted, and hangs up on exit."""
    for _ in range(ATTEMPTS):
        async with TextCaller(side.server, new_room(prefix), side.agent) as caller:
            try:
                await caller.hear_text_with("help")
            except AssertionError:
                continue
            yield caller
            return
    raise AssertionError(f"{side.shape}: no greeting; the worker said: {side.running.records[-5:]}")


def new_room(prefix: str = "call") -> str:
    """A new room's name."""
    return f"{prefix}-{uuid.uuid4().hex[:10]}"


@asynccontextmanager
async def hung_up(side: Side, prefix: str = "call") -> AsyncIterator[Cause]:
    """The caller hangs up after the greeting."""
    async with greeted(side, prefix) as caller:
        at = time.time()
        await caller.hang_up()
        yield Cause(caller.room_name, at)


@asynccontextmanager
async def room_deleted(side: Side) -> AsyncIterator[Cause]:
    """An operator deletes the room."""
    async with greeted(side) as caller, side.server.api() as client:
        at = time.time()
        await client.room.delete_room(api.DeleteRoomRequest(room=caller.room_name))
        yield Cause(caller.room_name, at, caller)


@asynccontextmanager
async def agent_removed(side: Side) -> AsyncIterator[Cause]:
    """An operator removes the agent from the room; the caller stays."""
    async with greeted(side) as caller, side.server.api() as client:
        (agent,) = caller.room.remote_participants
        at = time.time()
        await client.room.remove_participant(
            api.RoomParticipantIdentity(room=caller.room_name, identity=agent)
        )
        yield Cause(caller.room_name, at, caller)


@asynccontextmanager
async def caller_killed(side: Side) -> AsyncIterator[Cause]:
    """The caller's process is killed, and the server is not informed."""
    async with calling(
        side.server, side.agent, ["ann"], "--calls", "1", "--stay", "3600"
    ) as callers:
        await callers.wait_for(lambda: bool(callers.greeted), seconds=40)
        at = time.time()
        callers.processes[0].kill()
        yield Cause(callers.greeted[0], at)


@asynccontextmanager
async def nobody_joins(side: Side) -> AsyncIterator[Cause]:
    """The agent is sent into a room that its caller never reaches."""
    async with side.server.api() as client:
        room, at = new_room(), time.time()
        await client.agent_dispatch.create_dispatch(
            api.CreateAgentDispatchRequest(agent_name=side.agent, room=room)
        )
        yield Cause(room, at)


@asynccontextmanager
async def model_fails(side: Side) -> AsyncIterator[Cause]:
    """The model fails on every turn of a caller who asks again every second."""

    async def ask_again(caller: TextCaller) -> None:
        while not caller.cut_off.is_set():
            # the room may disappear meanwhile
            with suppress(Exception):
                await caller.write(shape_parts.FAILING)
            await asyncio.sleep(1)

    async with greeted(side) as caller:
        at = time.time()
        caller.keep(ask_again(caller))
        yield Cause(caller.room_name, at, caller)


ENDS: dict[str, Callable[[Side], AbstractAsyncContextManager[Cause]]] = {
    "caller hangs up": hung_up,
    "room deleted": room_deleted,
    "agent removed": agent_removed,
    "caller's process killed": caller_killed,
    "nobody ever joins": nobody_joins,
    "model fails at every turn": model_fails,
    "a close that takes 12 s": lambda side: hung_up(side, shape_parts.SLOW),
    "a close that hangs": lambda side: hung_up(side, shape_parts.STUCK),
}
# one at a time, several rounds
QUICK_ENDS = ["caller hangs up", "room deleted", "agent removed"]
# side by side, once
SLOW_ENDS = [end for end in ENDS if end not in QUICK_ENDS]
CLOSES = SLOW_ENDS[3:]
STOPPED, KILLED = "dev worker stopped (SIGTERM)", "worker killed (SIGKILL)"
ALL_ENDS = [*QUICK_ENDS, STOPPED, *SLOW_ENDS[:3], KILLED, *SLOW_ENDS[3:]]


async def watch(notes: Notes, cause: Cause, limit: float) -> Sample:
    """Seconds from the cause to each close, to the end of the process, and to the caller's removal.

    None for what did not happen within the limit.
    """
    sample: Sample = {
        "opened": None,
        "pool": None,
        "client": None,
        "cut": None,
        "process": None,
        "caller let go": None,
    }
    process: psutil.Process | None = None
    opened = False
    while time.time() - cause.at < limit:
        for line in notes.of(cause.room):
            seconds = round(line["at"] - cause.at, 3)
            if line["event"] == "opened" and not opened:
                opened, sample["opened"] = True, seconds
                with suppress(psutil.NoSuchProcess):
                    process = psutil.Process(line["pid"])
            elif line["event"] == "closed":
                sample[line["resource"]] = seconds
            elif line["event"] == "cut":
                sample["cut"] = seconds
        if opened and gone(process) and sample["process"] is None:
            sample["process"] = round(time.time() - cause.at, 3)
            # read what was written just before
            continue
        if (
            cause.caller is not None
            and cause.caller.cut_off.is_set()
            and sample["caller let go"] is None
        ):
            sample["caller let go"] = round(time.time() - cause.at, 3)
        waiting = cause.caller is not None and sample["caller let go"] is None
        ended = sample["process"]
        if isinstance(ended, float) and (not waiting or time.time() - cause.at > ended + 2):
            break
        # other processes: there is no event to await
        await asyncio.sleep(0.02)
    return sample


def gone(process: psutil.Process | None) -> bool:
    """Whether the process has ended, reaped or not."""
    try:
        return (
            process is None or not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
        )
    except psutil.NoSuchProcess:
        return True


async def observe(end: str, side: Side, gate: asyncio.Lock, hold: float, limit: float) -> Sample:
    """One call with this end; the gate is held during its setup and `hold` seconds longer."""
    async with AsyncExitStack() as stack:
        async with gate:
            await side.ready()
            cause = await stack.enter_async_context(ENDS[end](side))
            watching = asyncio.create_task(watch(side.notes, cause, limit))
            await asyncio.wait([watching], timeout=hold)
        sample = await watching
        Progress.dot()
    # an agent that is still in the room would disturb the next calls
    async with side.server.api() as client:
        with suppress(api.TwirpError):
            await client.room.delete_room(api.DeleteRoomRequest(room=cause.room))
    return sample


async def answers(side: Side) -> bool:
    """Whether a question after the greeting gets an answer that needs an open resource."""
    async with greeted(side) as caller:
        with suppress(TimeoutError, AssertionError):
            async with asyncio.timeout(8):
                await caller.ask("/tool look_up {}", shape_parts.OPEN)
                return True
    return False


async def signalled(
    project: Project, server: LiveKit, shape: str, notes: Notes, sig: signal.Signals, limit: float
) -> Sample:
    """One call whose worker gets the signal; it runs `dev` for SIGTERM, else `start`."""
    async with started(project, server, shape, notes, dev=sig == signal.SIGTERM) as side:
        await side.ready()
        async with greeted(side) as caller:
            process = side.running.process
            at = time.time()
            exited = asyncio.create_task(process.wait())
            exited_at: list[float] = []
            exited.add_done_callback(lambda _: exited_at.append(time.time()))
            process.send_signal(sig)
            try:
                sample = await watch(notes, Cause(caller.room_name, at, caller), limit)
                with suppress(TimeoutError):
                    async with asyncio.timeout(max(0.1, at + limit - time.time())):
                        await asyncio.shield(exited)
                sample["worker"] = round(exited_at[0] - at, 3) if exited_at else None
            finally:
                if sig == signal.SIGKILL:
                    # its children, which it can no longer end
                    with suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
    return sample


async def measure(scratch: Path, *, version: str, quick: bool) -> Results:
    """Every raw number, in seconds."""
    tell = Progress()
    tell("making a template and a project")
    project = make_project(scratch, version)
    furnish(project)
    limit = QUICK_LIMIT_SECONDS if quick else LIMIT_SECONDS
    rounds = 1 if quick else 3
    notes = Notes(scratch / "notes.jsonl")
    results: Results = {"machine": machine(), "version": version, "limit": limit, "rounds": rounds}
    ends: dict[str, dict[str, list[Sample]]] = {
        end: {shape: [] for shape in SHAPES} for end in ALL_ENDS
    }
    async with livekit_server(scratch) as server:
        async with AsyncExitStack() as stack:
            tell("starting a worker of each shape")
            sides = [
                await stack.enter_async_context(started(project, server, shape, notes))
                for shape in SHAPES
            ]
            tell("asking each a question")
            results["answers"] = {side.shape: await answers(side) for side in sides}
            tell("quick ends, one at a time")
            await observe_all(
                [
                    (end, side)
                    for number in range(rounds)
                    for end in QUICK_ENDS
                    for side in (sides if number % 2 == 0 else reversed(sides))
                ],
                ends,
                HOLD_SECONDS,
                limit,
            )
            tell("slow ends, side by side")
            await observe_all(
                [
                    (end, side)
                    for end in SLOW_ENDS
                    for side in sides
                    # a slow close may be killed or not: that is a race
                    for _ in range(rounds if end in CLOSES else 1)
                ],
                ends,
                0,
                limit,
            )
        for end, sig in ((STOPPED, signal.SIGTERM), (KILLED, signal.SIGKILL)):
            tell(end)
            for shape in SHAPES:
                ends[end][shape].append(await signalled(project, server, shape, notes, sig, limit))
                Progress.dot()
    results["ends"] = ends
    tell("done")
    finish(results, tell.seconds)
    return results


async def observe_all(
    calls: list[tuple[str, Side]],
    ends: dict[str, dict[str, list[Sample]]],
    hold: float,
    limit: float,
) -> None:
    """Make these calls in this order; only one is set up at a time."""
    gate = asyncio.Lock()

    async def one(end: str, side: Side) -> None:
        ends[end][side.shape].append(await observe(end, side, gate, hold, limit))

    async with asyncio.TaskGroup() as group:
        for end, side in calls:
            group.create_task(one(end, side))


# ---------------------------------------------------------------------- the table


def cleanup_of(end: str, sample: Sample) -> float:
    """When everything that can close at this end was closed; infinite if never.

    If a close hangs, only the other one counts; a close that was cut off counts from then.
    """
    pool, client = number(sample["pool"]), min(number(sample["client"]), number(sample["cut"]))
    return pool if end == "a close that hangs" else max(pool, client)


def free_of(end: str, sample: Sample) -> float:
    """When the slot was free, or the stopped worker had exited; infinite if not in time."""
    return number(sample["worker" if end == STOPPED else "process"])


def number(value: float | str | None) -> float:
    """The value, infinite for None."""
    return math.inf if value is None else float(value)


def medians(results: Results, end: str, shape: str) -> tuple[float, float]:
    """Median of cleanup and slot free over the rounds with them; infinite without any."""
    samples = results["ends"][end][shape]

    def middle(values: list[float]) -> float:
        happened = [value for value in values if math.isfinite(value)]
        return statistics.median(happened) if happened else math.inf

    return (
        middle([cleanup_of(end, sample) for sample in samples]),
        middle([free_of(end, sample) for sample in samples]),
    )


def in_words(results: Results, end: str, shape: str) -> tuple[str, str]:
    """Cleanup and slot free as text; a process that exited without a cleanup never has one."""
    cleanup, free = medians(results, end, shape)
    samples = results["ends"][end][shape]
    late = f"not within {results['limit']:g} s"
    missing = sum(math.isinf(cleanup_of(end, sample)) for sample in samples)
    if missing == len(samples):
        cleaned = "never" if math.isfinite(free) else late
    else:
        cleaned = "before" if cleanup < 0 else seconds_of(cleanup)
        if any(sample["cut"] is not None for sample in samples):
            cleaned += " (cut)"
        if missing:
            cleaned += f" ({missing} of {len(samples)} never)"
    return cleaned, seconds_of(free) if math.isfinite(free) else late


def seconds_of(value: float) -> str:
    """Seconds, with hundredths below ten."""
    return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"


def table(results: Results) -> str:
    """The results as Markdown."""
    lines = [
        f"{describe(results)} Medians of {results['rounds']} rounds of hang-ups, deletions,"
        " removals and slow closes; the others ran once.",
        "",
        "| cleanup / slot free | " + " | ".join(SHAPES) + " |",
        "|---|" + "---|" * len(SHAPES),
        "| answers after the greeting | "
        + " | ".join("yes" if results["answers"][shape] else "**no**" for shape in SHAPES)
        + " |",
    ]
    for end in ALL_ENDS:
        cells = [" / ".join(in_words(results, end, shape)) for shape in SHAPES]
        lines.append(f"| {end} | " + " | ".join(cells) + " |")
    stranded = ["agent removed", STOPPED, "model fails at every turn", KILLED]
    for end in stranded:
        cells = [
            "yes"
            if all(sample["caller let go"] is not None for sample in results["ends"][end][shape])
            else "no"
            for shape in SHAPES
        ]
        lines.append(f"| {end}: caller removed too | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    """Measure and report; 1 if no server is available."""
    parser = argparse.ArgumentParser(
        description="Measure the shapes of an entrypoint through every end of a call."
    )
    arguments(parser)
    options = parser.parse_args()
    if not has_server():
        return 1
    with workshop() as scratch:
        results = asyncio.run(measure(scratch, version=options.version, quick=options.quick))
    report("shapes", results, table, quick=options.quick)
    return 0


if __name__ == "__main__":
    sys.exit(main())
