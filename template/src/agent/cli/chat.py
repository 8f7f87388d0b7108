"""A conversation in text, typed at a terminal or piped in; `agent chat` has it with this agent."""

from __future__ import annotations

import asyncio
import getpass
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from agent import one_line, telemetry
from agent.cli.checks import load_calls, prepare_documents, require
from agent.cli.terminal import interactive, make_console, read_line, report, unless
from agent.knowledge import KnowledgeUnavailable, local_embedder
from agent.settings import Settings, load_settings
from agent.transport import Caller

if TYPE_CHECKING:
    from livekit.agents import Agent, AgentSession, ConversationItemAddedEvent
    from livekit.agents.voice.room_io import RoomOptions

    from agent.lifecycle import Call
    from agent.transport import CallEvents

LEAVING = {"exit", "quit", "/exit", "/quit"}

CallerName = Annotated[
    str | None,
    typer.Option("--as", metavar="NAME", help="Who is calling; by default this machine's user."),
]
Metadata = Annotated[
    str,
    typer.Option("--metadata", metavar="TEXT", help="What the call is about: `call.metadata`."),
]


def chat(
    caller: CallerName = None,
    metadata: Metadata = "",
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show the call's log, the eight steps among it.")
    ] = False,
) -> int:
    """Talk with the agent in text, right here: no server, and without keys a script answers.

    Piped input: an answer for each line, as one line; everything else goes to standard error.
    """
    settings = load_settings()
    load_calls()
    settings = with_models(settings)
    if "keep_strangers_words" not in settings.model_fields_set:
        # they are the developer's own
        settings = settings.model_copy(update={"keep_strangers_words": True})
    prepare_documents(settings)
    telemetry.log_to(sys.stderr, level="INFO" if verbose else "WARNING")
    return converse(Chat(settings, Caller(caller_identity(caller), caller or ""), metadata))


def with_models(settings: Settings) -> Settings:
    """The settings; with the scripted models where the chosen ones lack a key or a server."""
    from agent.cli.models import build, inference_elsewhere
    from agent.models import ModelsUnavailable

    try:
        build(settings)
    except ModelsUnavailable as error:
        keyless = settings.models == "livekit" and settings.keyless
        why = "No keys in the environment" if keyless else str(error)
        source = "" if settings.knowledge == "none" else " from your documents"
        report(f"{why}, so a script answers{source} (AGENT_MODELS=scripted).")
        return settings.model_copy(update={"models": "scripted"})
    require(inference_elsewhere(settings))
    return settings


def caller_identity(name: str | None) -> str:
    """Who calls: the same for a user every time, so that the agent knows them again."""
    if name:
        return name
    try:
        return f"terminal-{getpass.getuser()}"
    except (KeyError, OSError):  # a container's user who has no name
        return "terminal"


# ---------------------------------------------------------------------- the conversation


class Conversation(ABC):
    """A call in text."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()  # the call is over, whichever side ended it
        # what the agent has said so far of a sentence; what it says without being asked
        self.on_partial: Callable[[str], None] = lambda text: None
        self.on_aside: Callable[[str], None] = report
        self._answer: list[str] | None = None

    async def start(self) -> str:
        """Start the call; the greeting."""
        return await self._answer_to(self._start())

    async def say(self, text: str) -> str:
        """Say a line; the agent's whole answer, with its goodbye if that ended the call."""
        return await self._answer_to(self._say(text))

    async def _answer_to(self, work: Coroutine[Any, Any, None]) -> str:
        self._answer = answer = list[str]()
        try:
            await work
        finally:
            self._answer = None
        return " ".join(answer)

    def _heard(self, text: str) -> None:
        """The agent has said this, as a part of an answer or without being asked."""
        if self._answer is None:
            self.on_aside(text)
        else:
            self._answer.append(text)

    @abstractmethod
    async def _start(self) -> None: ...
    @abstractmethod
    async def _say(self, text: str) -> None: ...
    @abstractmethod
    async def close(self) -> str:
        """Hang up and wait until everything is closed; what went wrong, or nothing."""


