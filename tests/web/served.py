"""The page as an owner's server serves it, with tokens as a test wants them."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

from aiohttp import web
from livekit import api

from agent.transport import Caller
from agent.web.app import web_app
from agent.web.tokens import Refused, Tokens, asked_room
from tests.support.server import LiveKit


@dataclass(eq=False)
class Served(Tokens):
    """A running server of the page."""

    livekit: LiveKit
    agent: str | None
    url: str = ""
    # what the next callers get instead of a token: a status and an answer
    refusal: tuple[int, str] | None = None
    # of the tokens; a negative one has run out
    seconds: float = 600
    # the rooms that are not ended, in the order in which they were asked for
    rooms: list[str] = field(default_factory=list)
    _free: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._free.set()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Meanwhile nobody gets a token."""
        self._free.clear()
        try:
            yield
        finally:
            self._free.set()

    @contextmanager
    def no_agent(self) -> Iterator[None]:
        """Meanwhile rooms are made without an agent."""
        agent, self.agent = self.agent, None
        try:
            yield
        finally:
            self.agent = agent

    async def answer(
        self,
        body: bytes,
        *,
        origin: str | None,
        address: str,
        who: Caller | str | Callable[[], Awaitable[Caller | str]],
        metadata: str = "",
    ) -> dict[str, str]:
        """A token for a new room and a new caller, or for those that are asked for again."""
        room = asked_room(body)
        await self._free.wait()
        if self.refusal:
            raise Refused(*self.refusal)
        if room not in self.rooms:
            room = f"talk-{uuid.uuid4().hex[:8]}"
        self.rooms.append(room)
        token = self.livekit.token(
            room,
            f"visitor of {room}",
            agent_name=self.agent,
            life=timedelta(seconds=self.seconds),
        )
        return {"server_url": self.livekit.url, "participant_token": token}

    async def delete(self, room: str) -> None:
        """End a room, as an agent does that hangs up."""
        async with self.livekit.api() as server:
            await server.room.delete_room(api.DeleteRoomRequest(room=room))
        self.rooms.remove(room)


@asynccontextmanager
async def served(livekit: LiveKit, agent: str | None = None) -> AsyncIterator[Served]:
    """The page of callers of `agent`, or of an agent who joins by itself."""
    page = Served(livekit, agent)

    runner = web.AppRunner(web_app(page, livekit_url=livekit.url))
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        page.url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
        yield page
    finally:
        await runner.cleanup()
