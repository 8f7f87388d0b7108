"""`CallAgent`, the base of every persona: what it says, and what happens when a model fails.

What is here reaches every project by `agent update`; what an owner says and does is in
persona.py, a subclass.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Sequence
from contextlib import suppress
from typing import Any, Literal, TypeVar

from livekit import rtc
from livekit.agents import Agent, AgentSession, AgentTask, ModelSettings
from livekit.agents.llm import (
    ChatChunk,
    ChatContext,
    ChatItem,
    ChatMessage,
    Tool,
    Toolset,
    find_function_tools,
)
from livekit.agents.types import FlushSentinel
from livekit.agents.utils import is_given
from livekit.agents.voice.room_io import RoomOptions

from agent import one_line
from agent.conversation.fallback import (
    EmptyReply,
    StreamTimeout,
    busy_tones,
    has_words,
    is_reply,
    with_substitutes,
)
from agent.conversation.options import SessionOptions
from agent.conversation.sounds import Recording, known_sentence
from agent.conversation.speech import realtime_model, say_known
from agent.conversation.tools import ToolGuard, search_tool, tools_of, toolsets_of
from agent.knowledge import CallKnowledge
from agent.lifecycle import Call, Reason
from agent.memory import Profile
from agent.memory.identity import key_of
from agent.models import Models, models_of
from agent.reports import Report
from agent.settings import Settings
from agent.transport import Caller, can_publish

log = logging.getLogger("agent.call")
T = TypeVar("T")

GREETING_SECONDS = 15.0  # a longer greeting goes on, but nothing waits for it any more
# what is still on its way to the caller when the agent's own queue has run empty
PLAYOUT_TAIL_SECONDS = 0.3
MOST_FAILURES = 3  # replies in a row that a model has failed; then the call ends
MODELS = ("stt", "vad", "llm", "tts", "turn_handling")
# the older names of what turn_handling has
TURNS = {"turn_detection", "allow_interruptions", "min_endpointing_delay", "max_endpointing_delay"}
KNOWN = "known_"  # how the ids of what is known of the caller begin


class CallAgent(Agent):
    """An agent that knows its call: `self.call` has the caller, resources, `spawn` and `hang_up`.

    Subclasses override `greeting`, `resuming`, `goodbye`, `still_there`, `sorry`, `cannot_hear`,
    `remembered_as` and `prewarm`; `models`, `session_options`, `room_options` and `before_start`
    for what LiveKit offers; and add tools with `@function_tool`. Every tool, also of a
    toolset, gets a deadline (`tool_seconds`), and `tool_finish_seconds` to finish when the call
    ends; those named in `patient_tools` may take as long as the call and end with it, those named
    in `must_finish_tools` keep their deadline after its end. A tool set that cannot connect is left
    out, unless its id is in `must_have_tools`. A subclass that overrides `on_exit` (where the last
    sentence is said), `llm_node` or `tts_node` calls `super()`'s.

    An agent that takes over, `return Other(self.call)` in a tool, is a CallAgent too. It knows the
    caller, has the conversation so far (unless it was given a `chat_ctx`), and the models and the
    last sentences of the first one, where it has none of its own.
    """

    call: Call
    # names of tools that may take as long as the call
    patient_tools: frozenset[str] = frozenset()
    # names of tools that the end of the call does not cut short, such as one that books
    must_finish_tools: frozenset[str] = frozenset()
    # ids of tool sets that a call cannot do without: it ends when one of them cannot connect
    must_have_tools: frozenset[str] = frozenset()
    # of calls that the agent makes: whether the callee's first words come before the greeting
    callee_speaks_first: bool = False
    # … and whether they decide if a machine has answered
    detects_voicemail: bool = False

    # until when it knows what was said; None for an agent that was not written as a CallAgent
    _since: float | None = None
    # for a realtime model: `llm_node` is not run, so nothing can be looked up before its replies
    _search: Tool | None = None

    def __init__(
        self,
        call: Call,
        *,
        instructions: str,
        tools: Sequence[Tool | Toolset] = (),
        **options: Any,
    ) -> None:
        self._join(call)
        self._since = _end_of(options.get("chat_ctx"))
        tools = [*tools, *toolsets_of(options.pop("mcp_servers", None) or ())]
        own = {tool.id for tool in [*tools, *find_function_tools(self)]}
        given = [tool for tool in tools_of(call) if tool.id not in own]
        self._models = {name: options[name] for name in MODELS if name in options}
        options = _with_models(self._persona._models, options)
        super().__init__(instructions=instructions, tools=[*given, *tools], **options)
        if call.settings.knowledge_lookup == "before" and "search_knowledge" not in own:
            # afterwards: the SDK takes every tool among an agent's attributes for one of its own
            self._search = search_tool(call)

    @classmethod
    def prewarm(cls, settings: Settings) -> None:
        """Load what every call of a process needs, such as a model in memory; it may take long.

        It runs in the call's process, before there is a call, and once.
        """

    # what LiveKit offers; docs/agent/models.md has an example of each. Asked of the first agent.

    @classmethod
    def models(cls, settings: Settings) -> Models:
        """What calls listen, think and speak with; by default what the settings choose.

        A call asks when it builds its session, and so do `start` and `doctor`, to try them; not
        with AGENT_MODELS=scripted or local. Raise ModelsUnavailable for what is missing.
        """
        return models_of(settings)

    def session_options(self) -> SessionOptions:
        """More options for the session, such as `max_tool_steps`."""
        return {}

    def room_options(self) -> RoomOptions:
        """How the room is heard and seen, and spoken into: noise cancellation, video, text output.

        The caller is known. Whom the session listens to, and when it closes, is the call's.
        """
        return RoomOptions()

    async def before_start(self, session: AgentSession[None]) -> None:
        """The place for what needs a session that has not started, such as an avatar.

        The caller is known and the room connected; `self.call.open` closes what is opened.
        """

    def _join(self, call: Call) -> None:
        """Be an agent of this call."""
        self.call = call
        if call.persona is None:
            call.persona = self
        self._failures: dict[str, int] = {}  # in a row, by kind of model
        self._looked_up = "", ""  # the item that was looked up last, and what was found
        self._guard = ToolGuard(
            call, self.patient_tools, self.must_finish_tools, self.must_have_tools, agent=self
        )
        self._answering: list[asyncio.Task[None]] = []

    @property
    def tools(self) -> list[Tool | Toolset]:
        """The agent's tools, each with its deadline."""
        tools = super().tools
        if self._search is not None and realtime_model(self.call.session, self) is not None:
            tools = [*tools, self._search]
        return self._guard.guard(tools)

    @property
    def _persona(self) -> CallAgent:
        """The first agent of the call, whose models and sentences others have too."""
        persona: CallAgent = self.call.persona
        return persona

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
        if self is not self._persona:
            return self._persona.goodbye(reason)
        match reason:
            case Reason.TOO_LONG | Reason.TOO_EXPENSIVE:
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
        if self is not self._persona:
            return self._persona.still_there()
        return "Are you still there?"

    def sorry(self) -> str:
        """What is said instead of a reply that the language model failed, or failed to finish."""
        if self is not self._persona:
            return self._persona.sorry()
        return "I am sorry, I cannot answer that just now. Please try once more."

    def cannot_hear(self) -> str:
        """What is said when the caller's words can no longer be recognised."""
        if self is not self._persona:
            return self._persona.cannot_hear()
        return "I am sorry, I cannot hear you at the moment."

    def recording_notice(self) -> str:
        """What a caller is told before the greeting where AGENT_RECORD=audio; then it is recorded.

        What it has to say depends on where your callers are.
        """
        if self is not self._persona:
            return self._persona.recording_notice()
        return "This call is recorded."

    # of the telephone

    async def on_keys(self, keys: str) -> None:
        """The caller has pressed these keys: up to `#`, or until AGENT_KEY_SECONDS brought no more.

        `#` alone is a key, too. By default nothing happens.
        """

    def is_voicemail(self, words: str) -> bool:
        """Whether a machine has answered, by its first words, where `detects_voicemail` is set.

        It is asked where the SDK's detection is uncertain, or lacks a model that it needs.
        """
        return False

    def on_voicemail(self) -> str | None:
        """The message to leave when a machine has answered; None hangs up without one."""
        return None

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
        known_by = caller.identity, caller.kind, caller.attributes
        if (memory := self.call.memory) is None:  # the report of the call says it, too
            return key_of(*known_by, phones=self.call.settings.remember_phone_numbers)
        return memory.key_of(*known_by)

    async def welcome(self, profile: Profile | None) -> None:
        """Greet with what is known of the caller, and answer what was written before."""
        if profile is not self.call.profile:
            self.call.profile = profile
            await self.update_chat_ctx(self._informed(self.chat_ctx))
        resumed = profile is not None and profile.resumed
        first = self.resuming(profile) if profile and resumed else self.greeting(profile)
        said = say_known(self.session, first)
        with suppress(TimeoutError):
            async with asyncio.timeout(GREETING_SECONDS):
                await said.wait_for_playout()
        early = await self.call.transport.early_texts()
        self._answering = [asyncio.create_task(self.call.answer(text)) for text in early]

    async def after_call(self, report: Report) -> None:
        """Do something with what happened in a call: a summary, an entry elsewhere, an email.

        It runs once for each call, when everything of it is closed, in a process of its own with
        what resources.py opens (`self.call.resources`); nobody is there, so there is no session.
        It has `after_call_seconds`. If it raises or takes longer it is run again later, also after
        a restart, so let a second run with the same `report.call` do no harm.
        """

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
            await say_within(self.session, sentence, self.call.goodbye_seconds)

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
        replied, began, spoke = False, time.time(), 0.0
        try:
            async for chunk in with_substitutes(model, reply, timeout, self.call.journal.fields()):
                replied = replied or is_reply(chunk)
                spoke = spoke or (time.time() if has_words(chunk) else 0.0)
                yield chunk
            if not replied:
                # as after a web page instead of an answer: for the SDK no error, but silence
                raise EmptyReply("neither words nor a tool call came")
            self.model_answered("language model")
        except Exception as error:
            if self.model_failed("language model", error):
                yield self.sorry()
        finally:
            self.call.journal.waits.add("model", began, spoke or time.time())

    async def tts_node(
        self, text: AsyncIterable[str], model_settings: ModelSettings
    ) -> AsyncGenerator[rtc.AudioFrame, None]:
        """The voice, or what there is of it and three tones that need none.

        A known sentence that has been said before, by this voice, is not made again.
        """
        model = self.tts if is_given(self.tts) else self.session.tts
        sentence, text = await known_sentence(text)
        recording = Recording(model, sentence)
        if (sound := await recording.made_before()) is not None:
            for frame in sound.frames():
                yield frame
            return
        timeout = StreamTimeout(self.call.settings.reply_seconds, begun=False)
        known: list[str] = []  # for the voice that is asked next
        began = 0.0

        async def words() -> AsyncIterator[str]:
            nonlocal began
            for part in tuple(known):
                yield part
            async for part in text:
                began = began or time.time()
                known.append(part)
                yield part
            # until now the voice may have waited for its next words
            timeout.begin()

        def spoken() -> AsyncGenerator[rtc.AudioFrame, None]:
            return Agent.default.tts_node(self, words(), model_settings)

        try:
            async for frame in with_substitutes(model, spoken, timeout, self.call.journal.fields()):
                if began:
                    self.call.journal.waits.add("voice", began, time.time())
                    began = 0.0
                recording.add(frame)
                yield frame
            self.model_answered("text-to-speech")
        except Exception as error:
            self.model_failed("text-to-speech", error)
            for frame in busy_tones():
                yield frame
        else:
            await recording.keep(shared=not _is_personal(self.call.profile))

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

    def has_failed(self, model: str) -> bool:
        """Whether it failed when it was last asked."""
        return self._failures.get(model, 0) > 0

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
        done = "the caller was told, and the call went on"
        self.call.journal.draft.add_failure(model, one_line(error), done)
        if failures < MOST_FAILURES:
            return True
        self.call.fail(RuntimeError(f"{model} has failed {MOST_FAILURES} times in a row"))
        return False

    # a hand-off: what the first agent of a call knows, the next one knows too

    def _informed(self, conversation: ChatContext) -> ChatContext:
        """The conversation with what is known of the caller before it."""
        chat = conversation.copy()
        items = [item for item in chat.items if not item.id.startswith(KNOWN)]
        at = 0
        while at < len(items) and getattr(items[at], "role", "") in ("system", "developer"):
            at += 1
        items[at:at] = _known_items(self.call.profile)
        chat.items = items
        return chat

    def _take_over(self) -> None:
        """Know the caller and what was said; called by the session before this agent starts."""
        session, since = self.call.session, self._since
        # what an AgentTask hands back, the SDK merges
        if session is None or since is None or self._activity is not None:
            return
        said = session.history.copy(
            exclude_instructions=True,
            exclude_empty_message=True,
            exclude_handoff=True,
            exclude_config_update=True,
            tools=self._tools,
        )
        said.items = [item for item in said.items if item.created_at > since]
        # before it starts, there is no other way than the attribute
        self._chat_ctx = self._informed(self._chat_ctx.copy().merge(said))


