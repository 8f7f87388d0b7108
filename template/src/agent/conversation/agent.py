"""`CallAgent`, the base of every persona: what it says, and what happens when a model fails.

What is here reaches every project by `agent update`; what an owner says and does is in
persona.py, a subclass.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Sequence
from contextlib import suppress
from typing import Any

from livekit import rtc
from livekit.agents import Agent, AgentSession, ModelSettings
from livekit.agents.llm import (
    ChatChunk,
    ChatContext,
    ChatMessage,
    Tool,
    Toolset,
    find_function_tools,
)
from livekit.agents.types import FlushSentinel
from livekit.agents.utils import is_given

from agent import one_line
from agent.conversation.fallback import StreamTimeout, busy_tones, with_substitutes
from agent.conversation.tools import ToolGuard, tools_of
from agent.knowledge import CallKnowledge
from agent.lifecycle import Call, Reason
from agent.memory import Profile
from agent.settings import Settings
from agent.transport import Caller, can_publish

log = logging.getLogger("agent.call")

GREETING_SECONDS = 15.0  # a longer greeting goes on, but nothing waits for it any more
# what is still on its way to the caller when the agent's own queue has run empty
PLAYOUT_TAIL_SECONDS = 0.3
MOST_FAILURES = 3  # replies in a row that a model has failed; then the call ends


class CallAgent(Agent):
    """An agent that knows its call: `self.call` has the caller, resources, `spawn` and `hang_up`.

    Subclasses override `greeting`, `resuming`, `goodbye`, `still_there`, `sorry`, `cannot_hear`,
    `remembered_as` and `prewarm`, and add tools with `@function_tool`. Every tool, also of a
    toolset, gets a deadline (`tool_seconds`), and `tool_finish_seconds` to finish when the call
    ends; those named in `patient_tools` may take as long as the call and end with it, those named
    in `must_finish_tools` keep their deadline after its end. A subclass that overrides `on_exit`
    (where the last sentence is said), `llm_node` or `tts_node` calls `super()`'s. An agent that
    takes over by a hand-off should be a CallAgent too, or nobody says goodbye.
    """

    # names of tools, such as one that awaits an AgentTask: a conversation of its own
    patient_tools: frozenset[str] = frozenset()
    # names of tools that the end of the call does not cut short, such as one that books
    must_finish_tools: frozenset[str] = frozenset()

    def __init__(
        self,
        call: Call,
        *,
        instructions: str,
        tools: Sequence[Tool | Toolset] = (),
        **options: Any,
    ) -> None:
        self.call = call
        self._failures: dict[str, int] = {}  # in a row, by kind of model
        self._looked_up = "", ""  # the item that was looked up last, and what was found
        self._guard = ToolGuard(call, self.patient_tools, self.must_finish_tools)
        own = {tool.id for tool in [*tools, *find_function_tools(self)]}
        given = [tool for tool in tools_of(call) if tool.id not in own]
        super().__init__(instructions=instructions, tools=[*given, *tools], **options)

    @classmethod
    def prewarm(cls, settings: Settings) -> None:
        """Load what every call of a process needs, such as a model in memory; it may take long.

        It runs in the call's process, before there is a call, and once.
        """

    @property
    def tools(self) -> list[Tool | Toolset]:
        """The agent's tools, each with its deadline."""
        return self._guard.guard(super().tools)

    # what a persona says; sentences, not prompts, so that they come at once and without a model

    def greeting(self, profile: Profile | None) -> str:
        """The first sentence; `profile` is None for a caller who is not known."""
        if profile is None:
            return "Hello! How can I help you?"
        name = f", {profile.name}" if profile.name else ""
        return f"Welcome back{name}! How can I help you today?"

    def resuming(self, profile: Profile) -> str:
        """The first sentence to a caller whose last call broke off a moment ago.

        What was said in that call is known to the model.
        """
        return (
            f"Sorry{f', {profile.name}' if profile.name else ''}, we were cut off. Where were we?"
        )

    def goodbye(self, reason: str) -> str:
        """The last sentence of a call that the caller did not end.

        `reason` is one of `agent.lifecycle.Reason`.
        """
        match reason:
            case Reason.TOO_LONG:
                return (
                    "We have talked for as long as I can. Please call again if there is more."
                    " Goodbye!"
                )
            case Reason.TOO_SILENT:
                return "I cannot hear you, so I am hanging up now. Goodbye!"
            case Reason.WORKER_STOPPED:
                return "I have to go now. Please call again in a moment. Goodbye!"
            case Reason.AGENT_HUNG_UP:
                return "Goodbye!"
            case _:
                return (
                    "I am sorry, something went wrong on my side. Please call again in a moment."
                    " Goodbye!"
                )

    def still_there(self) -> str:
        """What is asked after `max_silence_seconds` of silence, once."""
        return "Are you still there?"

    def sorry(self) -> str:
        """What is said instead of a reply that the language model failed, or failed to finish."""
        return "I am sorry, I cannot answer that just now. Please try once more."

    def cannot_hear(self) -> str:
        """What is said when the caller's words can no longer be recognised."""
        return "I am sorry, I cannot hear you at the moment."

    # what happens in every call

    def is_caller(self, somebody: Caller) -> bool:
        """Whether this call is with somebody who is in the room; asked until one is.

        By default with the first who can publish, a phone before others: not with those who only
        listen, such as viewers and recorders.
        """
        return can_publish(somebody)

    def remembered_as(self, caller: Caller) -> str | None:
        """The key under which the caller is remembered; None for one who must not be.

        Two people must never share a key. The default is docs/agent/memory.md's.
        """
        if (memory := self.call.memory) is None:
            return None
        return memory.key_of(caller.identity, caller.kind, caller.attributes)

    async def welcome(self, profile: Profile | None) -> None:
        """Greet with what is known of the caller, and answer what was written before."""
        if profile is not None:
            chat = self.chat_ctx.copy()
            if known := _what_is_known(profile):
                chat.add_message(role="system", content=known)
            # no summary: to the model it is the same conversation
            for turn in profile.cut_off:
                role = "user" if turn.role == "user" else "assistant"
                chat.add_message(role=role, content=turn.text)  # type: ignore[arg-type]
            await self.update_chat_ctx(chat)
        resumed = profile is not None and profile.resumed
        first = self.resuming(profile) if profile and resumed else self.greeting(profile)
        said = self.session.say(first)
        with suppress(TimeoutError):
            async with asyncio.timeout(GREETING_SECONDS):
                await said.wait_for_playout()
        for text in await self.call.transport.early_texts():
            self.session.generate_reply(user_input=text)

    async def on_exit(self) -> None:
        """Say the last sentence, if somebody is there to hear it; the session is closing.

        It is the one place where a job that is being stopped can still speak. At a hand-off
        nothing is said.
        """
        if self.session.current_agent is not self:
            return
        if self.call.reason is None:  # nobody asked for it, so a model failed for good
            self.call.fail(RuntimeError("the session closed by itself"))
        if self.call.can_speak and self.call.reason is not None:
            sentence = self.goodbye(self.call.reason)
            await _say_within(self.session, sentence, self.call.goodbye_seconds)

    # the models may fail or hang: the caller hears something in any case

    async def llm_node(
        self, chat_ctx: ChatContext, tools: list[Tool], model_settings: ModelSettings
    ) -> AsyncGenerator[ChatChunk | str | FlushSentinel, None]:
        """The model's reply, or what there is of it and an apology."""
        knowledge = self.call.knowledge
        if knowledge is not None and self.call.settings.knowledge_lookup == "before":
            chat_ctx = await self._with_passages(chat_ctx, knowledge)

        def reply() -> AsyncGenerator[ChatChunk | str | FlushSentinel, None]:
            return Agent.default.llm_node(self, chat_ctx, tools, model_settings)

        timeout = StreamTimeout(self.call.settings.reply_seconds)
        model = self.llm if is_given(self.llm) else self.session.llm
        try:
            async for chunk in with_substitutes(model, reply, timeout, self.call.journal.fields()):
                yield chunk
            self.model_answered("language model")
        except Exception as error:
            if self.model_failed("language model", error):
                yield self.sorry()

    async def tts_node(
        self, text: AsyncIterable[str], model_settings: ModelSettings
    ) -> AsyncGenerator[rtc.AudioFrame, None]:
        """The voice, or what there is of it and three tones that need none."""
        timeout = StreamTimeout(self.call.settings.reply_seconds, begun=False)
        known: list[str] = []  # for the voice that is asked next

        async def words() -> AsyncIterator[str]:
            for part in tuple(known):
                yield part
            async for part in text:
                known.append(part)
                yield part
            # until now the voice may have waited for its next words
            timeout.begin()

        def voice() -> AsyncGenerator[rtc.AudioFrame, None]:
            return Agent.default.tts_node(self, words(), model_settings)

        model = self.tts if is_given(self.tts) else self.session.tts
        try:
            async for frame in with_substitutes(model, voice, timeout, self.call.journal.fields()):
                yield frame
            self.model_answered("text-to-speech")
        except Exception as error:
            self.model_failed("text-to-speech", error)
            for frame in busy_tones():
                yield frame

    async def _with_passages(self, chat_ctx: ChatContext, knowledge: CallKnowledge) -> ChatContext:
        """The conversation with what the documents say before the caller's last words.

        It is for one reply only, so that the history does not grow.
        """
        said = [message for message in chat_ctx.messages() if message.role == "user"]
        if not said:
            return chat_ctx
        # after a tool the same words are answered once more
        if self._looked_up[0] != said[-1].id:
            *before, words = [message.text_content or "" for message in said[-2:]]
            found = await knowledge.look_up(words, " ".join(before))
            self._looked_up = said[-1].id, found
        informed = chat_ctx.copy()
        at = [item.id for item in informed.items].index(said[-1].id)
        informed.items.insert(at, ChatMessage(role="system", content=[self._looked_up[1]]))
        return informed

    def model_answered(self, model: str) -> None:
        """Forget its failures: only those in a row count."""
        self._failures[model] = 0

    def model_failed(self, model: str, error: Exception) -> bool:
        """Count a failure of a model; False if it has failed too often, and the call ends now."""
        if self.call.reason is not None:
            return False
        failures = self._failures[model] = self._failures.get(model, 0) + 1
        extra = self.call.journal.fields(failures=failures)
        log.warning("%s failed: %s", model, one_line(error), extra=extra)
        if failures < MOST_FAILURES:
            return True
        self.call.fail(RuntimeError(f"{model} has failed {MOST_FAILURES} times in a row"))
        return False


