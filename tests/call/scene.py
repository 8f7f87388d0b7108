"""Shared by the tests of ends: a worker that can fail in every way, and the checks after a call."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sqlite3
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
from livekit import api
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis

from tests.support.caller import Caller
from tests.support.collector import Collector, collector
from tests.support.ends import End
from tests.support.engines import stores_for
from tests.support.projects import PAIRS, Project, render
from tests.support.server import LiveKit, free_port
from tests.support.templates import ROOT, Template
from tests.support.worker import PATIENCE, Record, Worker, is_of, worker

ALL_STEPS = [1, 2, 3, 4, 5, 6, 7, 8]
# the stores of the project: `make test-all` proves the ends with local and with shared ones
STORES = os.environ.get("ENDS_STORES", "sqlite-sqlite")
OPENED = ["room", "memory", "knowledge", "http", "pool", "session"]
# a file for the seconds of every end, for benchmarks/ends.py
MEASURED = os.environ.get("ENDS_MEASURED")


def troubled(template: Template, folder: Path) -> Project:
    """A project, with knowledge and memory, whose owner has made every mistake."""
    chosen = next(one for one in PAIRS if f"{one.knowledge}-{one.memory}" == STORES)
    project = render(template, folder / "front-desk", chosen)
    for name in ("persona.py", "resources.py"):
        shutil.copy(
            ROOT / "tests" / "support" / "troubled" / name, project.path / "src" / "agent" / name
        )
    project.install()
    return project


def measured(end: End, seconds: float) -> None:
    """Write down the seconds of an end, if ENDS_MEASURED is set."""
    if MEASURED:
        with Path(MEASURED).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"end": end.name, "seconds": round(seconds, 3)}) + "\n")


def new_room(trouble: str = "none") -> str:
    """A new room's name."""
    return f"{trouble}--{uuid.uuid4().hex[:8]}"


