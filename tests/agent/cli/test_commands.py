from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import NamedTuple

import pytest
from livekit.protocol.agent_pb import agent_session as protocol

from agent.__main__ import main
from agent.cli.run import check_yours
from agent.settings import load_settings

SECRET = "a-secret-of-more-than-thirty-two-bytes"
needs_index = pytest.mark.skipif(
    importlib.util.find_spec("agent.knowledge.sqlite") is None,
    reason="made without knowledge=sqlite",
)
needs_store = pytest.mark.skipif(
    importlib.util.find_spec("agent.memory.sqlite") is None, reason="made without memory=sqlite"
)


class Ended(NamedTuple):
    code: int
    out: str
    err: str


Agent = Callable[..., Ended]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a document, without an index or a memory, and with keys of a server that nobody runs."""
    home = tmp_path / "home"
    (home / "knowledge").mkdir(parents=True)
    (home / "knowledge" / "hours.md").write_text(
        "# Opening hours\n\nOn Saturday we open at ten.\n", encoding="utf-8"
    )
    monkeypatch.setenv("AGENT_HOME", str(home))
    monkeypatch.setenv("AGENT_KNOWLEDGE", "none")
    monkeypatch.setenv("AGENT_MEMORY_URL", "none")
    monkeypatch.setenv("AGENT_PORT", "0")
    monkeypatch.setenv("LIVEKIT_URL", "ws://127.0.0.1:1")
    monkeypatch.setenv("LIVEKIT_API_KEY", "devkey")
    monkeypatch.setenv("LIVEKIT_API_SECRET", SECRET)
    return home


@pytest.fixture
def agent(home: Path, capsys: pytest.CaptureFixture[str]) -> Agent:
    """Run a command in this process."""

    def run(*arguments: str) -> Ended:
        load_settings.cache_clear()
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        return Ended(int(ended.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture
def refusing_server(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A server that takes no keys."""

    class Refuse(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(401)
            self.end_headers()
            self.wfile.write(b'{"code": "unauthenticated", "msg": "invalid token"}')

        def log_message(self, *arguments: object) -> None:
            return

    with HTTPServer(("127.0.0.1", 0), Refuse) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("LIVEKIT_URL", f"ws://127.0.0.1:{server.server_port}")
        yield
        server.shutdown()


# ---------------------------------------------------------------------- the command line itself


def test_help_does_not_wait_for_the_sdk() -> None:
    listed = "import agent.__main__, sys; print([name for name in sys.modules if name.split('.')[0] == 'livekit'])"

    told = subprocess.run(
        [sys.executable, "-c", listed], capture_output=True, text=True, check=True
    )

    assert told.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "command",
    [
        pytest.param("ingest", marks=needs_index),
        pytest.param("evaluate", marks=needs_index),
        pytest.param("forget", marks=needs_store),
    ],
)
def test_a_command_that_needs_no_call_does_not_wait_for_the_sdk(
    agent: Agent, home: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("AGENT_MEMORY_URL" if command == "forget" else "AGENT_KNOWLEDGE", "sqlite")
    questions = home / "questions.jsonl"
    questions.write_text(
        '{"question": "When do you open?", "source": "hours.md"}\n', encoding="utf-8"
    )
    if command == "evaluate":
        agent("ingest")
    arguments = {
        "ingest": ["ingest"],
        "evaluate": ["evaluate", str(questions)],
        "forget": ["forget", "ann"],
    }[command]
    listed = """
import sys
from agent.__main__ import main
try:
    main(sys.argv[1:])
finally:
    print(*[name for name in sys.modules if name.split(".")[0] == "livekit"], file=sys.stderr)
"""

    done = subprocess.run(
        [sys.executable, "-c", listed, *arguments], capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stderr.splitlines()[-1]) == (0, ""), done.stderr


def test_help_names_every_command(agent: Agent) -> None:
    ended = agent("--help")

    assert ended.code == 0
    assert all(
        word in ended.out
        for word in ["chat", "start", "dev", "console", "call", "ingest", "forget", "doctor"]
    )


# ---------------------------------------------------------------------- refusals: exit 2, one line each


@pytest.mark.parametrize("command", ["start", "dev", "call"])
@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("LIVEKIT_URL", "", "LIVEKIT_URL is missing"),
        ("LIVEKIT_URL", "localhost:7880", "LIVEKIT_URL: "),
        ("LIVEKIT_URL", "wss://<your-project>.livekit.cloud", "LIVEKIT_URL: "),
        ("LIVEKIT_URL", "ws://localhost:port", "LIVEKIT_URL: "),
        ("LIVEKIT_API_KEY", "", "LIVEKIT_API_KEY is missing"),
        ("LIVEKIT_API_KEY", '"devkey"', "LIVEKIT_API_KEY has characters"),
        ("LIVEKIT_API_SECRET", "", "LIVEKIT_API_SECRET is missing"),
        ("LIVEKIT_API_SECRET", "two words", "LIVEKIT_API_SECRET has characters"),
    ],
)
def test_a_missing_or_malformed_address_or_key_is_one_line(
    agent: Agent, monkeypatch: pytest.MonkeyPatch, command: str, name: str, value: str, told: str
) -> None:
    monkeypatch.setenv(name, value)

    ended = agent(command)

    assert ended.code == 2
    assert ended.out == ""
    assert ended.err.startswith(f"agent: {told}")
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize("command", ["chat", "start", "dev", "console", "call", "ingest"])
def test_a_setting_that_is_no_setting_is_one_line(
    agent: Agent, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("AGENT_PORT", "many")

    ended = agent(command)

    assert ended.code == 2
    assert ended.err.startswith("agent: AGENT_PORT: ")
    assert ended.err.count("\n") == 1


def test_all_problems_are_told_at_once(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LIVEKIT_URL", "LIVEKIT_API_KEY", "LIVEKIT_API_SECRET"):
        monkeypatch.delenv(name)

    ended = agent("start")

    assert [line.split()[1] for line in ended.err.splitlines()] == [
        "LIVEKIT_URL",
        "LIVEKIT_API_KEY",
        "LIVEKIT_API_SECRET",
    ]


def test_a_malformed_secret_is_not_repeated(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIVEKIT_API_SECRET", f"'{SECRET}'")

    assert SECRET not in agent("start").err


@pytest.mark.parametrize("command", ["start", "dev", "console"])
def test_a_port_in_use_is_one_line(
    agent: Agent, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        monkeypatch.setenv("AGENT_PORT", str(port))
        monkeypatch.setenv("PATH", f"{_folder_with_lk(Path(os.environ['AGENT_HOME']))}")
        ended = agent(command)

    assert ended.code == 2
    assert ended.err.startswith(f"agent: port {port} is in use")
    assert ended.err.count("\n") == 1


def _folder_with_lk(home: Path) -> Path:
    lk = home / "bin" / "lk"
    lk.parent.mkdir()
    lk.write_text("#!/bin/sh\n", encoding="utf-8")
    lk.chmod(0o755)
    return lk.parent


@needs_index
@pytest.mark.parametrize("command", ["chat", "start", "ingest"])
def test_documents_that_are_not_there_are_one_line(
    agent: Agent, home: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("AGENT_KNOWLEDGE", "sqlite")
    (home / "knowledge" / "hours.md").unlink()
    empty = agent(command)
    (home / "knowledge").rmdir()
    missing = agent(command)

    for ended in (empty, missing):
        assert ended.code == 2
        assert str(home / "knowledge") in ended.err
        assert ended.err.count("\n") == 1


@needs_index
def test_ingest_tells_what_it_leaves_out_and_indexes_the_rest(
    agent: Agent, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENT_KNOWLEDGE", "sqlite")
    (home / "knowledge" / "latin.md").write_bytes("Grüße".encode("latin-1"))
    (home / "knowledge" / "large.md").write_bytes(b"word " * 4_200_000)

    ended = agent("ingest")

    assert ended.code == 2
    assert (
        len([line for line in ended.err.splitlines() if "latin.md" in line and "UTF-8" in line])
        == 1
    )
    assert (
        len([line for line in ended.err.splitlines() if "large.md" in line and "MiB" in line]) == 1
    )
    assert "documents indexed: 1" in ended.err


@needs_index
def test_ingest_of_good_documents_succeeds(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENT_KNOWLEDGE", "sqlite")

    assert agent("ingest").code == 0


def test_ingest_without_knowledge_is_one_line(agent: Agent) -> None:
    ended = agent("ingest")

    assert ended.code == 2
    assert "AGENT_KNOWLEDGE=none" in ended.err


# ---------------------------------------------------------------------- forget


def test_nobody_can_be_forgotten_without_a_memory(agent: Agent) -> None:
    ended = agent("forget", "ann")

    assert ended.code == 2
    assert "AGENT_MEMORY_URL=none" in ended.err


@needs_store
def test_forget_deletes_what_is_remembered(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    from agent.memory import Turn, open_store

    monkeypatch.setenv("AGENT_MEMORY_URL", "sqlite")
    load_settings.cache_clear()

    async def remember() -> None:
        async with open_store(load_settings()) as memory:
            assert memory is not None
            for item in ("1", "2"):
                await memory.write(
                    "ann", Turn(call="call", item=item, role="user", text="hello", at=1e10)
                )

    asyncio.run(remember())

    assert agent("forget", "ann").err.endswith(" turns, calls and facts of ann deleted\n")
    again = agent("forget", "ann")
    assert (again.code, again.err) == (0, "nothing is remembered of ann\n")


@needs_store
def test_forget_deletes_what_waits_for_a_store_that_is_down(
    agent: Agent, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from agent.memory import Turn, spool

    monkeypatch.setenv("AGENT_MEMORY_URL", "sqlite")
    load_settings.cache_clear()
    settings = load_settings()
    turn = Turn(call="call", item="1", role="user", text="hello", at=1e10)
    spool.keep(spool.folder_of(settings), [("ann", turn), ("bob", turn)])
    (settings.data / "memory.db").mkdir()

    assert agent("forget", "ann").code == 2  # the store is still to be asked
    assert [caller for file in spool.waiting(settings) for caller, _ in spool.entries_of(file)] == [
        "bob"
    ]
    (settings.data / "memory.db").rmdir()
    assert agent("forget", "bob").err == "1 turns, calls and facts of bob deleted\n"


def test_forget_without_a_memory_deletes_what_still_waits_for_one_and_says_so(agent: Agent) -> None:
    from agent.memory import Turn, spool

    load_settings.cache_clear()
    settings = load_settings()
    turn = Turn(call="call", item="1", role="user", text="hello", at=1e10)
    spool.keep(spool.folder_of(settings), [("ann", turn), ("bob", turn)])

    first = agent("forget", "ann")
    assert (first.code, first.err) == (0, "1 turns, calls and facts of ann deleted\n")
    assert [caller for file in spool.waiting(settings) for caller, _ in spool.entries_of(file)] == [
        "bob"
    ]
    again = agent("forget", "ann")
    assert (again.code, again.err) == (
        2,
        "agent: AGENT_MEMORY_URL=none: this agent remembers nobody\n",
    )


@needs_store
def test_a_memory_that_cannot_be_written_is_one_line(
    agent: Agent, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENT_MEMORY_URL", "sqlite")
    (home / "file").write_text("a file, no folder", encoding="utf-8")
    monkeypatch.setenv("AGENT_DATA_DIR", str(home / "file"))

    ended = agent("forget", "ann")

    assert ended.code == 2
    assert ended.err.count("\n") == 1


# ---------------------------------------------------------------------- call


def test_a_server_that_is_not_there_is_one_line(agent: Agent) -> None:
    ended = agent("call")

    assert ended.code == 2
    assert (
        ended.err
        == "agent: ws://127.0.0.1:1 cannot be reached: start that server, or correct LIVEKIT_URL\n"
    )


@pytest.mark.usefixtures("refusing_server")
def test_keys_that_the_server_refuses_are_one_line(agent: Agent) -> None:
    ended = agent("call")

    assert ended.code == 2
    assert "refuses LIVEKIT_API_KEY and LIVEKIT_API_SECRET" in ended.err
    assert ended.err.count("\n") == 1
    assert SECRET not in ended.err


# ---------------------------------------------------------------------- start


def test_a_worker_that_fails_exits_with_1(home: Path) -> None:
    with socket.create_server(("", 0)) as other:
        # somebody takes the port after it has been checked
        late = f"""
from agent.server import server
from agent.__main__ import main
server._port = {other.getsockname()[1]}
main(["start"])
"""
        ended = subprocess.run(
            [sys.executable, "-c", late], capture_output=True, text=True, timeout=60
        )

    assert ended.returncode == 1
    failures = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [record["message"] for record in failures if record["level"] == "ERROR"] == [
        "worker failed"
    ]


def test_own_code_that_cannot_be_imported_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(MetaPathFinder):
        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            if name == "agent.persona":
                raise NameError("name 'colour' is not defined")

    monkeypatch.delitem(sys.modules, "agent.persona", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])

    (problem,) = check_yours()

    assert "agent.persona cannot be imported: NameError: name 'colour' is not defined" in problem


def test_a_server_without_inference_is_warned_of(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    from agent.cli.run import warn_models

    load_settings.cache_clear()
    elsewhere = load_settings().model_copy(update={"models": "livekit"})

    assert len(warn_models(elsewhere)) == 1
    assert (
        warn_models(elsewhere.model_copy(update={"livekit_url": "wss://mine.livekit.cloud"})) == []
    )
    assert warn_models(elsewhere.model_copy(update={"models": "scripted"})) == []


# ---------------------------------------------------------------------- console


def test_the_microphone_needs_lk(agent: Agent, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(home))

    ended = agent("console")

    assert ended.code == 2
    assert "`lk`" in ended.err
    assert "agent chat" in ended.err
    assert ended.err.count("\n") == 1


def test_an_address_that_is_none_is_refused(agent: Agent) -> None:
    assert agent("console", "--connect-addr", "nowhere").code == 2


async def test_the_console_greets_and_answers(home: Path) -> None:
    """What LiveKit's `lk` does with a microphone, done with text over the same socket."""
    connected: asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Future()
    server = await asyncio.start_server(
        lambda *streams: connected.set_result(streams), "127.0.0.1", 0
    )
    host, port = server.sockets[0].getsockname()
    console = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "agent", "console", "--connect-addr", f"{host}:{port}"),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(60), server:
            reader, writer = await connected
            messages = _messages(reader, writer)
            greeting = await anext(
                m async for m in messages if m.WhichOneof("message") == "audio_output"
            )
            assert any(greeting.audio_output.data)

            question = protocol.SessionRequest.RunInput(text="thank you")
            _send(writer, request=protocol.SessionRequest(request_id="1", run_input=question))
            answer = await anext(m async for m in messages if m.WhichOneof("message") == "response")
            assert "You are welcome." in str(answer.response)

            console.send_signal(signal.SIGTERM)
            _ = [message async for message in messages]
            await console.wait()
    finally:
        if console.returncode is None:
            os.killpg(console.pid, signal.SIGKILL)
            await console.wait()


def _send(writer: asyncio.StreamWriter, **parts: object) -> None:
    message = protocol.AgentSessionMessage(**parts).SerializeToString()  # type: ignore[arg-type]
    writer.write(struct.pack(">I", len(message)) + message)


async def _messages(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> AsyncIterator[protocol.AgentSessionMessage]:
    """Everything the agent sends; whatever it plays has been heard at once."""
    while True:
        try:
            size = struct.unpack(">I", await reader.readexactly(4))[0]
            message = protocol.AgentSessionMessage.FromString(await reader.readexactly(size))
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        if message.WhichOneof("message") in {"audio_playback_flush", "audio_playback_clear"}:
            _send(
                writer,
                audio_playback_finished=protocol.AgentSessionMessage.ConsoleIO.AudioPlaybackFinished(),
            )
        yield message
