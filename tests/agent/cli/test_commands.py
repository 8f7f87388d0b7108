from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import NamedTuple

import pytest
from livekit.protocol.agent_pb import agent_session as protocol

from agent.__main__ import main
from agent.cli import COMMANDS, checks, run
from agent.cli.checks import check_models, check_owner_modules
from agent.cli.models import inference_elsewhere
from agent.outbox import write_whole
from agent.reports.delivery import Waiting
from agent.reports.going import folder_of
from agent.settings import load_settings
from tests.agent.reports.made import report
from tests.support.processes import process
from tests.support.templates import ROOT

SECRET = "a-secret-of-more-than-thirty-two-bytes"


class Ended(NamedTuple):
    code: int
    out: str
    err: str


Agent = Callable[..., Ended]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a document and the keys of a server that is not there; it keeps nothing."""
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
    """A server that refuses all keys."""

    class Refuse(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(401)
            self.end_headers()
            self.wfile.write(b'{"code": "unauthenticated", "msg": "invalid token"}')

        def log_message(self, *arguments: object) -> None:
            return

    with HTTPServer(("127.0.0.1", 0), Refuse) as server:
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        monkeypatch.setenv("LIVEKIT_URL", f"ws://127.0.0.1:{server.server_port}")
        yield
        server.shutdown()


# ---------------------------------------------------------------------- the command line itself


def test_commands_that_need_no_call_do_not_wait_for_the_sdk(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENT_MEMORY_URL", "sqlite")
    monkeypatch.setenv("AGENT_KNOWLEDGE", "sqlite")
    questions = home / "questions.jsonl"
    question = {"question": "When do you open?", "source": "hours.md"}
    questions.write_text(json.dumps(question), encoding="utf-8")
    commands = ["--help"], ["ingest"], ["evaluate", str(questions)], ["forget", "ann"]
    listed = f"""
import sys
from agent.__main__ import main
for command in {commands}:
    try:
        main(command)
    except SystemExit:
        loaded = [name.split(".")[1] for name in sys.modules if name.startswith("livekit.")]
        print("loaded:", command[0], *sorted(set(loaded)))
"""

    done = subprocess.run([sys.executable, "-c", listed], capture_output=True, text=True)

    loaded = [line.split()[1:] for line in done.stdout.splitlines() if line[:7] == "loaded:"]
    assert loaded == [["--help"], ["ingest"], ["evaluate"], ["forget"]], done.stderr


# what Windows lacks, without what pytest needs of it
ON_WINDOWS = """
import asyncio, runpy, signal, sys
sys.platform = "win32"
sys.modules |= dict.fromkeys(("fcntl", "grp", "pwd", "readline", "resource", "termios"))
for name in ("SIGHUP", "SIGKILL", "SIGUSR1"):
    delattr(signal, name)
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
EVERY_COMMAND = [name.replace("_", "-") for names in COMMANDS.values() for name in names]


@pytest.mark.parametrize(
    "command",
    [*(["agent", name] for name in [*EVERY_COMMAND, "--help"]), ["main"], ["agent_update"]],
)
def test_on_windows_every_command_says_in_a_sentence_what_it_needs(command: list[str]) -> None:
    folders = [Path(ROOT, name) for name in ("template", "template/src", "updater")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))}
    asked = [sys.executable, "-c", ON_WINDOWS, *command]

    done = subprocess.run(asked, env=environment, capture_output=True, text=True)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("agent: this does not run on Windows itself: install WSL")
    assert done.stderr.count("\n") == 1


def commands_of(help_text: str) -> list[str]:
    return re.findall(r"^│ ([a-z][a-z-]+) ", help_text, re.MULTILINE)


def test_help_names_every_command(agent: Agent) -> None:
    ended = agent("--help")

    assert ended.code == 0
    always = ["chat", "talk", "start", "dev", "console", "call", "rehearse"]
    always += ["calls", "report"]
    asked_for = ["ingest", "evaluate", "download-files", "forget"]
    assert commands_of(ended.out) == [*always, *asked_for, "doctor", "update"]


LEFT_OUT = (".documents", ".talk")