@dataclass
class Scene:
    """A running worker, its agent's name, and the receivers of its spans and metrics."""

    running: Worker
    livekit: LiveKit
    project: Project
    agent: str
    spans: Collector
    metrics_port: int

    def caller(self, room: str, **options: Any) -> Caller:
        """A caller of this worker's agent."""
        return Caller(self.livekit, room, self.agent, **options)

    async def dispatch(self, room: str) -> None:
        """Send the agent into an empty room."""
        await self.livekit.dispatch(self.agent, room)

    async def said(self, room: str, message: str) -> Record:
        """Wait until the call in `room` has logged `message`."""
        return await self.running.wait_for(
            lambda r: is_of(r, room) and message in str(r.get("message"))
        )

    async def step(self, room: str, number: int) -> Record:
        """Wait until the call in `room` has done a step."""
        return await self.running.wait_for(lambda r: is_of(r, room) and r.get("step") == number)

    async def expect(
        self,
        end: End,
        room: str,
        *,
        steps: list[int] | None = None,
        opened: list[str] | None = None,
        badly: Mapping[str, str] | None = None,
    ) -> Record:
        """The call in `room` has ended as the table says, and has left nothing behind.

        `steps` and `opened` default to those of a call that reached the conversation; `badly` has
        the outcome of every resource that is not closed well.
        """
        steps, badly = steps or ALL_STEPS, badly or {}
        opened = OPENED if opened is None else opened
        record = await self.running.ended(room)
        assert record["reason"] == end.reason
        assert self.running.steps(room) == steps
        closed = dict(self.running.closed(room))
        # the failure came before the connection
        if steps == [1, 8] and "room" not in closed:
            opened = [name for name in opened if name != "room"]
        assert closed == {name: badly.get(name, "ok") for name in opened}
        assert len(closed) == len(self.running.closed(room))
        assert [*closed][:1] == (["session"] if "session" in opened else [*closed][:1])
        assert [name for name in opened if name == "room"] == [*closed][-1:] or "room" not in opened
        await self.running.free()
        self._measure(end, room)
        await self._traced(end, room, steps, closed)
        await self.counted(end)
        if "memory" in opened and 5 in steps:
            self.remembered(end, record)
        report = await self.reported(end, record["call"])
        assert [step["number"] for step in report["steps"]] == steps
        assert {close["name"]: close["outcome"] for close in report["closes"]} == closed
        assert len(report["said"]) == record["turns"]
        if end.room != "gone":
            assert await self.is_there(room) == (end.room == "kept")
        return record

    def remembered(self, end: End, record: Record) -> None:
        """Memory has the call's reason and every finished turn."""
        assert self.remembered_call(record["call"]) == (end.reason, record["turns"])
        assert self.turns(record["call"]) == record["turns"]

    async def reported(self, end: End, call: str) -> dict[str, Any]:
        """The one report of a call: its process has left it, or a worker soon does."""
        going = self.project.path / "data" / "reports" / "going" / f"{call}.json"
        async with asyncio.timeout(PATIENCE):
            # files tell nobody
            while going.exists() or not (found := self._waiting(call) or self._reports(call)):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        (report,) = found
        assert report["reason"] == end.reason
        return report

    def _waiting(self, call: str) -> list[dict[str, Any]]:
        file = self.project.path / "data" / "reports" / "kept" / f"{call}.json"
        try:
            return [json.loads(file.read_bytes())["report"]]
        except FileNotFoundError:
            return []

    def _reports(self, call: str) -> list[dict[str, Any]]:
        """Those that are kept."""
        if self.project.chosen.memory == "redis":
            with closing(self._redis()) as redis:
                keys = redis.scan_iter("*:{calls}:reports")
                kept = [text for key in keys if (text := redis.hget(key, call))]
            return [json.loads(json.loads(one)["report"]) for one in kept]
        if not (file := self.project.path / "data" / "calls.db").exists():
            return []
        with closing(sqlite3.connect(file)) as db:
            rows = db.execute("SELECT report FROM calls WHERE call = ?", (call,)).fetchall()
        return [json.loads(report) for (report,) in rows]

    def turns(self, call: str) -> int:
        """The number of a call's turns in memory."""
        if self.project.chosen.memory == "redis":
            with closing(self._redis()) as redis:
                texts = [item for key in redis.scan_iter("*:texts") for item in redis.hkeys(key)]
            return sum(json.loads(item)[0] == call for item in texts)
        with closing(sqlite3.connect(self.project.path / "data" / "memory.db")) as db:
            return int(
                db.execute("SELECT count(*) FROM turns WHERE call = ?", (call,)).fetchone()[0]
            )

    def remembered_call(self, call: str) -> tuple[str, int]:
        """The reason and the turns in the one record of a call."""
        if self.project.chosen.memory == "redis":
            with closing(self._redis()) as redis:
                (kept,) = [
                    text for key in redis.scan_iter("*:records") if (text := redis.hget(key, call))
                ]
            known = json.loads(kept)
            return known["reason"], known["turns"]
        with closing(sqlite3.connect(self.project.path / "data" / "memory.db")) as db:
            ((reason, turns),) = db.execute(
                "SELECT reason, turns FROM calls WHERE call = ?", (call,)
            ).fetchall()
        return reason, turns

    def _redis(self) -> Any:
        return Redis.from_url(stores_for(self.project)["AGENT_MEMORY_URL"], decode_responses=True)

    def _measure(self, end: End, room: str) -> None:
        """Measure from the moment when the agent knew to the free slot, polled every 50 ms."""
        (known,) = [r for r in self.running.of(room) if "ending" in r]
        measured(end, time.time() - datetime.fromisoformat(known["time"]).timestamp())

    async def _traced(
        self, end: End, room: str, steps: list[int], closed: Mapping[str, str]
    ) -> None:
        call = await self.spans.call(room)
        assert call.attributes["reason"] == end.reason
        inside = [span for span in self.spans.spans if span.trace == call.trace]
        assert [s.attributes["step"] for s in inside if "step" in s.attributes] == steps
        closes = {
            s.name.removeprefix("close "): s.attributes["outcome"]
            for s in inside
            if s.name.startswith("close ")
        }
        assert closes == closed

    async def counted(self, end: End) -> None:
        """The metric has as many ends of this reason as the log."""
        async with (
            aiohttp.ClientSession() as http,
            http.get(f"http://127.0.0.1:{self.metrics_port}/metrics") as answer,
        ):
            families = text_string_to_metric_families(await answer.text())
        counted = {
            sample.labels["reason"]: sample.value
            for family in families
            for sample in family.samples
            if sample.name == "agent_calls_total"
        }
        logged = [r for r in self.running.records if "turns" in r and r.get("reason") == end.reason]
        assert counted[end.reason] == len(logged)

    async def is_there(self, room: str) -> bool:
        """Whether the server has a room of this name."""
        async with self.livekit.api() as server:
            return bool((await server.room.list_rooms(api.ListRoomsRequest(names=[room]))).rooms)

    async def room_of(self, number: str) -> str:
        """The room in which the phone with this number is, whose name no log has whole."""
        async with asyncio.timeout(PATIENCE), self.livekit.api() as server:
            while True:
                for room in (await server.room.list_rooms(api.ListRoomsRequest())).rooms:
                    if f"sip_{number}" in await self.present(room.name):
                        return room.name
                # another process: there is no event to await
                await asyncio.sleep(0.05)

    async def present(self, room: str) -> list[str]:
        """The participants of a room, without agents."""
        async with self.livekit.api() as server:
            try:
                listed = await server.room.list_participants(api.ListParticipantsRequest(room=room))
            except api.TwirpError:
                return []
        return [p.identity for p in listed.participants if p.kind != api.ParticipantInfo.Kind.AGENT]


@asynccontextmanager
async def scene(
    project: Project,
    livekit: LiveKit,
    verb: str = "start",
    command: list[str] | None = None,
    **environment: str,
) -> AsyncIterator[Scene]:
    """A worker with its own agent name: workers of one name share their calls."""
    agent, port = f"agent-{uuid.uuid4().hex[:8]}", free_port()
    ours = {
        "AGENT_NAME": agent,
        "AGENT_METRICS_PORT": str(port),
        "AGENT_LOG_FORMAT": "json",
        **stores_for(project),
    }
    # in PostgreSQL each agent has its own index
    if project.chosen.knowledge == "pgvector":
        await asyncio.to_thread(project.run, *project.agent, "ingest", env=ours)
    async with collector() as spans:
        settings = {**ours, **spans.environment, **environment}
        async with worker(
            project.path, command or project.agent, livekit, verb=verb, **settings
        ) as running:
            yield Scene(running, livekit, project, agent, spans, port)


async def cut_off(caller: Caller, seconds: float = 10) -> None:
    """Wait until the server has ended the caller's connection: no silent room is left."""
    async with asyncio.timeout(seconds):
        await caller.cut_off.wait()
