"""Who may call from a web page: one answer of the token endpoint, for any web framework.

Each answer is for a room of its own, into which the agent has been sent. Nothing is stored: a
room's name proves whose it is, so that a page which is loaded again goes on with its call.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import math
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from datetime import timedelta
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any

import aiohttp
from livekit import api

from agent import one_line
from agent.settings import Settings
from agent.transport import Caller

log = logging.getLogger("agent.web")

TOKEN_LIFE = timedelta(minutes=5)  # to join; who has joined stays
ASK_SECONDS = 60.0
ASKS = 60  # so many requests of one network within so long
# and so many new calls of one guest's network, or of one caller: each keeps a job of a worker,
# until the caller has left or `caller_wait_seconds` have passed without one
NEW_CALLS = 5
# a room without an agent is waited in for so long; then nobody comes, and a new call is better
AGENT_SECONDS = 8.0
SERVER_SECONDS = 5.0
MAX_BODY = 4096
NO_STORE = {"Cache-Control": "no-store"}  # of every answer: nobody keeps a token
# what LiveKit's clients may ask for, and is not theirs to choose
DECIDED_HERE = (
    *("participant_identity", "participant_name", "participant_metadata"),
    *("participant_attributes", "room_config"),
)


class Refused(Exception):
    """No token: what to answer instead."""

    def __init__(self, status: int, sentence: str, *, retry_after: int | None = None) -> None:
        super().__init__(sentence)
        self.status = status
        self.json = {"error": sentence}
        self.headers = dict(NO_STORE)
        if retry_after is not None:
            self.headers["Retry-After"] = str(retry_after)


class Tokens:
    """Lets the visitors of a page call this project's agent, within limits.

    `origins` are the addresses at which the page is opened, such as https://example.com. In a
    minute, `new_calls` may be started by one caller or from one network of guests.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        origins: Collection[str],
        new_calls: int = NEW_CALLS,
        life: timedelta = TOKEN_LIFE,
    ) -> None:
        self._settings, self._life = settings, life
        self._origins = frozenset(origins)
        self._asks = RateLimit(ASKS, ASK_SECONDS)
        self._new_calls = RateLimit(new_calls, ASK_SECONDS)

    async def answer(
        self,
        body: bytes,
        *,
        origin: str | None,
        address: str,
        who: Caller | str | Callable[[], Awaitable[Caller | str]],
        metadata: str = "",
    ) -> dict[str, str]:
        """The answer to a POST with this body; raises Refused.

        `who` is the caller whom your session knows, or for a guest a secret of their session or
        cookie: it lets them go on with their own call, and nobody else. An async function that
        finds this out, such as in a database, is called only for a request that is within limits.
        `address` is where the request comes from, `metadata` what the call is about.
        """
        if origin not in self._origins:
            raise Refused(403, "Calls from another page are not taken.")
        room = asked_room(body)
        network = network_of(address)
        self._asks.count(network)
        known = await who() if callable(who) else who
        if not known:
            raise ValueError("a guest without a secret would share a call with the next one")
        caller = known if isinstance(known, Caller) else None
        whose = f"caller {caller.identity}" if caller else f"guest {known}"
        async with self._server() as server:
            if not (self._is_theirs(room, whose) and await goes_on(server, room)):
                self._new_calls.count(whose if caller else network)
                room = self._new_room(whose)
                await server.agent_dispatch.create_dispatch(
                    api.CreateAgentDispatchRequest(
                        agent_name=self._settings.name, room=room, metadata=metadata
                    )
                )
        caller = caller or Caller(f"guest-{self._sign('identity', room)[:16]}")
        return {
            "server_url": websocket_url(self._settings.livekit_url),
            "participant_token": self._token(room, caller),
            "room": room,
            "identity": caller.identity,
        }

    def _token(self, room: str, caller: Caller) -> str:
        secret = self._settings.livekit_api_secret.get_secret_value()
        token = api.AccessToken(self._settings.livekit_api_key, secret)
        # the agent is not in the token: whoever has one could send it again and again
        grants = api.VideoGrants(
            room_join=True,
            room=room,
            can_publish=True,
            can_publish_sources=["microphone"],
            can_subscribe=True,
            can_publish_data=True,
            can_update_own_metadata=False,
        )
        token = token.with_identity(caller.identity).with_grants(grants).with_ttl(self._life)
        if caller.name:
            token = token.with_name(caller.name)
        if caller.attributes:
            token = token.with_attributes(dict(caller.attributes))
        return token.to_jwt()

    def _new_room(self, whose: str) -> str:
        nonce = secrets.token_hex(8)
        return f"web-{nonce}-{self._sign(nonce, whose)[:32]}"

    def _is_theirs(self, room: str, whose: str) -> bool:
        web, _, rest = room.partition("-")
        nonce, _, proof = rest.partition("-")
        right = self._sign(nonce, whose)[:32]
        return web == "web" and hmac.compare_digest(proof.encode(), right.encode())

    def _sign(self, *parts: str) -> str:
        secret = self._settings.livekit_api_secret.get_secret_value()
        signed = json.dumps(["agent.web", *parts])
        return hmac.new(secret.encode(), signed.encode(), hashlib.sha256).hexdigest()

    @asynccontextmanager
    async def _server(self) -> AsyncIterator[api.LiveKitAPI]:
        """The server's API; inside, its failures become Refused, and are logged."""
        url, key = self._settings.livekit_url, self._settings.livekit_api_key
        secret = self._settings.livekit_api_secret.get_secret_value()
        timeout = aiohttp.ClientTimeout(total=SERVER_SECONDS)
        try:
            async with api.LiveKitAPI(url, key, secret, timeout=timeout, failover=False) as server:
                yield server
        except (api.TwirpError, aiohttp.ClientError, TimeoutError, OSError) as error:
            log.error("no call: %s does not make a room: %s", url, one_line(error))
            raise Refused(503, "No call can be started just now. Please try again.") from error


