#!/usr/bin/env bash
# One expects: aec_warmup_duration (3 s by default) does what its description says, for so long the agent's first speech
#   cannot be interrupted by the caller's voice; what the caller says meanwhile is heard, as it is in any later speech.
# What happens: as long as the agent speaks in these three seconds the speech-to-text (or realtime model) gets silence
#   instead of the caller's sound. Words said into the greeting are in no transcript, and so in no turn; from the fourth
#   second on they are. No event and no line above DEBUG tells of it. With aec_warmup_duration=None all arrive.
# Why it matters: callers speak into greetings. One who says at once what it is about waits for an answer that never
#   comes, or is answered from the middle of a sentence on ("… not cancel it"). It is so for every agent with defaults,
#   also where nothing can echo: on headphones and incoming phone lines.
# How: the caller says one word a second, the sample's value; the speech-to-text of this script reads it off. The
#   greeting lasts six seconds.
# Versions: livekit-agents 1.8.9.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if ! command -v uv >/dev/null; then
  python3 -m venv "$work/uv" && "$work/uv/bin/pip" install -q --disable-pip-version-check uv==0.13.9
  PATH="$work/uv/bin:$PATH"
fi
uv venv -q --python '>=3.11' "$work/venv"
uv pip install -q --python "$work/venv/bin/python" livekit-agents==1.8.9

cat > "$work/finding.py" <<'PY'
import asyncio
import io
import logging
import time
from importlib.metadata import version

from livekit import rtc
from livekit.agents import Agent, AgentSession, stt
from livekit.agents.voice.io import AudioInput, AudioOutput, AudioOutputCapabilities

said = io.StringIO()
logging.basicConfig(stream=said, level=logging.INFO, format="%(levelname)s %(message)s")
RATE, TICK = 16000, 0.02
WORDS = ["zero", "one", "two", "three", "four", "five"]


def frame(value):
    size = int(RATE * TICK)
    return rtc.AudioFrame(value.to_bytes(2, "little") * size, RATE, 1, size)


class Caller(AudioInput):
    """Silent until the agent speaks; then a word for each second, its first 0.3 s and its last 0.3 s silent."""

    def __init__(self):
        super().__init__(label="caller")
        self.began = None

    async def __anext__(self):
        await asyncio.sleep(TICK)
        second = time.monotonic() - self.began if self.began else -1
        if 0 <= second < len(WORDS) and 0.3 < second % 1 < 0.7:
            return frame(1000 * (1 + int(second)))
        return frame(0)


class Ear(AudioOutput):
    """Plays in real time."""

    def __init__(self):
        super().__init__(label="ear", capabilities=AudioOutputCapabilities(pause=False), sample_rate=RATE)
        self.length = 0.0

    async def capture_frame(self, one):
        await super().capture_frame(one)
        if not self.length:
            self.on_playback_started(created_at=time.time())
        self.length += one.duration
        await asyncio.sleep(one.duration)

    def flush(self):
        super().flush()
        self.over(False)

    def clear_buffer(self):
        self.over(True)

    def over(self, interrupted):
        if self.length:
            self.on_playback_finished(playback_position=self.length, interrupted=interrupted)
        self.length = 0.0


class Reader(stt.STT):
    """Takes each word for understood as soon as it is over."""

    def __init__(self):
        super().__init__(capabilities=stt.STTCapabilities(streaming=True, interim_results=False))
        self.seconds = 0.0

    async def _recognize_impl(self, *_, **__):
        raise NotImplementedError

    def stream(self, *, conn_options=None, **_):
        return Reading(stt=self, conn_options=conn_options)


class Reading(stt.RecognizeStream):
    async def _run(self):
        word = 0
        async for one in self._input_ch:
            if not isinstance(one, rtc.AudioFrame):
                continue
            self._stt.seconds += one.duration
            if word and not one.data[0]:
                text = stt.SpeechData(language="en", text=WORDS[word // 1000 - 1])
                self._event_ch.send_nowait(stt.SpeechEvent(stt.SpeechEventType.FINAL_TRANSCRIPT, alternatives=[text]))
            word = one.data[0]


async def greeting():
    for _ in range(int(len(WORDS) / TICK)):
        yield frame(500)


async def heard(**options):
    caller, words, reader = Caller(), [], Reader()
    async with AgentSession(stt=reader, vad=None, **options) as session:
        session.input.audio, session.output.audio = caller, Ear()

        def on_state(event):
            if event.new_state == "speaking" and not caller.began:
                caller.began = time.monotonic()

        session.on("agent_state_changed", on_state)
        session.on("user_input_transcribed", lambda event: words.append(event.transcript))
        await session.start(Agent(instructions="Help."))
        session.say("Good morning, and so on.", audio=greeting())
        # until the caller is through, also where the words end the greeting early
        while not caller.began or time.monotonic() - caller.began < len(WORDS) + 1:
            await asyncio.sleep(0.05)
    return words, reader.seconds


async def main():
    print("livekit-agents", version("livekit-agents"))
    print("said into the greeting:", WORDS)
    default, seconds = await heard()
    logged = [line for line in said.getvalue().splitlines() if "warm" in line or "discard" in line]
    print(f"defaults: heard {default}, {seconds:.1f} s of sound came, logged of it {logged}")
    without, seconds = await heard(aec_warmup_duration=None)
    print(f"aec_warmup_duration=None: heard {without}, {seconds:.1f} s of sound came")
    # on a busy machine a word of 0.4 s may be missed
    early = set(WORDS[:3])
    assert len(early.intersection(without)) > 1, f"without it the first words are heard: {without}"
    assert set(default) - early, f"with the defaults the later words are heard: {default}"
    assert not early.intersection(default), f"CHANGED: {default} is heard with the defaults"
    assert not logged, f"CHANGED: {logged} is logged"
    print("as described: what is said into the first three seconds is never heard")


asyncio.run(main())
PY
timeout 150 "$work/venv/bin/python" "$work/finding.py"
