"""A livekit-server's API for rooms and dispatches, on loopback, with what a test puts into it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web
from google.protobuf.message import Message
from livekit import api
from livekit.protocol import agent_dispatch, models, room

KEY, SECRET = "devkey", "a-secret-for-tests-of-more-than-32-bytes"


@dataclass
class RoomService:
    """Rooms, their participants and dispatches; what was deleted and asked for."""

    rooms: list[models.Room] = field(default_factory=list)
    present: list[models.ParticipantInfo] = field(default_factory=list)
    dispatches: list[agent_dispatch.AgentDispatch] = field(default_factory=list)
    # names of rooms
    deleted: list[str] = field(default_factory=list)
    made: list[agent_dispatch.CreateAgentDispatchRequest] = field(default_factory=list)
    port: int = 0

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which a client finds it."""
        url = f"http://127.0.0.1:{self.port}"
        return {"LIVEKIT_URL": url, "LIVEKIT_API_KEY": KEY, "LIVEKIT_API_SECRET": SECRET}

    def _answer(self, method: str, body: bytes) -> Message:
        match method:
            case "ListRooms":
                return room.ListRoomsResponse(rooms=self.rooms)
            case "ListParticipants":
                return room.ListParticipantsResponse(participants=self.present)
            case "DeleteRoom":
                self.deleted.append(api.DeleteRoomRequest.FromString(body).room)
                return room.DeleteRoomResponse()
            case "ListDispatch":
                return agent_dispatch.ListAgentDispatchResponse(agent_dispatches=self.dispatches)
            case "DeleteDispatch":
                asked = agent_dispatch.DeleteAgentDispatchRequest.FromString(body)
                (gone,) = (one for one in self.dispatches if one.id == asked.dispatch_id)
                self.dispatches.remove(gone)
                return gone
            case "CreateDispatch":
                wanted = agent_dispatch.CreateAgentDispatchRequest.FromString(body)
                self.made.append(wanted)
                made = agent_dispatch.AgentDispatch(
                    id=f"AD_{len(self.made)}", agent_name=wanted.agent_name, room=wanted.room
                )
                self.dispatches.append(made)
                return made
        raise AssertionError(f"nobody expected {method}")

    async def handle(self, request: web.Request) -> web.Response:
        """Answer one request."""
        answer = self._answer(request.match_info["method"], await request.read())
        return web.Response(body=answer.SerializeToString(), content_type="application/protobuf")


@asynccontextmanager
async def room_service() -> AsyncIterator[RoomService]:
    """A running one, with nothing in it."""
    service = RoomService()
    app = web.Application()
    app.add_routes([web.post("/twirp/{service}/{method}", service.handle)])
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        service.port = runner.addresses[0][1]
        yield service
    finally:
        await runner.cleanup()
