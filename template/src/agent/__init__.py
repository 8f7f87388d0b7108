"""A LiveKit voice agent whose calls shut down cleanly; AGENTS.md says where things live."""

from __future__ import annotations

import sys

if sys.platform == "win32":
    # here, because every command, test and tool comes by: later, a missing module would stop it
    print(
        "agent: this does not run on Windows itself: install WSL (`wsl --install`), "
        "and clone and run the project in its terminal",
        file=sys.stderr,
    )
    sys.exit(2)


def one_line(error: BaseException) -> str:
    """An error as one line, its kind first: `ValueError: no such voice`."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def is_own_cancellation() -> bool:
    """Whether the current task was cancelled, and not only a future of a library that it awaits."""
    # here, because nothing that takes a while may be loaded before Ctrl-C is an exit code
    import asyncio

    task = asyncio.current_task()
    return task is None or task.cancelling() > 0