class Chat(Conversation):
    """A call with this machine's own agent: its persona, knowledge and memory."""

    def __init__(self, settings: Settings, caller: Caller, metadata: str) -> None:
        super().__init__()
        self._settings = settings
        self._transport = TerminalTransport(caller, metadata, self.ended, self._item_added)
        self.call: Call | None = None
        self._stack = AsyncExitStack()

    async def _start(self) -> None:
        # the SDK, which `chat` has loaded
        from livekit.agents.utils import http_context

        from agent.entrypoint import prewarm_persona, run_call
        from agent.lifecycle import Call

        # what a job has, too: the models' connections, closed after the call
        await self._stack.enter_async_context(http_context.open())
        settings = self._settings
        await asyncio.to_thread(prewarm_persona, settings)
        try:
            embedder = local_embedder(settings, wait=True)
            settings = await self._stack.enter_async_context(embedder)
        except KnowledgeUnavailable as error:
            report(str(error))
        self.call = Call(self._transport, settings)
        await self.call.start(run_call)
        await self._unless_ended(self.call.wait_for_turn())

    async def _say(self, text: str) -> None:
        await self._unless_ended(self._turn(text))

    async def close(self) -> str:
        """End the call as a caller does who hangs up."""
        if self.call is not None:
            self._transport.hang_up()
            await self.call.wait_closed()
        await self._stack.aclose()
        reason = (self.call and self.call.reason) or ""
        return reason if reason.startswith("error") else ""

    async def _turn(self, text: str) -> None:
        assert self.call is not None
        assert self.call.session is not None
        await self.call.tools.wait_connected()
        try:
            await self.call.session.run(user_input=text)
        except Exception as error:
            report(f"no answer: {one_line(error)}")

    async def _unless_ended(self, work: Coroutine[Any, Any, object]) -> None:
        """Wait for `work`, or for the end of the call and what is still said and closed in it."""
        await unless(self.ended, work)
        if self.ended.is_set() and self.call is not None:
            await self.call.wait_closed()

    def _item_added(self, event: ConversationItemAddedEvent) -> None:
        item = event.item
        if item.type == "message" and item.role == "assistant" and (text := item.text_content):
            self._heard(text)


class TerminalTransport:
    """What carries a call at a terminal: no server, no audio, no limits."""

    room_name, limited, livekit_room, livekit_api = "terminal", False, None, None

    def __init__(
        self,
        caller: Caller,
        metadata: str,
        ended: asyncio.Event,
        on_item: Callable[[ConversationItemAddedEvent], None],
    ) -> None:
        self.call_id, self.began = f"chat-{os.getpid()}-{time.time_ns()}", time.monotonic()
        self.metadata, self._caller = metadata, caller
        self._ended, self._on_item = ended, on_item

    def listen(self, events: CallEvents) -> None:
        self._events = events

    @asynccontextmanager
    async def room(self) -> AsyncIterator[None]:
        yield

    async def wait_for_caller(self, is_caller: Callable[[Caller], bool]) -> Caller:
        return self._caller

    async def start(
        self, session: AgentSession[None], agent: Agent, caller: Caller, options: RoomOptions
    ) -> None:
        session.on("conversation_item_added", self._on_item)
        await session.start(agent)

    async def early_texts(self) -> list[str]:
        return []

    async def end_room(self, caller: Caller | None) -> None:
        return

    def hang_up(self) -> None:
        """Report that the person at the terminal has left."""
        self._events.caller_gone(on_purpose=True)

    def finish(self, reason: str) -> None:
        self._ended.set()

    def guard_exit(self, seconds: float) -> None:
        return


# ---------------------------------------------------------------------- the terminal


def converse(conversation: Conversation) -> int:
    """Hold a conversation with the person at the terminal, or with what is piped in.

    Returns the exit code. Raises what `start` raises.
    """
    typed = sys.stdin.isatty() and sys.stdout.isatty()
    problem = ""

    async def hold() -> None:
        nonlocal problem
        try:
            await (_typed if typed else _piped)(conversation)
        finally:
            hung_up = conversation.ended.is_set()
            problem = await conversation.close()
        if typed and hung_up:
            print("The call is over.")

    try:
        with interactive() if typed else nullcontext():
            asyncio.run(hold())
    except KeyboardInterrupt:
        if not (typed or conversation.ended.is_set()):
            raise
        print(file=sys.stderr)
    finally:
        if problem:
            report(f"the call ended: {problem}")
    return 1 if problem else 0


async def _piped(conversation: Conversation) -> None:
    """Answer each line with one line on standard output; the rest goes to standard error."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    report(await conversation.start())
    while (line := await unless(conversation.ended, read_line())) is not None:
        answer = await conversation.say(line) if line else ""
        try:
            print(" ".join(answer.split()), flush=True)
        except BrokenPipeError:  # nobody reads the answers any more
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return


async def _typed(conversation: Conversation) -> None:
    console = make_console()

    def show(text: str) -> None:
        console.print(Text.assemble(("agent  ", "bold cyan"), text))

    async def show_answer(work: Coroutine[Any, Any, str]) -> None:
        with console.status("") as status:
            conversation.on_partial = lambda text: status.update(Text(text))
            text = await work
        if text:
            show(text)

    def show_beside_prompt(text: str) -> None:
        console.print()
        show(text)

    conversation.on_aside = show_beside_prompt
    console.print(Text("Type to your agent; Ctrl-D or exit hangs up.", "dim"))
    await show_answer(conversation.start())
    while not conversation.ended.is_set():
        line = await unless(conversation.ended, read_line("you    "))
        if line is None:
            console.print()
            conversation.on_aside = show
            return
        if line.lower() in LEAVING:
            return
        if line:
            await show_answer(conversation.say(line))
