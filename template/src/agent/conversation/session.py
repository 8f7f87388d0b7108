"""The session of one call, reporting to it: turns as they finish, silence, who closes it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from livekit.agents import (
    Agent,
    AgentTask,
    APIError,
    CloseEvent,
    ConversationItemAddedEvent,
    ErrorEvent,
    TurnHandlingOptions,
    UserInputTranscribedEvent,
    UserStateChangedEvent,
)
from livekit.agents.llm import AgentHandoff, ChatMessage, RealtimeModel, RealtimeModelError
from livekit.agents.utils import is_given

from agent import one_line
from agent.conversation.agent import CallAgent, adopt
from agent.conversation.answers import Answers
from agent.conversation.fallback import limit_recognition
from agent.conversation.realtime import ReplyWatch
from agent.conversation.speech import SpeakingSession, realtime_model, say_known
from agent.lifecycle import Call, Reason
from agent.models import Models
from agent.transport import Caller

log = logging.getLogger("agent.call")


class CallSession(SpeakingSession):
    """A session that tells its call who closes it; the SDK's `close` event comes late."""

    def __init__(self, call: Call, **options: Any) -> None:
        super().__init__(**options)
        self._call = call

    def shutdown(self, *, drain: bool = True) -> None:
        """An owner's code, or a tool of the SDK's, ends the conversation."""
        self._call.end(Reason.AGENT_HUNG_UP)

    async def aclose(self) -> None:
        """The SDK closes the session: the job is being stopped."""
        await self._call.on_job_stopped()
        await self.close()

    async def close(self) -> None:
        """The call closes the session; its agent says goodbye meanwhile."""
        await super().aclose()


def build_session(call: Call, models: Models, agent: Agent) -> CallSession:
    """The session of one call, not started yet; raises what the agent's `session_options` does.

    It has the models that the agent brings, where it brings any, also for agents that take over:
    the SDK connects to a session's models, whether they are used or not.
    """
    if is_given(agent.llm) and isinstance(agent.llm, RealtimeModel):
        models = _with_realtime(agent.llm, models)
    silence = call.settings.max_silence_seconds if call.transport.limited else None
    ears = agent.stt if is_given(agent.stt) else models.stt
    limit_recognition(ears, call.settings.reply_seconds)
    session = CallSession(
        call,
        llm=agent.llm if is_given(agent.llm) else models.llm,
        stt=ears,
        tts=agent.tts if is_given(agent.tts) else models.tts,
        vad=agent.vad if is_given(agent.vad) else models.vad,
        turn_handling=models.turn_handling,
        user_away_timeout=silence,
        **(agent.session_options() if isinstance(agent, CallAgent) else {}),
    )

    answers = Answers(call)
    has_asked = False  # an AgentTask, something, since it began

    def item_added(event: ConversationItemAddedEvent) -> None:
        item = event.item
        if isinstance(item, AgentHandoff):
            agent_changed()
        if not isinstance(item, ChatMessage) or item.role not in ("user", "assistant"):
            return
        if text := item.text_content:
            answers.add(item, text, realtime=session.realtime is not None)
        if item.role == "assistant":
            nonlocal has_asked
            has_asked = isinstance(session.current_agent, AgentTask)
            state_changed()  # a realtime model's words are added when it has stopped speaking

    # the agent is known and has not started yet
    def agent_changed() -> None:
        nonlocal has_asked
        has_asked = False
        if isinstance(agent := session.current_agent, CallAgent):
            agent._take_over()
        else:
            adopt(call, agent)
        limit_recognition(agent.stt, call.settings.reply_seconds)
        call.tools.agent_changed(agent, asking=isinstance(agent, AgentTask))
        state_changed()

    def state_changed(*_: object) -> None:
        if session.agent_state == "speaking":
            call.first_word()
        call.steps.heard(
            speaking="speaking" in (session.agent_state, session.user_state),
            asking=isinstance(session.current_agent, AgentTask),
            has_asked=has_asked,
        )

    def closed(event: CloseEvent) -> None:
        cause = getattr(event.error, "error", None)
        why = event.reason.value if cause is None else one_line(cause)
        call.fail(RuntimeError(f"the session closed by itself ({why})"))

    def heard(event: UserInputTranscribedEvent) -> None:
        if isinstance(agent := session.current_agent, CallAgent):
            agent.model_answered("speech-to-text")

    session.on("conversation_item_added", item_added)
    session.on("agent_state_changed", state_changed)
    session.on("user_state_changed", state_changed)
    session.on("user_input_transcribed", heard)
    replies = ReplyWatch(call, session)
    session.on("error", lambda event: _model_failed(call, session, replies, event))
    session.on("close", closed)
    if call.settings.max_call_cost:
        session.on("session_usage_updated", lambda event: call.check_cost())
    if silence is not None:
        _watch_silence(call, session, silence)
    before = call.knowledge is not None and call.settings.knowledge_lookup == "before"
    if before and realtime_model(session, agent) is not None:
        call.journal.record("documents are looked up by a tool, as with any realtime model")
    return session


