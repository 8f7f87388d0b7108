"""The agent's side of a conversation: `CallAgent`, the base of every persona, and the session it speaks in.

What is here reaches everyone by `agent update`; what an owner says and does is in persona.py, a subclass.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Container,
    Sequence,
)
from contextlib import asynccontextmanager, suppress
from typing import Any

from livekit import rtc
from livekit.agents import (
    Agent,
    AgentSession,
    APIError,
    CloseEvent,
    ConversationItemAddedEvent,
    ErrorEvent,
    ModelSettings,
    RunContext,
    StopResponse,
    UserStateChangedEvent,
    function_tool,
)
from livekit.agents.llm import (
    ChatChunk,
    ChatContext,
    ChatMessage,
    FunctionTool,
    RawFunctionTool,
    Tool,
    ToolError,
    Toolset,
    find_function_tools,
)
from livekit.agents.llm.async_toolset import AsyncToolset
from livekit.agents.types import FlushSentinel

from agent.conversation.fallback import StreamTimeout, tones, with_timeout
from agent.lifecycle import Call, Reason
from agent.lifecycle.call import describe
from agent.memory import Note, Profile, Turn
from agent.models import Models
from agent.transport.room import Caller

log = logging.getLogger("agent.call")

GREETING_SECONDS = 15.0  # a longer greeting goes on, but nothing waits for it any more
PLAYOUT_TAIL_SECONDS = (
    0.3  # what is still on its way to the caller when the agent's own queue has run empty
)
MOST_FAILURES = 3  # replies in a row that a model has failed; then the call ends, with an apology


class CallAgent(Agent):
    """An agent that knows its call: `self.call` has the caller, resources, `spawn` and `hang_up`.

    Subclasses override `greeting`, `resuming`, `goodbye`, `still_there`, `sorry` and `cannot_hear`, and add tools with
    `@function_tool`. Every tool, also of a toolset, gets a deadline (`tool_seconds`) and is cancelled when the call
    ends; those in `patient_tools` may take as long as the call. A subclass that overrides `on_exit` (where the last
    sentence is said), `llm_node` or `tts_node` calls `super()`'s. An agent that takes over by a hand-off should be a
    CallAgent too, or nobody says goodbye.
    """

    patient_tools: frozenset[str] = (
        frozenset()
    )  # names, such as of a tool that awaits an AgentTask: a talk of its own

    def __init__(
        self, call: Call, *, instructions: str, tools: Sequence[Tool | Toolset] = (), **options: Any
    ) -> None:
        self.call = call
        self._failures: dict[str, int] = {}  # in a row, by kind of model
        self._informed_of = "", ""  # the item that was looked up last, and what was found
        self._guarded: dict[int, tuple[Tool | Toolset, Tool | Toolset]] = {}
        own = {tool.id for tool in [*tools, *find_function_tools(self)]}
        given = [
            tool
            for tool in [*_knowledge_tools(call), *_memory_tools(call), _end_call(call)]
            if tool.id not in own
        ]
        super().__init__(instructions=instructions, tools=[*given, *tools], **options)

    @property
    def tools(self) -> list[Tool | Toolset]:
        """The agent's tools, each behind its deadline."""
        return [self._guard(tool) for tool in super().tools]

    def _guard(self, tool: Tool | Toolset) -> Tool | Toolset:
        if id(tool) not in self._guarded:
            guarded = guard(tool, self.call, self.patient_tools)
            self._guarded[id(tool)] = (
                tool,
                guarded,
            )  # with the original, so that its id stays its own
        return self._guarded[id(tool)][1]

    def remembered_as(self, caller: Caller) -> str | None:
        """The key under which a caller is remembered; None: nothing is recalled or written.

        Two people must never share a key. By default callers with a token are known by its
        identity, unless it looks shared or made up, and phones by their number where
        `remember_phone_numbers` is set. Override it if your own identities tell more.
        """
        if (memory := self.call.memory) is None:
            return None
        return memory.key_of(caller.identity, caller.kind, caller.attributes)

    # what a persona says; sentences, not prompts, so that they come at once and without a model

    def greeting(self, profile: Profile | None) -> str:
        """The first sentence; `profile` is None for a caller who is not known."""
        if profile is None:
            return "Hello! How can I help you?"
        return (
            f"Welcome back{f', {profile.name}' if profile.name else ''}! How can I help you today?"
        )

    def resuming(self, profile: Profile) -> str:
        """The first sentence to a caller whose last call broke off a moment ago; what was said in it is known."""
        return (
            f"Sorry{f', {profile.name}' if profile.name else ''}, we were cut off. Where were we?"
        )

    def goodbye(self, reason: str) -> str:
        """The last sentence of a call that the caller did not end; `reason` is one of `agent.lifecycle.Reason`."""
        match reason:
            case Reason.TOO_LONG:
                return "We have talked for as long as I can. Please call again if there is more. Goodbye!"
            case Reason.TOO_SILENT:
                return "I cannot hear you, so I am hanging up now. Goodbye!"
            case Reason.WORKER_STOPPED:
                return "I have to go now. Please call again in a moment. Goodbye!"
            case Reason.AGENT_HUNG_UP:
                return "Goodbye!"
            case _:
                return "I am sorry, something went wrong on my side. Please call again in a moment. Goodbye!"

    def still_there(self) -> str:
        """What is asked after `max_silence_seconds` of silence, once."""
        return "Are you still there?"

    def sorry(self) -> str:
        """What is said instead of a reply that the language model failed, or failed to finish."""
        return "I am sorry, I cannot answer that just now. Please try once more."

    def cannot_hear(self) -> str:
        """What is said when the caller's words can no longer be recognised."""
        return "I am sorry, I cannot hear you at the moment."

    async def welcome(self, profile: Profile | None) -> None:
        """Take in what is known of the caller, greet, and answer what was written before anybody listened."""
        if profile is not None:
            chat = self.chat_ctx.copy()
            if known := _what_is_known(profile):
                chat.add_message(role="system", content=known)
            for turn in profile.cut_off:  # no summary: to the model it is the same conversation
                chat.add_message(
                    role="user" if turn.role == "user" else "assistant", content=turn.text
                )
            await self.update_chat_ctx(chat)
        resumes = profile is not None and profile.resumed
        greeting = self.session.say(
            self.resuming(profile) if profile and resumes else self.greeting(profile)
        )
        with suppress(TimeoutError):
            async with asyncio.timeout(GREETING_SECONDS):
                await greeting.wait_for_playout()
        for text in await self.call.line.early_words():
            self.session.generate_reply(user_input=text)

    async def on_exit(self) -> None:
        """Say the last sentence, if somebody is there to hear it; the SDK runs this while the session closes.

        It is the one place where a job that is being stopped can still speak. At a hand-off nothing is said.
        """
        if self.session.current_agent is not self:
            return
        if self.call.reason is None:  # nobody asked for it, so a model failed for good
            self.call.fail(RuntimeError("the session closed by itself"))
        if self.call.can_speak and self.call.reason is not None:
            await say_bounded(
                self.session, self.goodbye(self.call.reason), self.call.goodbye_seconds
            )

    # the models, each of which may fail or hang: whatever happens, the caller hears something

    async def llm_node(
        self, chat_ctx: ChatContext, tools: list[Tool], model_settings: ModelSettings
    ) -> AsyncGenerator[ChatChunk | str | FlushSentinel, None]:
        """The model's reply, or what there is of it and an apology."""
        if self.call.knowledge is not None and self.call.settings.knowledge_lookup == "before":
            chat_ctx = await self._informed(chat_ctx)
        reply = Agent.default.llm_node(self, chat_ctx, tools, model_settings)
        try:
            async for chunk in with_timeout(reply, StreamTimeout(self.call.settings.reply_seconds)):
                yield chunk
            self._failures["language model"] = 0
        except Exception as error:
            if self._failed("language model", error):
                yield self.sorry()

    async def tts_node(
        self, text: AsyncIterable[str], model_settings: ModelSettings
    ) -> AsyncGenerator[rtc.AudioFrame, None]:
        """The voice, or what there is of it and three tones that need none."""
        patience = StreamTimeout(self.call.settings.reply_seconds, begun=False)

        async def words() -> AsyncIterator[str]:
            async for part in text:
                yield part
            patience.begin()  # until then it may be for the next words that a voice waits

        try:
            async for frame in with_timeout(
                Agent.default.tts_node(self, words(), model_settings), patience
            ):
                yield frame
            self._failures["voice"] = 0
        except Exception as error:
            self._failed("voice", error)
            for frame in tones():
                yield frame

    async def _informed(self, chat_ctx: ChatContext) -> ChatContext:
        """What was said, with what the documents say of it before the caller's last words; for one reply only."""
        said = [
            at
            for at, item in enumerate(chat_ctx.items)
            if item.type == "message" and item.role == "user"
        ]
        if not said:
            return chat_ctx
        asked = chat_ctx.items[said[-1]]
        if self._informed_of[0] != asked.id:  # after a tool the same words are answered once more
            *before, question = [chat_ctx.items[at].text_content or "" for at in said[-2:]]  # type: ignore[union-attr]
            assert self.call.knowledge is not None
            found = await self.call.knowledge.look_up(question, " ".join(before))
            self._informed_of = asked.id, found
        informed = chat_ctx.copy()
        informed.items.insert(said[-1], ChatMessage(role="system", content=[self._informed_of[1]]))
        return informed

    def _failed(self, model: str, error: Exception) -> bool:
        """Take down that a model has failed; False if it has been too often, and the call ends now."""
        if self.call.reason is not None:
            return False
        self._failures[model] = self._failures.get(model, 0) + 1
        log.warning(
            "the %s failed: %s",
            model,
            describe(error),
            extra=self.call.about(failures=self._failures[model]),
        )
        if self._failures[model] < MOST_FAILURES:
            return True
        self.call.fail(RuntimeError(f"the {model} has failed {MOST_FAILURES} times in a row"))
        return False


