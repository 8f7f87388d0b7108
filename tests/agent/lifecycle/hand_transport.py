"""A `Transport` whose room and caller a test controls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING

from agent.transport import Caller, CallEvents

if TYPE_CHECKING:
    from livekit.agents import Agent, AgentSession
from livekit.agents.voice.room_io import RoomOptions


@asynccontextmanager
async def any_room() -> AsyncIterator[None]:
    """A room that connects at once."""
    yield


async def nothing() -> None:
    """End a room that does not exist."""


class HandTransport:
    """A transport without a room: a test calls `events`, as a room or a caller would."""

    def __init__(
        self,
        room: AbstractAsyncContextManager[None] | None = None,
        end_room: Callable[[], Awaitable[None]] = nothing,
        *,
        limited: bool = True,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.call_id, self.room_name, self.began, self.limited = "job", "room", loop.time(), limited
        self.metadata, self.livekit_room, self.livekit_api = "", None, None
        self.events: CallEvents
        self.finished_with: list[str] = []
        self.guarded = 0
        self._room, self._end_room = room or any_room(), end_room
        self._arrived: asyncio.Future[Caller] = loop.create_future()

    def arrive(self, kind: str = "standard") -> None:
        """The caller joins."""
        if not self._arrived.done():
            self._arrived.set_result(Caller(identity="ann", kind=kind))

    def listen(self, events: CallEvents) -> None:
        self.events = events

    def room(self) -> AbstractAsyncContextManager[None]:
        return self._room

    async def wait_for_caller(self, is_caller: Callable[[Caller], bool]) -> Caller:
        return await asyncio.shield(self._arrived)

    async def start(
        self, session: AgentSession[None], agent: Agent, caller: Caller, options: RoomOptions
    ) -> None:
        await session.start(agent)

    async def early_texts(self) -> list[str]:
        return []

    async def end_room(self, caller: Caller | None) -> None:
        await self._end_room()

    def finish(self, reason: str) -> None:
        self.finished_with.append(reason)

    def guard_exit(self, seconds: float) -> None:
        self.guarded += 1
