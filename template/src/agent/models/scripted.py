"""Models without keys, network or chance: for first steps, demonstrations and tests.

The language model follows a script. It reads back the best passage of those that were looked up
before its reply, or looks them up itself with a real call of `search_knowledge` where there is that
tool; it greets, thanks, and ends the call with `end_call` when the caller says goodbye. The words
`/tool NAME {"a": 1}` call any tool with these arguments. The voice hums: a soft tone for every
syllable. Nothing listens to the microphone; callers type.
"""

from __future__ import annotations

import asyncio
import json
import re
from functools import lru_cache
from typing import Any

import numpy as np
from livekit.agents import llm, tts, utils
from livekit.agents.types import (
    DEFAULT_API_CONNECT_OPTIONS,
    NOT_GIVEN,
    APIConnectOptions,
    NotGivenOr,
)

from agent.knowledge import FOUND, NOT_SEARCHED, NOTHING_FOUND
from agent.models import Models
from agent.settings import Settings

GREETING = re.compile(r"(hello|hi|hey|good (morning|afternoon|evening))( there)?", re.I)
THANKS = re.compile(r"(many )?(thanks|thank you)( a lot| very much| so much)?", re.I)
GOODBYE = re.compile(r"\b(good ?bye|bye|hang up)\b", re.I)
TOOL = re.compile(r"/tool\s+(\S+)\s*(.*)", re.S)

SAMPLE_RATE = 24_000
SYLLABLE_SECONDS = 0.07
PAUSE_SECONDS = {",": 0.1, ";": 0.1, ":": 0.1, ".": 0.2, "!": 0.2, "?": 0.2}


def build(settings: Settings) -> Models:
    """Build models that need nothing; without speech-to-text there are no turns to detect."""
    return Models(
        llm=ScriptedLLM(),
        stt=None,
        tts=ScriptedTTS(),
        vad=None,
        turn_handling={"turn_detection": "manual", "interruption": {"mode": "vad"}},
    )


# ---------------------------------------------------------------------- what is said


class ScriptedLLM(llm.LLM[Any]):
    """Answers from the documents, word for word, by a tool call like any model's."""

    @property
    def model(self) -> str:
        return "scripted"

    @property
    def provider(self) -> str:
        return "agent"

    def chat(
        self,
        *,
        chat_ctx: llm.ChatContext,
        tools: list[llm.Tool] | None = None,
        conn_options: APIConnectOptions = DEFAULT_API_CONNECT_OPTIONS,
        parallel_tool_calls: NotGivenOr[bool] = NOT_GIVEN,
        tool_choice: NotGivenOr[llm.ToolChoice] = NOT_GIVEN,
        extra_kwargs: NotGivenOr[dict[str, Any]] = NOT_GIVEN,
    ) -> llm.LLMStream:
        usable = [] if tool_choice == "none" else tools or []
        return _ScriptedStream(self, chat_ctx=chat_ctx, tools=usable, conn_options=conn_options)


class _ScriptedStream(llm.LLMStream):
    async def _run(self) -> None:
        reply = respond(self.chat_ctx, set(llm.ToolContext(self.tools).function_tools))
        request = utils.shortuuid("scripted_")
        if isinstance(reply, llm.FunctionToolCall):
            delta = llm.ChoiceDelta(role="assistant", tool_calls=[reply])
            self._event_ch.send_nowait(llm.ChatChunk(id=request, delta=delta))
            return
        for word in re.findall(r"\S+\s*", reply):
            delta = llm.ChoiceDelta(role="assistant", content=word)
            self._event_ch.send_nowait(llm.ChatChunk(id=request, delta=delta))
            await asyncio.sleep(0)  # word by word, as models do


def respond(context: llm.ChatContext, tools: set[str]) -> str | llm.FunctionToolCall:
    """The next thing to say or to call, from what was said last."""
    said = [item for item in context.items if item.type in ("message", "function_call_output")]
    said = [
        item
        for item in said
        if not (item.type == "message" and item.role in ("system", "developer"))
    ]
    match said[-1] if said else None:
        case llm.ChatMessage(role="user") as message:
            return _to_caller(message.text_content or "", tools, _informed(context))
        case llm.FunctionCallOutput() as output:
            return _from_tool(output, context)
        case llm.ChatMessage():
            return "I am still here."
        case _:
            return "Hello! How can I help you?"


def _informed(context: llm.ChatContext) -> str:
    """What was looked up in the documents before this reply; empty if nothing was."""
    before = context.items[-2] if len(context.items) > 1 else None
    text = (
        (before.text_content or "")
        if before and before.type == "message" and before.role == "system"
        else ""
    )
    return text if text.startswith((FOUND, NOTHING_FOUND, NOT_SEARCHED)) else ""


def _from_documents(text: str, question: str) -> str:
    if text.startswith(NOTHING_FOUND):
        return NOTHING_FOUND
    passages = re.split(r"\n\n(?=\[)", text.removeprefix(FOUND).strip())
    if not passages[0].startswith("["):  # no passage, but a sentence for the model to go by
        return "I cannot look that up at the moment."
    return best_sentences(passages[0].partition("\n")[2], question)


