"""Calls with real stores in this process: the agent's steps at a terminal, and a fault."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.cli.chat import Chat
from agent.knowledge import local_embedder
from agent.knowledge.ingest import ingest
from agent.memory import open_store
from agent.memory.spool import deliver
from agent.settings import Settings
from agent.transport import Caller

QUESTION, ANSWER = "What does parking cost?", "Parking costs two euros an hour."
NOT_NOW = "I cannot look that up at the moment."
DOCUMENT = f"# Parking\n\n{ANSWER}\n\n# Dogs\n\nDogs are welcome if they are quiet.\n"
STRANGER, KNOWN = "Hello!", "Welcome back"

Act = Callable[[], Awaitable[None] | None]


async def nothing() -> None:
    """Do nothing."""


async def done(act: Act) -> None:
    """Run an act, here or in a thread."""
    if asyncio.iscoroutinefunction(act):
        await act()
    else:
        await asyncio.to_thread(act)


@dataclass
class Trouble:
    """A fault and its repair.

    `healthy` are settings of all calls, `broken` those of the call with the fault; `ingest` is
    whether the owner also has to run `agent ingest`.
    """

    healthy: dict[str, Any] = field(default_factory=dict)
    broken: dict[str, Any] = field(default_factory=dict)
    cause: Act = nothing
    heal: Act = nothing
    ingest: bool = False


@dataclass(frozen=True)
class Fault:
    """A row of a table of faults: template/docs/agent/memory.md, knowledge.md.

    `part` logs the one warning: memory, knowledge or embedder; empty is no warning. The fault comes
    "before" the call, in "mid"-call, or is also repaired in mid-call: "blip". A question during the
    fault gets one of the `answers`. `keeps` is "all" turns, those since the fault ("new"), or those
    from "before" the broken call.
    """

    world: Callable[[Path], AbstractAsyncContextManager[Trouble]]
    part: str
    when: str
    greeting: str = KNOWN
    answers: tuple[str, ...] = (ANSWER,)
    keeps: str = "all"


@dataclass
class Said:
    """A call that has ended."""

    greeting: str
    answers: list[str]
    warnings: list[logging.LogRecord]

    @property
    def words(self) -> list[str]:
        """The words that memory should have, in order."""
        return [self.greeting, *(word for answer in self.answers for word in (QUESTION, answer))]


class Desk:
    """Answers calls of one caller, one after another."""

    def __init__(
        self, home: Path, records: Callable[[], Sequence[logging.LogRecord]], trouble: Trouble
    ) -> None:
        (home / "knowledge").mkdir(exist_ok=True)
        (home / "knowledge" / "visit.md").write_text(DOCUMENT, encoding="utf-8")
        self._records = records
        given: dict[str, Any] = {
            "home": home,
            "data_dir": home / "data",
            "models": "scripted",
            "knowledge": "sqlite",
        }
        # so that a busy machine is not a fault
        given |= {"knowledge_seconds": 1.0, "memory_seconds": 1.0}
        self.settings = Settings.model_validate(
            {**given, "memory_url": "sqlite", **trouble.healthy}
        )
        self.broken = Settings.model_validate(
            {**given, "memory_url": "sqlite", **trouble.healthy, **trouble.broken}
        )

    async def call(
        self, settings: Settings, cause: Act | None = None, heal: Act | None = None
    ) -> Said:
        """Call, ask, cause the fault and ask again, repair it and ask again, hang up."""
        before = len(self._records())
        chat = Chat(settings, Caller("ann", ""), "")
        said = Said(await chat.start(), [], [])
        said.answers.append(await chat.say(QUESTION))
        for act in (cause, heal):
            if act is not None:
                await done(act)
                said.answers.append(await chat.say(QUESTION))
        assert await chat.close() == ""
        said.warnings = [
            record
            for record in self._records()[before:]
            if record.levelno >= logging.WARNING
            # the worker's own
            and record.module != "embedder_process"
        ]
        return said

    async def ingest(self) -> None:
        """Do the work of `agent ingest`."""
        async with local_embedder(self.settings, wait=True, alone=True) as inside:
            await ingest(inside)

    async def later(self) -> None:
        """Do the worker's work between calls, after the breakers' few seconds."""
        for outage in self.settings.data.glob("*.outage"):
            os.utime(outage, (outage.stat().st_mtime - 60,) * 2)
        await deliver(self.settings)

    async def remembered(self) -> list[str]:
        """The words of all turns in the memory, oldest first."""
        async with open_store(self.settings) as memory:
            assert memory is not None
            profile = await memory.recall("ann")
        return [turn.text for turn in profile.turns] if profile else []


@asynccontextmanager
async def closing(server: Any) -> AsyncIterator[Any]:
    """A server until exit, closed even if it is stopped."""
    try:
        yield server
    finally:
        await asyncio.to_thread(server.close)
