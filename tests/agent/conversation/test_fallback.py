"""The SDK's fallback adapters in a call: the next model is asked while the caller still waits.

Whole calls with real adapters, on a clock that passes only when nothing happens.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from livekit import rtc
from livekit.agents import Agent, AgentSession, APIConnectOptions, APITimeoutError, llm, stt, tts
from livekit.agents.types import DEFAULT_API_CONNECT_OPTIONS
from livekit.agents.voice import io
from livekit.agents.voice.room_io import RoomOptions

from agent import entrypoint
from agent.conversation import CallAgent
from agent.conversation.fallback import limit_recognition
from agent.lifecycle import Call
from agent.models.scripted import ScriptedLLM, ScriptedTTS
from agent.settings import Settings, load_settings
from agent.transport import Caller
from template.tests.talk import FakeTransport, Talk
from tests.agent.lifecycle.clock import run_virtually

SORRY = "I am sorry, I cannot answer that just now. Please try once more."
TONES = 1.5  # seconds of them
Trouble = Callable[[APIConnectOptions], Any]


async def hangs(options: APIConnectOptions) -> None:
    """A provider that accepts the request and never answers."""
    await asyncio.Event().wait()


async def times_out(options: APIConnectOptions) -> None:
    """A plugin that gives up after the SDK's time."""
    await asyncio.sleep(options.timeout)
    raise APITimeoutError


class BadLLM(ScriptedLLM):
    def __init__(self, trouble: Trouble) -> None:
        super().__init__()
        self.trouble, self.asked = trouble, 0

    def chat(self, *, chat_ctx: llm.ChatContext, **options: Any) -> llm.LLMStream:
        self.asked += 1
        conn_options = options.get("conn_options", DEFAULT_API_CONNECT_OPTIONS)
        return _BadReply(self, chat_ctx=chat_ctx, tools=[], conn_options=conn_options)


class _BadReply(llm.LLMStream):
    async def _run(self) -> None:
        assert isinstance(self._llm, BadLLM)
        await self._llm.trouble(self._conn_options)


class BadTTS(ScriptedTTS):
    def __init__(self, trouble: Trouble) -> None:
        super().__init__()
        self.trouble = trouble

    def synthesize(
        self, text: str, *, conn_options: APIConnectOptions = DEFAULT_API_CONNECT_OPTIONS
    ) -> tts.ChunkedStream:
        return _BadVoice(tts=self, input_text=text, conn_options=conn_options)


class _BadVoice(tts.ChunkedStream):
    async def _run(self, output_emitter: tts.AudioEmitter) -> None:
        assert isinstance(self._tts, BadTTS)
        await self._tts.trouble(self._conn_options)


class Ears(io.AudioOutput):
    """What the caller hears, sentence by sentence, and after how many seconds it began."""

    def __init__(self) -> None:
        capabilities = io.AudioOutputCapabilities(pause=True)
        super().__init__(label="ears", capabilities=capabilities, sample_rate=24_000)
        self.heard: list[float] = []
        self._seconds = 0.0

    async def capture_frame(self, frame: rtc.AudioFrame) -> None:
        await super().capture_frame(frame)
        self._seconds += frame.duration

    def flush(self) -> None:
        super().flush()
        if self._seconds:
            self.heard.append(round(self._seconds, 3))
            self.on_playback_finished(playback_position=self._seconds, interrupted=False)
            self._seconds = 0.0

    def clear_buffer(self) -> None:
        self.flush()

    def pause(self) -> None:
        return

    def resume(self) -> None:
        return


class SpeakingTransport(FakeTransport):
    def __init__(self) -> None:
        super().__init__(limited=False)
        self.ears = Ears()

    async def start(
        self, session: AgentSession[None], agent: Agent, caller: Caller, options: RoomOptions
    ) -> None:
        session.output.audio = self.ears
        await super().start(session, agent, caller, options)


def in_a_call(
    monkeypatch: pytest.MonkeyPatch,
    models: dict[str, Any],
    *questions: str,
    where: str = "agent",
) -> tuple[list[str], list[float], list[float], str | None]:
    """A call with these models: what was said and heard, after which seconds, and why it ended."""

    class Persona(CallAgent):
        def __init__(self, call: Call) -> None:
            super().__init__(call, instructions="", **models if where == "agent" else {})

    monkeypatch.setattr(entrypoint, "build_persona", Persona)
    nothing = {"models": "scripted", "memory_url": "none", "knowledge": "none"}
    settings: Settings = load_settings().model_copy(update=nothing)

    async def main() -> tuple[list[str], list[float], list[float], str | None]:
        transport, times = SpeakingTransport(), []
        call = Call(transport, settings)
        transport.arrive()
        await call.start(entrypoint.run_call)
        assert await call.wait_greeted()
        talking, now = Talk(call, transport), asyncio.get_running_loop().time
        times.append(now())
        for question in questions:
            began = now()
            await talking.say(question)
            times.append(now() - began)
        said, reason = talking.said, call.reason
        transport.leave()
        await call.wait_closed()
        # an adapter goes on asking whether the model that hung has recovered
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        return said, transport.ears.heard, times, reason

    return run_virtually(main())


