"""A call to the agent that a running worker answers: a new room, a link for a browser, and a text caller right here."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING
from urllib.parse import quote

from agent.cli.chat import Talk, converse, identity_of
from agent.cli.run import busy, check_connection, tell, warn_connection
from agent.errors import one_line
from agent.settings import Settings, SettingsError, load_settings

if TYPE_CHECKING:
    from livekit import api, rtc

SERVER_SECONDS = 5.0  # for one answer of the server
AGENT_SECONDS = 10.0  # for an agent to join
ANSWER_SECONDS = 60.0  # for a whole answer, which is written as fast as it is spoken
LINGER_SECONDS = 0.5  # an answer that was a goodbye is followed by the end of the call
TOKEN_LIFE = timedelta(hours=1)


class NoAgent(Exception):
    """Nobody came into the room: what to check."""


def call(name: str | None) -> int:
    """Call the agent on the configured server; the exit code. Raises SettingsError when there is no such server."""
    settings = load_settings()
    if problems := check_connection(settings):
        raise SettingsError(problems)
    for warning in warn_connection(settings):
        tell(warning)
    logging.getLogger("livekit").setLevel(
        logging.CRITICAL
    )  # what matters of the transport is told by how a call ends
    with busy("loading LiveKit's SDK"):
        from livekit import rtc  # noqa: F401
    phone = RoomCaller(settings, identity_of(name))
    asyncio.run(phone.send_for_agent())
    tell(
        f"Room {phone.room}. To speak, open this within an hour; the browser then takes the call over:"
    )
    tell(phone.link())
    tell(f"Token: {phone.token()}")
    try:
        return converse(phone)
    except NoAgent as error:
        tell(str(error))
        return 1


@asynccontextmanager
async def server_api(settings: Settings) -> AsyncIterator[api.LiveKitAPI]:
    """The server's API; inside, a server that does not answer or refuses the keys raises SettingsError."""
    import aiohttp
    from livekit import api

    secret = settings.livekit_api_secret.get_secret_value()
    patience = aiohttp.ClientTimeout(total=SERVER_SECONDS)
    url = settings.livekit_url
    async with api.LiveKitAPI(
        url, settings.livekit_api_key, secret, timeout=patience, failover=False
    ) as server:
        try:
            yield server
        except api.TwirpError as error:
            if error.status in {401, 403}:
                problem = f"{url} refuses LIVEKIT_API_KEY and LIVEKIT_API_SECRET: copy them from that server again"
            else:
                problem = f"{url} answers {error.status} ({error.message or error.code}): is it a LiveKit server?"
            raise SettingsError([problem]) from error
        except TimeoutError as error:
            raise SettingsError(
                [f"no answer from {url} within {SERVER_SECONDS:g} s: is LIVEKIT_URL right?"]
            ) from error
        except (aiohttp.ClientError, OSError) as error:
            raise SettingsError(
                [f"{url} cannot be reached: start that server, or correct LIVEKIT_URL"]
            ) from error


