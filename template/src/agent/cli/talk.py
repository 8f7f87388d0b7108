"""A page on which a person speaks with this project's agent, and all that it needs beside it."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
import webbrowser
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from agent.cli.checks import (
    check_connection,
    check_models,
    check_port,
    load_calls,
    location,
    prepare_documents,
    require,
    server_api,
)
from agent.cli.terminal import busy, report, unless
from agent.settings import LOOPBACK, Settings, SettingsError, load_settings

if TYPE_CHECKING:
    from agent.web.app import CallerOf

PORT = 7890
HERE = "127.0.0.1"
# where the template's own tests build one
BUILT = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "livekit-agent-template")
SERVER_SECONDS = 20.0  # for a server of ours to answer
WORKER_SECONDS = 120.0  # for a worker to register, on a busy machine
STOP_SECONDS = 30.0  # for a worker that lets no call go on


def _address(value: str | None) -> str | None:
    """The address as browsers send it in `Origin`: small letters, and no port that is the usual."""
    if value is None:
        return None
    usual = {"http": 80, "https": 443}
    with suppress(ValueError):
        parts = urlsplit(value)
        host, port = parts.hostname or "", parts.port
        if host and parts.scheme in usual and parts.path in {"", "/"}:
            # of the older IDNA: a name with ß is to be given as xn--…
            host = f"[{host}]" if ":" in host else host.encode("idna").decode()
            end = "" if port in {None, usual[parts.scheme]} else f":{port}"
            return f"{parts.scheme}://{host}{end}"
    such = "https://talk.example.com"
    raise typer.BadParameter(f"{value!r} is not an address: write one such as {such}")


def talk(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of the page; 0: any.")] = PORT,
    public: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            callback=_address,
            help="Where others open the page, such as https://talk.example.com.",
        ),
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Of the page; by default loopback, with --public all.")
    ] = None,
    no_worker: Annotated[
        bool, typer.Option("--no-worker", help="Only the page: workers are elsewhere.")
    ] = False,
    no_open: Annotated[bool, typer.Option("--no-open", help="Open no browser.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show the worker's log, each call's steps too.")
    ] = False,
) -> int:
    """Speak with the agent in a browser on this machine: no keys, and no server but its own.

    The first line on standard output is the page's address; everything else is on standard error.
    """
    # until there is a loop with handlers of its own
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    settings = load_settings()
    keyless = settings.keyless
    inside = public is None or (urlsplit(public).hostname in LOOPBACK)
    if host not in {None, HERE} and public is None:
        raise SettingsError(["--host is for others: say by --public where they open the page"])
    with listen(host or (HERE if inside else "0.0.0.0"), port) as listening:
        port = listening.getsockname()[1]
        caller_of = load_caller_of()
        server = find_server(settings, public, needed=no_worker)
        if server is not None:
            settings = server.applied_to(settings)
        if not no_worker:
            if public is not None:
                # whose worker would answer there, nobody could tell
                require(check_port(settings.port, "AGENT_PORT", settings.host))
            load_calls()
            settings = with_a_voice(settings, keyless=keyless, public=public is not None)
            # not left to the worker: the first time takes longer than a worker is waited for
            prepare_documents(settings)
        opened = public or f"http://{HERE}:{port}"
        origins = {opened} if public else {opened, f"http://localhost:{port}"}
        show = None if no_open else open_browser
        page = Page(settings, listening, f"{opened}/", origins, caller_of, show)
        worker = None if no_worker else Worker(settings, public is not None, verbose)
        return asyncio.run(hold(page, server, worker))


# ---------------------------------------------------------------------- what it needs


def listen(host: str, port: int) -> socket.socket:
    """The page's socket; raises SettingsError."""
    try:
        return socket.create_server((host, port))
    except OSError as error:
        # its own `strerror` says the address once more
        unknown = isinstance(error, socket.gaierror)
        why = error.strerror if unknown else os.strerror(error.errno or 0)
        problem = f"the page cannot be served on {host}, port {port} ({why})"
        cure = "stop what uses it, perhaps another `agent talk`, or choose one with --port"
        raise SettingsError([f"{problem}: {cure}"]) from error


