"""A real livekit-server on loopback, from PATH or built once by `go install` into a cache."""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import aiohttp
import pytest
from livekit import api

# newer ones have `replace` lines, which `go install` refuses
VERSION = "v1.13.5"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "livekit-agent-template"


class Unavailable(Exception):
    """There is no livekit-server, and it cannot be built; the text says why."""


def find_binary() -> Path:
    """The server's binary, built by Go (two minutes, once) if needed; raises Unavailable."""
    if found := shutil.which("livekit-server"):
        return Path(found)
    binary = CACHE / "bin" / f"livekit-server-{VERSION}"
    binary.parent.mkdir(parents=True, exist_ok=True)
    with (binary.parent / "lock").open("w") as lock:
        # one test process builds, the others wait
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not binary.exists():
            build(binary)
    return binary


def build(binary: Path) -> None:
    """Build the server with Go. Raises Unavailable."""
    if shutil.which("go") is None:
        raise Unavailable("livekit-server is not on PATH, and without Go it cannot be built")
    with tempfile.TemporaryDirectory(dir=binary.parent) as folder:
        print(
            f"building livekit-server {VERSION} (about two minutes, once) ...",
            file=sys.stderr,
            flush=True,
        )
        module = f"github.com/livekit/livekit-server/cmd/server@{VERSION}"
        done = subprocess.run(
            ["go", "install", module],
            env={**os.environ, "GOBIN": folder, "CGO_ENABLED": "0"},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise Unavailable(f"go install {module} failed: {' '.join(done.stderr.split())[-300:]}")
        os.replace(Path(folder) / "server", binary)


def require_binary() -> Path:
    """The server's binary; without it the test is skipped, and fails under CI."""
    try:
        return find_binary()
    except Unavailable as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))


# Below those that a system gives to who asks for any port, and apart for each process of
# pytest-xdist: a port that is free now is then still free when a worker binds it.
_LOWEST = 12_000 + 2_000 * (int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 10)
_PORTS = (_LOWEST + (os.getpid() + number) % 2_000 for number in itertools.count())


def free_port(kind: int = socket.SOCK_STREAM) -> int:
    """A port that is free on every interface, and given to nobody else of this run."""
    return next(port for port in _PORTS if _is_free(port, kind))


def _is_free(port: int, kind: int) -> bool:
    with socket.socket(socket.AF_INET, kind) as probe:
        try:
            probe.bind(("0.0.0.0", port))
        except OSError:
            return False
    return True


@dataclass
class LiveKit:
    """A running server."""

    port: int
    log: Path
    config: Path
    process: asyncio.subprocess.Process
    api_key: str = "devkey"
    api_secret: str = "a-secret-for-tests-of-more-than-32-bytes"
    url: str = field(init=False)

    def __post_init__(self) -> None:
        self.url = f"ws://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Start the server, also after `kill`, at the same address; return when it answers."""
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                str(require_binary()), "--config", str(self.config), stdout=log, stderr=log
            )
        await _ready(self)

    async def kill(self) -> None:
        """Kill the server; on a gentle signal it would wait for participants."""
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()

    @property
    def environment(self) -> dict[str, str]:
        """An agent's variables for this server."""
        return {
            "LIVEKIT_URL": self.url,
            "LIVEKIT_API_KEY": self.api_key,
            "LIVEKIT_API_SECRET": self.api_secret,
        }

    def api(self) -> api.LiveKitAPI:
        """A client of its API; the caller closes it."""
        return api.LiveKitAPI(self.url.replace("ws", "http"), self.api_key, self.api_secret)

    async def dispatch(self, agent_name: str, room: str) -> None:
        """Send an agent into a room, which is made if it is not there."""
        asked = api.CreateAgentDispatchRequest(agent_name=agent_name, room=room)
        async with self.api() as server:
            await server.agent_dispatch.create_dispatch(asked)

    def token(
        self,
        room: str,
        identity: str,
        *,
        agent_name: str | None = None,
        kind: str = "standard",
        listens: bool = False,
        life: timedelta = timedelta(hours=1),
    ) -> str:
        """A token for `identity`; joining with it sends `agent_name` into the room."""
        grants = api.VideoGrants(
            room_join=True,
            room=room,
            can_publish=not listens,
            # as a worker's: an agent says what it does
            can_update_own_metadata=kind == "agent",
        )
        token = (
            api.AccessToken(self.api_key, self.api_secret)
            .with_identity(identity)
            .with_kind(kind)  # type: ignore[arg-type]
            .with_grants(grants)
            .with_ttl(life)
        )
        if agent_name:
            dispatch = api.RoomAgentDispatch(agent_name=agent_name)
            token = token.with_room_config(api.RoomConfiguration(agents=[dispatch]))
        return token.to_jwt()


@asynccontextmanager
async def livekit_server(folder: Path | None = None) -> AsyncIterator[LiveKit]:
    """A private server on free loopback ports, ended on exit."""
    require_binary()
    with tempfile.TemporaryDirectory() as scratch:
        home = folder or Path(scratch)
        port = free_port()
        log, config = home / "livekit-server.log", home / "livekit.yaml"
        server = LiveKit(port=port, log=log, config=config, process=None)  # type: ignore[arg-type]
        config.write_text(
            f"""port: {port}
bind_addresses: ["127.0.0.1"]
keys: {{ "{server.api_key}": "{server.api_secret}" }}
rtc:
  node_ip: 127.0.0.1
  udp_port: {free_port(socket.SOCK_DGRAM)}
  tcp_port: {free_port()}
  enable_loopback_candidate: true
  stun_servers: ["127.0.0.1:3478"]
agents: {{ target_load: 100 }}
logging: {{ level: info, json: true }}
""",
            encoding="utf-8",
        )
        try:
            await server.start()
            yield server
        finally:
            await server.kill()


async def _ready(server: LiveKit) -> None:
    async with asyncio.timeout(20), aiohttp.ClientSession() as http:
        while True:
            if server.process.returncode is not None:
                raise RuntimeError(
                    f"livekit-server ended at once: {server.log.read_text()[-2000:]}"
                )
            try:
                async with http.get(f"http://127.0.0.1:{server.port}/") as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientConnectionError:
                pass
            # another process: there is no event to await
            await asyncio.sleep(0.05)


# Runs before the tests, so that a build is visible and does not count as a test's time.
if __name__ == "__main__":
    try:
        print(f"livekit-server: {find_binary()}")
    except Unavailable as error:
        print(f"no livekit-server, so tests that call are skipped (and fail under CI): {error}")
