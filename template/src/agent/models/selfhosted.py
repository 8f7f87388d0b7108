"""Models on servers of your own, or of anybody who speaks OpenAI's protocol.

docs/agent/models.md has the settings for Ollama, vLLM, llama.cpp, speaches and Kokoro-FastAPI.
"""

from __future__ import annotations

from livekit.agents import inference
from livekit.plugins import openai
from pydantic import SecretStr

from agent.models import Models, ModelsUnavailable
from agent.models.turns import turn_handling_of
from agent.settings import Settings


def build(settings: Settings) -> Models:
    """Build the models without connecting; raises ModelsUnavailable for an address that is missing.

    The caller's words are sent when the caller pauses: these servers recognise whole recordings.
    """
    return Models(
        llm=openai.LLM(
            base_url=_address("AGENT_LLM_URL", settings.llm_url),
            api_key=_key(settings.llm_key),
            model=settings.llm_model,
        ),
        stt=openai.STT(
            base_url=_address("AGENT_STT_URL", settings.stt_url),
            api_key=_key(settings.stt_key),
            model=settings.stt_model,
            language="" if settings.stt_language == "multi" else settings.stt_language,
            detect_language=settings.stt_language == "multi",
            use_realtime=False,
        ),
        tts=openai.TTS(
            base_url=_address("AGENT_TTS_URL", settings.tts_url),
            api_key=_key(settings.tts_key),
            model=settings.tts_model,
            voice=settings.tts_voice,
            # not mp3, whose last sounds are lost with some servers, nor pcm, which does not say how
            # fast it is to be played
            response_format="wav",
        ),
        vad=inference.VAD(model="silero"),
        turn_handling=turn_handling_of(settings),
    )


def _address(setting: str, url: str) -> str:
    if not url:
        raise ModelsUnavailable(f"{setting} is missing: write one such as http://localhost:8000/v1")
    return url


def _key(key: SecretStr) -> str:
    # the client refuses an empty one, and would send OPENAI_API_KEY where there is none
    return key.get_secret_value() or "not-needed"
