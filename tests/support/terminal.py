"""A command in the foreground of a pseudo-terminal, where Ctrl-C reaches all its processes."""

from __future__ import annotations

import asyncio
import json
import os
import pty
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from tests.support.worker import Record


class Terminal:
    """A command's output so far, and a keyboard."""

    def __init__(self, process: asyncio.subprocess.Process, screen: int) -> None:
        self.process, self.text = process, ""
        self._screen, self._changed = screen, asyncio.Event()
        asyncio.get_running_loop().add_reader(screen, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._screen, 65536)
        # the last process with the terminal open has ended
        except OSError:
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self._screen)
        self.text += data.decode(errors="replace")
        self._changed.set()

    async def shows(self, words: str, seconds: float = 60) -> None:
        """Wait until `words` have been shown."""
        try:
            async with asyncio.timeout(seconds):
                while words not in self.text:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(
                f"{words!r} was never shown; the screen ends with:\n{self.text[-3000:]}"
            ) from None

    def press(self, keys: bytes) -> None:
        """Type."""
        os.write(self._screen, keys)

    def records(self) -> list[Record]:
        """The lines that are JSON objects."""
        return [json.loads(line) for line in self.text.splitlines() if line.startswith("{")]


@asynccontextmanager
async def terminal(
    command: Sequence[str], folder: Path, environment: Mapping[str, str]
) -> AsyncIterator[Terminal]:
    """`command` in the foreground of its own terminal; killed on exit if it still runs."""
    screen, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env=dict(environment),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        preexec_fn=lambda: os.login_tty(theirs),
    )
    os.close(theirs)
    shown = Terminal(process, screen)
    try:
        yield shown
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        asyncio.get_running_loop().remove_reader(screen)
        os.close(screen)