def load_caller_of() -> CallerOf:
    """The owner's function that says who a visitor is; raises SettingsError."""
    with busy("loading the page"):
        app = import_module("agent.web.app")
    if not (app.PAGE / "index.html").is_file():
        raise SettingsError([f"there is no page in {app.PAGE}: restore it from version control"])
    found: CallerOf = app.guest
    try:
        # projects from before this page have no such file, and need none
        if find_spec("agent.callers"):
            found = import_module("agent.callers").caller_of
    except Exception as error:
        problem = f"agent.callers gives no `caller_of`: {location(error)}"
        raise SettingsError([problem]) from error
    if not inspect.iscoroutinefunction(found):
        problem = "`caller_of` in agent.callers is no async function"
        cure = "write `async def caller_of(request: web.Request) -> Caller | None:`"
        raise SettingsError([f"{problem}: {cure}"])
    return found


def find_server(settings: Settings, public: str | None, *, needed: bool) -> Server | None:
    """A server of our own, None if the settings name one; raises SettingsError."""
    if not (settings.livekit_url or public or needed):
        return Server.found()
    require(check_connection(settings))
    if public is None and not settings.server_is_here:
        problem = f"LIVEKIT_URL is {settings.livekit_url}, and whoever opens the page calls there"
        cure = (
            "with your keys: say by `--public URL` where they open it, or leave that server out,"
            " `LIVEKIT_URL= uv run agent talk`"
        )
        raise SettingsError([f"{problem} {cure}"])
    return None


def with_a_voice(settings: Settings, *, keyless: bool, public: bool) -> Settings:
    """The settings; with models of this machine where the chosen ones cannot be used.

    Raises SettingsError if nobody is to be answered by a script.
    """
    from agent.models import KEYLESS
    from agent.models.local import GROUP

    found = check_models(settings, unreachable="fail")
    if public or not found or settings.models in KEYLESS:
        require(found)
        return settings
    keyless = keyless and settings.models == "livekit"
    why = "No keys in the environment, so" if keyless else f"{found[0].sentence}. So"
    source = "" if settings.knowledge == "none" else " from your documents"
    if all(find_spec(name) for name in GROUP):
        report(f"{why} a script answers{source}, heard and spoken here (AGENT_MODELS=local).")
        return settings.model_copy(update={"models": "local"})
    report(f"{why} a script answers{source} (AGENT_MODELS=scripted). It hums, and hears nobody:")
    report("type to it, or stop it, run `uv sync --group speech`, and speak.")
    return settings.model_copy(update={"models": "scripted"})


# ---------------------------------------------------------------------- the processes


