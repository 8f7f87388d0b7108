#!/usr/bin/env bash
# One expects: an answer is spoken sentence by sentence while the model is still writing it, whatever is in it.
# What happens: livekit-agents takes markdown out of what is spoken, by default. A star, an underscore, a ~~, a [ or a backtick that could
#   open something holds back all that follows, until it is closed or the line ends: an answer with "dial *21#" or "it`s" in its first
#   sentence goes to the voice when the model has written its last word. Inside a word or between spaces, as in 5 * 3, they hold nothing.
# Why it matters: agents on the telephone say codes such as *21# and "press *1", and read footnotes that begin with a star. In such answers
#   the caller waits for the whole of it instead of its first sentence; nothing is logged, and what is said at last is complete, so texts
#   and transcripts look right. `AgentSession(tts_text_transforms=["filter_emoji"])` speaks at once.
# Versions: livekit-agents 1.8.9, livekit-plugins-openai 1.8.9.
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
import logging
import time
from importlib.metadata import version

from aiohttp import web
from livekit.agents import Agent, AgentSession, llm
from livekit.agents.voice.io import AudioOutput, AudioOutputCapabilities
from livekit.plugins import openai

logging.basicConfig(level=logging.CRITICAL)
RATE = 24000
PATIENCE = 3.0  # seconds that the model waits for the voice before it writes its last sentence
REST = "Then hang up and wait for one minute. After that all calls go to your office, and you can switch it off again any time."
LAST = "Is there anything else?"
asked, spoken = [], asyncio.Event()


async def speech(request):
    """A tenth of a second of sound for any text."""
    asked.append((await request.json())["input"])
    spoken.set()
    return web.Response(body=bytes(RATE // 5), content_type="audio/pcm")


class Model(llm.LLM):
    """Writes all of its answer but the last sentence, waits until the voice is asked for something, and writes the rest."""

    def __init__(self, first):
        super().__init__()
        self.first, self.was_spoken = first, None

    def chat(self, *, chat_ctx, tools=None, conn_options=None, **_):
        return Answer(self, chat_ctx=chat_ctx, tools=tools or [], conn_options=conn_options)


class Answer(llm.LLMStream):
    async def _run(self):
        for word in f"{self._llm.first} {REST}".split(" "):
            self._write(word)
        try:
            await asyncio.wait_for(spoken.wait(), PATIENCE)
        except TimeoutError:
            pass
        self._llm.was_spoken = bool(asked)
        for word in LAST.split(" "):
            self._write(word)

    def _write(self, word):
        delta = llm.ChoiceDelta(role="assistant", content=f"{word} ")
        self._event_ch.send_nowait(llm.ChatChunk(id="1", delta=delta))


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
    print("livekit-agents", version("livekit-agents"))
    app = web.Application()
    app.router.add_post("/v1/audio/speech", speech)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    base = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"

    async def answer(first, **options):
        """Whether anything was spoken while the model was still writing."""
        asked.clear(), spoken.clear()
        model = Model(first)
        voice = openai.TTS(base_url=base, api_key="a-key", model="m", response_format="pcm")
        async with AgentSession(llm=model, tts=voice, **options) as session:
            session.output.audio = Ear()
            await session.start(Agent(instructions="Help."))
            await session.generate_reply(user_input="How do I divert my calls?")
        await voice.aclose()
        said = " ".join(" ".join(asked).split())
        when = "while the model writes" if model.was_spoken else f"only after its last word, {PATIENCE:g} s later"
        print(f"{first!r}{' with ' + str(options) if options else ''}: spoken {when}")
        assert said == " ".join(f"{first} {REST} {LAST}".split()), f"all of it is said at last: {said!r}"
        return model.was_spoken

    at_once = ["To divert them, dial star 21 and hash.", "It's simple, use the menu.", "It costs 5 * 3 euros.", "Open the file user_name.txt first."]
    at_once.append("To divert them, dial *21# first.\n")
    held = ["To divert them, dial *21# first.", "It`s simple, use the menu.", "It costs 5 euros, see [1 and 2.", "Open the file _user first.", "It costs ~~ 5 euros."]
    for first in at_once:
        assert await answer(first), f"spoken at once: {first}"
    for first in held:
        assert not await answer(first), f"CHANGED: spoken at once: {first}"
    assert await answer(held[0], tts_text_transforms=["filter_emoji"]), "the way out"
    await runner.cleanup()
    print("as described: one such character, and the caller waits for the whole answer")


asyncio.run(asyncio.wait_for(main(), 120))
PY
timeout 150 "$work/venv/bin/python" "$work/finding.py"
