"""A caller: joins a room like a front end, hears the agent's words and sound, writes, hangs up."""

from __future__ import annotations

import array
import asyncio
import random
import sys
import time
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self

from livekit import rtc

from tests.support.server import LiveKit

# seconds; long enough for a busy machine
PATIENCE = 60.0
# samples a second of what is heard
HEARD_RATE = 16_000


def somebody() -> str:
    """A new name that an agent remembers: a caller who is cut off and calls again resumes."""
    return "".join(random.choice("bdfklmnprst") + random.choice("aeiou") for _ in range(4))


class Caller:
    """One person in one room; `async with` joins and hangs up. The default is a new identity."""

    def __init__(
        self,
        server: LiveKit,
        room: str,
        agent_name: str | None = None,
        *,
        identity: str | None = None,
        kind: str = "standard",
        listens: bool = False,
        token: str | None = None,
    ) -> None:
        identity = identity or somebody()
        self.identity, self.server, self.room_name = identity, server, room
        self.room = rtc.Room()
        # the agent's words, a segment each
        self.sentences: asyncio.Queue[str] = asyncio.Queue()
        # the caller's own, as the agent has understood them
        self.understood: list[str] = []
        self.agent_here = asyncio.Event()
        self.agent_gone = asyncio.Event()
        # the server ended this connection
        self.cut_off = asyncio.Event()
        # something that is not silence was heard
        self.sound = asyncio.Event()
        self.loud_seconds = 0.0
        # of time.monotonic()
        self.first_sound_at: float | None = None
        self.last_sound_at: float | None = None
        self._token = token or server.token(
            room, identity, agent_name=agent_name, kind=kind, listens=listens
        )
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        room = self.room
        room.on("track_subscribed", self._listen)
        room.on("participant_connected", lambda p: self._agent(p, self.agent_here))
        room.on("participant_disconnected", lambda p: self._agent(p, self.agent_gone))
        room.on("disconnected", lambda *_: self.cut_off.set())
        room.register_text_stream_handler("lk.transcription", self._read)
        await room.connect(self.server.url, self._token)
        for participant in room.remote_participants.values():
            self._agent(participant, self.agent_here)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.hang_up()

    async def hang_up(self) -> None:
        """Leave the room."""
        for task in self._tasks:
            task.cancel()
        await self.room.disconnect()

    def _agent(self, participant: rtc.RemoteParticipant, event: asyncio.Event) -> None:
        if participant.kind == rtc.ParticipantKind.PARTICIPANT_KIND_AGENT:
            event.set()

    def keep(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` during the call."""
        self._spawn(asyncio.create_task(work))

    def _spawn(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _read(self, reader: rtc.TextStreamReader, identity: str) -> None:
        async def read() -> None:
            if not (text := (await reader.read_all()).strip()):
                return
            if identity != self.identity:
                self.sentences.put_nowait(text)
            elif (reader.info.attributes or {}).get("lk.transcription_final") == "true":
                self.understood.append(text)

        self._spawn(asyncio.create_task(read()))

    def _listen(
        self,
        track: rtc.Track,
        publication: rtc.RemoteTrackPublication,
        participant: rtc.RemoteParticipant,
    ) -> None:
        if (
            track.kind != rtc.TrackKind.KIND_AUDIO
            or participant.kind != rtc.ParticipantKind.PARTICIPANT_KIND_AGENT
        ):
            return

        async def listen() -> None:
            stream = rtc.AudioStream(track, sample_rate=HEARD_RATE, num_channels=1)
            async for event in stream:
                self._has_heard(event.frame)

        self._spawn(asyncio.create_task(listen()))

    def _has_heard(self, frame: rtc.AudioFrame) -> bool:
        """Note a piece of the agent's sound; whether it is not silence."""
        loud = max(map(abs, array.array("h", bytes(frame.data))), default=0) > 500
        if loud:
            now = time.monotonic()
            self.first_sound_at = self.first_sound_at or now
            self.last_sound_at = now
            self.loud_seconds += frame.samples_per_channel / frame.sample_rate
            self.sound.set()
        return loud

    async def hear_text(self) -> str:
        """The agent's next sentences, from `lk.transcription`."""
        async with asyncio.timeout(PATIENCE):
            return await self.sentences.get()

    async def hear_text_with(self, words: str) -> str:
        """The first of the agent's next sentences that contains `words`."""
        heard: list[str] = []
        try:
            async with asyncio.timeout(PATIENCE):
                while words.lower() not in " ".join(heard).lower():
                    heard.append(await self.sentences.get())
        except TimeoutError:
            raise AssertionError(f"{words!r} was never said; heard: {heard}") from None
        return heard[-1]

    async def hear_sound(self) -> None:
        """Wait for audio that is not silence."""
        async with asyncio.timeout(PATIENCE):
            await self.sound.wait()

    async def heard_more(self) -> None:
        """Wait until more sound has been heard."""
        self.sound.clear()
        async with asyncio.timeout(PATIENCE):
            await self.sound.wait()

    async def speak_early(self, source: rtc.AudioSource, recording: bytes) -> None:
        """Switch a microphone on, and send what it recorded as soon as the agent is in the room.

        LiveKit's front ends do the same: they record until then.
        """
        active = asyncio.Event()
        self.room.on("participant_active", lambda _: active.set())
        track = rtc.LocalAudioTrack.create_audio_track("microphone", source)
        options = rtc.TrackPublishOptions(
            source=rtc.TrackSource.SOURCE_MICROPHONE, preconnect_buffer=True
        )
        publication = await self.room.local_participant.publish_track(track, options)
        async with asyncio.timeout(PATIENCE):
            await active.wait()
        agents = [person.identity for person in self.room.remote_participants.values()]
        rate, channels = str(source.sample_rate), str(source.num_channels)
        writer = await self.room.local_participant.stream_bytes(
            "preconnect-buffer",
            topic="lk.agent.pre-connect-audio-buffer",
            mime_type="application/octet-stream",
            destination_identities=agents,
            attributes={"trackId": publication.sid, "sampleRate": rate, "channels": channels},
        )
        await writer.write(recording)
        await writer.aclose()

    async def write(self, text: str) -> None:
        """Write to the agent, like a front end's chat box."""
        await self.room.local_participant.send_text(text, topic="lk.chat")

    async def ask(self, question: str, expecting: str) -> str:
        """Write a question and wait for the answer that contains `expecting`."""
        await self.write(question)
        return await self.hear_text_with(expecting)


async def stay(url: str, token: str) -> None:
    """Join with `token` and stay until this process is killed: a caller whose connection breaks."""
    room = rtc.Room()
    await room.connect(url, token)
    print("joined", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(stay(*sys.argv[1:]))