class CallTask(CallAgent, AgentTask[T]):
    """A conversation inside a call that has a result, such as an answer to one question.

    `await Question(self.call)` in `welcome` or in a tool, whose deadline does not count meanwhile.
    One of its own tools ends it by `self.complete(result)`.
    """


def adopt(call: Call, agent: Agent) -> None:
    """Make an agent that is no CallAgent one, as if its class were derived from it.

    So it has deadlines, and a goodbye. What it knows and can do stays its own.
    """
    kind: Any = type(agent)
    if getattr(agent, "call", call) is not call:
        log.warning(
            "%s has no deadlines and no goodbye: its attribute `call` is another thing than"
            " the call",
            kind.__name__,
            extra=call.journal.fields(),
        )
        return
    bases = (CallAgent,) if kind is Agent else (kind, CallAgent)
    agent.__class__ = type(kind)(kind.__name__, bases, {})
    agent._join(call)  # type: ignore[attr-defined]
    if not isinstance(agent, AgentTask):
        log.warning(
            "%s has taken over the call and is no CallAgent, so it does not know the caller: write"
            " `class %s(CallAgent)`, and hand over to `%s(self.call, …)`",
            *[kind.__name__] * 3,
            extra=call.journal.fields(),
        )


def _end_of(conversation: Any) -> float:
    """When the last thing was said in what an agent is given; of nothing, all is new."""
    if not conversation:
        return 0.0
    return max((item.created_at for item in conversation.items), default=time.time())


