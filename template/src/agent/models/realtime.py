"""OpenAI Realtime, or a server that speaks its protocol: one model hears, thinks and speaks.

It has its own turn detection, which stays on: turns that are taken here, as between other models,
would switch it off.
"""

from __future__ import annotations

from livekit.agents.types import NOT_GIVEN
from livekit.plugins import openai

from agent.models import Models, ModelsUnavailable
from agent.settings import Settings, openai_key


def build(settings: Settings) -> Models:
    """Build the model without connecting; raises ModelsUnavailable without a key for OpenAI."""
    key = settings.realtime_key.get_secret_value()
    if not key:
        # OpenAI's key is never sent to another server, as the plugin would do
        key = "not-needed" if settings.realtime_url else openai_key()
    if not key:
        raise ModelsUnavailable(
            "OpenAI Realtime needs a key; put OPENAI_API_KEY into .env.local, or name another"
            " server (AGENT_REALTIME_URL)"
        )
    model = openai.realtime.RealtimeModel(
        model=settings.realtime_model,
        voice=settings.realtime_voice,
        api_key=key,
        base_url=settings.realtime_url or NOT_GIVEN,
    )
    return Models(
        llm=model, stt=None, tts=None, vad=None, turn_handling={"turn_detection": "realtime_llm"}
    )