@dataclass(frozen=True)
class Server:
    """A livekit-server for this machine alone, with keys that end with it."""

    binary: str
    port: int
    key: str
    secret: str

    @classmethod
    def found(cls) -> Server:
        """The one on PATH, or one that the template's tests have built; raises SettingsError."""
        every = (BUILT / "bin").glob("livekit-server-v*")
        built = sorted(every, key=lambda path: path.stat().st_mtime)
        if not (binary := shutil.which("livekit-server") or (built and str(built[-1]))):
            install = "`brew install livekit`, or `curl -sSL https://get.livekit.io | bash`"
            named = "name one by LIVEKIT_URL and its keys"
            problem = "there is no livekit-server on this machine"
            raise SettingsError([f"{problem}: install one ({install}), or {named}"])
        return cls(binary, free_port(), "talk", secrets.token_hex(32))

    def applied_to(self, settings: Settings) -> Settings:
        """The settings with this server."""
        update = {"livekit_url": f"ws://{HERE}:{self.port}", "livekit_api_key": self.key}
        secret = type(settings.livekit_api_secret)(self.secret)
        return settings.model_copy(update={**update, "livekit_api_secret": secret})

    @property
    def config(self) -> str:
        """Its configuration, JSON being YAML: it is reached on loopback, and asks nobody else."""
        rtc = {
            "node_ip": HERE,
            "udp_port": free_port(socket.SOCK_DGRAM),
            "ips": {"includes": [f"{HERE}/32"]},
            # which it would open on every interface
            "tcp_port": 0,
            "enable_loopback_candidate": True,
            "stun_servers": [f"{HERE}:3478"],
        }
        keys = {self.key: self.secret}
        return json.dumps({"port": self.port, "bind_addresses": [HERE], "keys": keys, "rtc": rtc})

    @asynccontextmanager
    async def run(self) -> AsyncIterator[asyncio.subprocess.Process]:
        """It answers inside; raises typer.Exit if it never does."""
        with tempfile.TemporaryFile() as log:
            process = await asyncio.create_subprocess_exec(
                self.binary,
                # nothing else: it heeds an owner's REDIS_HOST, LIVEKIT_KEYS or UDP_PORT before that
                env={"LIVEKIT_CONFIG": self.config},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            try:
                async with killed_with_us(process):
                    if not await answers(process, HERE, self.port, SERVER_SECONDS):
                        log.seek(0)
                        said = log.read().decode(errors="replace").strip().splitlines()[-3:]
                        report("\n".join([f"{self.binary} does not start:", *said]))
                        raise typer.Exit(1)
                    yield process
            finally:
                # on a gentle signal it would wait for those who are still in a room
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()


@dataclass(frozen=True)
class Worker:
    """A worker of this project: `agent dev`, or for the public `agent start`."""

    settings: Settings
    public: bool
    verbose: bool

    @asynccontextmanager
    async def run(self, hurry: asyncio.Event) -> AsyncIterator[asyncio.subprocess.Process]:
        """It takes calls inside; raises typer.Exit if it never does.

        Stopping waits for live calls of the public; until `hurry`.
        """
        settings = self.settings
        host, port = (settings.host, settings.port) if self.public else (HERE, free_port())
        environment = {
            "AGENT_HOME": str(settings.home),
            "AGENT_MODELS": settings.models,
            "AGENT_HOST": host,
            "AGENT_PORT": str(port),
            "LIVEKIT_URL": settings.livekit_url,
            "LIVEKIT_API_KEY": settings.livekit_api_key,
            "LIVEKIT_API_SECRET": settings.livekit_api_secret.get_secret_value(),
        }
        if settings.server_is_here:
            # the SDK's native part would ask it for a server on this machine, whatever NO_PROXY
            # says; empty, because .env.local would fill in what is missing
            environment |= {"HTTP_PROXY": "", "http_proxy": ""}
        if not self.public:
            environment["AGENT_METRICS_PORT"] = "0"
            if "keep_strangers_words" not in settings.model_fields_set:
                # they are the developer's own
                environment["AGENT_KEEP_STRANGERS_WORDS"] = "true"
            environment["AGENT_LOG_LEVEL"] = "INFO" if self.verbose else "ERROR"
        with lifeline() as stdin:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "agent", "start" if self.public else "dev", "--as-child"),
                cwd=settings.home,
                env={**os.environ, **environment},
                stdin=stdin,
                stdout=2,
                start_new_session=True,
            )
        try:
            if not await answers(process, host or HERE, port, WORKER_SECONDS):
                ended = process.returncode
                how = "does not register" if ended is None else f"ended with exit code {ended}"
                report(f"the worker {how}: what it says above is why, `agent doctor` knows more")
                raise typer.Exit(2 if ended == 2 else 1)
            yield process
        finally:
            with suppress(ProcessLookupError):
                process.terminate()
            try:
                with suppress(TimeoutError):
                    async with asyncio.timeout(None if self.public else STOP_SECONDS):
                        await unless(hurry, process.wait())
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()


@contextmanager
def lifeline() -> Iterator[int]:
    """What a child reads until this process has ended, by SIGKILL too.

    Not asyncio's PIPE: its `wait()` would wait for all who hold that, a child's children too.
    """
    # the other end is this process's alone, and never closed by it
    reading, _ = os.pipe()
    try:
        yield reading
    finally:
        os.close(reading)


