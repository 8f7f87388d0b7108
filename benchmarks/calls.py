"""Calls on a real server, ours and the rival's in turn: until the first sound, and a free slot."""

from __future__ import annotations

import asyncio
import sys
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import aiohttp
from livekit import api, rtc

from tests.support.caller import Caller
from tests.support.projects import UV, Project
from tests.support.server import LiveKit
from tests.support.worker import Record, Worker, worker

Sample = dict[str, float]

BARE = Path(__file__).with_name("bare_agent.py")
# an identity that is remembered
CALLER = "ann"
AGENT_SECONDS, ATTEMPTS = 8.0, 5
OURS, BARE_NAME, DELETING = "ours", "bare", "bare, delete_room_on_close"


class TimedCaller(Caller):
    """A caller who notes when they began to call, and when the agent appeared."""

    began = 0.0
    agent_at: float | None = None
    # earlier attempts that no agent joined
    refused = 0

    def _agent(self, participant: rtc.RemoteParticipant, event: asyncio.Event) -> None:
        super()._agent(participant, event)
        if self.agent_here.is_set() and self.agent_at is None:
            self.agent_at = time.monotonic()


@dataclass
class Side:
    """A running worker of one kind."""

    agent_name: str
    running: Worker
    server: LiveKit

    @asynccontextmanager
    async def called(self) -> AsyncIterator[TimedCaller]:
        """A caller in a room with the agent, who hangs up on exit.

        A server sends no job to a worker that reports a fully used CPU, and does not try again:
        then the caller calls again.
        """
        for refused in range(ATTEMPTS):
            caller = TimedCaller(
                self.server, f"bench-{uuid.uuid4().hex[:8]}", self.agent_name, identity=CALLER
            )
            caller.refused, caller.began = refused, time.monotonic()
            async with caller:
                with suppress(TimeoutError):
                    async with asyncio.timeout(AGENT_SECONDS):
                        await caller.agent_here.wait()
                if caller.agent_here.is_set():
                    yield caller
                    return
        raise AssertionError(f"no agent came; the worker said: {self.running.records[-5:]}")

    async def settled(self) -> None:
        """Wait until no job runs and the process for the next one is ready."""
        await self.running.free(seconds=40)
        await self.another_process()

    async def another_process(self) -> None:
        """Wait until the next call's process is ready: while it loads, it uses a core."""

        def said(message: str) -> int:
            return sum(record.get("message") == message for record in self.running.records)

        await self.running.wait_for(
            lambda _: said("process initialized") >= said("initializing process"), seconds=60
        )


@asynccontextmanager
async def sides(
    project: Project, server: LiveKit, names: list[str], **environment: str
) -> AsyncIterator[dict[str, Side]]:
    """Workers of these kinds, all running at the same time; ended on exit."""
    async with AsyncExitStack() as stack:
        started: dict[str, Side] = {}
        for name in names:
            if name == OURS:
                agent_name = project.answers()["agent_name"]
                running = await stack.enter_async_context(
                    worker(project.path, [str(UV), "run", "agent"], server, **environment)
                )
            else:
                agent_name = f"bare-{len(started)}"
                python = project.path / ".venv" / "bin" / "python"
                running = await stack.enter_async_context(
                    worker(
                        project.path,
                        [str(python), "-m", "livekit.agents", "start"],
                        server,
                        verb=str(BARE),
                        BENCH_AGENT_NAME=agent_name,
                        BENCH_DELETE_ROOM="yes" if name == DELETING else "no",
                        **environment,
                    )
                )
            started[name] = Side(agent_name, running, server)
        # warms up, and makes the caller known
        for side in started.values():
            await first_audio(side)
        yield started


# ---------------------------------------------------------------------- until the first sound


async def first_audio(side: Side) -> Sample:
    """One call to its first sound: seconds since before the caller joins, and our steps' ms."""
    async with side.called() as caller:
        await caller.hear_sound()
    assert caller.first_sound_at is not None
    assert caller.agent_at is not None
    # the bare agent would hold its slot for 20 s; our room is already gone
    async with side.server.api() as client:
        with suppress(api.TwirpError):
            await client.room.delete_room(api.DeleteRoomRequest(room=caller.room_name))
    await side.settled()
    steps = {
        f"step {r['step']} ms": r["ms"]
        for r in side.running.of(caller.room_name)
        if r.get("step", 9) < 6
    }
    return {
        "join to sound": caller.first_sound_at - caller.began,
        "join to agent": caller.agent_at - caller.began,
        "agent to sound": caller.first_sound_at - caller.agent_at,
        "refused before": caller.refused,
        **steps,
    }


async def measure_first_audio(
    project: Project, server: LiveKit, pairs: int, **environment: str
) -> dict[str, list[Sample]]:
    """Pairs of calls; who is called first alternates."""
    samples: dict[str, list[Sample]] = {OURS: [], BARE_NAME: []}
    async with sides(project, server, list(samples), **environment) as workers:
        for pair in range(pairs):
            for name in sorted(workers, reverse=bool(pair % 2)):
                samples[name].append(await first_audio(workers[name]))
            print(".", end="", file=sys.stderr, flush=True)
    return samples


# ---------------------------------------------------------------------- until the slot is free


async def slot_free(side: Side) -> Sample:
    """One call, hung up after its greeting: seconds until the worker has no job.

    Counted from the hang-up, and from the moment when the agent could know of it.
    """
    async with side.called() as caller:
        greeting = await caller.hear_text()
        assert greeting.startswith("Welcome back"), f"the caller is not known: {greeting}"
        hung_up = time.time()
    async with aiohttp.ClientSession() as http, asyncio.timeout(60):
        while True:
            async with http.get(f"http://127.0.0.1:{side.running.port}/worker") as answer:
                if not (await answer.json()).get("active_jobs"):
                    break
            # another process: there is no event to await
            await asyncio.sleep(0.02)
    free = time.time()
    told = await side.running.wait_for(
        lambda r: r.get("room") == caller.room_name and ("known_at" in r or knows(r))
    )
    known = told.get("known_at") or datetime.fromisoformat(told["time"]).timestamp()
    return {"hang-up to free": free - hung_up, "known to free": free - known}


def knows(record: Record) -> bool:
    """Whether this is our record of the end of a conversation."""
    return record.get("step") == 7


async def measure_slots(project: Project, server: LiveKit, rounds: int) -> dict[str, list[Sample]]:
    """Rounds of calls; while the bare agent waits out its 20 s, the other two take turns."""
    samples: dict[str, list[Sample]] = {OURS: [], DELETING: [], BARE_NAME: []}
    async with sides(project, server, list(samples)) as workers:
        for number in range(rounds):
            async with asyncio.TaskGroup() as group:
                waiting = group.create_task(slot_free(workers[BARE_NAME]))
                for name in sorted((OURS, DELETING), reverse=bool(number % 2)):
                    samples[name].append(await slot_free(workers[name]))
                    await workers[name].settled()
            samples[BARE_NAME].append(waiting.result())
            await workers[BARE_NAME].settled()
            print(".", end="", file=sys.stderr, flush=True)
    return samples
