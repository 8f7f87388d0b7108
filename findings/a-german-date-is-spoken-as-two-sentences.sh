#!/usr/bin/env bash
# One expects: "Ihr Termin ist am 3. Mai um 14 Uhr." is one sentence for the voice. livekit-agents knows dates, or at least leaves a number
#   with a full stop alone, as it does with "Dr. Smith" and "4 p.m.".
# What happens: where the voice takes whole sentences (OpenAI's and others), the text is cut behind the number: "Ihr Termin ist am 3." is
#   one request, "Mai um 14 Uhr. …" the next. So are all German ordinals before a noun ("in der 2. Etage"), if the part before them has 20
#   characters: what follows has a capital letter. English dates, times and titles, and Danish dates with their small letters, stay whole.
# Why it matters: each part is spoken as a sentence of its own: "three" instead of "third", a falling voice and a pause in the middle of
#   the date, and the month as a new sentence, at the very words for which people call. The transcript and every test on text look right.
# Versions: livekit-agents 1.8.9, livekit-plugins-openai 1.8.9, livekit-blingfire 1.2.0.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if ! command -v uv >/dev/null; then
  python3 -m venv "$work/uv" && "$work/uv/bin/pip" install -q --disable-pip-version-check uv==0.13.9
  PATH="$work/uv/bin:$PATH"
fi
uv venv -q --python '>=3.11' "$work/venv"
uv pip install -q --python "$work/venv/bin/python" livekit-agents==1.8.9 livekit-plugins-openai==1.8.9 livekit-blingfire==1.2.0

cat > "$work/finding.py" <<'PY'
import asyncio
import logging
import time
from importlib.metadata import version

from aiohttp import web
from livekit.agents import Agent, AgentSession
from livekit.agents.voice.io import AudioOutput, AudioOutputCapabilities
from livekit.plugins import openai

logging.basicConfig(level=logging.CRITICAL)
RATE = 24000
# what is said, and how it is cut
CUT = {
    "Ihr Termin ist am 3. Mai um 14 Uhr. Passt Ihnen das?": ["Ihr Termin ist am 3.", "Mai um 14 Uhr. Passt Ihnen das?"],
    "Der Betrag ist am 15. Januar fällig und wird abgebucht.": ["Der Betrag ist am 15.", "Januar fällig und wird abgebucht."],
    "Sie finden uns in der 2. Etage links, neben dem Fahrstuhl.": ["Sie finden uns in der 2.", "Etage links, neben dem Fahrstuhl."],
    "Wir haben in der Zeit vom 3. bis 5. Juni leider geschlossen.": ["Wir haben in der Zeit vom 3. bis 5.", "Juni leider geschlossen."],
}
WHOLE = [
    "Your appointment is with Dr. Smith on May 3rd at 4 p.m. in room 5.",
    "Your appointment is on the 3rd of May at two o'clock in the afternoon.",
    "Ihr Termin ist am dritten Mai um vierzehn Uhr in der Hauptstelle.",
    "Deres tid er flyttet til den 3. maj klokken 14 hos os.",
    "Am 3. Mai um 14 Uhr haben Sie Ihren Termin bei uns.",
]
asked = []


async def speech(request):
    """A tenth of a second of sound for any text."""
    asked.append((await request.json())["input"])
    return web.Response(body=bytes(RATE // 5), content_type="audio/pcm")


class Ear(AudioOutput):
    """Plays everything at once."""

    def __init__(self):
        super().__init__(label="ear", capabilities=AudioOutputCapabilities(pause=False), sample_rate=RATE)
        self.length = 0.0

    async def capture_frame(self, frame):
        await super().capture_frame(frame)
        if not self.length:
            self.on_playback_started(created_at=time.time())
        self.length += frame.duration

    def flush(self):
        super().flush()
        if self.length:
            self.on_playback_finished(playback_position=self.length, interrupted=False)
        self.length = 0.0

    def clear_buffer(self):
        pass


async def main():
    for package in ("livekit-agents", "livekit-plugins-openai", "livekit-blingfire"):
        print(package, version(package))
    app = web.Application()
    app.router.add_post("/v1/audio/speech", speech)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    base = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    voice = openai.TTS(base_url=base, api_key="a-key", model="m", response_format="pcm")

    async def parts(text):
        """What the voice is asked for, one request after the other."""
        asked.clear()
        async with AgentSession(tts=voice) as session:
            session.output.audio = Ear()
            await session.start(Agent(instructions="Help."))
            await session.say(text)
        found = [one.strip() for one in asked]
        print(f"{text!r} is spoken as {found}")
        return found

    for text in WHOLE:
        assert await parts(text) == [text], "one sentence"
    for text, cut in CUT.items():
        assert await parts(text) == cut, f"CHANGED: not cut as described: {text}"
    await voice.aclose()
    await runner.cleanup()
    print("as described: the number and the month are two sentences")


asyncio.run(asyncio.wait_for(main(), 100))
PY
timeout 150 "$work/venv/bin/python" "$work/finding.py"