class RoomCaller(Talk):
    """A text caller in a room of its own: writes on lk.chat, reads lk.transcription."""

    def __init__(self, settings: Settings, identity: str) -> None:
        super().__init__()
        self._settings, self._identity = settings, identity
        self.room = f"call-{secrets.token_hex(4)}"
        self._connection: rtc.Room | None = None
        self._agent: rtc.RemoteParticipant | None = None
        self._agent_here, self._changed = asyncio.Event(), asyncio.Event()
        self._open = 0  # messages that are still being said
        self._closed = 0  # messages that were said to their end
        self._tasks: set[asyncio.Task[None]] = set()
        self._problem = ""

    async def send_for_agent(self) -> None:
        """Make the room by sending the agent there; raises SettingsError."""
        from livekit import api

        async with server_api(self._settings) as server:
            wanted = api.CreateAgentDispatchRequest(agent_name=self._settings.name, room=self.room)
            await server.agent_dispatch.create_dispatch(wanted)

    def token(self) -> str:
        """Lets this caller into the room, here or in a browser: an agent has one caller, so who joins last is it."""
        from livekit import api

        grants = api.VideoGrants(room_join=True, room=self.room)
        token = api.AccessToken(
            self._settings.livekit_api_key, self._settings.livekit_api_secret.get_secret_value()
        )
        return token.with_identity(self._identity).with_ttl(TOKEN_LIFE).with_grants(grants).to_jwt()

    def link(self) -> str:
        """Opens the room in a browser, on a page of LiveKit's."""
        server = quote(self._settings.livekit_url, safe="")
        return f"https://meet.livekit.io/custom?liveKitUrl={server}&token={self.token()}"

    async def begin(self) -> str:
        """Join, and wait for the agent and its greeting; raises SettingsError, NoAgent."""
        with self.answering() as greeting:
            await self._join()
            await self._wait_for_agent()
            await self._until_said(0)
        return " ".join(greeting)

    async def _wait_for_agent(self) -> None:
        from livekit import api

        try:
            async with asyncio.timeout(AGENT_SECONDS):
                await self._agent_here.wait()
        except TimeoutError:
            with suppress(SettingsError):
                async with server_api(self._settings) as server:
                    await server.room.delete_room(api.DeleteRoomRequest(room=self.room))
            raise NoAgent(
                f"no agent joined within {AGENT_SECONDS:g} s: is `agent start` running on this server, "
                f"with AGENT_NAME={self._settings.name}, and not too busy (AGENT_MAX_LOAD)?"
            ) from None

    async def say(self, text: str) -> str:
        """Write a line as a chat box does."""
        assert self._connection is not None
        before = self._closed
        with self.answering() as parts:
            try:
                await self._connection.local_participant.send_text(text, topic="lk.chat")
            except (
                Exception
            ) as error:  # the connection is breaking, which is told when it has ended
                tell(f"not sent: {one_line(error)}")
                return ""
            await self._until_said(before)
            with suppress(TimeoutError):
                await asyncio.wait_for(self.ended.wait(), LINGER_SECONDS)
        return " ".join(parts)

    async def close(self) -> str:
        """Hang up."""
        if self._connection is not None:
            await self._connection.disconnect()
        for task in self._tasks:
            task.cancel()
        return self._problem

    async def _join(self) -> None:
        from livekit import rtc

        self._connection = room = rtc.Room()
        room.on("participant_connected", self._arrived)
        room.on("participant_disconnected", self._left)
        room.on("participant_attributes_changed", lambda *_: self._changed.set())
        room.on("disconnected", self._disconnected)
        room.register_text_stream_handler("lk.transcription", self._receive)
        try:
            await room.connect(self._settings.livekit_url, self.token())
        except rtc.ConnectError as error:
            raise SettingsError(
                [f"{self._settings.livekit_url} cannot be joined: {error.message}"]
            ) from error
        for participant in room.remote_participants.values():
            self._arrived(participant)

    def _arrived(self, participant: rtc.RemoteParticipant) -> None:
        from livekit import rtc

        if participant.kind == rtc.ParticipantKind.PARTICIPANT_KIND_AGENT:
            self._agent = participant
            self._agent_here.set()

    def _left(self, participant: rtc.RemoteParticipant) -> None:
        from livekit import rtc

        if (
            participant is self._agent
            and participant.disconnect_reason != rtc.DisconnectReason.ROOM_DELETED
        ):
            self._problem = "the agent left the room without ending the call"
            self._end()

    def _disconnected(self, reason: rtc.DisconnectReason.ValueType) -> None:
        from livekit import rtc

        if reason == rtc.DisconnectReason.DUPLICATE_IDENTITY:
            tell("The browser has taken the call over.")
        self._end()

    def _end(self) -> None:
        self.ended.set()
        self._changed.set()

    def _receive(self, reader: rtc.TextStreamReader, identity: str) -> None:
        if self._agent is None or identity == self._agent.identity:
            task = asyncio.create_task(self._read(reader))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _read(self, reader: rtc.TextStreamReader) -> None:
        """One message of the agent, word by word as it is spoken."""
        from livekit import rtc

        said = ""
        self._open += 1
        try:
            async for words in reader:
                said += words
                self.on_partial(said)
        except rtc.StreamError:  # cut off by the end of the call
            pass
        finally:
            self._open -= 1
            self._closed += 1
            if said.strip():
                self.heard(said.strip())
            self._changed.set()

    async def _until_said(self, before: int) -> None:
        """Wait until the agent has said something since `before` and listens again."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                while not self.ended.is_set() and not (self._closed > before and self._listens()):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            tell(f"no answer within {ANSWER_SECONDS:g} s")

    def _listens(self) -> bool:
        return (
            not self._open
            and self._agent is not None
            and self._agent.attributes.get("lk.agent.state") == "listening"
        )
