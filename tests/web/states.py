"""Every state of the page, one after another, with an agent who does what it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from livekit import rtc

from tests.support.browser import LOOKS, PATIENCE, Browser, Looks, Page
from tests.support.server import LiveKit
from tests.web.served import Served

FAKE_MICROPHONE = "--use-fake-device-for-media-stream"
QUESTION = "Are you open on Saturday afternoon?"
ANSWER = "On Saturday we are open from 9:00 to 13:00. We are closed on Sundays and Mondays."


class StandIn:
    """An agent as the page sees one: a participant with a state, who transcribes."""

    def __init__(self, livekit: LiveKit, room: str) -> None:
        self._livekit, self._name = livekit, room
        self.room = rtc.Room()
        self._texts: asyncio.Queue[str] = asyncio.Queue()
        self._reading: list[asyncio.Task[None]] = []
        # before it joins: what comes to a topic without a reader is lost
        self.room.register_text_stream_handler("lk.chat", self._read)

    async def join(self) -> None:
        token = self._livekit.token(self._name, "agent", kind="agent")
        await self.room.connect(self._livekit.url, token)

    async def does(self, state: str) -> None:
        """Say to the page what it does."""
        await self.room.local_participant.set_attributes({"lk.agent.state": state})

    async def transcribe(
        self, segment: str, *pieces: str, of: str = "", final: bool = True, ends: bool = True
    ) -> None:
        """A transcript, in pieces: of the agent itself, or of the caller `of`.

        One that does not end is one that the agent is still speaking.
        """
        writer = await self.room.local_participant.stream_text(
            topic="lk.transcription",
            attributes={
                "lk.segment_id": segment,
                "lk.transcription_final": "true" if final else "false",
            },
            sender_identity=of or None,
        )
        for piece in pieces:
            await writer.write(piece)
        if ends:
            await writer.aclose()

    def _read(self, reader: rtc.TextStreamReader, _: str) -> None:
        async def read() -> None:
            self._texts.put_nowait(await reader.read_all())

        self._reading.append(asyncio.create_task(read()))

    async def text(self) -> str:
        """The next line that the caller has typed."""
        async with asyncio.timeout(PATIENCE):
            return await self._texts.get()

    async def play(self) -> None:
        """Publish a voice, which is silent."""
        source = rtc.AudioSource(24_000, 1)
        track = rtc.LocalAudioTrack.create_audio_track("voice", source)
        await self.room.local_participant.publish_track(track)

    async def leave(self) -> None:
        await self.room.disconnect()


@asynccontextmanager
async def stand_in(livekit: LiveKit, room: str) -> AsyncIterator[StandIn]:
    """An agent in `room`, who leaves on exit if it has not left."""
    agent = StandIn(livekit, room)
    try:
        await agent.join()
        yield agent
    finally:
        await agent.leave()


def state(name: str) -> str:
    """A script: whether the page is in this state."""
    return f"document.body.dataset.state === '{name}'"


def says(words: str) -> str:
    """A script: whether the page says this somewhere."""
    return f"document.body.innerText.includes({words!r})"


def click(name: str) -> str:
    """A script: click the element of this id."""
    return f"document.getElementById('{name}').click()"


async def connected(page: Page, served: Served, microphone: str = "Mute") -> str:
    """Begin a conversation; the name of its room, once the microphone is on or has failed."""
    await page.run(click("talk"))
    await page.until(state("joining"))
    await page.until(f"mute.ariaDisabled === 'false' && mute.textContent === '{microphone}'")
    return served.rooms[-1]


async def every_state(
    browser: Browser, served: Served, looks: Looks = LOOKS
) -> AsyncIterator[tuple[str, Page]]:
    """Every state of the page and its name; the page is the same in most."""
    async with browser.page(served.url, looks=looks) as page:
        yield "idle", page
        with served.held():
            await page.run(click("talk"))
            await page.until(state("connecting"))
            yield "connecting", page
        await page.until(f"{state('joining')} && mute.ariaDisabled === 'false'")
        yield "joining", page
        async with stand_in(served.livekit, served.rooms[-1]) as agent:
            await agent.does("listening")
            await agent.transcribe("a", "Hello! How can I help you?")
            await page.until(state("listening"))
            yield "listening", page
            await page.run("text.value = " + repr(QUESTION))
            await page.run("document.getElementById('write').requestSubmit()")
            await agent.does("thinking")
            await page.until(f"{state('thinking')} && {says(QUESTION)}")
            yield "thinking", page
            await agent.does("speaking")
            await agent.transcribe("b", ANSWER)
            await page.until(f"{state('speaking')} && {says(ANSWER)}")
            yield "speaking", page
            await agent.does("listening")
            await page.run(click("mute"))
            await page.until(f"{state('listening')} && mute.textContent === 'Unmute'")
            yield "muted", page
        await page.until(says("The agent is gone"))
        yield "agent-gone", page
        await page.run(click("hang-up"))
        yield "ended", page
        served.refusal = (429, "Too many conversations at once. Please try again in a minute.")
        await page.run(click("talk"))
        await page.until(says("Too many"))
        served.refusal = None
        yield "refused", page
    async with browser.page(served.url, microphone="denied", looks=looks) as page:
        await connected(page, served, "Unmute")
        yield "microphone-denied", page
        await served.livekit.kill()
        await page.until(state("reconnecting"))
        yield "reconnecting", page
    await served.livekit.start()
