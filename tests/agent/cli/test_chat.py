from __future__ import annotations

import asyncio
import importlib.util
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
from livekit.agents import function_tool

from agent.__main__ import main
from agent.conversation import CallAgent
from agent.lifecycle import Call
from agent.memory import Profile
from agent.settings import load_settings

needs_index = pytest.mark.skipif(
    importlib.util.find_spec("agent.knowledge.sqlite") is None,
    reason="made without knowledge=sqlite",
)
needs_store = pytest.mark.skipif(
    importlib.util.find_spec("agent.memory.sqlite") is None, reason="made without memory=sqlite"
)


class Persona(CallAgent):
    """Whoever yours is, this one is the same in every project."""

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
    """A project of our own persona and one document; nothing is looked up or remembered unless a test says so."""
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
    """Put a module in the place of one of yours."""
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


@needs_index
def test_answers_come_from_documents_that_were_never_ingested(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENT_KNOWLEDGE", "sqlite")

    ended = chat("When do you open on Saturday?\n")

    assert ended.out == ["On Saturday we open at ten."]
    assert "documents indexed: 1" in ended.err


@needs_store
def test_whoever_chats_again_is_known_and_others_are_not(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENT_MEMORY_URL", "sqlite")

    greetings = [
        chat("hello\n", "--as", name).err.splitlines()[-1] for name in ("ann", "ann", "ben")
    ]

    assert greetings == ["Welcome!", "Welcome back!", "Welcome!"]


def test_a_reader_that_goes_away_ends_the_conversation(home: Path) -> None:
    chat = subprocess.Popen(
        [sys.executable, "-m", "agent", "chat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert chat.stdout is not None
    chat.stdout.close()

    _, told = chat.communicate(b"thank you\n" * 3, timeout=60)

    assert chat.returncode == 0
    assert b"Traceback" not in told
    assert b"BrokenPipe" not in told


@pytest.mark.parametrize("leaving", ["\x04", signal.SIGINT], ids=["ctrl-d", "ctrl-c"])
def test_at_a_terminal_one_types_and_hangs_up(home: Path, leaving: str | signal.Signals) -> None:
    ours, theirs = pty.openpty()
    chat = subprocess.Popen(
        [sys.executable, "-m", "agent", "chat"], stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    screen = Screen(ours)

    screen.read_until("you ")
    os.write(ours, b"thank you\n")
    screen.read_until("You are welcome.")
    screen.read_until("you ")
    if isinstance(leaving, str):
        os.write(ours, leaving.encode())
    while not isinstance(leaving, str) and chat.poll() is None:
        chat.send_signal(
            leaving
        )  # again if need be: between its prompt and its wait for a key, readline misses it
        with suppress(subprocess.TimeoutExpired):
            chat.wait(timeout=5)

    assert chat.wait(timeout=60) == 0
    assert "Traceback" not in screen.text
    os.close(ours)


class Screen:
    """What a terminal shows."""

    def __init__(self, terminal: int) -> None:
        self._terminal, self.text, self._seen = terminal, "", 0

    def read_until(self, words: str) -> None:
        """Read on until `words` are shown, after what was waited for before."""
        while (at := self.text.find(words, self._seen)) < 0:
            self.text += os.read(self._terminal, 4096).decode(errors="replace")
        self._seen = at + len(words)
