"""The command line: every module here holds its commands, signature and implementation."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import typer

# In the order of `agent --help`, which has to be there at once: a command imports what is slow,
# such as the SDK, when it runs. A project without documents, memory or page has no module for them.
COMMANDS = {
    "chat": ("chat",),
    "talk": ("talk",),
    "run": ("start", "dev", "console"),
    "call": ("call",),
    # with telephony, in place of the one above
    "call_number": ("call",),
    "rehearse": ("rehearse",),
    "calls": ("calls", "report"),
    "documents": ("ingest", "evaluate", "download_files"),
    "forget": ("forget",),
    "doctor": ("doctor",),
    "update": ("update",),
}


def build_app() -> typer.Typer:
    """The commands that this project has."""
    app = typer.Typer(
        name="agent",
        help="A LiveKit voice agent: talk to it, run it, look after it.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    for module, commands in COMMANDS.items():
        if find_spec(f"{__name__}.{module}"):
            for name in commands:
                app.command()(_exiting(getattr(import_module(f"{__name__}.{module}"), name)))
    return app


def _exiting(command: Callable[..., int]) -> Callable[..., None]:
    """A command whose result becomes the exit code."""

    @wraps(command)
    def run(*arguments: Any, **options: Any) -> None:
        raise typer.Exit(command(*arguments, **options))

    return run
