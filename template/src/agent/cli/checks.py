"""What has to be right before a call: commands refuse to start without it, `doctor` lists it."""

from __future__ import annotations

import asyncio
import errno
import importlib.metadata
import os
import re
import socket
import time
import traceback
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from agent.cli.terminal import busy, report
from agent.knowledge import index_of
from agent.settings import Settings, SettingsError

if TYPE_CHECKING:
    from livekit import api

# livekit-agents: pyproject.toml takes any from the first up to the second, and the template's
# tests, real calls among them, have passed with these
SDK_RANGE = ((1, 8, 9), (1, 9))
PROVEN_SDKS = ("1.8.9",)

SHORTEST_SECRET = 32  # bytes; the SDK warns of shorter ones
SERVER_SECONDS = 5.0  # for one answer of the server
SLOW_IMPORT_SECONDS = 5.0  # of the ten that a process of the SDK's has by default


Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; a `cure` says what to do."""

    level: Level
    check: str
    what: str
    cure: str = ""

    @property
    def sentence(self) -> str:
        """What was found, and the cure."""
        return f"{self.what}: {self.cure}" if self.cure else self.what


def fail(check: str, sentence: str) -> Finding:
    """A failure as an error's sentence says it, in which the cure follows the last colon."""
    what, _, cure = sentence.rpartition(": ")
    return Finding("fail", check, what or cure, cure if what else "")


def require(findings: Iterable[Finding]) -> None:
    """Report what works, but not well; raises SettingsError if something fails."""
    sentences: dict[str, list[str]] = {"fail": [], "warn": []}
    for finding in findings:
        sentences[finding.level].append(finding.sentence)
    if sentences["fail"]:
        raise SettingsError(sentences["fail"])
    for sentence in sentences["warn"]:
        report(sentence)


# ---------------------------------------------------------------------- settings


def check_connection(settings: Settings) -> list[Finding]:
    """What is missing or malformed in the server's address and keys; never a secret's value."""
    url, secret = settings.livekit_url, settings.livekit_api_secret.get_secret_value()
    required = {
        "LIVEKIT_URL": (url, "your server's address"),
        "LIVEKIT_API_KEY": (settings.livekit_api_key, "it"),
        "LIVEKIT_API_SECRET": (secret, "it"),
    }
    found = []
    for name, (value, it) in required.items():
        if not value:
            cure = f"put {it} into .env.local (see .env.example)"
            found.append(Finding("fail", "keys", f"{name} is missing", cure))
        elif name == "LIVEKIT_URL":
            if not _is_address(value):
                cure = "write one such as ws://localhost:7880"
                found.append(Finding("fail", "keys", f"{name}: {value!r} is not an address", cure))
        elif not re.fullmatch(r"[A-Za-z0-9+/=_.~-]+", value):
            what = f"{name} has characters that keys do not have, such as quotes or spaces"
            found.append(Finding("fail", "keys", what, "copy it from your server again"))
    if 0 < len(secret.encode()) < SHORTEST_SECRET:
        what = f"LIVEKIT_API_SECRET has fewer than {SHORTEST_SECRET} bytes"
        found.append(Finding("warn", "keys", what, "give your server a longer one"))
    return found


def _is_address(url: str) -> bool:
    try:
        host, _ = urlsplit(url).hostname, urlsplit(url).port
    except ValueError:  # such as a port that is not a number
        return False
    return bool(host) and not re.search(r"[\s<>\"']", url)


def check_recordings(settings: Settings, *, asking: bool = False) -> list[Finding]:
    """What is wrong with the bucket that recordings go to; `asking` also whether it answers."""
    from agent.reports import NotDelivered
    from agent.reports.bucket import Bucket
    from agent.reports.recordings import is_in_bucket

    if not is_in_bucket(settings):
        if not settings.recordings_url:
            return []
        what = "AGENT_RECORDINGS_URL is set, and no call is recorded"
        return [Finding("warn", "recordings", what, "set AGENT_RECORD=audio, or leave it out")]
    try:
        bucket = Bucket(settings)
        if asking:
            asyncio.run(bucket.check())
    except NotDelivered as error:
        return [fail("recordings", str(error))]
    return []


def check_models(settings: Settings, *, unreachable: Level = "fail") -> list[Finding]:
    """What is wrong with the models that calls use, each of which is asked; nothing if all answer.

    `unreachable` is the level of a model that may answer at another time.
    """
    with busy("loading LiveKit's SDK"):
        model_findings = import_module("agent.cli.models").model_findings
    with busy("asking the models"):
        found: list[Finding] = model_findings(settings, unreachable)
        return found


