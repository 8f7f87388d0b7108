"""What an agent hears where a browser's pre-connect recording and the live sound meet.

    PYTHONPATH=template/src python -m benchmarks.seam [--runs 4] [--late 400] [--slow 1.5]

Chromium plays a sound that is nowhere like itself for its microphone, livekit-client records and
publishes it, the agent's early audio and a session take it from a real livekit-server. What its
speech-to-text gets is then looked for in the sound, 20 ms at a time. Printed are the places where
it goes on elsewhere than it stopped: + so many milliseconds were lost, - heard twice. The same of
a stream of the live track alone shows which of them are WebRTC's own. Needs Chromium and npm.

--late lets the recorder go on for so many milliseconds, --slow starts the session so much later.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import os
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from aiohttp import web
from livekit import rtc
from livekit.agents import Agent, AgentSession, room_io, stt

from agent.transport.preconnect import AUDIO, PreConnectBuffer
from tests.support.browser import find_chromium
from tests.support.openai_server.audio import wav_of
from tests.support.server import LiveKit, free_port, livekit_server

CLIENT = "livekit-client@2.23.0"
RATE, STEP, WINDOW = AUDIO.sample_rate, AUDIO.sample_rate // 100, AUDIO.sample_rate // 50
SOUND_SECONDS, ALIKE = 20, 0.6
Sound = npt.NDArray[np.float64]
PAGE = """<!doctype html><meta charset="utf-8"><script src="client.js"></script><script>
const late = Number(new URLSearchParams(location.search).get('late'));
const stop = MediaRecorder.prototype.stop;
if (late) MediaRecorder.prototype.stop = function () {
  setTimeout(() => this.state === 'inactive' || stop.call(this), late);
};
(async () => {
  const {url, token} = await (await fetch('/token')).json();
  const room = new LivekitClient.Room({
    audioCaptureDefaults: {
      echoCancellation: false, noiseSuppression: false, autoGainControl: false,
    },
    publishDefaults: {preConnectBuffer: true},
  });
  const microphone = room.localParticipant.setMicrophoneEnabled(true);
  await room.connect(url, token);
  await microphone;
  await fetch('/published', {method: 'POST'});
})();
</script>"""
FLAGS = [
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
    *("--no-first-run", "--remote-debugging-port=0"),
    *("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"),
]


class Ear(stt.STT[Any]):
    """Keeps what it hears."""

    def __init__(self) -> None:
        super().__init__(capabilities=stt.STTCapabilities(streaming=True, interim_results=False))
        self.heard = bytearray()

    async def _recognize_impl(self, *args: Any, **kwargs: Any) -> stt.SpeechEvent:
        raise ValueError("only streams")

    def stream(self, *, language: Any = None, conn_options: Any = None) -> stt.RecognizeStream:
        return Hearing(stt=self, conn_options=conn_options)


class Hearing(stt.RecognizeStream):
    """One stream of sound."""

    async def _run(self) -> None:
        assert isinstance(self._stt, Ear)
        async for frame in self._input_ch:
            if isinstance(frame, rtc.AudioFrame):
                self._stt.heard += frame.data.cast("B")


def sound() -> Sound:
    """Noise in the band of speech: every 20 ms of it are found in one place only."""
    count = SOUND_SECONDS * RATE
    spectrum = np.fft.rfft(np.random.default_rng(7).standard_normal(count))
    hertz = np.fft.rfftfreq(count, 1 / RATE)
    spectrum[(hertz < 200) | (hertz > 4_000)] = 0
    samples = np.fft.irfft(spectrum, count)
    made: Sound = samples / samples.std() * 4_000
    return made


def seams(heard: bytes, played: Sound) -> list[tuple[int, int]]:
    """Where what was heard goes on elsewhere than it stopped, and by how much; milliseconds."""
    samples = np.frombuffer(heard, "<i2").astype(np.float64)
    length = 1 << (len(played) + WINDOW).bit_length()
    spectrum = np.fft.rfft(played, length)
    power = np.cumsum(np.concatenate([[0.0], played**2]))
    norm = np.sqrt(power[WINDOW:] - power[:-WINDOW])
    lags: list[tuple[int, int]] = []
    for start in range(0, len(samples) - WINDOW, STEP):
        piece = samples[start : start + WINDOW]
        loudness = np.sqrt(np.sum(piece**2))
        if loudness < 1_000:
            continue
        # where the one before was, give or take 10 ms, or else anywhere
        first = max(0, start + lags[-1][1] - STEP) if lags else 0
        product = np.correlate(played[first : first + WINDOW + 2 * STEP], piece, "valid")
        likeness = product / (norm[first : first + len(product)] * loudness)
        if not lags or likeness.max(initial=0) < ALIKE:
            first, product = 0, np.fft.irfft(spectrum * np.conj(np.fft.rfft(piece, length)), length)
            likeness = product[: len(norm)] / (norm * loudness)
        if likeness.max() > ALIKE:
            lags.append((start, first + int(np.argmax(likeness)) - start))
    jumps = [(at, lag - before) for (_, before), (at, lag) in itertools.pairwise(lags)]
    return [
        (at * 1000 // RATE, jump * 1000 // RATE) for at, jump in jumps if abs(jump) > RATE // 500
    ]


@asynccontextmanager
async def browser(
    livekit: LiveKit, room: str, client: Path, microphone: Path, late: int
) -> AsyncIterator[None]:
    """A caller in Chromium who has published a microphone; ended on exit."""
    published = asyncio.Event()

    async def said(_: web.Request) -> web.Response:
        published.set()
        return web.Response()

    async def token(_: web.Request) -> web.Response:
        return web.json_response({"url": livekit.url, "token": livekit.token(room, "caller")})

    async def page(_: web.Request) -> web.Response:
        return web.Response(text=PAGE, content_type="text/html")

    async def script(_: web.Request) -> web.FileResponse:
        return web.FileResponse(client)

    app, port = web.Application(), free_port()
    app.add_routes([web.get("/", page), web.get("/client.js", script), web.get("/token", token)])
    app.add_routes([web.post("/published", said)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = await asyncio.create_subprocess_exec(
            *(chromium(), *FLAGS, f"--user-data-dir={profile}"),
            f"--use-file-for-fake-audio-capture={microphone}%noloop",
            f"http://127.0.0.1:{port}/?late={late}",
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(60):
                await published.wait()
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            await process.wait()
            await runner.cleanup()


def chromium() -> str:
    """Its path; ends the program where there is none."""
    return find_chromium() or sys.exit("there is no chromium: on Debian, apt-get install chromium")


async def call(livekit: LiveKit, client: Path, microphone: Path, late: int, slow: float) -> Any:
    """What the session's speech-to-text heard, and a stream of the live track."""
    name, room, ear, live = f"seam-{uuid.uuid4().hex[:8]}", rtc.Room(), Ear(), bytearray()
    early, listening = PreConnectBuffer(room), asyncio.Event()
    session: AgentSession[None] = AgentSession(
        vad=None, stt=ear, turn_handling={"turn_detection": "manual"}
    )

    async def listen(track: rtc.RemoteTrack) -> None:
        async for event in rtc.AudioStream.from_track(track=track, sample_rate=RATE):
            live.extend(event.frame.data.cast("B"))
            listening.set()

    tasks: list[asyncio.Task[None]] = []
    room.on("track_subscribed", lambda track, *_: tasks.append(asyncio.create_task(listen(track))))
    async with browser(livekit, name, client, microphone, late):
        await asyncio.sleep(1.5)  # of words before the agent is there
        try:
            await room.connect(livekit.url, livekit.token(name, "agent", kind="agent"))
            await asyncio.sleep(slow)
            options = room_io.RoomOptions(
                participant_identity="caller", audio_input=AUDIO, audio_output=False
            )
            with early.handed_over(session, "caller"):
                await session.start(Agent(instructions=""), room=room, room_options=options)
            await listening.wait()
            await asyncio.sleep(5)
        finally:
            await session.aclose()
            await early.close()
            for task in tasks:
                task.cancel()
            await room.disconnect()
    return bytes(ear.heard), bytes(live)


async def measure(client: Path, microphone: Path, played: Sound, asked: argparse.Namespace) -> None:
    """Call as often as asked, print what was lost and what was heard twice."""
    task = asyncio.current_task()
    assert task
    # unwind, so that no browser and no server outlives this
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    async with livekit_server() as livekit:
        for run in range(asked.runs):
            heard, live = await call(livekit, client, microphone, asked.late, asked.slow)
            both = f"speech-to-text {seams(heard, played)}, live {seams(live, played)}"
            print(f"run {run}, load {os.getloadavg()[0]:.0f}: {both}", flush=True)


def main() -> None:
    """Fetch the client, make the sound, measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--late", type=int, default=0, help="milliseconds")
    parser.add_argument("--slow", type=float, default=0.0, help="seconds")
    asked = parser.parse_args()
    chromium()
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["npm", "install", "--silent", "--prefix", folder, CLIENT], check=True)
        client = Path(folder, "node_modules/livekit-client/dist/livekit-client.umd.js")
        played, microphone = sound(), Path(folder, "sound.wav")
        microphone.write_bytes(wav_of(played.astype("<i2").tobytes(), RATE))
        asyncio.run(measure(client, microphone, played, asked))


if __name__ == "__main__":
    main()
