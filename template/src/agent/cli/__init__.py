"""The command line: every module here holds its commands, signature and implementation."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from importlib import import_module
from importlib.util import find_spec
from typing import Annotated, Any

import typer

# In the order of `agent --help`, which has to be there at once: a command imports what is slow,
# such as the SDK, when it runs. A project without documents or memory has no module for them.
COMMANDS = {
    "chat": ("chat",),
    "run": ("start", "dev", "console"),
    "call": ("call",),
    "documents": ("ingest", "evaluate", "download_files"),
    "forget": ("forget",),
    "doctor": ("doctor",),
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
    app.command("update")(_exiting(update_project))
    return app


def _exiting(command: Callable[..., int]) -> Callable[..., None]:
    """A command whose result becomes the exit code."""

    @wraps(command)
    def run(*arguments: Any, **options: Any) -> None:
        raise typer.Exit(command(*arguments, **options))

    return run


def update_project(
    to: Annotated[
        str | None,
        typer.Option(metavar="VERSION", help="Such as v1.2.0; by default the newest."),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            *("-d", "--data"), metavar="NAME=VALUE", help="Change an answer, such as memory=redis."
        ),
    ] = None,
    preview: Annotated[
        bool, typer.Option("--preview", help="Try all of it and say what would change.")
    ] = False,
) -> int:
    """Bring the template's fixes here: tried and tested in a copy, then left for you to commit.

    What does not fit or fails the tests changes nothing here: exit 1, and what to do.
    """
    from agent.cli.update import update

    return update(to, data or [], preview=preview)
