"""A call to the agent of a running worker: a new room, a link for a browser, a text caller."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from importlib import import_module
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import quote

import typer

from agent import one_line
from agent.cli.chat import CallerName, Conversation, Metadata, caller_identity, converse
from agent.cli.checks import check_connection, require, server_api
from agent.cli.terminal import busy, report
from agent.settings import Settings, SettingsError, load_settings

if TYPE_CHECKING:
    from livekit import api, rtc

AGENT_SECONDS = 24.0  # for an agent to join
# until a dispatch that no worker has taken is made again, for no worker takes it later; one that a
# worker has taken may look the same for five seconds
ASK_SECONDS = 8.0
ANSWER_SECONDS = 60.0  # for a whole answer, which is written as fast as it is spoken
LINGER_SECONDS = 0.5  # an answer that was a goodbye is followed by the end of the call
TOKEN_LIFE = timedelta(hours=1)


def call(caller: CallerName = None, metadata: Metadata = "") -> int:
    """Call the agent that a running worker answers: in text from here, or by voice from a link."""
    settings = load_settings()
    require(check_connection(settings))
    # what matters of the connection shows in how a call ends
    logging.getLogger("livekit").setLevel(logging.CRITICAL)
    with busy("loading LiveKit's SDK"):
        import_module("livekit.rtc")
    room_caller = RoomCaller(settings, caller_identity(caller), metadata)
    asyncio.run(room_caller.make_room())
    report(
        f"Room {room_caller.room}. "
        "To speak, open this within an hour; the browser then takes the call over:"
    )
    report(room_caller.link())
    report(f"Token: {room_caller.token()}")
    leave(converse(room_caller))


def leave(code: int) -> NoReturn:
    """Exit at once: Python's own end would abort now and then (134), under the SDK's threads."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class RoomCaller(Conversation):
    """A text caller in a room of its own: writes on lk.chat, reads lk.transcription."""

    def __init__(self, settings: Settings, identity: str, metadata: str = "") -> None:
        super().__init__()
        self._settings, self._identity, self._metadata = settings, identity, metadata
        self.room = f"call-{secrets.token_hex(4)}"
        self._connection: rtc.Room | None = None
        self._agent: rtc.RemoteParticipant | None = None
        self._changed = asyncio.Event()  # anything that is waited for
        self._open = 0  # messages that are still being said
        self._closed = 0  # messages that were said to their end
        self._reading: set[asyncio.Task[None]] = set()
        self._problem = ""
        self._dispatch = ""  # its id
        self._taken = False  # a worker has taken it

    async def make_room(self) -> None:
        """Make the room by sending the agent there; raises SettingsError."""
        async with server_api(self._settings) as server:
            await self._send_agent(server)

    async def _send_agent(self, server: api.LiveKitAPI) -> None:
        from livekit import api

        name, metadata = self._settings.name, self._metadata
        request = api.CreateAgentDispatchRequest(agent_name=name, room=self.room, metadata=metadata)
        self._dispatch = (await server.agent_dispatch.create_dispatch(request)).id

    async def _replace_if_not_taken(self) -> None:
        """Make the dispatch again if no worker has taken it."""
        async with server_api(self._settings) as server:
            made = await server.agent_dispatch.get_dispatch(self._dispatch, self.room)
            self._taken = made is not None and len(made.state.jobs) > 0
            if not self._taken:
                await server.agent_dispatch.delete_dispatch(self._dispatch, self.room)
                await self._send_agent(server)

    def token(self) -> str:
        """Lets this caller into the room, here or in a browser: whichever joined last is it."""
        from livekit import api

        secret = self._settings.livekit_api_secret.get_secret_value()
        token = api.AccessToken(self._settings.livekit_api_key, secret)
        token = token.with_identity(self._identity).with_ttl(TOKEN_LIFE)
        return token.with_grants(self._grants()).to_jwt()

    def _grants(self) -> api.VideoGrants:
        """What whoever joins with the token may do."""
        from livekit import api

        return api.VideoGrants(room_join=True, room=self.room)

    def _watch_room(self, room: rtc.Room) -> None:
        """The place to look at more that happens in the room."""

    def link(self) -> str:
        """Opens the room in a browser, on a page of LiveKit's."""
        server = quote(self._settings.livekit_url, safe="")
        return f"https://meet.livekit.io/custom?liveKitUrl={server}&token={self.token()}"

    async def _start(self) -> None:
        await self._join()
        if not await self._agent_comes():
            await self._give_up()
        await self._until_answered(0)

    async def _agent_comes(self) -> bool:
        """Wait for the agent, as a front end should: within a time, and asking again for it."""
        for asked in range(int(AGENT_SECONDS / ASK_SECONDS)):
            if await self._until(lambda: self._agent is not None, ASK_SECONDS):
                return True
            await self._replace_if_not_taken()
            if not (asked or self._taken):
                report("No worker has taken the call yet; asking again ...")
        return False

    async def _say(self, text: str) -> None:
        """Write a line as a chat box does."""
        assert self._connection is not None
        closed = self._closed
        try:
            await self._connection.local_participant.send_text(text, topic="lk.chat")
        except Exception as error:  # the connection is breaking, and its end will be reported
            report(f"not sent: {one_line(error)}")
            return
        await self._until_answered(closed)
        with suppress(TimeoutError):
            await asyncio.wait_for(self.ended.wait(), LINGER_SECONDS)

    async def close(self) -> str:
        """Hang up."""
        if self._connection is not None:
            await self._connection.disconnect()
        for task in self._reading:
            task.cancel()
        return self._problem

    async def _join(self) -> None:
        from livekit import rtc

        def joined(participant: rtc.RemoteParticipant) -> None:
            if participant.kind == rtc.ParticipantKind.PARTICIPANT_KIND_AGENT:
                self._agent = participant
                self._changed.set()

        def left(participant: rtc.RemoteParticipant) -> None:
            deleted = participant.disconnect_reason == rtc.DisconnectReason.ROOM_DELETED
            if participant is self._agent and not deleted:
                self._problem = "the agent left the room without ending the call"
                self._end()

        def disconnected(reason: rtc.DisconnectReason.ValueType) -> None:
            if reason == rtc.DisconnectReason.DUPLICATE_IDENTITY:
                report("The browser has taken the call over.")
            self._end()

        self._connection = room = rtc.Room()
        room.on("participant_connected", joined)
        room.on("participant_disconnected", left)
        room.on("participant_attributes_changed", lambda *_: self._changed.set())
        room.on("disconnected", disconnected)
        room.register_text_stream_handler("lk.transcription", self._receive)
        self._watch_room(room)
        try:
            await room.connect(self._settings.livekit_url, self.token())
        except rtc.ConnectError as error:
            problem = f"{self._settings.livekit_url} cannot be joined: {error.message}"
            raise SettingsError([problem]) from error
        for participant in room.remote_participants.values():
            joined(participant)

    async def _give_up(self) -> None:
        """Delete the room, into which no agent came, and exit."""
        from livekit import api

        with suppress(SettingsError):
            async with server_api(self._settings) as server:
                await server.room.delete_room(api.DeleteRoomRequest(room=self.room))
        if self._taken:
            problem = "a worker has taken the call, and no agent joined"
            cure = "look at the worker's log, and at the load of its machine"
        else:
            problem = "no worker has taken the call, and none takes it later"
            cure = (
                f"start one on this server (`agent start`, AGENT_NAME={self._settings.name}), "
                "or give it more room (AGENT_MAX_LOAD), then call again"
            )
        report(f"{problem}, within {AGENT_SECONDS:g} s: {cure}")
        raise typer.Exit(1)

    def _end(self) -> None:
        self.ended.set()
        self._changed.set()

    def _receive(self, reader: rtc.TextStreamReader, identity: str) -> None:
        if self._agent is None or identity == self._agent.identity:
            task = asyncio.create_task(self._read(reader))
            self._reading.add(task)
            task.add_done_callback(self._reading.discard)

    async def _read(self, reader: rtc.TextStreamReader) -> None:
        """One message of the agent, word by word as it is spoken."""
        from livekit import rtc

        text = ""
        self._open += 1
        try:
            with suppress(rtc.StreamError):  # cut off by the end of the call
                async for words in reader:
                    text += words
                    self.on_partial(text)
        finally:
            self._open -= 1
            self._closed += 1
            if text.strip():
                self._heard(text.strip())
            self._changed.set()

    async def _until_answered(self, closed: int) -> None:
        """Wait until the agent has said more than `closed` messages and listens again."""

        def answered() -> bool:
            state = self._agent.attributes.get("lk.agent.state") if self._agent else None
            return self._closed > closed and not self._open and state == "listening"

        if not await self._until(answered, ANSWER_SECONDS):
            report(f"no answer within {ANSWER_SECONDS:g} s")

    async def _until(self, happened: Callable[[], bool], seconds: float) -> bool:
        """Wait until it has happened, or the call has ended; False after so many seconds."""
        try:
            async with asyncio.timeout(seconds):
                while not (self.ended.is_set() or happened()):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True
