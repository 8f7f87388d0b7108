"""SQLite off the event loop: a thread of its own for one file."""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

CLOSING_SECONDS = 1.0


class SqliteThread:
    """Runs work on the file that is at `path` now, one piece at a time.

    `connect` opens the file at the first use, and again when another one has replaced it. This is
    not the loop's executor, which is joined at the end of the process however long a query takes:
    the thread is a daemon, a cancelled `run` interrupts its query, and closing waits a second at
    most.
    """

    def __init__(self, path: Path, connect: Callable[[], sqlite3.Connection]) -> None:
        self._path, self._connect = path, connect
        self._jobs = queue.SimpleQueue[
            tuple[Future[Any], Callable[[sqlite3.Connection], Any]] | None
        ]()
        self._closed = False
        # so that an interrupt cannot hit the next piece of work
        self._lock = threading.Lock()
        self._running: Future[Any] | None = None
        # whether nobody waits for what is running
        self._abandoned = False
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._ended: Future[None] = Future()
        self._thread = threading.Thread(target=self._serve, name=f"sqlite {path.name}", daemon=True)
        self._thread.start()

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """What `work` returns or raises, in the thread; cancelling interrupts it, or drops it."""
        if self._closed:
            raise RuntimeError(f"{self._thread.name} is closed")
        job: Future[T] = Future()
        self._jobs.put((job, work))
        try:
            return await asyncio.wrap_future(job)
        except asyncio.CancelledError:
            self._interrupt(job)
            raise

    async def aclose(self) -> None:
        """End the thread and close the file; work that no interrupt reaches is left behind."""
        self._closed = True
        self._jobs.put(None)
        self._interrupt(self._running)
        await asyncio.wait([asyncio.wrap_future(self._ended)], timeout=CLOSING_SECONDS)

    def disconnect(self) -> None:
        """Close the file, so that the next work reopens it; only for work itself, in the thread."""
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()

    def _interrupt(self, job: Future[Any] | None) -> None:
        with self._lock:
            if job is not None and self._running is job:
                # for a statement that has not begun yet, which an interrupt would miss
                self._abandoned = True
                if self._connection is not None:
                    self._connection.interrupt()

    def connection(self) -> sqlite3.Connection:
        """The open file, opened now if need be; only for work itself, in the thread."""
        now = self._identity()
        if self._connection is None or self._file != now:
            self.disconnect()
            self._connection = self._connect()
            self._connection.set_progress_handler(lambda: self._abandoned, 10_000)
            self._file = now if now is not None else self._identity()
        return self._connection

    def _identity(self) -> tuple[int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def _serve(self) -> None:
        while (item := self._jobs.get()) is not None:
            job, work = item
            if not job.set_running_or_notify_cancel():
                continue
            with self._lock:
                self._running, self._abandoned = job, False
            result: Any = None
            failure: BaseException | None = None
            try:
                result = work(self.connection())
            except BaseException as error:
                failure = error
            with self._lock:
                self._running = None
            # raised when the loop that asked is gone
            with suppress(RuntimeError):
                if failure is None:
                    job.set_result(result)
                else:
                    job.set_exception(failure)
        self.disconnect()
        with suppress(RuntimeError):
            self._ended.set_result(None)
