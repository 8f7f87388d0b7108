from __future__ import annotations

import asyncio
import os
import pty
import select
import signal
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.process import BaseProcess as Process
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
from livekit.agents import function_tool

from agent.__main__ import main
from agent.conversation import CallAgent, CallTask
from agent.lifecycle import Call
from agent.memory import Profile
from agent.reports import delivery
from agent.settings import load_settings
from tests.support.processes import process


class Persona(CallAgent):
    """A persona that greets, says goodbye and has a tool."""

    def __init__(self, call: Call) -> None:
        super().__init__(call, instructions="You are a test.")

    def greeting(self, profile: Profile | None) -> str:
        return "Welcome back!" if profile else "Welcome!"

    def goodbye(self, reason: str) -> str:
        return "Goodbye!"

    @function_tool
    async def recite(self) -> str:
        """Recite a poem."""
        return "Roses are red,\n\nviolets are blue."


class Ended(NamedTuple):
    code: int
    out: list[str]
    err: str


Chat = Callable[..., Ended]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with one document; nothing is looked up or remembered unless a test says so."""
    home = tmp_path / "home"
    (home / "knowledge").mkdir(parents=True)
    (home / "knowledge" / "hours.md").write_text(
        "# Opening hours\n\nOn Saturday we open at ten.\n", encoding="utf-8"
    )
    monkeypatch.setenv("AGENT_HOME", str(home))
    monkeypatch.setenv("AGENT_KNOWLEDGE", "none")
    monkeypatch.setenv("AGENT_MEMORY_URL", "none")
    replace(monkeypatch, "agent.persona", Persona=Persona)
    replace(monkeypatch, "agent.resources", open_resources=no_resources)
    return home


def replace(monkeypatch: pytest.MonkeyPatch, name: str, **parts: object) -> None:
    """Replace one of the owner's modules."""
    module = ModuleType(name)
    module.__dict__.update(parts)
    monkeypatch.setitem(sys.modules, name, module)


async def no_resources(call: Call) -> None:
    return


