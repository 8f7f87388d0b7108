"""Running the agent as a worker, or at a microphone: everything is checked first, so that nothing fails half-way."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import importlib
import os
import re
import shutil
import socket
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from agent.settings import Settings, SettingsError, load_settings

if TYPE_CHECKING:
    from agent.server import Server

PATIENCE_SECONDS = 1.5  # what takes longer says on stderr that it goes on
SHORTEST_SECRET = 32  # bytes; the SDK warns of shorter ones
SERVER = Path(__file__).parents[1] / "server.py"
CURE_INFERENCE = (
    "use a LiveKit Cloud project, or set AGENT_MODELS=scripted to try the agent without a model"
)


def tell(line: str) -> None:
    """Say something to the person at the terminal; standard output is for answers and logs."""
    print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def busy(what: str) -> Iterator[None]:
    """Whatever is done inside: when it takes long, `what` is said on stderr."""
    timer = threading.Timer(PATIENCE_SECONDS, tell, [f"{what} ..."])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


# ---------------------------------------------------------------------- what has to be right before a worker starts


def check_connection(settings: Settings) -> list[str]:
    """What is missing or malformed in the server's address and keys, a line each; never a value of a secret."""
    problems = []
    if not settings.livekit_url:
        problems.append(
            "LIVEKIT_URL is missing: put your server's address into .env.local (see .env.example)"
        )
    else:
        try:
            host = urlsplit(settings.livekit_url).hostname, urlsplit(settings.livekit_url).port
        except ValueError:
            host = None, None
        if not host[0] or re.search(r"[\s<>\"']", settings.livekit_url):
            problems.append(
                f"LIVEKIT_URL: {settings.livekit_url!r} is no address: write one such as ws://localhost:7880"
            )
    secret = settings.livekit_api_secret.get_secret_value()
    for name, value in (
        ("LIVEKIT_API_KEY", settings.livekit_api_key),
        ("LIVEKIT_API_SECRET", secret),
    ):
        if not value:
            problems.append(f"{name} is missing: put it into .env.local (see .env.example)")
        elif not re.fullmatch(r"[A-Za-z0-9+/=_.~-]+", value):
            problems.append(
                f"{name} has characters that no key has, such as quotes or spaces: copy it from your server again"
            )
    return problems


def check_port(port: int, name: str = "AGENT_PORT") -> list[str]:
    """Whether an endpoint can be served on `port`, the value of `name`; the SDK serves it on all interfaces."""
    try:
        with contextlib.closing(socket.create_server(("", port))):
            return []
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return [
                f"port {port} is in use, perhaps by another worker: stop that, or set {name} to a free port"
            ]
        return [f"port {port} cannot be used ({error.strerror}): set {name} to another port"]


def warn_connection(settings: Settings) -> list[str]:
    """What works, but not well, a line each."""
    if 0 < len(settings.livekit_api_secret.get_secret_value().encode()) < SHORTEST_SECRET:
        return [
            f"LIVEKIT_API_SECRET has fewer than {SHORTEST_SECRET} bytes: give your server a longer one"
        ]
    return []


def warn_models(settings: Settings) -> list[str]:
    """Whether the models are where the keys are from."""
    if settings.models == "livekit" and settings.livekit_url and not on_livekit_cloud(settings):
        return [
            f"AGENT_MODELS=livekit needs LiveKit Cloud, and LIVEKIT_URL is another server: {CURE_INFERENCE}"
        ]
    return []


def on_livekit_cloud(settings: Settings) -> bool:
    """Whether the server is one of LiveKit's own; only those have LiveKit Inference."""
    host = urlsplit(settings.livekit_url).hostname or ""
    return host.endswith((".livekit.cloud", ".livekit.run"))


def check_yours() -> list[str]:
    """Whether the owner's modules can be imported at all: now, not in the first call."""
    problems = []
    for name in ("agent.persona", "agent.resources"):
        try:
            importlib.import_module(name)
        except Exception as error:
            missing = isinstance(error, ModuleNotFoundError) and error.name == name
            if not missing:
                problems.append(f"{name} cannot be imported: {where(error)}")
    return problems