def check_port(port: int, name: str, host: str = "") -> list[Finding]:
    """Whether `port`, the value of `name`, is free for an endpoint; without a host, everywhere."""
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            what = f"port {port} is in use, perhaps by another worker"
            return [Finding("fail", "port", what, f"stop that, or set {name} to a free port")]
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            what = f"AGENT_HOST={host} is no IPv4 address of this machine"
            return [Finding("fail", "port", what, "set it to one of them, or leave it empty")]
        what = f"port {port} cannot be used ({os.strerror(error.errno or 0)})"
        return [Finding("fail", "port", what, f"set {name} to another port")]
    return []


# ---------------------------------------------------------------------- what a call uses


def check_sdk() -> Finding:
    """Whether livekit-agents is a version that the template was proven with."""
    try:
        version = importlib.metadata.version("livekit-agents")
    except importlib.metadata.PackageNotFoundError:
        return Finding("fail", "versions", "livekit-agents is not installed", "run `uv sync`")
    what = f"livekit-agents {version}"
    numbers = tuple(int(part) for part in version.split(".")[:3] if part.isdigit())
    if not SDK_RANGE[0] <= numbers < SDK_RANGE[1]:
        oldest, newest = (".".join(map(str, number)) for number in SDK_RANGE)
        tested = f"this project is tested with >={oldest},<{newest}"
        cure = f"{tested}: correct pyproject.toml and run `uv sync`"
        return Finding("fail", "versions", what, cure)
    if version not in PROVEN_SDKS:
        what += " is not a version that the template was proven with"
        back = f"uv lock --upgrade-package livekit-agents=={PROVEN_SDKS[-1]} && uv sync"
        cure = f"`agent update` may bring a template that was, or go back by `{back}`"
        return Finding("warn", "versions", what, cure)
    return Finding("ok", "versions", what)


def prepare_documents(settings: Settings) -> None:
    """Index the documents that changed; raises KnowledgeUnavailable if there are none to read."""
    if settings.knowledge != "none":
        index_of(settings)  # raises it too in a project that was made without documents
        import_module("agent.cli.documents").index_changed_documents(settings)


def load_calls() -> float:
    """Import what a call needs; how many seconds the owner's modules took.

    Raises SettingsError for an error in one of them.
    """
    with busy("loading LiveKit's SDK"):
        import_module("agent.entrypoint")
    with busy("loading persona.py and resources.py"):
        began = time.monotonic()
        require(check_owner_modules())
        return time.monotonic() - began


def check_owner_modules() -> list[Finding]:
    """Whether the owner's modules can be imported, and quickly: now, not in the first call."""
    optional_module = import_module("agent.entrypoint").optional_module
    found = []
    for name in ("agent.persona", "agent.resources"):
        began = time.monotonic()
        try:
            optional_module(name)
        except Exception as error:
            found.append(Finding("fail", "code", f"{name} cannot be imported", location(error)))
        if (seconds := time.monotonic() - began) > SLOW_IMPORT_SECONDS:
            what = f"{name} took {seconds:.0f} s to import, and does in each process before a call"
            found.append(Finding("warn", "code", what, "load models in `prewarm` of your persona"))
    return found


def location(error: Exception) -> str:
    """An error in an owner's file as one line, with the file and the line."""
    if isinstance(error, SyntaxError):
        return f"{error.msg} ({Path(error.filename or '?').name}, line {error.lineno})"
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(place.filename).name}, line {place.lineno})"


@asynccontextmanager
async def server_api(settings: Settings) -> AsyncIterator[api.LiveKitAPI]:
    """The server's API.

    Inside, a server that does not answer or refuses the keys raises SettingsError.
    """
    import aiohttp
    from livekit import api

    url, key = settings.livekit_url, settings.livekit_api_key
    secret = settings.livekit_api_secret.get_secret_value()
    timeout = aiohttp.ClientTimeout(total=SERVER_SECONDS)
    try:
        async with api.LiveKitAPI(url, key, secret, timeout=timeout, failover=False) as server:
            yield server
    except api.TwirpError as error:
        answer = f"answers {error.status} ({error.message or error.code}): is it a LiveKit server?"
        if error.status in {401, 403}:
            keys = "LIVEKIT_API_KEY and LIVEKIT_API_SECRET"
            answer = f"refuses {keys}: copy them from that server again"
        raise SettingsError([f"{url} {answer}"]) from error
    except TimeoutError as error:
        problem = f"no answer from {url} within {SERVER_SECONDS:g} s: is LIVEKIT_URL right?"
        raise SettingsError([problem]) from error
    except (aiohttp.ClientError, OSError) as error:
        problem = f"{url} cannot be reached: start that server, or correct LIVEKIT_URL"
        raise SettingsError([problem]) from error
