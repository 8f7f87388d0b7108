"""The person at the terminal: what is said to them, and what they type."""

from __future__ import annotations

import asyncio
import io
import signal
import sys
import termios
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

with suppress(ImportError):
    # for its arrow keys and history in input(); not every Python has it
    import readline  # noqa: F401

T = TypeVar("T")

PATIENCE_SECONDS = 1.5  # after which `busy` says what goes on


def report(line: str) -> None:
    """Print a line on standard error: standard output is for answers and logs."""
    print(line, file=sys.stderr, flush=True)


def make_console(*, stderr: bool = False) -> Console:
    """A console that breaks no line and colours only what it is told to."""
    return Console(stderr=stderr, highlight=False, soft_wrap=True)


@contextmanager
def busy(what: str) -> Iterator[None]:
    """Report `what`, if what is done inside takes long."""
    timer = threading.Timer(PATIENCE_SECONDS, report, [f"{what} ..."])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[str, int, int], None]]:
    """Yield what shows progress: a line to print (empty: none), how much is done, of how much.

    The bar is shown on standard error if that is a terminal; the lines in any case.
    """
    console = make_console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    hidden = not sys.stderr.isatty()
    bar = Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=hidden)
    with bar:
        task = bar.add_task(what, total=None)

        def progress(line: str, done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)
            if line:
                console.print(line, markup=False)

        yield progress


@contextmanager
def interactive() -> Iterator[None]:
    """Ctrl-C interrupts, also where a parent process has it ignored; the terminal is restored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    before = termios.tcgetattr(sys.stdin)
    try:
        yield
    finally:
        # an input() that is still waiting has changed it
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


async def read_line(prompt: str = "") -> str | None:
    """The next line of standard input, stripped; None at its end. A `prompt` is for a terminal.

    It is read in a thread, which may wait for ever: neither cancelling this nor the end of the
    process waits for it. So the thread must not hold a lock that the end needs, such as a buffer's.
    """
    loop, lines = asyncio.get_running_loop(), asyncio.Queue[str | None]()
    use_readline = "readline" in sys.modules and prompt != ""
    if not use_readline:
        print(prompt, end="", flush=True)

    def read() -> None:
        try:
            line = input(prompt).strip() if use_readline else _read_unbuffered()
        except (EOFError, OSError, ValueError):  # also of a terminal that is gone, or no text
            line = None
        with suppress(RuntimeError):  # the loop has closed
            loop.call_soon_threadsafe(lines.put_nowait, line)

    threading.Thread(target=read, name="stdin", daemon=True).start()
    return await lines.get()


def _read_unbuffered() -> str | None:
    line = io.FileIO(sys.stdin.fileno(), closefd=False).readline()
    return line.decode(sys.stdin.encoding, errors="replace").strip() if line else None


async def unless(event: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of `work`; None once `event` is set, and then `work` is cancelled."""
    if event.is_set():
        work.close()
        return None
    task, waiting = asyncio.create_task(work), asyncio.create_task(event.wait())
    try:
        await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
        return None if event.is_set() else task.result()
    finally:
        task.cancel()
        waiting.cancel()
