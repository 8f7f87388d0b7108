"""A realtime model that fails, or says nothing: counted, and the caller hears tones instead.

No node of the agent is run for such a model, so nothing but events tells.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from livekit.agents import (
    Agent,
    AgentStateChangedEvent,
    APIConnectionError,
    APIError,
    FunctionToolsExecutedEvent,
    SpeechCreatedEvent,
    UserStateChangedEvent,
)
from livekit.agents.llm import RealtimeModelError
from livekit.agents.voice import SpeechHandle

from agent import one_line
from agent.conversation.agent import CallAgent
from agent.conversation.speech import SpeakingSession
from agent.lifecycle import Call

MODEL = "realtime model"
# how the SDK begins the error of a reply that the server gave up
RESPONSE_FAILED = "response failed"


class ReplyWatch:
    """Watches for the replies that a realtime model owes the caller.

    One is owed from the end of the caller's words, of a tool, or from when the agent is asked to
    say something; for no longer than `reply_seconds`.
    """

    def __init__(self, call: Call, session: SpeakingSession) -> None:
        self._call, self._session = call, session
        self._timer: asyncio.TimerHandle | None = None
        self._tones: SpeechHandle | None = None
        session.on("user_state_changed", self._user_state_changed)
        session.on("agent_state_changed", self._agent_state_changed)
        session.on("speech_created", self._speech_created)
        session.on("function_tools_executed", self._tools_executed)

    def failed(self, error: RealtimeModelError) -> None:
        """The model has reported an error."""
        cause = error.error
        if not error.recoverable:
            # the SDK closes the session now
            self._session.voice_is_lost = True
            self._call.fail(RuntimeError(f"the {MODEL} failed: {one_line(_named(cause))}"))
        elif isinstance(cause, APIConnectionError):
            # what it was asked to say fails when it is connected again, and can be asked for then
            if self._session.unsaid is None:
                self._not_answered(cause)
        elif RESPONSE_FAILED in str(cause):
            self._not_answered(_named(cause))
        # anything else is logged by the SDK, and need not keep the model from answering

    def _user_state_changed(self, event: UserStateChangedEvent) -> None:
        if event.new_state == "speaking":
            self._settle()
            self._session.unsaid = None
        elif event.old_state == "speaking":
            self._owe()

    def _agent_state_changed(self, event: AgentStateChangedEvent) -> None:
        if event.new_state == "thinking":  # a tool runs, and has its own deadline
            self._settle()
        elif event.new_state == "speaking" and self._session.current_speech is not self._tones:
            self._settle()
            self._session.unsaid = None
            if isinstance(agent := self._agent, CallAgent):
                agent.model_answered(MODEL)

    def _tools_executed(self, event: FunctionToolsExecutedEvent) -> None:
        if event.has_tool_reply:
            self._owe()

    def _speech_created(self, event: SpeechCreatedEvent) -> None:
        if event.source != "generate_reply" or not event.user_initiated:
            return
        if self._session.realtime is None:
            return

        def done(speech: SpeechHandle) -> None:
            if (error := speech.exception()) is not None:
                self._not_answered(error)

        event.speech_handle.add_done_callback(done)
        if self._session.agent_state != "speaking":
            self._owe()

    @property
    def _agent(self) -> Agent:
        return self._session.current_agent

    def _owe(self) -> None:
        self._settle()
        if self._session.realtime is None or self._call.reason is not None:
            return
        seconds = self._call.settings.reply_seconds
        late = TimeoutError(f"nothing for {seconds:g} s")
        self._timer = asyncio.get_running_loop().call_later(seconds, self._not_answered, late)

    def _settle(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _not_answered(self, error: BaseException) -> None:
        """Count a reply that does not come, or not to its end; the first sign of it counts."""
        session, agent = self._session, self._agent
        owed = self._timer is not None or session.agent_state == "speaking"
        self._settle()
        if not owed or self._call.reason is not None or not isinstance(agent, CallAgent):
            return
        if not isinstance(error, Exception) or not agent.model_failed(MODEL, error):
            session.voice_is_lost = True
            return
        again, session.unsaid = session.unsaid, None
        with suppress(RuntimeError):  # the session is closing
            session.interrupt(force=True)
            self._tones = session.say_in_tones(agent.sorry())
            if again is not None:
                session.say(again)


def _named(error: Exception) -> Exception:
    """The error with the server's name for it, such as rate_limit_exceeded, if it has one."""
    code = getattr(getattr(error, "body", None), "code", None)
    return APIError(f"{error}: {code}") if code else error