@pytest.mark.parametrize("trouble", [hangs, times_out])
def test_a_voice_that_does_not_speak_is_replaced_while_the_caller_waits(
    monkeypatch: pytest.MonkeyPatch, trouble: Trouble
) -> None:
    adapter = tts.FallbackAdapter([BadTTS(trouble), ScriptedTTS()])
    said, heard, times, reason = in_a_call(monkeypatch, {"tts": adapter}, "hello", "thanks")
    assert len(heard) == len(said) == 3
    assert TONES not in heard
    # the greeting waits for its half of reply_seconds; from then on the other voice is asked first
    assert times[0] == pytest.approx(5, abs=1)
    assert max(times[1:]) < 1
    assert reason is None


@pytest.mark.parametrize("trouble", [hangs, times_out])
@pytest.mark.parametrize("broken", [1, 2])
def test_a_language_model_that_does_not_answer_is_replaced_while_the_caller_waits(
    monkeypatch: pytest.MonkeyPatch, trouble: Trouble, broken: int
) -> None:
    bad = [BadLLM(trouble) for _ in range(broken)]
    adapter = llm.FallbackAdapter([*bad, ScriptedLLM()])
    said, _, times, reason = in_a_call(monkeypatch, {"llm": adapter}, "hello", "thanks")
    assert SORRY not in said
    assert len(said) == 3
    assert times[1] < 10
    assert times[2] < 1
    assert reason is None


def test_when_all_of_them_hang_the_caller_hears_so_after_reply_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    models = {
        "llm": llm.FallbackAdapter([BadLLM(hangs) for _ in range(3)]),
        "tts": tts.FallbackAdapter([BadTTS(hangs), ScriptedTTS()]),
    }
    said, _, times, reason = in_a_call(monkeypatch, models, "hello")
    assert said[1:] == [SORRY]
    assert times[1] == pytest.approx(10, abs=1)
    assert reason is None


def test_a_model_that_is_no_adapter_has_all_of_reply_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said, _, times, _ = in_a_call(monkeypatch, {"llm": BadLLM(hangs)}, "hello")
    assert said[1:] == [SORRY]
    assert times[1] == pytest.approx(10, abs=1)


async def says_nothing(options: APIConnectOptions) -> None:
    """A provider whose answer the plugin reads as a reply without a word, such as a web page."""


def test_a_reply_without_a_word_is_no_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    said, _, _, reason = in_a_call(monkeypatch, {"llm": BadLLM(says_nothing)}, "hello", "hello")
    assert said[1:] == [SORRY, SORRY]
    assert reason is None


class BadSTT(stt.STT[Any]):
    """Speech-to-text that takes whole utterances, and never answers."""

    def __init__(self) -> None:
        super().__init__(capabilities=stt.STTCapabilities(streaming=False, interim_results=False))
        self.asked = 0

    async def _recognize_impl(self, *args: Any, **options: Any) -> stt.SpeechEvent:
        self.asked += 1
        await asyncio.Event().wait()
        raise AssertionError("unreachable")


@pytest.mark.parametrize("wrapped", [False, True])
def test_an_utterance_that_is_not_recognised_in_time_fails_and_is_not_tried_again(
    wrapped: bool,
) -> None:
    ears, errors = BadSTT(), list[stt.STTError]()
    ears.on("error", errors.append)
    # every agent of a call limits it once more
    for _ in range(2):
        limit_recognition(stt.StreamAdapter(stt=ears, vad=Any) if wrapped else ears, 10)  # type: ignore[arg-type]
    silence = rtc.AudioFrame(bytes(480), 24_000, 1, 240)

    async def main() -> float:
        began = asyncio.get_running_loop().time()
        with pytest.raises(APITimeoutError, match="nothing for 10 s"):
            await ears.recognize([silence])
        return asyncio.get_running_loop().time() - began

    assert run_virtually(main()) == pytest.approx(10, abs=1)
    assert ears.asked == 1
    assert [error.recoverable for error in errors] == [False]


def test_what_has_a_deadline_of_its_own_is_left_alone() -> None:
    adapter = stt.FallbackAdapter([BadSTT()], vad=Any)  # type: ignore[arg-type]
    for ears in (adapter, None, "deepgram/nova-3"):
        limit_recognition(ears, 10)
    assert "_recognize_impl" not in vars(adapter)
