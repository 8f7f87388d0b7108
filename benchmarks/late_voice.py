"""The template's persona with a scripted voice whose first sound comes late, as a real one's does.

benchmarks/first_word.py replaces persona.py, the owner's file, with this one; the bare agent takes
the voice from it. BENCH_FIRST_SOUND is the seconds from the words to the first sound.
"""

from __future__ import annotations

import asyncio
import os

from livekit.agents import tts
from livekit.agents.types import DEFAULT_API_CONNECT_OPTIONS, APIConnectOptions

from agent.conversation import CallAgent
from agent.lifecycle import Call
from agent.models.scripted import ScriptedTTS, _Hum


class LateTTS(ScriptedTTS):
    """The scripted voice, delayed."""

    def synthesize(
        self, text: str, *, conn_options: APIConnectOptions = DEFAULT_API_CONNECT_OPTIONS
    ) -> tts.ChunkedStream:
        return _LateHum(tts=self, input_text=text, conn_options=conn_options)


class _LateHum(_Hum):
    async def _run(self, output_emitter: tts.AudioEmitter) -> None:
        await asyncio.sleep(float(os.environ["BENCH_FIRST_SOUND"]))
        await super()._run(output_emitter)


class Persona(CallAgent):
    """Says the same as the template's persona."""

    def __init__(self, call: Call) -> None:
        super().__init__(call, instructions="Answer from the documents.", tts=LateTTS())
