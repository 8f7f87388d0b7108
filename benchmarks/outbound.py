"""Every way a call can end that the agent makes, against the shape of LiveKit's own example.

    PYTHONPATH=template/src python -m benchmarks.outbound [--quick]

Both call the same kind of phone through one livekit-sip, side by side. What does the log know of
why, how long is the job held, and what becomes of the phone? Seconds count from the cause.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import signal
import socket
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from livekit import api

from benchmarks.report import (
    Progress,
    Results,
    command,
    describe,
    finish,
    machine,
    make_project,
)
from tests.support.phone import Phone
from tests.support.projects import Project
from tests.support.server import free_port
from tests.support.sip import Network, require_sip, telephone_network
from tests.support.templates import ROOT, WORK_TREE
from tests.support.worker import Record, Worker, worker

RIVAL = Path(__file__).with_name("outbound_agent.py")
PERSONA = ROOT / "tests" / "support" / "telephoned" / "persona.py"
OURS, THEIRS = "ours", "LiveKit's example"
NUMBER, ELSEWHERE = "+4930555001", "+4930555999"
# for everything after the cause
LIMIT_SECONDS = 60.0
# the rival's, of why a call has ended
SENTENCES = ("the call failed", "the transfer failed", "transferred")
# after a transfer that failed: does the call go on?
GOES_ON_SECONDS = 8.0

Sample = dict[str, Any]


@dataclass
class Side:
    """A running worker of one kind, and where its trunk leads."""

    name: str
    agent: str
    running: Worker
    network: Network
    port: int
    trunk: str

    async def send(self, room: str, **told: str) -> None:
        """Have the agent call."""
        metadata = json.dumps({"call": NUMBER, "transfer_to": ELSEWHERE, **told})
        asked = api.CreateAgentDispatchRequest(agent_name=self.agent, room=room, metadata=metadata)
        async with self.network.livekit.api() as server:
            await server.agent_dispatch.create_dispatch(asked)

    async def talking(self, room: str) -> None:
        """Wait until somebody has answered, and the agent goes on."""

        def is_it(record: Record) -> bool:
            goes_on = record.get("step") == 6 or record.get("message") == "answered"
            return record.get("room") == room and goes_on

        await self.running.wait_for(is_it)

    async def job(self, room: str) -> psutil.Process:
        """The process of the call in this room."""
        record = await self.running.wait_for(
            lambda r: r.get("room") == room and (r.get("step") == 1 or r.get("message") == "begun")
        )
        return psutil.Process(record["pid"])

    def told(self, room: str) -> str:
        """What the log knows of why the call ended."""
        for record in self.running.of(room):
            if "turns" in record and "reason" in record:
                return str(record["reason"])
        # of the rival: its own sentence, or else the SDK's
        about = [
            str(r.get("message")) for r in self.running.records if room in map(str, r.values())
        ]
        said = [one for one in about if one.startswith((*SENTENCES, "closing agent session due"))]
        said.sort(key=lambda one: not one.startswith(SENTENCES))
        return said[0].partition(" (")[0] if said else "nothing"

    def tool(self, ours: str, theirs: str) -> str:
        """What the callee says, so that the model uses a tool."""
        return f"/tool {ours if self.name == OURS else theirs}"


@dataclass
class Scene:
    """One call, and the phone that is called."""

    side: Side
    phone: Phone
    room: str


@asynccontextmanager
async def started(
    project: Project, network: Network, name: str, *, dev: bool = False
) -> AsyncIterator[Side]:
    """A worker of this kind, ended on exit."""
    agent, port = f"calls-{uuid.uuid4().hex[:8]}", free_port(socket.SOCK_DGRAM)
    trunk, bin_folder = await network.outbound(port), project.path / ".venv" / "bin"
    environment = {
        "AGENT_NAME": agent,
        "AGENT_LOG_FORMAT": "json",
        "AGENT_SIP_TRUNK": trunk,
        "AGENT_CALLS_TO": "+4930",
    }
    if name == OURS:
        command_, verb = [str(bin_folder / "agent")], "dev" if dev else "start"
    else:
        begin = ["-m", "livekit.agents", "start", *(["--dev"] if dev else [])]
        command_, verb = [str(bin_folder / "python"), *begin], str(RIVAL)
    async with worker(project.path, command_, network.livekit, verb=verb, **environment) as running:
        yield Side(name, agent, running, network, port, trunk)


# ---------------------------------------------------------------------- the ends


async def refused(scene: Scene) -> float:
    """The phone, or its carrier, says no."""
    await scene.side.send(scene.room)
    await scene.phone.wait(scene.phone.over)
    return scene.phone.over_at


async def unanswered(scene: Scene) -> float:
    """The phone rings on."""
    await scene.side.send(scene.room)
    await scene.phone.wait(scene.phone.ringing)
    return time.monotonic()


def without_phone(**told: str) -> Callable[[Scene], Awaitable[float]]:
    """The phone is not reached, or should not be."""

    async def act(scene: Scene) -> float:
        at = time.monotonic()
        await scene.side.send(scene.room, **told)
        return at

    return act


async def nowhere(scene: Scene) -> float:
    """Nobody listens where the trunk leads."""
    trunk = await scene.side.network.outbound(free_port(socket.SOCK_DGRAM))
    return await without_phone(trunk=trunk)(scene)


async def room_deleted(scene: Scene) -> float:
    """An operator deletes the room while it rings."""
    await unanswered(scene)
    at = time.monotonic()
    async with scene.side.network.livekit.api() as server:
        await server.room.delete_room(api.DeleteRoomRequest(room=scene.room))
    return at


async def job_killed(scene: Scene) -> float:
    """The job is killed while it rings."""
    await unanswered(scene)
    process, at = await scene.side.job(scene.room), time.monotonic()
    process.kill()
    return at


async def worker_stopped(scene: Scene) -> float:
    """A worker of `dev` is stopped while it rings."""
    await unanswered(scene)
    at = time.monotonic()
    scene.side.running.process.send_signal(signal.SIGTERM)
    return at


async def answered(scene: Scene, **told: str) -> None:
    """The phone is answered, and the agent goes on."""
    await scene.side.send(scene.room, **told)
    await scene.phone.wait(scene.phone.answered)
    await scene.side.talking(scene.room)


async def callee_hangs_up(scene: Scene) -> float:
    """The callee hangs up."""
    await answered(scene)
    scene.phone.hang_up()
    return time.monotonic()


async def agent_hangs_up(scene: Scene) -> float:
    """The callee says goodbye, and the agent uses its tool."""
    await answered(scene, then="/tool end_call {}")
    return time.monotonic()


def transferred(result: str) -> Callable[[Scene], Awaitable[float]]:
    """The callee is transferred, and their carrier says this of it; nothing: they hang up."""

    async def act(scene: Scene) -> float:
        ours = f'connect_with {{"number": "{ELSEWHERE}"}}'
        await answered(scene, then=scene.side.tool(ours, "transfer {}"))
        await scene.phone.wait(scene.phone.referred)
        at = time.monotonic()
        if not result:
            scene.phone.hang_up()
            return at
        scene.phone.notify(result)
        if not result.startswith("2"):
            with suppress(TimeoutError):
                async with asyncio.timeout(GOES_ON_SECONDS):
                    await scene.phone.over.wait()
            if not scene.phone.over.is_set():
                scene.phone.hang_up()
        return at

    return act


@dataclass(frozen=True)
class End:
    """A way to end: what the phone does, what happens, and what the log should say."""

    act: Callable[[Scene], Awaitable[float]]
    # what says why; of the rival, a part of its sentence
    reason: str
    clue: str
    answer: int | None = 200
    # how the phone is left; "" if it is not to ring at all
    phone: frozenset[str] = frozenset({"CANCEL"})
    dev: bool = False


SAID = frozenset({"486", "603", "404", "480", "503"})
ENDS: dict[str, End] = {
    "busy": End(refused, "busy", "486", 486, SAID),
    "declined": End(refused, "declined", "603", 603, SAID),
    "no such number": End(refused, "invalid number", "404", 404, SAID),
    "switched off": End(refused, "unreachable", "480", 480, SAID),
    "the carrier fails": End(refused, "trunk failed", "503", 503, SAID),
    "nobody answers": End(unanswered, "no answer", "timed out", None),
    "the trunk leads nowhere": End(nowhere, "trunk failed", "timed out", phone=frozenset({""})),
    "there is no such trunk": End(
        without_phone(trunk="ST_none"), "trunk failed", "trunk", phone=frozenset({""})
    ),
    "a number that is not allowed": End(
        without_phone(call="+4315551234"), "number not allowed", "allowed", 486, frozenset({""})
    ),
    "an emergency number": End(
        without_phone(call="+49112"), "number not allowed", "allowed", 486, frozenset({""})
    ),
    "room deleted while it rings": End(room_deleted, "room closed", "disconnect", None),
    "job killed while it rings": End(job_killed, "job died", "job", None),
    "dev worker stopped while it rings": End(
        worker_stopped, "worker stopped", "stopped", None, dev=True
    ),
    "the callee hangs up": End(
        callee_hangs_up, "caller left", "disconnect", phone=frozenset({"hung up"})
    ),
    "the agent hangs up": End(agent_hangs_up, "agent hung up", "hung up", phone=frozenset({"BYE"})),
    "transferred": End(
        transferred("200 OK"), "transferred", "transferred", phone=frozenset({"BYE"})
    ),
    "… which is refused: the call goes on": End(
        transferred("486 Busy Here"), "caller left", "486", phone=frozenset({"hung up"})
    ),
    "… and the callee hangs up meanwhile": End(
        transferred(""), "caller left", "disconnect", phone=frozenset({"hung up"})
    ),
}
QUICK = ["busy", "the callee hangs up"]


async def observe(end: End, side: Side) -> Sample:
    """One call with this end."""
    room = f"calls-{uuid.uuid4().hex[:10]}"
    async with Phone(
        side.network, port=side.port, answer=end.answer, rings=0.3, refer=None
    ) as phone:
        at = await end.act(Scene(side, phone, room))
        process = await side.job(room)
        ended: float | None = None
        while ended is None and time.monotonic() < at + LIMIT_SECONDS:
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                ended = time.monotonic() - at
            # another process: there is no event to await
            await asyncio.sleep(0.02)
        if end.dev:
            await side.running.process.wait()
        # the last of its log, and the phone's news
        await asyncio.sleep(0.5)
        how = phone.how if phone.over.is_set() else "rings on" * phone.ringing.is_set()
        if phone.answered.is_set() and not phone.over.is_set():
            how = "on the line, in silence"
        # an agent that is still in the room would disturb the next calls
        async with side.network.livekit.api() as server:
            with suppress(api.TwirpError):
                await server.room.delete_room(api.DeleteRoomRequest(room=room))
    told = side.told(room)
    return {
        "told": told,
        "seconds": None if ended is None else round(ended, 2),
        "phone": how,
        "knows": (end.reason if side.name == OURS else end.clue) in told,
        "phone is let go": how in end.phone,
    }


async def measure(scratch: Path, *, quick: bool) -> Results:
    """What came of every end, on both sides."""
    tell = Progress()
    require_sip()
    tell("making a template and a project")
    project = make_project(scratch, WORK_TREE)
    shutil.copyfile(PERSONA, project.path / "src" / "agent" / "persona.py")
    results: Results = {"machine": machine(), "version": WORK_TREE, "quick": quick}
    ends: dict[str, dict[str, Sample]] = {}
    async with telephone_network(scratch) as network, AsyncExitStack() as stack:
        tell("starting a worker of each kind")
        sides = [
            await stack.enter_async_context(started(project, network, name))
            for name in (OURS, THEIRS)
        ]
        for name in QUICK if quick else ENDS:
            tell(name)
            end = ENDS[name]
            async with AsyncExitStack() as own:
                calling = [
                    await own.enter_async_context(started(project, network, side.name, dev=True))
                    if end.dev
                    else side
                    for side in sides
                ]
                samples = await asyncio.gather(*(observe(end, side) for side in calling))
            ends[name] = {side.name: sample for side, sample in zip(calling, samples, strict=True)}
    results["ends"] = ends
    tell("done")
    finish(results, tell.seconds)
    return results


def cell(sample: Sample) -> str:
    """What one side makes of an end."""
    seconds = sample["seconds"]
    held = f"not within {LIMIT_SECONDS:g} s" if seconds is None else f"{seconds:.1f} s"
    phone = sample["phone"] or "not called"
    marks = ["", "**"]
    # the message of the rival's error has the status twice
    words = re.sub(r"twirp error unknown: (?:.*sip status: \d+: [\w ]+, )?", "", sample["told"])
    told = f"{marks[not sample['knows']]}{words}{marks[not sample['knows']]}"
    left = f"{marks[not sample['phone is let go']]}{phone}{marks[not sample['phone is let go']]}"
    return f"{told} | {held} | {left}"


def table(results: Results) -> str:
    """The results as Markdown."""
    ends: dict[str, dict[str, Sample]] = results["ends"]
    right = {
        side: sum(both[side]["knows"] and both[side]["phone is let go"] for both in ends.values())
        for side in (OURS, THEIRS)
    }
    return "\n".join(
        [
            f"{describe(results)} Of {len(ends)} ends, {right[OURS]} are right in ours and"
            f" {right[THEIRS]} in LiveKit's example: the log says why, and the phone is let go.",
            "",
            "| the end | ours: the log says | job ends after | the phone"
            " | LiveKit's example: the log says | job ends after | the phone |",
            "|---|---|---|---|---|---|---|",
            *[
                f"| {name} | {cell(both[OURS])} | {cell(both[THEIRS])} |"
                for name, both in ends.items()
            ],
        ]
    )


def main() -> int:
    """Measure and report; 1 if no server is available."""
    return command(
        "outbound",
        measure,
        table,
        about="Try every way a call can end that the agent makes.",
        quick="two ends, and keep nothing",
    )


if __name__ == "__main__":
    sys.exit(main())