def _with_realtime(model: RealtimeModel, others: Models) -> Models:
    """What a realtime model needs beside it, which hears and most often speaks by itself.

    Another voice would say the greeting, and turns that are taken here switch its own ones off.
    """
    able = model.capabilities
    turns: TurnHandlingOptions = {"turn_detection": "realtime_llm"}
    return Models(
        llm=model,
        stt=None if able.user_transcription else others.stt,
        tts=None if able.audio_output else others.tts,
        vad=None if able.turn_detection else others.vad,
        turn_handling=turns if able.turn_detection else others.turn_handling,
    )


def _model_failed(call: Call, session: CallSession, replies: ReplyWatch, event: ErrorEvent) -> None:
    """Language models and voices fail inside a reply, and are not handled here."""
    error = event.error
    if isinstance(error, RealtimeModelError):
        replies.failed(error)
        return
    recoverable = getattr(error, "type", "") != "stt_error" or getattr(error, "recoverable", True)
    if recoverable or call.reason is not None:
        return
    cause = getattr(error, "error", None)
    agent = session.current_agent
    if isinstance(agent, CallAgent) and isinstance(cause, APIError):
        # the SDK connects again, for an hour if nobody counts
        if agent.model_failed("speech-to-text", cause):
            say_known(session, agent.cannot_hear())
        return
    sentence = one_line(cause or RuntimeError("unknown"))
    log.warning("speech-to-text failed: %s", sentence, extra=call.journal.fields())
    call.journal.draft.add_failure("speech-to-text", sentence, "it is tried again")
    if not isinstance(cause, APIError):
        # the SDK stops listening, and says nothing
        call.fail(RuntimeError("nobody listens to the caller any more"))


def _watch_silence(call: Call, session: CallSession, seconds: float) -> None:
    """Silence is asked about once, and ends the call when it goes on."""
    timer: asyncio.TimerHandle | None = None

    def state_changed(event: UserStateChangedEvent) -> None:
        nonlocal timer
        if timer is not None:
            timer.cancel()
            timer = None
        if event.new_state == "away" and call.reason is None:
            # first, because an error below is only logged, and the call would go on in silence
            timer = asyncio.get_running_loop().call_later(seconds, call.end, Reason.TOO_SILENT)
            agent = session.current_agent
            asks = agent.still_there() if isinstance(agent, CallAgent) else "Are you still there?"
            say_known(session, asks)

    session.on("user_state_changed", state_changed)


@asynccontextmanager
async def conversation(
    call: Call, session: CallSession, agent: CallAgent, caller: Caller
) -> AsyncIterator[CallSession]:
    """A started session, closed on exit; its agent says goodbye while it closes."""
    # what the caller writes is answered from now on
    call.session = session
    try:
        try:
            await agent.before_start(session)
            await call.transport.start(session, agent, caller, agent.room_options())
        except Exception as error:
            call.fail(error)  # before the agent, which closes now, reports another cause
            raise
        yield session
    finally:
        await session.close()
