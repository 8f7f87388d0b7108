"""An owner's persona with the models of an OpenAI-compatible server, at OPENAI_BASE_URL."""

from __future__ import annotations

from livekit.agents import inference
from livekit.plugins import openai

from agent.conversation import CallAgent
from agent.lifecycle import Call


class Persona(CallAgent):
    """A persona that hears, thinks and speaks through one server."""

    def __init__(self, call: Call) -> None:
        super().__init__(
            call,
            instructions="You are friendly, and brief.",
            llm=openai.LLM(model="llama3.1"),
            stt=openai.STT(model="whisper-tiny"),
            tts=openai.TTS(model="kokoro", voice="af_heart", response_format="wav"),
            vad=inference.VAD(model="silero"),
            turn_handling={"turn_detection": "vad"},
        )
