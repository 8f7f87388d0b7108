"""Whether the models that calls use are there: each is built, and asked one cheap question."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from livekit import rtc
from livekit.agents import (
    APIConnectionError,
    APIConnectOptions,
    APIError,
    APIStatusError,
    llm,
    stt,
    tts,
)
from livekit.agents.utils import http_context

from agent import one_line
from agent.cli.checks import Finding, Level, fail, location
from agent.conversation import CallAgent
from agent.conversation.fallback import alternatives
from agent.entrypoint import models_for, persona_class
from agent.models import KEYLESS, Models, ModelsUnavailable
from agent.settings import Settings, SettingsError, inference_has_own_keys
from agent.telemetry import without_keys

CLOSE_SECONDS = 1.0
ANSWER_SECONDS = 10.0  # for one answer; the models are asked at the same time
REFUSES_KEY = {401, 403}
# what a realtime server says in a connection, as other servers by a status
STATUS = {
    "invalid_api_key": 401,
    "model_not_found": 404,
    "insufficient_quota": 429,
    "rate_limit_exceeded": 429,
    "server_error": 500,
}
ONCE = APIConnectOptions(max_retry=0, timeout=ANSWER_SECONDS)


class Mute(Exception):
    """A model that answers, and says nothing."""


def model_findings(settings: Settings, unreachable: Level) -> list[Finding]:
    """What is wrong with the models; nothing if all answer.

    `unreachable` is the level of a model that may answer at another time.
    """
    try:
        models = build(settings)
    except ModelsUnavailable as error:
        return [fail("models", ": ".join(str(error).rsplit("; ", 1)))]
    except SettingsError as error:
        return [fail("models", error.problems[0])]
    if settings.models in KEYLESS:
        return []
    return inference_elsewhere(settings) or asyncio.run(ask(settings, models, unreachable))


def build(settings: Settings) -> Models:
    """The models of a call; raises ModelsUnavailable, SettingsError for an owner's error."""
    try:
        return models_for(settings)
    except ModelsUnavailable:
        raise
    except Exception as error:
        raise SettingsError(
            [f"your persona's models cannot be built: {location(error)}"]
        ) from error


def has_own_models() -> bool:
    """Whether the persona brings models other than those that the settings choose."""
    own = getattr(persona_class().models, "__func__", None)
    return own is not getattr(CallAgent.models, "__func__", None)


def inference_elsewhere(settings: Settings) -> list[Finding]:
    """Whether LiveKit Inference is to be used where it is not: only LiveKit Cloud has it."""
    host = urlsplit(settings.livekit_url).hostname or ""
    on_cloud = host.endswith((".livekit.cloud", ".livekit.run"))
    fitting = on_cloud or inference_has_own_keys() or has_own_models()
    if settings.models != "livekit" or not host or fitting:
        return []
    what = "AGENT_MODELS=livekit needs LiveKit Cloud, and the server is another"
    scripted = "set AGENT_MODELS=scripted to try the agent without a model"
    own = "let your persona bring its own models"
    return [Finding("warn", "models", what, f"use a LiveKit Cloud project, {own}, or {scripted}")]


async def ask(settings: Settings, models: Models, unreachable: Level) -> list[Finding]:
    """Ask every model, also those that stand in; what is wrong with those that do not answer."""
    questions = [
        *(question_for(one) for one in alternatives(models.llm)),
        *(Question("STT", one, ask_stt) for one in alternatives(models.stt)),
        *(Question("TTS", one, ask_tts) for one in alternatives(models.tts)),
    ]
    async with http_context.open(), silent_sdk():
        found = [question.finding(settings, unreachable) for question in questions]
        return [finding for finding in await asyncio.gather(*found) if finding is not None]


@asynccontextmanager
async def silent_sdk() -> AsyncIterator[None]:
    """Without the SDK's own records of what goes wrong."""
    sdk = logging.getLogger("livekit")
    level = sdk.level
    sdk.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        sdk.setLevel(level)


