"""The page, served with tokens as an owner's server would, under a strict policy."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

from aiohttp import web
from livekit import api

from tests.support.server import LiveKit
from tests.support.templates import ROOT

PAGE = ROOT / "template" / "src" / "agent" / "web" / "page"


@dataclass
class Served:
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

    async def token(self, request: web.Request) -> web.Response:
        """A token for a new room and a new caller, or for those that are asked for again."""
        asked = await request.json()
        await self._free.wait()
        if self.refusal:
            status, text = self.refusal
            return web.json_response({"error": text}, status=status)
        room = asked.get("room_name")
        if room not in self.rooms:
            room = f"talk-{uuid.uuid4().hex[:8]}"
        self.rooms.append(room)
        token = (
            api.AccessToken(self.livekit.api_key, self.livekit.api_secret)
            .with_identity(f"visitor of {room}")
            .with_grants(api.VideoGrants(room_join=True, room=room))
            .with_ttl(timedelta(seconds=self.seconds))
        )
        if self.agent:
            dispatch = api.RoomAgentDispatch(agent_name=self.agent)
            token = token.with_room_config(api.RoomConfiguration(agents=[dispatch]))
        answer = {"server_url": self.livekit.url, "participant_token": token.to_jwt()}
        return web.json_response(answer, status=201)

    async def dispatch(self, agent: str) -> None:
        """Send an agent to the newest room."""
        asked = api.CreateAgentDispatchRequest(agent_name=agent, room=self.rooms[-1])
        async with self.livekit.api() as server:
            await server.agent_dispatch.create_dispatch(asked)

    async def delete(self, room: str) -> None:
        """End a room, as an agent does that hangs up."""
        async with self.livekit.api() as server:
            await server.room.delete_room(api.DeleteRoomRequest(room=room))
        self.rooms.remove(room)

    @property
    def policy(self) -> str:
        """Nothing but its own files, and the voice server."""
        there = self.livekit.url
        return (
            "default-src 'none'; script-src 'self'; style-src 'self';"
            f" connect-src 'self' {there} {there.replace('ws', 'http')};"
            " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )


@asynccontextmanager
async def served(livekit: LiveKit, agent: str | None = None) -> AsyncIterator[Served]:
    """The page of callers of `agent`, or of an agent who joins by itself."""
    page = Served(livekit, agent)

    async def file(request: web.Request) -> web.StreamResponse:
        path = PAGE / (request.match_info["name"] or "index.html")
        if not path.is_file():
            raise web.HTTPNotFound
        return web.FileResponse(path, headers={"Content-Security-Policy": page.policy})

    app = web.Application()
    app.router.add_post("/token", page.token)
    app.router.add_get("/{name:[a-zA-Z.]*}", file)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        page.url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
        yield page
    finally:
        await runner.cleanup()