def _with_models(models: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """The options of an agent, with these models where it was given none."""
    given = {**models, **options}
    if TURNS & options.keys() and "turn_handling" not in options:
        given.pop("turn_handling", None)
    return given


def _known_items(profile: Profile | None) -> list[ChatItem]:
    """What is known of a caller, for the model; what broke off is the conversation itself."""
    if profile is None:
        return []
    items: list[ChatItem] = []
    if known := _what_is_known(profile):
        items.append(ChatMessage(id=f"{KNOWN}caller", role="system", content=[known], created_at=0))
    for number, turn in enumerate(profile.cut_off):
        role: Literal["user", "assistant"] = "user" if turn.role == "user" else "assistant"
        id_ = f"{KNOWN}{number}"
        items.append(ChatMessage(id=id_, role=role, content=[turn.text], created_at=turn.at))
    return items


def _is_personal(profile: Profile | None) -> bool:
    """Whether what is said to this caller may be meant for nobody else."""
    return profile is not None and bool(profile.name or profile.facts)


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


class Greeting:
    """The greeting of a call, said in its agent's `on_enter`.

    Only there, and in tools, may an agent await an AgentTask, such as a question of consent.
    """

    def __init__(self, agent: CallAgent) -> None:
        self._agent, self._enter = agent, agent.on_enter
        self._task: asyncio.Task[Any] | None = None
        self._profile: Profile | None = None
        self._known = asyncio.Event()
        self._said: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        agent.on_enter = self._on_enter  # type: ignore[method-assign]

    async def say(self, profile: Profile | None) -> None:
        """Have the caller greeted; raises what the agent's `welcome` raises."""
        self._profile = profile
        self._known.set()
        try:
            await asyncio.shield(self._said)
        except asyncio.CancelledError:
            if self._task is not None:
                self._task.cancel()
            raise

    async def _on_enter(self) -> None:
        agent = self._agent
        agent.on_enter = self._enter  # type: ignore[method-assign]
        self._task = asyncio.current_task()
        try:
            try:
                await agent.on_enter()
            except Exception as error:
                extra = agent.call.journal.fields()
                log.error("on_enter failed: %s", one_line(error), exc_info=error, extra=extra)
            if not await agent.call.until(self._known):
                return
            agent.call.profile = profile = self._profile
            if profile is not None:
                await agent.update_chat_ctx(agent._informed(agent.chat_ctx))
            if agent.call.settings.record == "audio":
                # here, because most calls do without the SDK's recorder
                from agent.conversation.recording import record

                await record(agent)
            await agent.welcome(profile)
        except Exception as error:
            self._said.set_exception(error)
        except BaseException:
            self._said.cancel()
            raise
        else:
            self._said.set_result(None)


async def say_within(session: AgentSession[None], sentence: str, seconds: float) -> None:
    """Say `sentence` so that it is heard to its end, but for no longer than `seconds`."""
    try:
        said = say_known(session, sentence, allow_interruptions=False)
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
