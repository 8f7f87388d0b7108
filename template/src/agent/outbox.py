"""Files that wait until they are delivered: written whole or not at all, and held by one process.

A call that is over has no time, and its store may be away: what it leaves is a file, and a worker
delivers it, also after a restart. So nothing here waits for anybody.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


class Locked(TimeoutError):
    """Another process holds the lock."""


@contextmanager
def locked(file: Path, seconds: float) -> Iterator[None]:
    """Hold the lock file, which is made if need be; raises Locked after so many seconds."""
    until = time.monotonic() + seconds
    with file.open("a") as handle:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise Locked(errno.ETIMEDOUT, f"{file} is held") from None
                time.sleep(0.01)
        yield


def write_whole(folder: Path, content: bytes, *, name: str, most_bytes: int) -> Path:
    """Write a file of this name, readable by this user only, whole or not at all.

    Raises OSError, also when the files together would exceed `most_bytes`.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if sum(_size(file) for file in folder.iterdir()) + len(content) > most_bytes:
        raise OSError(errno.ENOSPC, f"it holds {most_bytes / 1e6:g} MB already")
    handle, unfinished = tempfile.mkstemp(dir=folder, suffix=".part")  # mode 0600
    kept = folder / name
    try:
        with os.fdopen(handle, "wb") as file:
            # not synced: on a busy disk that takes longer than a call may; a power cut may cost it
            file.write(content)
        os.replace(unfinished, kept)
    except OSError:
        Path(unfinished).unlink(missing_ok=True)
        raise
    return kept


def oldest_first(folder: Path, pattern: str) -> list[Path]:
    """The files that wait. Raises OSError."""
    found = []
    for file in folder.glob(pattern):
        # another worker may have delivered it
        with suppress(FileNotFoundError):
            found.append((file.stat().st_mtime, file))
    return [file for _, file in sorted(found)]


async def in_a_thread(work: Callable[[], T], seconds: float, name: str) -> T:
    """What `work` returns or raises, in a daemon thread, which a hanging disk may keep.

    The threads of the loop's executor are waited for when the process ends. Raises TimeoutError.
    """
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    async with asyncio.timeout(seconds):
        return await asyncio.shield(asyncio.wrap_future(done))


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0
