"""OpenAI Realtime, or a server that speaks its protocol: one model hears, thinks and speaks.

It has its own turn detection, which stays on: turns that are taken here, as between other models,
would switch it off.
"""

from __future__ import annotations

from livekit.agents.types import NOT_GIVEN
from livekit.plugins import openai

from agent.models import Models, ModelsUnavailable
from agent.settings import Settings


def build(settings: Settings) -> Models:
    """Build the model without connecting; raises ModelsUnavailable, such as for a missing key.

    The key is AGENT_REALTIME_KEY, or OPENAI_API_KEY where the server is OpenAI's.
    """
    key = settings.realtime_key.get_secret_value() or None
    if settings.realtime_url and key is None:
        key = "none"  # or the plugin would send OpenAI's key to another server
    try:
        model = openai.realtime.RealtimeModel(
            model=settings.realtime_model,
            voice=settings.realtime_voice,
            api_key=key,
            base_url=settings.realtime_url or NOT_GIVEN,
        )
    except ValueError as error:
        raise ModelsUnavailable(
            f"OpenAI Realtime: {error}; set AGENT_REALTIME_KEY, or AGENT_MODELS=scripted"
        ) from error
    return Models(
        llm=model, stt=None, tts=None, vad=None, turn_handling={"turn_detection": "realtime_llm"}
    )