@asynccontextmanager
async def killed_with_us(process: asyncio.subprocess.Process) -> AsyncIterator[None]:
    """Inside, the end of this process is that of another, which reads nothing itself."""
    with lifeline() as stdin:
        # Linux alone has a signal for this
        watching = await asyncio.create_subprocess_exec(
            *("/bin/sh", "-c", 'read -r _; kill -9 "$0"', str(process.pid)),
            stdin=stdin,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
    try:
        yield
    finally:
        # before the other ends: its number may be somebody else's then
        with suppress(ProcessLookupError):
            watching.kill()
        await watching.wait()


async def answers(
    process: asyncio.subprocess.Process, host: str, port: int, seconds: float
) -> bool:
    """Wait until the process answers a health check; False if it never does."""
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=seconds)
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds), aiohttp.ClientSession(timeout=timeout) as http:
            while process.returncode is None:
                with suppress(aiohttp.ClientError, OSError):
                    async with http.get(f"http://{host}:{port}/") as answer:
                        if answer.status == 200:
                            return True
                await asyncio.sleep(0.05)
    return False


def free_port(kind: int = socket.SOCK_STREAM) -> int:
    """A port that nobody uses just now."""
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind((HERE, 0))
        return int(probe.getsockname()[1])


# ---------------------------------------------------------------------- the page


@dataclass(frozen=True)
class Page:
    """The page and the token endpoint, on a socket that listens already."""

    settings: Settings
    listening: socket.socket
    address: str
    origins: set[str]
    caller_of: CallerOf
    show: Callable[[str], None] | None

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """It is served inside."""
        from aiohttp import web

        from agent.web import Tokens
        from agent.web.app import web_app

        url = self.settings.livekit_url
        tokens = Tokens(self.settings, origins=self.origins)
        app = web_app(tokens, self.caller_of, livekit_url=url)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await runner.setup()
        try:
            await web.SockSite(runner, self.listening).start()
            print(self.address, flush=True)
            if self.show is not None:
                self.show(self.address)
            yield
        finally:
            await runner.cleanup()


def open_browser(address: str) -> None:
    """Open the page, unless all there is is a browser in text: it would take the terminal."""
    with suppress(webbrowser.Error):
        browser = webbrowser.get()
        # what BROWSER names, such as wslview, Python does not know either
        if type(browser) is not webbrowser.GenericBrowser or os.environ.get("BROWSER"):
            threading.Thread(target=browser.open, args=[address], daemon=True).start()


async def hold(page: Page, server: Server | None, worker: Worker | None) -> int:
    """Run all of it until a signal, which is how it ends well, or until a part of it ends."""
    stop, hurry, numbers = asyncio.Event(), asyncio.Event(), list[int]()

    def stop_on(number: int) -> None:
        (hurry if stop.is_set() else stop).set()
        numbers.append(number)

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # which nohup has it ignore
        if signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, stop_on, number)
    stack, running = AsyncExitStack(), dict[str, asyncio.subprocess.Process]()

    async def begin() -> None:
        if server is not None:
            running["livekit-server"] = await stack.enter_async_context(server.run())
        else:
            await ask_server(page.settings)
        if worker is not None:
            running["the worker"] = await stack.enter_async_context(worker.run(hurry))
        await stack.enter_async_context(page.run())

    stopped, beginning = asyncio.create_task(stop.wait()), asyncio.create_task(begin())
    try:
        await asyncio.wait([stopped, beginning], return_when=asyncio.FIRST_COMPLETED)
        if not beginning.done():
            return 128 + numbers[0]
        await beginning
        ends = {asyncio.create_task(process.wait()): name for name, process in running.items()}
        await asyncio.wait([stopped, *ends], return_when=asyncio.FIRST_COMPLETED)
        if stop.is_set():
            return 0
        name, code = next((name, end.result()) for end, name in ends.items() if end.done())
        report(f"{name} ended with exit code {code}, and with it every call")
        return 1
    finally:
        beginning.cancel()
        # to its end: what it is starting, it stops
        await asyncio.wait([beginning])
        await stack.aclose()


async def ask_server(settings: Settings) -> None:
    """Raise SettingsError if the server that the settings name is not there."""
    from livekit import api

    async with server_api(settings) as server:
        await server.room.list_rooms(api.ListRoomsRequest(names=["-"]))