def _what_is_known(profile: Profile) -> str:
    """The caller's name, facts and earlier calls, for the model; the call that is resumed is no earlier one."""
    resumed = {turn.call for turn in profile.cut_off}
    earlier = [turn for turn in profile.turns if turn.call not in resumed]
    parts = [
        [f"The caller's name is {profile.name}."] if profile.name else [],
        ["Known of this caller:", *(f"- {fact}" for fact in profile.facts)]
        if profile.facts
        else [],
        [
            "The end of this caller's earlier calls:",
            *(f"{turn.role}: {turn.text}" for turn in earlier),
        ]
        * bool(earlier),
    ]
    known = "\n".join(line for part in parts for line in part)
    return f"For your information, no instruction and nothing to recite:\n{known}" if known else ""


async def say_bounded(session: AgentSession[None], sentence: str, seconds: float) -> None:
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
                await asyncio.sleep(
                    PLAYOUT_TAIL_SECONDS
                )  # no event tells when the last packet has been heard
    except TimeoutError:
        said.interrupt(force=True)  # or closing the session would wait for the rest of it
        log.info("the last sentence was cut short after %g s", seconds)


# ---------------------------------------------------------------------- tools


def guard(tool: Tool | Toolset, call: Call, patient: Container[str] = ()) -> Tool | Toolset:
    """`tool` with a deadline of `tool_seconds`, cancelled at once when the call ends; a toolset with all its tools.

    Those named in `patient` have no deadline but the end of the call, nor have those of an AsyncToolset, which are
    meant to outlive a turn; an MCPToolset is one only by descent, and its tools have the deadline.
    """
    if isinstance(tool, FunctionTool | RawFunctionTool):
        seconds = None if tool.info.name in patient else call.settings.tool_seconds
        return type(tool)(_with_deadline(tool, call, seconds), tool.info)  # type: ignore[arg-type]
    if isinstance(tool, AsyncToolset):
        return _guard_in_place(tool, call, patient)
    return _GuardedToolset(tool, call, patient) if isinstance(tool, Toolset) else tool


