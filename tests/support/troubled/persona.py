"""An owner's persona whose models, tools and greeting fail when the caller or the room asks for it.

The caller writes `/tool NAME {…}` for a tool, and `llm fail`, `llm hang` or `llm break off` for the
model; the tool `say` reads out `voice fail` or `voice hang` for the voice. The room's name is
TROUBLE--anything. Whoever presses keys of a phone hears the same ones.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from livekit.agents import (
    APIConnectionError,
    APIConnectOptions,
    APIStatusError,
    JobContext,
    function_tool,
    get_job_context,
    llm,
    stt,
    tts,
    utils,
)
from livekit.agents.types import DEFAULT_API_CONNECT_OPTIONS, NOT_GIVEN, NotGivenOr

from agent.conversation import CallAgent
from agent.lifecycle import Call
from agent.memory import Profile
from agent.models.scripted import ScriptedLLM, ScriptedTTS

# as in a program of its own: the records of calls arrive all the same, and once
logging.basicConfig(level=logging.ERROR, force=True)
log = logging.getLogger("agent.mine")
FATAL = APIStatusError("the key is no longer valid", status_code=401, retryable=False)


def trouble_of(call: Call) -> str:
    """The failure that the room's name asks for."""
    return call.transport.room_name.partition("--")[0]


class TroubledLLM(ScriptedLLM):
    """Fails, hangs or breaks off if the caller's last words say so."""

    def chat(self, *, chat_ctx: llm.ChatContext, **options: Any) -> llm.LLMStream:
        said = [
            item
            for item in chat_ctx.items
            if isinstance(item, llm.ChatMessage) and item.role == "user"
        ]
        words = (said[-1].text_content or "") if said else ""
        if not words.startswith("llm "):
            return super().chat(chat_ctx=chat_ctx, **options)
        conn_options: APIConnectOptions = options.get("conn_options", DEFAULT_API_CONNECT_OPTIONS)
        return _TroubledStream(words, self, chat_ctx=chat_ctx, tools=[], conn_options=conn_options)


class _TroubledStream(llm.LLMStream):
    def __init__(self, words: str, *args: Any, **options: Any) -> None:
        self._words = words
        super().__init__(*args, **options)

    async def _run(self) -> None:
        log.info("the model was asked: %s", self._words)
        if "hang" in self._words:
            await asyncio.Event().wait()
        if "break off" in self._words:
            delta = llm.ChoiceDelta(role="assistant", content="The answer to everything is ")
            self._event_ch.send_nowait(llm.ChatChunk(id=utils.shortuuid(), delta=delta))
            await asyncio.sleep(0.1)
        raise FATAL


class TroubledTTS(ScriptedTTS):
    """Fails or hangs if the text says so."""

    def synthesize(
        self, text: str, *, conn_options: APIConnectOptions = DEFAULT_API_CONNECT_OPTIONS
    ) -> tts.ChunkedStream:
        if "voice" not in text:
            return super().synthesize(text, conn_options=conn_options)
        return _TroubledVoice(tts=self, input_text=text, conn_options=conn_options)


class _TroubledVoice(tts.ChunkedStream):
    async def _run(self, output_emitter: tts.AudioEmitter) -> None:
        if "hang" in self.input_text:
            await asyncio.Event().wait()
        raise FATAL


class TroubledSTT(stt.STT[Any]):
    """Streams that fail as soon as they listen: a lost connection, or an unexpected error."""

    def __init__(self, error: Exception, times: int) -> None:
        super().__init__(capabilities=stt.STTCapabilities(streaming=True, interim_results=False))
        self._error, self._times = error, times

    async def _recognize_impl(self, *args: Any, **options: Any) -> stt.SpeechEvent:
        raise self._error

    def stream(
        self,
        *,
        language: NotGivenOr[str] = NOT_GIVEN,
        conn_options: APIConnectOptions = DEFAULT_API_CONNECT_OPTIONS,
    ) -> stt.RecognizeStream:
        self._times -= 1
        error = self._error if self._times >= 0 else None
        return _TroubledEars(error, stt=self, conn_options=conn_options)


class _TroubledEars(stt.RecognizeStream):
    def __init__(self, error: Exception | None, **options: Any) -> None:
        self._error = error
        super().__init__(**options)

    async def _run(self) -> None:
        # until the greeting has begun
        await asyncio.sleep(1)
        if self._error is not None:
            raise self._error
        await asyncio.Event().wait()