def asked_room(body: bytes) -> str:
    """The room of an earlier answer, to go on in; empty for a new one. Raises Refused."""
    problem = 'Send JSON such as {} or {"room": "the room of an earlier answer"}.'
    if len(body) > MAX_BODY:
        raise Refused(400, problem)
    try:
        asked: Any = json.loads(body or b"{}")
    except (ValueError, RecursionError) as error:
        raise Refused(400, problem) from error
    if not isinstance(asked, dict):
        raise Refused(400, problem)
    for name in DECIDED_HERE:
        if asked.get(name):
            raise Refused(400, f"{name} is decided here: leave it out.")
    room = asked.get("room") or asked.get("room_name") or ""
    if not isinstance(room, str):
        raise Refused(400, problem)
    return room


async def goes_on(server: api.LiveKitAPI, room: str) -> bool:
    """Whether the room is there with an agent, or was made a moment ago and waits for it."""
    people = await server.room.list_participants(api.ListParticipantsRequest(room=room))
    if any(person.kind == api.ParticipantInfo.Kind.AGENT for person in people.participants):
        return True
    rooms = (await server.room.list_rooms(api.ListRoomsRequest(names=[room]))).rooms
    return any(time.time() - found.creation_time < AGENT_SECONDS for found in rooms)


def websocket_url(url: str) -> str:
    """The server's address as browsers take it."""
    return f"ws{url.removeprefix('http')}" if url.startswith("http") else url


def network_of(address: str) -> str:
    """Whom an address stands for: of IPv6, where one person has very many, its network."""
    try:
        ip = ip_address(address)
    except ValueError:  # a name, or a socket's path
        return address
    return str(ip_network(f"{ip}/64", strict=False)) if isinstance(ip, IPv6Address) else address


class RateLimit:
    """So many times within so long, for each key, in this process."""

    def __init__(self, times: int, seconds: float) -> None:
        self._times, self._seconds = times, seconds
        self._asked: dict[str, deque[float]] = {}

    def count(self, key: str) -> None:
        """Count a request; raises Refused if it has to wait."""
        now = time.monotonic()
        # in the order of their last request: who has not asked for long is in front
        for old in list(self._asked):
            if now - self._asked[old][-1] < self._seconds:
                break
            del self._asked[old]
        asked = self._asked.pop(key, deque[float]())
        while asked and now - asked[0] >= self._seconds:
            asked.popleft()
        self._asked[key] = asked
        if len(asked) >= self._times:
            wait = math.ceil(self._seconds - (now - asked[0])) or 1
            sentence = f"Too many calls were started. Please wait for {wait} s and try again."
            raise Refused(429, sentence, retry_after=wait)
        asked.append(now)