class _Every:
    """The names of all tools."""

    def __contains__(self, name: object) -> bool:
        return True


def _guard_in_place(toolset: AsyncToolset, call: Call, patient: Container[str]) -> AsyncToolset:
    """The very object, its tools guarded from now on: the SDK knows it by its class, and keeps in it what it runs."""
    kind: Any = type(toolset)
    known: dict[int, tuple[Tool | Toolset, Tool | Toolset]] = {}
    mcp = any(
        base.__name__ == "MCPToolset" for base in kind.__mro__
    )  # which cannot be imported without the mcp package
    waits = patient if mcp else _Every()

    class Guarded(kind):  # type: ignore[misc]
        @property
        def tools(self) -> list[Tool | Toolset]:
            for tool in super().tools:
                known.setdefault(id(tool), (tool, guard(tool, call, waits)))
            return [known[id(tool)][1] for tool in super().tools]

    toolset.__class__ = Guarded
    return toolset


class _GuardedToolset(Toolset):
    """A toolset whose tools have deadlines; opened and closed as the one it stands for."""

    def __init__(self, inner: Toolset, call: Call, patient: Container[str]) -> None:
        super().__init__(id=inner.id)
        self._inner, self._call, self._patient = inner, call, patient
        self._known: dict[int, tuple[Tool | Toolset, Tool | Toolset]] = {}

    @property
    def tools(self) -> Sequence[Tool | Toolset]:
        for tool in self._inner.tools:
            self._known.setdefault(id(tool), (tool, guard(tool, self._call, self._patient)))
        return [self._known[id(tool)][1] for tool in self._inner.tools]

    async def setup(self) -> _GuardedToolset:
        await self._inner.setup()
        return self

    async def aclose(self) -> None:
        await self._inner.aclose()


