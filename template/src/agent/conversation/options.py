"""The options of a session that are the persona's to choose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from livekit.agents import ExpressiveOptions, STTContextOptions, VoiceActivityVideoSampler
    from livekit.agents.voice.agent_session import SessionConnectOptions
    from livekit.agents.voice.tool_executor import ToolHandlingOptions
    from livekit.agents.voice.transcription.text_transforms import TextTransforms


class SessionOptions(TypedDict, total=False):
    """Options of the SDK's AgentSession, under its names; its documentation says what each does.

    Models and turn taking are `Models`, silence is AGENT_MAX_SILENCE_SECONDS, tools are the
    agent's.
    """

    max_tool_steps: int
    tool_handling: ToolHandlingOptions
    stt_context_options: STTContextOptions
    tts_text_transforms: Sequence[TextTransforms] | None
    use_tts_aligned_transcript: bool
    expressive: bool | ExpressiveOptions
    min_consecutive_speech_delay: float
    aec_warmup_duration: float | None
    transcription_timeout: float | None
    session_close_transcript_timeout: float
    video_sampler: VoiceActivityVideoSampler | None
    ivr_detection: bool
    conn_options: SessionConnectOptions
