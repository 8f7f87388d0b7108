"""The one place that speaks: what is said word for word, by whatever voice a session has.

Greeting, goodbye, apologies and the question after a silence come here, and what owners say by
`self.session.say`. The voice is a text-to-speech model; or the language model itself, where it is a
realtime one, which can only be asked to say a sentence; or none, where everything is text.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from typing import Any

from livekit import rtc
from livekit.agents import Agent, AgentSession
from livekit.agents.llm import RealtimeModel
from livekit.agents.types import NOT_GIVEN, NotGivenOr
from livekit.agents.utils import is_given
from livekit.agents.voice import SpeechHandle

from agent.conversation.fallback import busy_tones
from agent.conversation.sounds import saying

# a realtime model follows it nearly always, and may still choose other words
WORD_FOR_WORD = 'Say exactly this, word for word, and nothing before or after it: "{sentence}"'


class SpeakingSession(AgentSession[None]):
    """A session whose `say` works with every kind of model."""

    # its only voice is a model that has failed for good
    voice_is_lost = False
    # what such a voice was asked to say, until it says anything
    unsaid: str | None = None

    def say(
        self,
        text: str | AsyncIterable[str],
        *,
        audio: NotGivenOr[AsyncIterable[rtc.AudioFrame]] = NOT_GIVEN,
        allow_interruptions: NotGivenOr[bool] = NOT_GIVEN,
        add_to_chat_ctx: bool = True,
    ) -> SpeechHandle:
        """Say `text`; a model that is its own voice is asked to, in these words.

        Such a model may still change the words, and the caller can always interrupt it: its server
        decides that.
        """
        if isinstance(text, str) and not is_given(audio) and self._model_is_the_voice():
            if self.voice_is_lost:
                return self.say_in_tones(text)
            self.unsaid = text
            instructions = WORD_FOR_WORD.format(sentence=text)
            return self.generate_reply(instructions=instructions, tool_choice="none")
        if self.realtime is not None:
            allow_interruptions = NOT_GIVEN  # which the SDK refuses with a warning
        return super().say(
            text,
            audio=audio,
            allow_interruptions=allow_interruptions,
            add_to_chat_ctx=add_to_chat_ctx,
        )

    def say_in_tones(self, sentence: str) -> SpeechHandle:
        """Say it where the model that would say it has just failed: as tones, and in writing."""
        if not self._model_is_the_voice():
            return self.say(sentence)
        # the model has not said it; and to tell one that does not answer takes five seconds
        return super().say(sentence, audio=_tones(), add_to_chat_ctx=False)

    @property
    def realtime(self) -> RealtimeModel | None:
        """The realtime model that is talked with now; None if it is another kind."""
        return realtime_model(self, self._agent)

    def _model_is_the_voice(self) -> bool:
        """Whether there is sound, and a realtime model is what makes it."""
        output, model = self.output, self.realtime
        if model is None or output.audio is None or not output.audio_enabled:
            return False
        agent = self._agent
        voice = agent.tts if agent is not None and is_given(agent.tts) else self.tts
        return voice is None and not model.capabilities.supports_say


def say_known(
    session: AgentSession[Any], sentence: str, *, allow_interruptions: NotGivenOr[bool] = NOT_GIVEN
) -> SpeechHandle:
    """Say a sentence that other calls say too: its sound is kept."""
    before = saying.set(sentence)
    try:
        return session.say(sentence, allow_interruptions=allow_interruptions)
    finally:
        saying.reset(before)


def realtime_model(session: AgentSession[None] | None, agent: Agent | None) -> RealtimeModel | None:
    """The realtime model that an agent has in a session; None if it has another kind."""
    model = agent.llm if agent is not None and is_given(agent.llm) else session and session.llm
    return model if isinstance(model, RealtimeModel) else None


async def _tones() -> AsyncIterator[rtc.AudioFrame]:
    for frame in busy_tones():
        yield frame
