"""A transport for tests: the room and the caller are in the test's hands."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from livekit.agents import Agent, AgentSession

from agent.transport import Caller, CallEvents


class FakeTransport:
    """What a room would do, a test does: arrive, leave, drop, come_back, close_room."""

    def __init__(self, *, connects: bool = True, limited: bool = True) -> None:
        self.call_id, self.room_name, self.began = "job", "room", time.monotonic()
        self.limited = limited
        self.events: CallEvents
        self.connects = connects
        self.finished_with: list[str] = []
        self.rooms_ended = 0
        self.connected = False
        self.early: list[str] = []
        self._arrived: asyncio.Future[Caller] = asyncio.get_running_loop().create_future()

    # the transport

    def listen(self, events: CallEvents) -> None:
        self.events = events

    @asynccontextmanager
    async def room(self) -> AsyncIterator[None]:
        if not self.connects:
            await asyncio.Event().wait()
        self.connected = True
        try:
            yield
        finally:
            self.connected = False

    async def wait_for_caller(self) -> Caller:
        return await asyncio.shield(self._arrived)

    async def start(self, session: AgentSession[None], agent: Agent, caller: Caller) -> None:
        await session.start(agent)

    async def early_texts(self) -> list[str]:
        return self.early

    async def end_room(self, caller: Caller | None) -> None:
        self.rooms_ended += 1

    def finish(self, reason: str) -> None:
        self.finished_with.append(reason)

    def guard_exit(self, seconds: float) -> None:
        return

    # the test's side

    def arrive(self, identity: str = "ann", kind: str = "standard") -> None:
        self._arrived.set_result(Caller(identity=identity, kind=kind))

    def leave(self) -> None:
        self.events.caller_gone(on_purpose=True)

    def drop(self) -> None:
        self.events.caller_gone(on_purpose=False)

    def come_back(self) -> None:
        self.events.caller_back()

    def close_room(self, *, removed: bool = False) -> None:
        self.events.room_gone(removed=removed)
