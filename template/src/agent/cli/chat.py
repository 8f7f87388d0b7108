"""A conversation in text, typed at a terminal or piped in; `agent chat` has it with this machine's own agent."""

from __future__ import annotations

import asyncio
import getpass
import os
import signal
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from agent import telemetry
from agent.cli.run import load_server, tell, warn_models
from agent.errors import one_line
from agent.knowledge import KnowledgeUnavailable, local_embedder
from agent.lifecycle import Call
from agent.settings import Settings, load_settings
from agent.transport import Caller, CallEvents

if TYPE_CHECKING:
    from livekit.agents import Agent, AgentSession, ConversationItemAddedEvent

T = TypeVar("T")

INTERRUPT_SECONDS = 0.5
LEAVING = {"exit", "quit", "/exit", "/quit"}


def chat(name: str | None, *, verbose: bool) -> int:
    """Talk with this machine's agent; the exit code. Raises SettingsError, KnowledgeUnavailable before it begins."""
    settings = load_settings()
    if settings.models == "livekit" and settings.keyless:
        source = "" if settings.knowledge == "none" else " from your documents"
        tell(f"No keys in the environment, so a script answers{source} (AGENT_MODELS=scripted).")
        settings = settings.model_copy(update={"models": "scripted"})
    for warning in warn_models(settings):
        tell(warning)
    from agent.cli.documents import prepare_documents

    prepare_documents(settings)
    load_server()
    telemetry.log_to(sys.stderr, level="INFO" if verbose else "WARNING")
    return converse(Chat(settings, Caller(identity_of(name), name or "")))


def identity_of(name: str | None) -> str:
    """Who calls from this terminal: the same for one user every time, so that the agent knows them again."""
    if name:
        return name
    try:
        return f"terminal-{getpass.getuser()}"
    except (KeyError, OSError):  # a container's user who has no name
        return "terminal"


# ---------------------------------------------------------------------- the conversation


class Talk(ABC):
    """One conversation in text. It lives in an event loop; the keyboard is read in another thread."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()  # the call is over, whoever ended it
        self.on_partial: Callable[[str], None] = lambda text: None  # what the agent has said so far
        self.on_aside: Callable[[str], None] = tell  # what it says without being asked
        self._answer: list[str] | None = None

    def heard(self, text: str) -> None:
        """The agent has said this, as a part of an answer or on its own."""
        if self._answer is None:
            self.on_aside(text)
        else:
            self._answer.append(text)

    @contextmanager
    def answering(self) -> Iterator[list[str]]:
        """What is heard inside is an answer; yields its parts."""
        parts: list[str] = []
        self._answer = parts
        try:
            yield parts
        finally:
            self._answer = None

    @abstractmethod
    async def begin(self) -> str:
        """Start the call; the greeting."""

    @abstractmethod
    async def say(self, text: str) -> str:
        """Say a line; the agent's whole answer, with its goodbye if that ended the call."""

    @abstractmethod
    async def close(self) -> str:
        """Hang up and wait until everything is closed; what went wrong, or nothing."""