def test_help_names_no_command_of_a_module_that_the_project_was_made_without(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.cli.find_spec", lambda name: None if name.endswith(LEFT_OUT) else 1)

    assert commands_of(agent("--help").out) == [
        *(
            "chat",
            "start",
            "dev",
            "console",
            "call",
            "rehearse",
            "calls",
            "report",
            "forget",
            "doctor",
            "update",
        )
    ]
    assert agent("ingest").code == 2


# ---------------------------------------------------------------------- refusals: exit code 2


@pytest.mark.parametrize("command", ["start", "dev", "call"])
@pytest.mark.parametrize(
    ("name", "value", "problem"),
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
    agent: Agent, monkeypatch: pytest.MonkeyPatch, command: str, name: str, value: str, problem: str
) -> None:
    monkeypatch.setenv(name, value)

    ended = agent(command)

    assert ended.code == 2
    assert ended.out == ""
    assert ended.err.startswith(f"agent: {problem}")
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


def test_all_problems_are_reported_together(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_host_that_is_not_this_machine_s_is_one_line(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENT_HOST", "192.0.2.1")  # for documentation, so nobody's

    ended = agent("start")

    assert ended.code == 2
    assert ended.err.startswith("agent: AGENT_HOST=192.0.2.1 is no IPv4 address of this machine: ")
    assert ended.err.count("\n") == 1


def _folder_with_lk(home: Path) -> Path:
    lk = home / "bin" / "lk"
    lk.parent.mkdir()
    lk.write_text("#!/bin/sh\n", encoding="utf-8")
    lk.chmod(0o755)
    return lk.parent


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


def test_ingest_reports_what_it_leaves_out_and_indexes_the_rest(
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


def test_ingest_of_good_documents_succeeds(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENT_KNOWLEDGE", "sqlite")

    assert agent("ingest").code == 0


def test_ingest_without_knowledge_is_one_line(agent: Agent) -> None:
    ended = agent("ingest")

    assert ended.code == 2
    assert "AGENT_KNOWLEDGE=none" in ended.err


# ---------------------------------------------------------------------- forget


def test_nobody_can_be_forgotten_where_nothing_is_kept(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENT_CALLS_KEPT", "0")
    load_settings.cache_clear()
    ended = agent("forget", "ann")

    assert ended.code == 2
    assert "AGENT_MEMORY_URL=none" in ended.err


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
    assert (again.code, again.err) == (0, "nothing is kept of ann\n")


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

    # the store is still to be asked
    assert agent("forget", "ann").code == 2
    assert [caller for file in spool.waiting(settings) for caller, _ in spool.entries_of(file)] == [
        "bob"
    ]
    (settings.data / "memory.db").rmdir()
    assert agent("forget", "bob").err == "1 turns, calls and facts of bob deleted\n"


def test_forget_deletes_the_report_of_a_call_that_has_died(agent: Agent) -> None:
    load_settings.cache_clear()
    settings = load_settings()
    dead = Waiting.of(settings, report("AJ_1", reason="", caller="ann"), ["ann"])
    write_whole(folder_of(settings), dead.to_json(), name="AJ_1.json", most_bytes=10**6)

    ended = agent("forget", "ann")

    assert (ended.code, ended.err) == (0, "1 reports of calls of ann deleted\n")
    assert list((settings.data / "reports").glob("*/*.json")) == []


def test_forget_without_a_memory_deletes_what_still_waits_for_one(agent: Agent) -> None:
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
        0,
        "nothing is kept of ann\n",
    )


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


def start_on(port: int) -> None:
    """`agent start`, if another process takes the port after the check."""
    from agent.server import server

    server._port = port
    main(["start"])


def test_a_worker_that_fails_exits_with_1(home: Path) -> None:
    log = home / "log"
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        with process(start_on, port, output=log) as worker:
            worker.join(60)

    assert worker.exitcode == 1
    lines = [line for line in log.read_text(encoding="utf-8").splitlines() if line[:1] == "{"]
    errors = [record for record in map(json.loads, lines) if record["level"] == "ERROR"]
    assert [record["message"] for record in errors] == ["worker failed"]


def test_own_code_that_cannot_be_imported_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(MetaPathFinder):
        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            if name == "agent.persona":
                raise NameError("name 'colour' is not defined")

    monkeypatch.delitem(sys.modules, "agent.persona", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])

    # without those that a busy machine is slow to import
    (problem,) = [finding for finding in check_owner_modules() if finding.level == "fail"]

    assert (
        "agent.persona cannot be imported: NameError: name 'colour' is not defined"
        in problem.sentence
    )


def test_own_code_that_is_slow_to_import_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    check_owner_modules()  # which imports them
    monkeypatch.setattr(checks, "SLOW_IMPORT_SECONDS", -1)

    found = check_owner_modules()

    assert [finding.level for finding in found] == ["warn", "warn"]
    assert "agent.persona took 0 s to import" in found[0].sentence
    assert "`prewarm`" in found[0].sentence


def test_ctrl_c_while_a_command_is_loaded_is_an_exit_code() -> None:
    code = """
import sys
from agent.__main__ import main

class Interrupted:
    def find_spec(self, name, path=None, target=None):
        if name == "agent.cli":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupted())
main(["start"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert (done.returncode, done.stderr) == (130, "")


def load_for_ever() -> None:
    print("loading", flush=True)
    time.sleep(600)


def wait_for_sigterm() -> None:
    """`agent start`, where what it loads takes long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "load_settings", load_for_ever)
        main(["start"])


def test_sigterm_while_the_worker_is_loaded_is_an_exit_code(home: Path) -> None:
    log = home / "log"
    with process(wait_for_sigterm, output=log) as worker:
        while not log.exists() or "loading" not in log.read_text(encoding="utf-8"):
            time.sleep(0.05)  # another process: there is no event to await
        worker.terminate()
        worker.join(60)

    # as the first process of a container it would ignore the signal
    assert worker.exitcode == 128 + signal.SIGTERM


def test_a_server_without_inference_is_warned_of(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_settings.cache_clear()
    elsewhere = load_settings().model_copy(update={"models": "livekit"})

    assert len(check_models(elsewhere)) == 1
    # there it is asked
    on_cloud = elsewhere.model_copy(update={"livekit_url": "wss://mine.livekit.cloud"})
    assert inference_elsewhere(on_cloud) == []
    assert check_models(elsewhere.model_copy(update={"models": "scripted"})) == []


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


def test_the_console_greets_and_answers(home: Path) -> None:
    """Do the same as LiveKit's `lk` with a microphone, but with text over the same socket."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with process(main, ["console", "--connect-addr", address]) as console:
            connection, _ = server.accept()
            with connection:
                connection.settimeout(60)
                messages = _messages(connection)
                greeting = next(m for m in messages if m.WhichOneof("message") == "audio_output")
                assert any(greeting.audio_output.data)

                question = protocol.SessionRequest.RunInput(text="thank you")
                request = protocol.SessionRequest(request_id="1", run_input=question)
                _send(connection, request=request)
                answer = next(m for m in messages if m.WhichOneof("message") == "response")
                assert "You are welcome." in str(answer.response)

                console.terminate()
                for _ in messages:
                    pass
            console.join(60)
            assert console.exitcode is not None


def _send(connection: socket.socket, **parts: object) -> None:
    message = protocol.AgentSessionMessage(**parts).SerializeToString()  # type: ignore[arg-type]
    connection.sendall(struct.pack(">I", len(message)) + message)


def _messages(connection: socket.socket) -> Iterator[protocol.AgentSessionMessage]:
    """Everything the agent sends; all that it plays is heard at once."""
    with connection.makefile("rb") as stream, suppress(ConnectionError):
        while size := stream.read(4):
            content = stream.read(*struct.unpack(">I", size))
            message = protocol.AgentSessionMessage.FromString(content)
            if message.WhichOneof("message") in {"audio_playback_flush", "audio_playback_clear"}:
                finished = protocol.AgentSessionMessage.ConsoleIO.AudioPlaybackFinished()
                _send(connection, audio_playback_finished=finished)
            yield message