@pytest.fixture
def chat(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Chat:
    """Pipe lines into `agent chat` in this process."""

    def run(text: str, *arguments: str) -> Ended:
        load_settings.cache_clear()
        (home / "typed").write_text(text, encoding="utf-8")
        with open(home / "typed", encoding="utf-8") as typed:
            monkeypatch.setattr("sys.stdin", typed)
            with pytest.raises(SystemExit) as ended:
                main(["chat", *arguments])
        out, err = capsys.readouterr()
        return Ended(int(ended.value.code or 0), out.splitlines(), err)

    return run


def test_every_line_gets_one_line(chat: Chat) -> None:
    ended = chat("hello\n\nthank you\n")

    assert ended.out == ["Hello! What would you like to know?", "", "You are welcome."]
    assert ended.code == 0


def test_an_answer_of_several_lines_is_folded_into_one(chat: Chat) -> None:
    assert chat("/tool recite\n").out == ["Roses are red, violets are blue."]


def test_the_agent_knows_what_the_call_is_about(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Knowing(Persona):
        def greeting(self, profile: Profile | None) -> str:
            return f"about {self.call.metadata!r}, {self.call.room}, {self.call.api}"

    replace(monkeypatch, "agent.persona", Persona=Knowing)
    assert "about 'order 1042', None, None" in chat("", "--metadata", "order 1042").err
    assert "about '', None, None" in chat("").err


def test_a_last_line_without_a_line_end_is_answered(chat: Chat) -> None:
    assert chat("thank you").out == ["You are welcome."]


def test_without_a_line_nothing_is_answered(chat: Chat) -> None:
    ended = chat("")

    assert (ended.code, ended.out) == (0, [])


def test_the_greeting_goes_to_standard_error(chat: Chat) -> None:
    assert "Welcome!" in chat("").err.splitlines()


def test_an_agent_that_hangs_up_says_goodbye_and_reads_no_further(chat: Chat) -> None:
    ended = chat("bye\nhello\n")

    assert (ended.code, ended.out) == (0, ["Goodbye!"])


def test_an_agent_that_hangs_up_does_not_wait_for_the_terminal(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Hasty(Persona):
        async def welcome(self, profile: Profile | None) -> None:
            await super().welcome(profile)
            self.call.spawn(self.leave())

        async def leave(self) -> None:
            await asyncio.to_thread(reading.wait)
            await self.call.hang_up()

    class SilentInput:
        encoding = "utf-8"

        def isatty(self) -> bool:
            return False

        def fileno(self) -> int:
            reading.set()
            return nobody_types

    reading = threading.Event()
    replace(monkeypatch, "agent.persona", Persona=Hasty)
    load_settings.cache_clear()
    nobody_types, writing = os.pipe()
    monkeypatch.setattr("sys.stdin", SilentInput())
    with pytest.raises(SystemExit) as ended:
        main(["chat"])
    os.close(writing)

    assert ended.value.code == 0
    assert "Goodbye!" in capsys.readouterr().err


def test_a_question_before_the_greeting_is_answered_by_the_first_line(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Consent(CallTask[bool]):
        async def on_enter(self) -> None:
            await self.session.say("May we?")

        @function_tool
        async def agree(self) -> None:
            """Agree."""
            self.complete(True)

    class Asking(Persona):
        async def welcome(self, profile: Profile | None) -> None:
            await Consent(self.call, instructions="Ask.")
            await super().welcome(profile)

    replace(monkeypatch, "agent.persona", Persona=Asking)
    ended = chat("/tool agree {}\nthank you\n")

    assert "May we?" in ended.err.splitlines()
    assert ended.out == ["Welcome!", "You are welcome."]


def test_a_call_that_fails_exits_with_1_and_says_in_which_step(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(call: Call) -> None:
        raise RuntimeError("the pool is closed")

    replace(monkeypatch, "agent.resources", open_resources=fail)

    ended = chat("hello\n")

    assert (ended.code, ended.out) == (1, [])
    assert "the call ended: error in step 1 (open infrastructure)" in ended.err


def test_without_keys_a_script_answers_and_chat_says_so(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AGENT_MODELS")

    ended = chat("thank you\n")

    assert ended.out == ["You are welcome."]
    assert "AGENT_MODELS=scripted" in ended.err


def test_only_verbose_shows_the_eight_steps(chat: Chat) -> None:
    steps = [f"step {number}: " for number in range(1, 9)]

    quiet, verbose = chat("hello\n").err, chat("hello\n", "--verbose").err

    assert not any(step in quiet for step in steps)
    assert all(step in verbose for step in steps)


def test_answers_come_from_documents_that_were_never_ingested(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENT_KNOWLEDGE", "sqlite")

    ended = chat("When do you open on Saturday?\n")

    assert ended.out == ["On Saturday we open at ten."]
    assert "documents indexed: 1" in ended.err


def test_a_caller_who_chats_again_is_known_and_others_are_not(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENT_MEMORY_URL", "sqlite")

    greetings = [
        chat("hello\n", "--as", name).err.splitlines()[-1] for name in ("ann", "ann", "ben")
    ]

    assert greetings == ["Welcome!", "Welcome back!", "Welcome!"]


@pytest.mark.parametrize(("setting", "words"), [(None, True), ("false", False)])
def test_what_a_developer_says_is_in_the_report_unless_they_say_otherwise(
    setting: str | None, words: bool, chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    if setting:
        monkeypatch.setenv("AGENT_KEEP_STRANGERS_WORDS", setting)
    chat("my secret is plum\n")
    (file,) = delivery.waiting(load_settings(), delivery.KEPT)

    assert ("plum" in file.read_text(encoding="ascii")) is words


def test_a_reader_that_goes_away_ends_the_conversation(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", encoding="utf-8") as nobody_reads:
        monkeypatch.setattr("sys.stdout", nobody_reads)
        ended = chat("thank you\n" * 3)
    # and closing it, as Python does in the end, raises nothing

    assert ended.code == 0
    assert "Traceback" not in ended.err


# ---------------------------------------------------------------------- at a terminal


class AtOnce(Persona):
    """Hangs up when the process gets SIGUSR1."""

    async def welcome(self, profile: Profile | None) -> None:
        await super().welcome(profile)
        asyncio.get_running_loop().add_signal_handler(
            signal.SIGUSR1, lambda: self.call.spawn(self.call.hang_up())
        )


def chat_at_once(*, with_readline: bool) -> None:
    """`agent chat` of that persona, in a separate process."""
    if not with_readline:
        del sys.modules["readline"]
    sys.modules["agent.persona"] = ModuleType("agent.persona")
    sys.modules["agent.persona"].__dict__["Persona"] = AtOnce
    sys.modules["agent.resources"] = ModuleType("agent.resources")
    sys.modules["agent.resources"].__dict__["open_resources"] = no_resources
    # like a shell for a background process
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    main(["chat"])


class Terminal:
    """A terminal's screen and keyboard."""

    def __init__(self) -> None:
        self._master, self.theirs = pty.openpty()
        self.name, self.settings = os.ttyname(self.theirs), termios.tcgetattr(self.theirs)
        self.text, self._seen = "", 0

    def shows(self, words: str) -> None:
        """Read on until `words` are shown, after what was waited for before."""
        while (at := self.text.find(words, self._seen)) < 0:
            readable, _, _ = select.select([self._master], [], [], 60)
            assert readable, f"{words!r} was never shown, but {self.text[-1000:]!r}"
            self.text += os.read(self._master, 4096).decode(errors="replace")
        self._seen = at + len(words)

    def drain(self) -> None:
        """Read what is left."""
        while select.select([self._master], [], [], 0)[0]:
            self.text += os.read(self._master, 4096).decode(errors="replace")

    def press(self, keys: str) -> None:
        """Type."""
        os.write(self._master, keys.encode())

    def close(self) -> None:
        """Unplug it."""
        os.close(self._master)
        os.close(self.theirs)


@pytest.fixture
def chatting(home: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Terminal, Process]]:
    """A person who has had one answer and is about to type, with readline or without."""
    terminal = Terminal()
    target = partial(chat_at_once, with_readline=request.param)
    with process(target, terminal=terminal.name) as chat:
        terminal.shows("Welcome!")
        terminal.shows("you ")
        terminal.press("thank you\n")
        terminal.shows("You are welcome.")
        terminal.shows("you ")
        yield terminal, chat
    terminal.close()


def assert_ended(terminal: Terminal, chat: Process) -> None:
    chat.join(60)
    terminal.drain()
    assert chat.exitcode == 0, terminal.text
    assert "Traceback" not in terminal.text
    assert termios.tcgetattr(terminal.theirs) == terminal.settings


@pytest.mark.parametrize(
    ("chatting", "keys"),
    [(True, "\x04"), (True, "exit\n"), (True, "half a line\x03"), (False, "half a line\x03")],
    indirect=["chatting"],
)
def test_at_a_terminal_one_types_and_hangs_up(
    chatting: tuple[Terminal, Process], keys: str
) -> None:
    terminal, _ = chatting

    terminal.press(keys)

    assert_ended(*chatting)


@pytest.mark.parametrize("chatting", [True, False], indirect=True)
def test_an_agent_that_hangs_up_says_goodbye_to_somebody_who_is_typing(
    chatting: tuple[Terminal, Process],
) -> None:
    terminal, chat = chatting
    terminal.press("half a line")
    terminal.shows("half a line")

    os.kill(chat.pid or 0, signal.SIGUSR1)

    terminal.shows("Goodbye!")
    terminal.shows("The call is over.")
    assert_ended(*chatting)