class Chat(Talk):
    """The steps of any call, with the terminal for a line: the agent's own persona, knowledge and memory."""

    def __init__(self, settings: Settings, caller: Caller) -> None:
        super().__init__()
        self._line = _HeardLine(caller, self._item_added)
        self._call = Call(self._line, settings)
        self._beside = AsyncExitStack()
        self.ended = self._line.ended

    async def begin(self) -> str:
        """Go through the steps up to the greeting."""
        from agent.entrypoint import run_call

        try:
            self._call.settings = await self._beside.enter_async_context(
                local_embedder(self._call.settings, wait=True)
            )
        except KnowledgeUnavailable as error:
            tell(str(error))
        with self.answering() as greeting:
            await self._call.start(run_call)
            await self._unless_ended(self._call.wait_greeted())
        return " ".join(greeting)

    async def say(self, text: str) -> str:
        """One turn, as if it had been spoken."""
        with self.answering() as parts:
            await self._unless_ended(self._turn(text))
        return " ".join(parts)

    async def close(self) -> str:
        """Leave through the call's door."""
        self._line.hang_up()
        await self._call.wait_closed()
        await self._beside.aclose()
        reason = self._call.reason or ""
        return reason if reason.startswith("error") else ""

    async def _turn(self, text: str) -> None:
        assert self._call.session is not None
        try:
            await self._call.session.run(user_input=text)
        except Exception as error:
            tell(f"no answer: {one_line(error)}")

    async def _unless_ended(self, work: Coroutine[Any, Any, object]) -> None:
        """Wait for `work`, or for the end of the call with everything that is still said and closed in it."""
        task, ended = asyncio.ensure_future(work), asyncio.ensure_future(self.ended.wait())
        try:
            await asyncio.wait([task, ended], return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()
            if self.ended.is_set():
                task.cancel()
        if self.ended.is_set():
            await self._call.wait_closed()

    def _item_added(self, event: ConversationItemAddedEvent) -> None:
        if (
            event.item.type == "message"
            and event.item.role == "assistant"
            and (text := event.item.text_content)
        ):
            self.heard(text)


class TerminalTransport:
    """A conversation typed at a terminal: no server, no audio."""

    def __init__(self, caller: Caller, *, limited: bool = False) -> None:
        self.call_id, self.room_name = f"chat-{os.getpid()}-{time.time_ns()}", "terminal"
        self.began, self.limited = time.monotonic(), limited
        self.ended = asyncio.Event()
        self._caller = caller

    def listen(self, events: CallEvents) -> None:
        self._events = events

    @asynccontextmanager
    async def room(self) -> AsyncIterator[None]:
        yield

    async def wait_for_caller(self) -> Caller:
        return self._caller

    async def start(self, session: AgentSession[None], agent: Agent, caller: Caller) -> None:
        await session.start(agent)

    async def early_texts(self) -> list[str]:
        return []

    async def end_room(self, caller: Caller | None) -> None:
        return

    def hang_up(self) -> None:
        """The person at the terminal has left."""
        self._events.caller_gone(on_purpose=True)

    def finish(self, reason: str) -> None:
        self.ended.set()

    def guard_exit(self, seconds: float) -> None:
        return


class _HeardLine(TerminalTransport):
    """The terminal, with an ear for everything that enters the conversation."""

    def __init__(self, caller: Caller, ear: Callable[[ConversationItemAddedEvent], None]) -> None:
        super().__init__(caller)
        self._ear = ear

    async def start(self, session: AgentSession[None], agent: Agent, caller: Caller) -> None:
        session.on("conversation_item_added", self._ear)
        await super().start(session, agent, caller)


# ---------------------------------------------------------------------- the terminal


def converse(talk: Talk) -> int:
    """Hold `talk` with whoever is at the terminal, or with what is piped in; the exit code.

    Piped: an answer for each line, as one line on standard output, and everything else on standard error.
    """
    typed = sys.stdin.isatty() and sys.stdout.isatty()
    with Backstage() as stage:
        try:
            _typed(stage, talk) if typed else _piped(stage, talk)
        except KeyboardInterrupt:
            if not (typed or talk.ended.is_set()):
                raise
            print(file=sys.stderr)
        finally:
            if problem := stage.run(talk.close()):
                tell(f"the call ended: {problem}")
    return 1 if problem else 0


def _piped(stage: Backstage, talk: Talk) -> None:
    for stream, wrong in ((sys.stdin, "replace"), (sys.stdout, "backslashreplace")):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=wrong)
    tell(stage.run(talk.begin()))
    while not talk.ended.is_set():
        with stage.reading(talk.ended):
            line = sys.stdin.readline()
        if not line:
            return
        answer = stage.run(talk.say(line.strip())) if line.strip() else ""
        try:
            print(" ".join(answer.split()), flush=True)
        except BrokenPipeError:  # nobody reads the answers any more
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return


def _typed(stage: Backstage, talk: Talk) -> None:
    with suppress(ImportError):
        import readline  # noqa: F401  # arrow keys and history for input()
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)

    def show(text: str) -> None:
        console.print(Text.assemble(("agent  ", "bold cyan"), text))

    def waiting(work: Coroutine[Any, Any, str]) -> str:
        with console.status("") as status:
            talk.on_partial = lambda text: status.update(Text(text))
            return stage.run(work)

    talk.on_aside = show
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # Ctrl-C, even where a parent has it ignored
    console.print(Text("Type to your agent; Ctrl-D or exit hangs up.", "dim"))
    if greeting := waiting(talk.begin()):
        show(greeting)
    while not talk.ended.is_set():
        try:
            with stage.reading(talk.ended):
                line = input("you    ").strip()
        except EOFError:
            line = "exit"
            console.print()
        if line.lower() in LEAVING:
            return
        if line and (answer := waiting(talk.say(line))):
            show(answer)
    console.print(Text("The call is over.", "dim"))


class Backstage:
    """An event loop in a thread of its own: the call goes on while the terminal waits for a key."""

    def __enter__(self) -> Self:
        # SIGUSR1 and not SIGINT, which a program in the background may have been told to ignore
        self._reading, self._before = False, signal.signal(signal.SIGUSR1, self._interrupt)
        self._ready, self._stopped = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve()), name="backstage", daemon=True
        )
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join()
        signal.signal(signal.SIGUSR1, self._before or signal.SIG_DFL)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._reading:
            raise KeyboardInterrupt

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._ready.set()
        await self._stopped.wait()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` in the loop and wait for it; Ctrl-C cancels it."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            raise

    @contextmanager
    def reading(self, ended: asyncio.Event) -> Iterator[None]:
        """While inside, the end of the call interrupts the terminal: nobody could answer what is typed."""
        terminal, self._reading = threading.get_ident(), True

        async def interrupt() -> None:
            await ended.wait()
            while self._reading:  # more than once: between its prompt and its wait for a key, readline misses a signal
                signal.pthread_kill(terminal, signal.SIGUSR1)
                await asyncio.sleep(INTERRUPT_SECONDS)

        watch = asyncio.run_coroutine_threadsafe(interrupt(), self._loop)
        try:
            yield
        finally:
            self._reading = False
            watch.cancel()
