"""A livekit-server's API for rooms, dispatches and phones, on loopback, as a test wants it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web
from google.protobuf.message import Message
from livekit import api
from livekit.protocol import agent_dispatch, models, room, sip

KEY, SECRET = "devkey", "a-secret-for-tests-of-more-than-32-bytes"


@dataclass
class Refusal(Exception):
    """The answer to a request that fails, such as a call that is not answered."""

    code: str
    status: int
    meta: dict[str, str] = field(default_factory=dict)
    message: str = "refused"

    def response(self) -> web.Response:
        """As Twirp has it."""
        body = {"code": self.code, "msg": self.message, "meta": self.meta}
        return web.json_response(body, status=self.status)


def busy_with(status: int, phrase: str) -> Refusal:
    """A phone's refusal; always with the code of a rate limit, which says nothing."""
    meta = {"sip_status_code": str(status), "sip_status": phrase}
    return Refusal("resource_exhausted", 429, meta)


@dataclass
class RoomService:
    """Rooms, their participants and dispatches; what was deleted and asked for."""

    rooms: list[models.Room] = field(default_factory=list)
    present: list[models.ParticipantInfo] = field(default_factory=list)
    dispatches: list[agent_dispatch.AgentDispatch] = field(default_factory=list)
    # the methods that were asked for
    asked: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    # names of rooms
    deleted: list[str] = field(default_factory=list)
    made: list[agent_dispatch.CreateAgentDispatchRequest] = field(default_factory=list)
    # what becomes of a phone that is called, or of a transfer: it rings until `pick_up` is set
    refusal: Refusal | None = None
    pick_up: asyncio.Event = field(default_factory=asyncio.Event)
    rings: asyncio.Event = field(default_factory=asyncio.Event)
    answered: asyncio.Event = field(default_factory=asyncio.Event)
    dialed: list[sip.CreateSIPParticipantRequest] = field(default_factory=list)
    transferred: list[sip.TransferSIPParticipantRequest] = field(default_factory=list)
    transfer: sip.TransferSIPParticipantResponse = field(
        default_factory=sip.TransferSIPParticipantResponse
    )
    # what a carrier's calls are taken with
    inbound: list[sip.SIPInboundTrunkInfo] = field(default_factory=list)
    rules: list[sip.SIPDispatchRuleInfo] = field(default_factory=list)
    outbound: list[sip.SIPOutboundTrunkInfo] = field(default_factory=list)
    # identities, and the attributes that somebody was given
    attributes: dict[str, dict[str, str]] = field(default_factory=dict)
    removed: list[str] = field(default_factory=list)
    port: int = 0

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which a client finds it."""
        url = f"http://127.0.0.1:{self.port}"
        return {"LIVEKIT_URL": url, "LIVEKIT_API_KEY": KEY, "LIVEKIT_API_SECRET": SECRET}

    async def _ring(self) -> None:
        self.rings.set()
        await self.pick_up.wait()
        self.answered.set()
        if self.refusal is not None:
            raise self.refusal

    async def _answer(self, method: str, body: bytes) -> Message:
        match method:
            case "CreateSIPParticipant":
                call = sip.CreateSIPParticipantRequest.FromString(body)
                self.dialed.append(call)
                await self._ring()
                return sip.SIPParticipantInfo(participant_identity=call.participant_identity)
            case "TransferSIPParticipant":
                self.transferred.append(sip.TransferSIPParticipantRequest.FromString(body))
                await self._ring()
                return self.transfer
            case "ListSIPInboundTrunk" | "ListSIPDispatchRule" | "ListSIPOutboundTrunk" if (
                self.refusal
            ):
                raise self.refusal
            case "ListSIPInboundTrunk":
                return sip.ListSIPInboundTrunkResponse(items=self.inbound)
            case "ListSIPDispatchRule":
                return sip.ListSIPDispatchRuleResponse(items=self.rules)
            case "ListSIPOutboundTrunk":
                return sip.ListSIPOutboundTrunkResponse(items=self.outbound)
            case "RemoveParticipant":
                self.removed.append(room.RoomParticipantIdentity.FromString(body).identity)
                return room.RemoveParticipantResponse()
            case "UpdateParticipant":
                told = room.UpdateParticipantRequest.FromString(body)
                self.attributes[told.identity] = dict(told.attributes)
                return models.ParticipantInfo(identity=told.identity)
            case "ListRooms":
                return room.ListRoomsResponse(rooms=self.rooms)
            case "ListParticipants":
                return room.ListParticipantsResponse(participants=self.present)
            case "DeleteRoom" if self.refusal:
                raise self.refusal
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
        method = request.match_info["method"]
        self.asked.put_nowait(method)
        try:
            answer = await self._answer(method, await request.read())
        except Refusal as refusal:
            return refusal.response()
        return web.Response(body=answer.SerializeToString(), content_type="application/protobuf")


@asynccontextmanager
async def room_service(port: int = 0) -> AsyncIterator[RoomService]:
    """A running one, with nothing in it."""
    service = RoomService()
    app = web.Application()
    app.add_routes([web.post("/twirp/{service}/{method}", service.handle)])
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        service.port = runner.addresses[0][1]
        yield service
    finally:
        await runner.cleanup()