def where(error: Exception) -> str:
    """An error in an owner's file as one line, with the place."""
    if isinstance(error, SyntaxError):
        return f"{error.msg} ({Path(error.filename or '?').name}, line {error.lineno})"
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(place.filename).name}, line {place.lineno})"


# ---------------------------------------------------------------------- the commands


def start(*, dev: bool) -> int:
    """Take calls until a signal; the exit code. Raises SettingsError, KnowledgeUnavailable before anything runs."""
    settings = load_settings()
    problems = check_connection(settings) + check_port(settings.port)
    if settings.metrics_port:
        problems += check_port(settings.metrics_port, "AGENT_METRICS_PORT")
    if problems:
        raise SettingsError(problems)
    from agent.cli.documents import prepare_documents

    for warning in warn_connection(settings) + warn_models(settings):
        tell(warning)
    prepare_documents(settings)
    server = load_server()
    if dev and "stop_goodbye_seconds" not in settings.model_fields_set:
        # Ctrl-C at a terminal means now
        server.configure(settings.model_copy(update={"stop_goodbye_seconds": 0.5}))
    run_sdk("start", "--log-level", settings.log_level, *(["--dev"] if dev else []))
    return (
        1 if server.failed else 0
    )  # the SDK logs the failure and would exit 0, so that no supervisor restarts it


def console(connect: str | None) -> int:
    """Speak with the agent at this machine's microphone, through LiveKit's `lk`; with `connect`, be what `lk` runs.

    Raises SettingsError, KnowledgeUnavailable before anything runs.
    """
    settings = load_settings()
    problems = check_port(settings.port)
    if settings.models == "livekit" and settings.keyless:
        problems.append(
            "AGENT_MODELS=livekit needs keys: put them into .env.local, or set AGENT_MODELS=scripted"
        )
    if connect is None and shutil.which("lk") is None:
        problems.append(
            "the microphone console is part of LiveKit's `lk` tool, which is not on PATH: install it "
            "(docs.livekit.io, LiveKit CLI), or use `agent chat` for text, or `agent call` for a browser"
        )
    if problems:
        raise SettingsError(problems)
    from agent.cli.documents import prepare_documents

    prepare_documents(settings)
    if connect is None:
        os.chdir(settings.home)
        os.execvp("lk", ["lk", "agent", "console"])
    load_server()
    run_sdk("console", "--connect-addr", connect)
    return 0


def load_server() -> Server:
    """The worker's server, with everything a call will import already imported; raises SettingsError."""
    with busy("loading LiveKit's SDK"):
        from agent.server import server
    if problems := check_yours():
        raise SettingsError(problems)
    return server


def run_sdk(*arguments: str) -> None:
    """The SDK's own command line, in this process; `cli.run_app` would do the same and is deprecated."""
    from livekit.agents.__main__ import main as sdk

    sdk([*arguments, str(SERVER)])


def forget_caller(caller: str) -> int:
    """Delete what is remembered of `caller`; 0 also for a stranger. Raises SettingsError, MemoryUnavailable."""
    from agent.memory import MemoryUnavailable, open_store, spool
    from agent.memory.identity import keys_of

    settings = load_settings()

    async def forget() -> int:
        try:
            waiting = spool.forget(
                settings, keys_of(caller)
            )  # first, or a worker would deliver it afterwards
        except OSError as error:
            what = f"what waits for the memory in {spool.folder_of(settings)} cannot be deleted ({error.strerror})"
            raise MemoryUnavailable(f"{what}: try again as the user who runs the agent") from error
        async with open_store(settings) as memory:
            return (
                waiting + sum([await memory.forget(key) for key in keys_of(caller)])
                if memory
                else waiting
            )

    with busy("asking the memory"):
        removed = asyncio.run(forget())
    if settings.memory == "none" and not removed:
        raise SettingsError(["AGENT_MEMORY_URL=none: this agent remembers nobody"])
    tell(
        f"{removed} turns, calls and facts of {caller} deleted"
        if removed
        else f"nothing is remembered of {caller}"
    )
    return 0
