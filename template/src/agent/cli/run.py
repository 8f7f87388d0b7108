"""The worker and the microphone: everything is checked first, so that nothing fails half-way."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agent.cli import terminal
from agent.cli.checks import (
    Finding,
    check_connection,
    check_models,
    check_port,
    check_recordings,
    load_calls,
    prepare_documents,
    require,
)
from agent.reports.cost import load_prices
from agent.settings import load_settings

if TYPE_CHECKING:
    from agent.server import Server

SERVER = Path(__file__).parents[1] / "server.py"
# what `agent talk` starts its worker with
AsChild = Annotated[bool, typer.Option("--as-child", hidden=True)]


def start(as_child: AsChild = False) -> int:
    """Take calls until a signal; the first one lets the live calls end. Logs JSON lines."""
    return serve(dev=False, as_child=as_child)


def dev(as_child: AsChild = False) -> int:
    """Take calls on this machine, with readable logs, and stop at once on a signal."""
    return serve(dev=True, as_child=as_child)


def _address(value: str | None) -> str | None:
    if value is not None and not re.fullmatch(r"\S+:\d{1,5}", value):
        raise typer.BadParameter(f"{value!r} is not an address: write one such as 127.0.0.1:5000")
    return value


def console(
    connect_addr: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            callback=_address,
            help="Where LiveKit's `lk` listens; it adds this.",
        ),
    ] = None,
) -> int:
    """Speak with the agent at this machine's microphone, without a server; needs LiveKit's `lk`."""
    settings = load_settings()
    found = check_port(settings.port, "AGENT_PORT", settings.host)
    if settings.models == "livekit" and settings.keyless and connect_addr is None:
        cure = "put them into .env.local, or set AGENT_MODELS=scripted"
        found.append(Finding("fail", "keys", "AGENT_MODELS=livekit needs keys", cure))
    if connect_addr is None and shutil.which("lk") is None:
        what = "the microphone console is part of LiveKit's `lk` tool, which is not on PATH"
        install = "install it (docs.livekit.io, LiveKit CLI)"
        cure = f"{install}, or use `agent chat` for text, or `agent call` for a browser"
        found.append(Finding("fail", "lk", what, cure))
    require(found)
    prepare_documents(settings)
    if connect_addr is None:
        os.chdir(settings.home)
        os.execvp("lk", ["lk", "agent", "console"])
    load_server()
    require(check_models(settings, unreachable="warn"))
    run_sdk("console", "--connect-addr", connect_addr)
    return 0


def serve(*, dev: bool, as_child: bool = False) -> int:
    """Take calls until a signal; the exit code. Raises SettingsError, KnowledgeUnavailable.

    As a child also until standard input closes, which is a pipe of the parent's.
    """
    # until the SDK has handlers of its own: as a container's first process we would ignore it
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    if as_child:
        # what takes long, the parent has said
        terminal.PATIENCE_SECONDS = threading.TIMEOUT_MAX
        threading.Thread(target=stop_with_parent, name="parent", daemon=True).start()
    settings = load_settings()
    found = check_connection(settings) + check_port(settings.port, "AGENT_PORT", settings.host)
    if settings.metrics_port:
        found += check_port(settings.metrics_port, "AGENT_METRICS_PORT", settings.host)
    found += check_recordings(settings)
    require(found)
    load_prices(settings.home)  # a mistake in the owner's is found before the first call
    prepare_documents(settings)
    server = load_server()
    # a key that is refused now is refused in every call; a server that is away may be back by then
    require(check_models(settings, unreachable="warn"))
    if dev and "stop_goodbye_seconds" not in settings.model_fields_set:
        # Ctrl-C at a terminal means now
        server.configure(settings.model_copy(update={"stop_goodbye_seconds": 0.5}))
    run_sdk("start", "--log-level", settings.log_level, *(["--dev"] if dev else []))
    # the SDK logs the failure and would exit 0, and then no supervisor restarts the worker
    return 1 if server.failed else 0


def stop_with_parent() -> None:
    """Stop as a signal would, once the parent has ended, however it did."""
    os.read(sys.stdin.fileno(), 1)
    os.kill(os.getpid(), signal.SIGTERM)


def load_server() -> Server:
    """The worker's server, with everything that a call imports; raises SettingsError."""
    seconds = load_calls()
    from agent.server import server

    server.allow_imports(seconds)
    return server


def run_sdk(*arguments: str) -> None:
    """Run the SDK's own command line in this process; its `cli.run_app` is deprecated."""
    from livekit.agents.__main__ import main as sdk

    sdk([*arguments, str(SERVER)])
