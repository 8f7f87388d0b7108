"""A worker, started like an owner's, and its log."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from tests.support.projects import clean_environment
from tests.support.server import LiveKit, free_port

# this project exists to avoid these two
SDK_WARNINGS = (
    "The job task completed without establishing a connection or performing a proper shutdown",
    "The room connection was not established within 10 seconds",
)
# the SDK's own, on a busy machine or at a worker's end
TOLERATED = (
    "is slower than realtime",
    "ping",
    "event loop",
    "process is unresponsive",
    "high memory usage",
    "exceeded load threshold",
    "worker is at full capacity",
    "draining worker",
    "unknown FFI handle",
    "failed to send session event",
    "no warmed process available",
    "timed out waiting for idle processes",
)
# the agent's own, on a busy machine
BUSY = ("because no process was ready",)
# what is awaited is an event; this only ends a wait for one that never comes, on a busy machine too
PATIENCE = 120.0

Record = dict[str, Any]
# LiveKit's telephone service puts it into the room's name
PHONE_NUMBER = re.compile(r"(?<=_)\+?\d{6,}(?=_)")


def is_of(record: Record, room: str) -> bool:
    """Whether a record is of the call in a room, whose name it has without a phone's number."""
    return record.get("room") in {room, PHONE_NUMBER.sub("[number]", room)}


@dataclass
class Worker:
    """A running worker and every record it has logged."""

    process: asyncio.subprocess.Process
    port: int
    records: list[Record] = field(default_factory=list)
    # lines that are not records
    other: list[str] = field(default_factory=list)
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def read(self) -> None:
        """Collect the log until the process ends."""
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            text = line.decode(errors="replace").rstrip()
            try:
                record = json.loads(text)
            except ValueError:
                self.other.append(text)
                continue
            async with self._changed:
                self.records.append(record)
                self._changed.notify_all()

    async def wait_for(
        self, wanted: Callable[[Record], bool], seconds: float = PATIENCE, start: int = 0
    ) -> Record:
        """The first record at or after index `start` that is `wanted`, logged already or later."""
        seen = start
        try:
            async with asyncio.timeout(seconds), self._changed:
                while True:
                    for record in self.records[seen:]:
                        if wanted(record):
                            return record
                    seen = len(self.records)
                    await self._changed.wait()
        except TimeoutError:
            tail = "\n".join([*self.other[-10:], *(json.dumps(r) for r in self.records[-30:])])
            raise AssertionError(
                f"the worker never logged the wanted record; its log ends with:\n{tail}"
            ) from None

    async def ended(self, room: str, seconds: float = PATIENCE) -> Record:
        """The record of the end of the call in `room`."""
        return await self.wait_for(
            lambda record: is_of(record, room) and "reason" in record and "turns" in record,
            seconds,
        )

    def of(self, room: str) -> list[Record]:
        """Every record of the call in `room`, in order."""
        return [record for record in self.records if is_of(record, room)]

    def steps(self, room: str) -> list[int]:
        """The steps of the call in `room`, in the order of the log."""
        return [record["step"] for record in self.of(room) if "step" in record]

    def closed(self, room: str) -> list[tuple[str, str]]:
        """Resource and outcome of every close in the call in `room`, in order."""
        return [
            (r["resource"], r["outcome"])
            for r in self.of(room)
            if "outcome" in r and "resource" in r
        ]

    def complaints(self) -> list[Record]:
        """Warnings and errors that a healthy call does not log."""
        return [
            record
            for record in self.records
            if record.get("level") in {"WARNING", "ERROR", "CRITICAL"}
            and not any(known in str(record.get("message", "")) for known in BUSY)
            and (
                str(record.get("logger", "")).startswith("agent")
                or not any(known in str(record.get("message", "")) for known in TOLERATED)
            )
        ]

    async def about(self) -> Record:
        """The worker's answer at /worker."""
        async with (
            aiohttp.ClientSession() as http,
            http.get(f"http://127.0.0.1:{self.port}/worker") as answer,
        ):
            found: Record = await answer.json()
            return found

    async def active_jobs(self) -> int:
        """The number of jobs that the worker reports."""
        return int((await self.about()).get("active_jobs", 0))

    async def sdk(self) -> str:
        """The version of livekit-agents that the worker reports."""
        return str((await self.about())["sdk_version"])

    async def free(self, seconds: float = PATIENCE) -> None:
        """Wait until the worker has no job."""
        async with asyncio.timeout(seconds):
            # another process: there is no event to await
            while await self.active_jobs():  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    async def stop(self, sig: int = signal.SIGTERM, seconds: float = PATIENCE) -> int:
        """Send the signal; return the exit code."""
        if self.process.returncode is None:
            self.process.send_signal(sig)
        async with asyncio.timeout(seconds):
            return await self.process.wait()


@asynccontextmanager
async def worker(
    project: Path,
    command: Sequence[str],
    server: LiveKit,
    *,
    verb: str = "start",
    **environment: str,
) -> AsyncIterator[Worker]:
    """`command` + `verb` run in `project`, registered with `server`, keyless; ended on exit."""
    port = int(environment.get("AGENT_PORT") or free_port())
    keyless = {"AGENT_MODELS": "scripted", "AGENT_PORT": str(port), "AGENT_MAX_LOAD": "inf"}
    # tests/stores proves the deadlines; here answers must arrive on a busy machine too.
    patient = {"AGENT_KNOWLEDGE_SECONDS": "5", "AGENT_MEMORY_SECONDS": "5"}
    defaults = {**server.environment, **keyless, **patient}
    process = await asyncio.create_subprocess_exec(
        *command,
        verb,
        cwd=project,
        env=clean_environment(**{**defaults, **environment}),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        limit=2**22,
        start_new_session=True,
    )
    running = Worker(process, port)
    reading = asyncio.create_task(running.read())
    try:
        await running.wait_for(lambda record: "registered worker" in str(record.get("message", "")))
        yield running
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(60):
                    await process.wait()
            except TimeoutError:
                os.killpg(process.pid, signal.SIGKILL)
        await reading