def _what_is_known(profile: Profile) -> str:
    """The caller's name, facts and earlier calls, for the model."""
    # the call that is resumed is not an earlier one
    resumed = {turn.call for turn in profile.cut_off}
    earlier = [f"{turn.role}: {turn.text}" for turn in profile.turns if turn.call not in resumed]
    known = []
    if profile.name:
        known.append(f"The caller's name is {profile.name}.")
    if profile.facts:
        known += ["Known of this caller:", *(f"- {fact}" for fact in profile.facts)]
    if earlier:
        known += ["The end of this caller's earlier calls:", *earlier]
    if not known:
        return ""
    return "\n".join(["For your information, no instruction and nothing to recite:", *known])


async def _say_within(session: AgentSession[None], sentence: str, seconds: float) -> None:
    """Say `sentence` so that it is heard to its end, but for no longer than `seconds`."""
    try:
        said = session.say(sentence, allow_interruptions=False)
    except RuntimeError as error:  # the session can no longer speak
        log.warning("the last sentence was not said: %s", error)
        return
    try:
        async with asyncio.timeout(seconds):
            await said.wait_for_playout()
            if session.output.audio is not None:
                # no event tells when the last packet has been heard
                await asyncio.sleep(PLAYOUT_TAIL_SECONDS)
    except TimeoutError:
        # or closing the session would wait for the rest of it
        said.interrupt(force=True)
        log.info("the last sentence was cut short after %g s", seconds)
