#!/usr/bin/env bash
# One expects: where a voice breaks off in the middle of a sentence, the agent goes on from there, or stops, or repeats
#   a little; what was played is known, the frames went through the session.
# What happens: the request is sent again with the whole text, and all of its sound is played after the part that the
#   caller has heard: of two seconds cut after one, three are played, as one speech. The retry has a request id of its
#   own, and nothing in the session looks at it. The history has the sentence once, the speech counts as complete.
# Why it matters: "your code is 4 7 1 your code is 4 7 1 9": the caller writes down a wrong number. A server behind a
#   busy proxy, or one that stops a stream at its time limit, does this on every long sentence, up to four times over;
#   in a recording it sounds as if the model had stuttered.
# Versions: livekit-agents and livekit-plugins-openai 1.8.9.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if ! command -v uv >/dev/null; then
  python3 -m venv "$work/uv" && "$work/uv/bin/pip" install -q --disable-pip-version-check uv==0.13.9
  PATH="$work/uv/bin:$PATH"
fi
uv venv -q --python '>=3.11' "$work/venv"
uv pip install -q --python "$work/venv/bin/python" livekit-agents==1.8.9 livekit-plugins-openai==1.8.9

cat > "$work/finding.py" <<'PY'
import asyncio
import base64
import json
import logging
import time
from importlib.metadata import version

from aiohttp import web
from livekit.agents import Agent, AgentSession
from livekit.agents.voice.io import AudioOutput, AudioOutputCapabilities
from livekit.plugins import openai

logging.basicConfig(level=logging.CRITICAL)
RATE = 24000
TEXT = "Your code is four seven one nine."
# two seconds: the first has one value, the second another, so that what is played can be read
FIRST, SECOND = (value.to_bytes(2, "little") * RATE for value in (1000, 2000))
asked = []
cuts, as_events = 0, False


async def speech(request):
    """Speech in pcm, as bytes or as events; the line breaks in the middle as often as `cuts` says."""
    asked.append((await request.json())["input"])
    kind = "text/event-stream" if as_events else "audio/pcm"
    response = web.StreamResponse(headers={"Content-Type": kind, "x-request-id": f"request-{len(asked)}"})
    await response.prepare(request)

    async def send(sound):
        if not as_events:
            return await response.write(sound)
        event = {"type": "speech.audio.delta", "audio": base64.b64encode(sound).decode()}
        await response.write(f"data: {json.dumps(event)}\n\n".encode())

    await send(FIRST)
    if len(asked) <= cuts:
        # what was sent is through before the line breaks
        await asyncio.sleep(0.5)
        request.transport.abort()
        return response
    await send(SECOND)
    await response.write_eof()
    return response


class Ear(AudioOutput):
    """Writes down what the caller hears."""

    def __init__(self):
        super().__init__(label="ear", capabilities=AudioOutputCapabilities(pause=False), sample_rate=RATE)
        self.heard, self.length = [], 0.0

    async def capture_frame(self, frame):
        await super().capture_frame(frame)
        if not self.length:
            self.on_playback_started(created_at=time.time())
        self.length += frame.duration
        self.heard += frame.data

    def flush(self):
        super().flush()
        if self.length:
            self.on_playback_finished(playback_position=self.length, interrupted=False)
        self.length = 0.0

    def clear_buffer(self):
        pass


def halves(samples):
    """The seconds of each half, in the order they are heard."""
    runs = []
    for sample in samples:
        name = {1000: "first half", 2000: "second half"}.get(sample)
        if name and (not runs or runs[-1][0] != name):
            runs.append([name, 0])
        if name:
            runs[-1][1] += 1
    return [(name, round(count / RATE, 1)) for name, count in runs]


async def main():
    global as_events, cuts
    print("livekit-agents", version("livekit-agents"), "livekit-plugins-openai", version("livekit-plugins-openai"))
    app = web.Application()
    app.router.add_post("/v1/audio/speech", speech)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    base = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    for as_events in (False, True):
        for cuts in (0, 1, 2):
            asked.clear()
            voice = openai.TTS(base_url=base, api_key="a-key", model="m", response_format="pcm")
            ear = Ear()
            async with AgentSession(tts=voice) as session:
                session.output.audio = ear
                await session.start(Agent(instructions="Help."))
                handle = session.say(TEXT)
                await handle
                history = [item.text_content for item in session.history.items if item.type == "message"]
            await voice.aclose()
            seconds = round(sum(length for _, length in halves(ear.heard)), 1)
            print(f"{'as events' if as_events else 'as bytes'}, cut {cuts} times: asked {len(asked)} times, "
                  f"{seconds} s heard: {halves(ear.heard)}; history {history}, interrupted {handle.interrupted}")
            assert asked == [TEXT] * (cuts + 1), f"CHANGED: asked for {asked}"
            assert history == [TEXT] and not handle.interrupted
            assert seconds <= 2 or cuts, "two seconds where nothing is cut"
            assert not cuts or seconds > 2 + 0.7 * cuts, f"CHANGED: {seconds} s are heard of two that were cut {cuts} times"
    await runner.cleanup()
    print("as described: after a break the whole speech is played behind the part of it")


asyncio.run(main())
PY
timeout 150 "$work/venv/bin/python" "$work/finding.py"