@dataclass(frozen=True)
class Question:
    """A model, and what it is asked."""

    kind: str
    model: Any
    ask: Callable[[Any], Awaitable[None]]

    async def finding(self, settings: Settings, unreachable: Level) -> Finding | None:
        """What is wrong with the model; None if it answers."""
        name = f"{self.kind} {self.model.model} of {self.model.provider}"
        # what is to be corrected; of a persona's own models there is no setting
        model, key = "its model's name", "its key"
        there = "try again later, and look at this machine's network"
        if not has_own_models():
            model = f"AGENT_{self.kind}_MODEL" + " or AGENT_TTS_VOICE" * (self.kind == "TTS")
            match settings.models:
                case "livekit":
                    key = "LIVEKIT_API_KEY and LIVEKIT_API_SECRET"
                case "realtime" if not settings.realtime_url:
                    own = settings.realtime_key.get_secret_value()
                    key = "AGENT_REALTIME_KEY" if own else "OPENAI_API_KEY"
                case "selfhosted" | "realtime":
                    key, url = f"AGENT_{self.kind}_KEY", f"AGENT_{self.kind}_URL"
                    model += f" or {url}"
                    there = f"start its server, or correct {url}"
        level: Level = "fail"
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await self.ask(self.model)
            return None
        except TimeoutError:
            level, what = unreachable, f"does not answer within {ANSWER_SECONDS:g} s"
            cure = there
        except Mute as error:
            what, cure = str(error), f"correct {model}"
        except APIStatusError as error:
            if error.status_code in REFUSES_KEY:  # whose answer may repeat the key
                what, cure = f"refuses the key ({error.status_code})", f"correct {key}"
            elif error.retryable:
                level, what = unreachable, f"cannot answer now ({error.message})"
                cure = "try again later, or look at its quota"
            else:
                what, cure = f"refuses ({error.message})", f"correct {model}"
        except Exception as error:
            level, what = unreachable, f"cannot be asked ({without_keys(one_line(_root(error)))})"
            cure = there
        return Finding(level, "models", f"{name} {what}", cure)


def _root(error: BaseException) -> BaseException:
    """What clients wrap into "Connection error.", such as a refused connection."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error


def question_for(model: llm.LLM[Any] | llm.RealtimeModel) -> Question:
    """What a language model is asked, which may be one that listens and speaks itself."""
    if isinstance(model, llm.RealtimeModel):
        return Question("REALTIME", model, ask_realtime)
    return Question("LLM", model, ask_llm)


async def ask_realtime(model: llm.RealtimeModel) -> None:
    """A word, of which the first part is enough."""
    session = model.session()
    said: list[APIError] = []
    lost = asyncio.Event()

    def fails(event: llm.RealtimeModelError) -> None:
        unconnected = isinstance(event.error, APIConnectionError)
        # what a server says before it ends the connection is why it does
        if isinstance(event.error, APIError) and not (unconnected and said):
            said.append(_with_status(event.error))
        # other errors need not keep the model from answering
        if unconnected or not event.recoverable:
            lost.set()

    session.on("error", fails)
    answered = asyncio.ensure_future(_first_part(session, sound=model.capabilities.audio_output))
    ended = asyncio.ensure_future(lost.wait())
    try:
        await asyncio.wait([answered, ended], return_when=asyncio.FIRST_COMPLETED)
        if not answered.done() or answered.exception() is not None:
            if said:
                raise said[-1]
            await answered
    finally:
        answered.cancel()
        ended.cancel()
        with suppress(Exception):  # it raises what has failed, and waits for a connection
            async with asyncio.timeout(CLOSE_SECONDS):
                await session.aclose()


async def _first_part(session: llm.RealtimeSession[Any], *, sound: bool) -> None:
    """Wait for the first part of an answer; raises Mute if there is none."""
    answer = await session.generate_reply(instructions='Say "Yes."', tool_choice="none")
    async for message in answer.message_stream:
        parts: AsyncIterable[object] = message.audio_stream if sound else message.text_stream
        async for _ in parts:
            return
    raise Mute("answers nothing")


def _with_status(error: APIError) -> APIError:
    """The error with a status, if the server has said why.

    The plugins take a refusal for a broken connection.
    """
    if isinstance(answer := error.__cause__, aiohttp.ClientResponseError):
        return APIStatusError(f"status {answer.status}", status_code=answer.status)
    said = [str(getattr(error.body, name, None) or "") for name in ("message", "code", "type")]
    if not any(said):
        return error
    _, code, kind = said
    what = next(filter(None, said))
    return APIStatusError(what, status_code=STATUS.get(code, STATUS.get(kind, 400)))


async def ask_llm(model: llm.LLM[Any]) -> None:
    """A few words, of which the first is enough."""
    chat = llm.ChatContext.empty()
    chat.add_message(role="user", content="Say yes.")
    async with model.chat(chat_ctx=chat, conn_options=ONCE) as stream:
        async for _ in stream:
            return
    raise Mute("answers nothing")


async def ask_stt(model: stt.STT[Any]) -> None:
    """Half a second of silence, which nobody has to understand."""
    rate = 16_000
    silence = rtc.AudioFrame(bytes(rate), rate, 1, rate // 2)
    if not model.capabilities.streaming:
        await model.recognize(silence, conn_options=ONCE)
        return
    async with model.stream(conn_options=ONCE) as stream:
        stream.push_frame(silence)
        stream.end_input()
        async for _ in stream:
            pass


async def ask_tts(model: tts.TTS[Any]) -> None:
    """One word, of which the first sound is enough."""
    try:
        async with model.synthesize("Yes.", conn_options=ONCE) as stream:
            async for _ in stream:
                return
    except APIError as error:
        if type(error) is not APIError:
            raise
        raise Mute(f"gives no sound ({error.message})") from error
    raise Mute("gives no sound")