def _with_deadline(
    tool: Callable[..., Awaitable[Any]], call: Call, seconds: float | None
) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(tool)
    async def within_deadline(*args: Any, **kwargs: Any) -> Any:
        try:
            async with asyncio.timeout(seconds) as deadline:
                with call.tool_scope(deadline):
                    return await tool(*args, **kwargs)
        except TimeoutError as error:
            if not deadline.expired():
                raise
            if call.reason is not None:
                raise StopResponse from error
            raise ToolError(
                f"No answer within {seconds or 0:g} s. Tell the caller that this does not work at the moment."
            ) from error

    return within_deadline


def _knowledge_tools(call: Call) -> list[FunctionTool[Any, Any]]:
    if (knowledge := call.knowledge) is None or call.settings.knowledge_lookup != "tool":
        return []

    @function_tool
    async def search_knowledge(question: str) -> str:
        """Look something up in our documents. Use it before answering any question about us, our services or our rules.

        Args:
            question: What the caller wants to know, in their own words.
        """
        return await knowledge.look_up(question)

    return [search_knowledge]


def _memory_tools(call: Call) -> list[FunctionTool[Any, Any]]:
    if call.memory is None or call.settings.memory == "none":
        return []

    @function_tool
    async def remember_caller(name: str | None = None, fact: str | None = None) -> str:
        """Keep the caller's name, or one thing about them, for their next calls.

        Use it when they say their name, or something that they will expect you to know when they call again. Never keep
        passwords, payment details or anything about their health.

        Args:
            name: What the caller wants to be called.
            fact: One short sentence about the caller.
        """
        note = Note.of(call.line.call_id, name, fact)
        if note is None:
            raise ToolError("Nothing was kept: give a name or a fact.")
        if call.memory is None or not call.memory.add_note(note):
            return "This caller cannot be recognised, so nothing was kept: do not promise to remember it."
        return (
            "Noted for the next calls."  # written in the background, and kept if the store is down
        )

    return [remember_caller]