class NeverConnects(llm.Toolset):
    """A tool set whose server does not answer."""

    def __init__(self) -> None:
        super().__init__(id="never connects")

    async def setup(self) -> NeverConnects:
        await asyncio.Event().wait()
        return self


class Persona(CallAgent):
    """A persona with tools for every failure."""

    patient_tools = frozenset({"count"})
    must_have_tools = frozenset({"never connects"})

    def __init__(self, call: Call) -> None:
        trouble = trouble_of(call)
        if trouble == "persona-fails":
            raise ValueError("no such persona")
        lost = APIConnectionError("no connection", retryable=False)
        failures: dict[str, tuple[Exception, int]] = {
            "stt-fails": (lost, 1),
            "stt-fails-for-good": (lost, 3),
            "stt-crashes": (ZeroDivisionError("a plugin's mistake"), 1),
        }
        failure = failures.get(trouble)
        options: dict[str, Any] = {"llm": TroubledLLM(), "tts": TroubledTTS()}
        if failure:
            options["stt"] = TroubledSTT(*failure)
        if trouble == "model-replaced":
            options["llm"] = llm.FallbackAdapter([options["llm"], ScriptedLLM()])
            options["tts"] = tts.FallbackAdapter([options["tts"], ScriptedTTS()])
        tools: list[llm.Tool | llm.Toolset] = [NeverConnects()] if trouble == "start-hangs" else []
        super().__init__(call, instructions="", tools=tools, **options)
        if trouble == "callback-raises":
            get_job_context().add_shutdown_callback(raise_on_shutdown)
        if trouble == "task-hangs":
            call.spawn(asyncio.sleep(3600), name="a task that never ends")

    def greeting(self, profile: Profile | None) -> str:
        if trouble_of(self.call) == "greeting-fails":
            raise KeyError("no greeting")
        return "Welcome back! How can I help you?" if profile else "Hello! How can I help you?"

    async def welcome(self, profile: Profile | None) -> None:
        if trouble_of(self.call) == "greeting-hangs":
            await asyncio.Event().wait()
        await super().welcome(profile)

    async def on_keys(self, keys: str) -> None:
        """Press what the caller has pressed; hang up for a 0."""
        if keys == "0":
            await self.call.hang_up()
            return
        room = self.call.room
        assert room is not None
        for key in keys:
            await room.local_participant.publish_dtmf(code="0123456789*#".index(key), digit=key)

    @function_tool
    async def slow(self) -> str:
        """Take eight seconds."""
        log.info("the slow tool began")
        try:
            await asyncio.sleep(8)
        except asyncio.CancelledError:
            log.info("the slow tool was cancelled")
            raise
        return "done"

    @function_tool
    async def hang(self) -> str:
        """Take for ever."""
        await asyncio.Event().wait()
        return ""

    @function_tool
    async def fail(self) -> str:
        """Raise."""
        raise ValueError("a tool's mistake")

    @function_tool
    async def say(self, text: str) -> str:
        """Say something.

        Args:
            text: What is said.
        """
        return text

    @function_tool
    async def stuck(self) -> str:
        """Hang in a thread that nothing can stop."""
        log.info("the stuck tool began")
        await asyncio.to_thread(time.sleep, 120)
        return "done"

    @function_tool
    async def block(self, seconds: float) -> str:
        """Block the event loop.

        Args:
            seconds: For how long.
        """
        log.info("the loop is blocked from now on")
        time.sleep(seconds)  # noqa: ASYNC251 -- the mistake that is tested
        return "The loop was blocked."

    @function_tool
    async def shut_job_down(self) -> str:
        """End the job, as the SDK's examples do."""
        get_job_context().shutdown("the owner's own reason")
        return ""

    @function_tool
    async def end_three_times(self) -> str:
        """Three causes at one instant."""
        context: JobContext = get_job_context()
        await self.call.hang_up()
        self.session.shutdown()
        context.shutdown("a third")
        return ""


async def raise_on_shutdown() -> None:
    """A shutdown callback with a mistake; the SDK abandons all others for it."""
    raise RuntimeError("an owner's shutdown callback")