def _to_caller(words: str, tools: set[str], informed: str) -> str | llm.FunctionToolCall:
    words = words.strip()
    plain = words.strip(" .,!?")
    if command := TOOL.fullmatch(words):
        name, arguments = command[1], command[2] or "{}"
        return _call(name, arguments) if name in tools else f"There is no tool called {name}."
    if GOODBYE.search(words):
        return _call("end_call", "{}") if "end_call" in tools else "Goodbye!"
    if GREETING.fullmatch(plain):
        return "Hello! What would you like to know?"
    if THANKS.fullmatch(plain):
        return "You are welcome."
    if not plain:
        return "Sorry, I did not catch that."
    if "search_knowledge" in tools:
        return _call("search_knowledge", json.dumps({"question": words}))
    if informed:
        return _from_documents(informed, words)
    return f"I heard: {plain}. I have no documents to look things up in."


def _call(name: str, arguments: str) -> llm.FunctionToolCall:
    return llm.FunctionToolCall(name=name, arguments=arguments, call_id=utils.shortuuid("call_"))


def _from_tool(output: llm.FunctionCallOutput, context: llm.ChatContext) -> str:
    text = output.output.strip()
    if output.name != "search_knowledge":
        return text or "Done."
    if output.is_error:
        return "I cannot look that up at the moment."
    calls = [
        item
        for item in context.items
        if item.type == "function_call" and item.call_id == output.call_id
    ]
    return _from_documents(
        text, str(json.loads(calls[-1].arguments).get("question", "")) if calls else ""
    )


def best_sentences(passage: str, question: str) -> str:
    """The sentence of a passage that shares most words with the question, and the one after it."""
    plain = re.sub(r"[*_`#>|]|\[([^\]]*)\]\([^)]*\)", r"\1", passage)  # Markdown is for eyes
    blocks = re.split(r"\n\s*(?:[-+]|\d+\.)\s+|\n\s*\n", "\n" + plain)
    sentences = [
        sentence if sentence[-1] in ".!?" else sentence + "."
        for block in blocks
        for sentence in re.split(r"(?<=[.!?])\s+", " ".join(block.split()))
        if sentence
    ]
    if not sentences:
        return NOTHING_FOUND
    asked = _stems(question)
    best = max(range(len(sentences)), key=lambda at: (len(asked & _stems(sentences[at])), -at))
    return " ".join(sentences[best : best + 2])


def _stems(text: str) -> set[str]:
    return {word[:5] for word in re.findall(r"[^\W_]+", text.lower()) if len(word) > 2}


# ---------------------------------------------------------------------- how it sounds


class ScriptedTTS(tts.TTS[Any]):
    """Hums a text: a soft tone of 70 ms for every syllable, always the same for the same text."""

    voice = "hum"  # the only one

    def __init__(self) -> None:
        super().__init__(
            capabilities=tts.TTSCapabilities(streaming=False),
            sample_rate=SAMPLE_RATE,
            num_channels=1,
        )

    @property
    def model(self) -> str:
        return "hum"

    @property
    def provider(self) -> str:
        return "agent"

    def synthesize(
        self, text: str, *, conn_options: APIConnectOptions = DEFAULT_API_CONNECT_OPTIONS
    ) -> tts.ChunkedStream:
        return _Hum(tts=self, input_text=text, conn_options=conn_options)


class _Hum(tts.ChunkedStream):
    async def _run(self, output_emitter: tts.AudioEmitter) -> None:
        output_emitter.initialize(
            request_id=utils.shortuuid("hum_"),
            sample_rate=SAMPLE_RATE,
            num_channels=1,
            mime_type="audio/pcm",
        )
        output_emitter.push(hum(self.input_text))
        output_emitter.flush()


def hum(text: str) -> bytes:
    """16 bit mono samples: syllables as tones, punctuation as pauses; never silence alone."""
    sounds = re.findall(
        r"[^\W\d_]*?[aeiouyäöü]+(?:[^\W\d_aeiouyäöü]+(?![^\W\d_]))?|\d|[^\W\d_]+|[,;:.!?]",
        text.lower(),
    )
    parts = [_pause(sound) if sound in PAUSE_SECONDS else _tone(sound) for sound in sounds]
    if not any(sound not in PAUSE_SECONDS for sound in sounds):
        parts.append(_tone("m"))
    return b"".join(parts)


@lru_cache(maxsize=1024)
def _tone(syllable: str) -> bytes:
    """A sine with an overtone on a pentatonic scale, faded in and out."""
    note = sum(map(ord, syllable)) % 8
    pitch = 220 * 2 ** ((0, 2, 4, 7, 9, 12, 14, 16)[note] / 12)
    time = np.arange(int(SAMPLE_RATE * SYLLABLE_SECONDS)) / SAMPLE_RATE
    wave = np.sin(2 * np.pi * pitch * time) + 0.3 * np.sin(4 * np.pi * pitch * time)
    loudness = 6000 * np.sin(np.pi * time / SYLLABLE_SECONDS)
    samples: bytes = (loudness * wave).astype("<i2").tobytes()
    return samples


def _pause(mark: str) -> bytes:
    return bytes(2 * int(SAMPLE_RATE * PAUSE_SECONDS[mark]))