def _end_call(call: Call) -> FunctionTool[Any, Any]:
    @function_tool
    async def end_call(context: RunContext[None]) -> None:
        """End the call, once the caller has said goodbye or wants nothing more. You need not say goodbye yourself."""
        await context.wait_for_playout()  # what was said before the tool
        await call.hang_up()
        await asyncio.Event().wait()  # the end of the call cancels this tool, and with it the reply

    return end_call


# ---------------------------------------------------------------------- the session


class CallSession(AgentSession[None]):
    """A session that tells its call who closes it: the SDK's `close` event comes late and names one reason for both."""

    def __init__(self, call: Call, **options: Any) -> None:
        super().__init__(**options)
        self._call = call

    def shutdown(self, *, drain: bool = True) -> None:
        """An owner's code, or a tool of the SDK's, ends the conversation."""
        self._call.end(Reason.AGENT_HUNG_UP)

    async def aclose(self) -> None:
        """The job is being stopped, unless the call's own door is what closes the session."""
        await self._call.stopped()
        await super().aclose()


def build_session(call: Call, models: Models) -> CallSession:
    """The session of one call, reporting to it: turns as they finish, silence, who closes it."""
    silence = call.settings.max_silence_seconds if call.line.limited else None
    session = CallSession(
        call,
        llm=models.llm,
        stt=models.stt,
        tts=models.tts,
        vad=models.vad,
        turn_handling=models.turn_handling,
        user_away_timeout=silence,
    )

    def turn_finished(event: ConversationItemAddedEvent) -> None:
        item = event.item
        if (
            isinstance(item, ChatMessage)
            and item.role in ("user", "assistant")
            and (text := item.text_content)
        ):
            call.turns += 1
            if call.memory is not None:
                turn = Turn(
                    call=call.line.call_id, item=item.id, role=item.role, text=text, at=time.time()
                )
                call.memory.add_turn(turn)

    def closed(event: CloseEvent) -> None:  # an agent that is no CallAgent has no on_exit to say so
        call.fail(RuntimeError(f"the session closed by itself ({event.reason.value})"))

    def model_failed(event: ErrorEvent) -> None:
        """Of the three models only the ears are left to us here: the others fail inside a reply, see CallAgent."""
        error = event.error
        if (
            getattr(error, "type", "") != "stt_error"
            or getattr(error, "recoverable", True)
            or call.reason is not None
        ):
            return
        cause = getattr(error, "error", None)
        log.warning(
            "the ears failed: %s", describe(cause or RuntimeError("unknown")), extra=call.about()
        )
        if isinstance(
            cause, APIError
        ):  # the SDK begins anew, and closes the session when it has had enough of that
            agent = session.current_agent
            if isinstance(agent, CallAgent):
                session.say(agent.cannot_hear())
        else:  # the SDK stops listening, and says nothing
            call.fail(RuntimeError("nobody listens to the caller any more"))

    session.on("conversation_item_added", turn_finished)
    session.on("error", model_failed)
    session.on("close", closed)
    if silence is not None:
        _watch_silence(call, session, silence)
    return session


def _watch_silence(call: Call, session: AgentSession[None], seconds: float) -> None:
    """Silence is asked about once, and ends the call when it goes on."""
    patience: asyncio.TimerHandle | None = None

    def state_changed(event: UserStateChangedEvent) -> None:
        nonlocal patience
        if patience is not None:
            patience.cancel()
            patience = None
        if event.new_state == "away" and call.reason is None:
            agent = session.current_agent
            session.say(
                agent.still_there() if isinstance(agent, CallAgent) else "Are you still there?"
            )
            patience = asyncio.get_running_loop().call_later(seconds, call.end, Reason.TOO_SILENT)

    session.on("user_state_changed", state_changed)


@asynccontextmanager
async def conversation(
    call: Call, session: AgentSession[None], agent: Agent, caller: Caller
) -> AsyncIterator[AgentSession[None]]:
    """A started session, closed on exit; its agent says goodbye while it closes."""
    try:
        try:
            await call.line.start(session, agent, caller)
        except Exception as error:
            call.fail(error)  # before the close below, which would be taken for a stopping worker
            raise
        yield session
    finally:
        await session.aclose()
