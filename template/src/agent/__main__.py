"""The command line: `uv run agent --help`."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

# What a command needs is imported in it: `agent --help` is there at once, the SDK takes seconds.
app = typer.Typer(
    name="agent",
    help="A LiveKit voice agent: talk to it, run it, look after it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

As = Annotated[
    str | None,
    typer.Option("--as", metavar="NAME", help="Who is calling; by default this machine's user."),
]


@app.command()
def chat(
    caller: As = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show the call's log, the eight steps among it.")
    ] = False,
) -> None:
    """Talk with the agent in text, right here: no server, and without keys a script answers.

    Piped input: an answer for each line, as one line; everything else goes to standard error.
    """
    from agent.cli.chat import chat

    raise typer.Exit(chat(caller, verbose=verbose))


@app.command()
def start() -> None:
    """Take calls until a signal; the first one lets the live calls end. Logs JSON lines."""
    from agent.cli.run import start

    raise typer.Exit(start(dev=False))


@app.command()
def dev() -> None:
    """Take calls on this machine, with readable logs, and stop at once on a signal."""
    from agent.cli.run import start

    raise typer.Exit(start(dev=True))


def _address(value: str | None) -> str | None:
    if value is not None and not re.fullmatch(r"\S+:\d{1,5}", value):
        raise typer.BadParameter(f"{value!r} is no address: write one such as 127.0.0.1:5000")
    return value


@app.command()
def console(
    connect_addr: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            callback=_address,
            help="Where LiveKit's `lk` listens; it adds this.",
        ),
    ] = None,
) -> None:
    """Speak with the agent at this machine's microphone, without a server; needs LiveKit's `lk`."""
    from agent.cli.run import console

    raise typer.Exit(console(connect_addr))


@app.command()
def call(caller: As = None) -> None:
    """Call the agent that a running worker answers: in text from here, or by voice from the link it prints."""
    from agent.cli.call import call

    raise typer.Exit(call(caller))


@app.command()
def ingest(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[PATH]...", help="Folders and files instead of knowledge/; remembered."
        ),
    ] = None,
) -> None:
    """Read the documents into the index that answers are looked up in; a worker does it too when it starts.

    Markdown, text, HTML and PDF; only what has changed is read again. Exit code 2 if a document had to be left out.
    """
    from agent.cli.documents import ingest_documents

    raise typer.Exit(ingest_documents(paths or []))


@app.command()
def evaluate(
    file: Annotated[
        Path,
        typer.Argument(help='JSON lines, such as {"question": "…", "source": "opening-hours.md"}.'),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure how often the documents that answer are found: recall at 1, 3 and 5, reciprocal rank, milliseconds."""
    from agent.cli.documents import evaluate_file

    raise typer.Exit(evaluate_file(file, as_json=as_json))


@app.command()
def download_files() -> None:
    """Fetch the embedding model that AGENT_EMBEDDINGS=local needs into models/, for a start without a network."""
    from agent.cli.documents import download_files

    raise typer.Exit(download_files())


@app.command()
def forget(
    caller: Annotated[
        str, typer.Argument(help="An identity, or a phone number however it is written.")
    ],
) -> None:
    """Delete everything that is remembered of a caller."""
    from agent.cli.run import forget_caller

    raise typer.Exit(forget_caller(caller))


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check everything a call needs, and say how to cure what is wrong; exit 1 if something fails."""
    from agent.cli.doctor import doctor

    raise typer.Exit(doctor(as_json=as_json))


@app.command()
def update(
    to: Annotated[
        str | None,
        typer.Option(
            metavar="VERSION", help="This version, such as v1.2.0; by default the newest."
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "-d",
            "--data",
            metavar="NAME=VALUE",
            help="Answer a question anew, such as memory=redis.",
        ),
    ] = None,
    preview: Annotated[
        bool, typer.Option("--preview", help="Try all of it and say what would change.")
    ] = False,
) -> None:
    """Bring the template's fixes here: tried and tested in a copy first, then left for you to commit.

    What does not fit or fails the tests changes nothing here: exit 1, and what to do.
    """
    from agent.cli.update import update

    raise typer.Exit(update(to, data or [], preview=preview))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit: 0 done, 1 failed, 2 nothing was begun because something has to be put right first."""
    warnings.filterwarnings(
        "ignore", message="The HMAC key is"
    )  # said in our words: see warn_connection
    try:
        app(arguments if arguments is None else list(arguments))
    except Exception as error:
        from agent.knowledge import KnowledgeUnavailable
        from agent.memory import MemoryUnavailable
        from agent.settings import SettingsError

        if not isinstance(error, SettingsError | KnowledgeUnavailable | MemoryUnavailable):
            raise
        for line in str(error).splitlines():
            print(f"agent: {line}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
