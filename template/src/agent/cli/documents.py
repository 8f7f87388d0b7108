"""The commands that look after the index: ingest, evaluate, download-files; and what a worker does before it starts."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from agent.cli.run import busy, tell
from agent.knowledge import IngestReport, KnowledgeUnavailable, index_of, local_embedder
from agent.knowledge.embedder import load, models_folder
from agent.knowledge.embeddings import model_of
from agent.knowledge.evaluate import Result, evaluate, questions_in
from agent.knowledge.ingest import Progress, ingest, is_current, stale
from agent.settings import Settings, load_settings


def ingest_documents(paths: Sequence[Path]) -> int:
    """Bring the index up to date; 2 if some documents had to be left out. Raises KnowledgeUnavailable."""
    settings = load_settings()

    async def run() -> IngestReport:
        async with local_embedder(settings, wait=True, alone=True) as inside:
            with showing("reading the documents") as progress:
                return await ingest(inside, paths, progress)

    report = asyncio.run(run())
    changes = "".join(
        f", {what} {count}"
        for what, count in (("unchanged", report.unchanged), ("removed", report.removed))
        if count
    )
    tell(f"documents indexed: {report.documents}, passages: {report.passages}{changes}")
    return 2 if report.skipped else 0


def prepare_documents(settings: Settings) -> None:
    """Index the documents if they changed; raises KnowledgeUnavailable if there are none to read.

    An index that several machines share is theirs: it is only told that it is not up to date. An embedder that fails
    costs the vectors, not the start.
    """
    if settings.knowledge == "none":
        return

    async def prepare() -> IngestReport | None:
        index = index_of(settings)
        if not await stale(settings):
            return None
        if index.shared:
            tell(
                "the index in PostgreSQL is missing or not made from these documents: run `agent ingest`"
            )
            return None
        try:
            async with local_embedder(settings, wait=True, alone=True) as inside:
                with showing("reading the documents") as progress:
                    return await ingest(
                        inside, (), lambda line, done, total: progress("", done, total)
                    )
        except KnowledgeUnavailable as error:
            if settings.embeddings == "none":
                raise
            old = await index.manifest()
            if old is not None and is_current(old, settings):
                tell(f"the index stays as it was, without what has changed: {error}")
                return None
            tell(f"documents are indexed by their words alone: {error}")
            return await ingest(settings.model_copy(update={"embeddings": "none"}))

    try:
        with busy("reading the documents"):
            report = asyncio.run(prepare())
    except KnowledgeUnavailable as error:
        if settings.knowledge != "pgvector":
            raise
        tell(
            f"calls go on without documents: {error}"
        )  # and with them, as soon as the server is there
        return
    if report is not None:
        for skipped in report.skipped:
            tell(f"{skipped.source} is left out: it {skipped.reason}")
        tell(f"documents indexed: {report.documents}, passages: {report.passages}")


def evaluate_file(file: Path, *, as_json: bool) -> int:
    """Ask every question of a file and print how well the documents answer; raises SettingsError."""
    settings = load_settings()
    questions = questions_in(file)

    async def run() -> Result:
        async with local_embedder(settings, wait=True, alone=True) as inside:
            with showing("asking the questions") as progress:
                return await evaluate(inside, questions, progress)

    result = asyncio.run(run())
    if as_json:
        print(json.dumps(asdict(result.figures)))
    else:
        show(result)
    return 0


def download_files() -> int:
    """Fetch the model that AGENT_EMBEDDINGS=local needs into models/; nothing to do for others."""
    settings = load_settings()
    if settings.knowledge == "none" or settings.embeddings != "local":
        tell("there is nothing to fetch: AGENT_EMBEDDINGS is not local")
        return 0
    with busy(f"fetching {model_of(settings)}"):
        load(model_of(settings), settings.home, download=True)
    tell(f"{model_of(settings)} is in {models_folder(settings.home)}")
    return 0


@contextmanager
def showing(what: str) -> Iterator[Progress]:
    """A progress bar on standard error if it is a terminal; what is said of documents, in any case."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(what, total=None)

        def progress(line: str, done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)
            if line:
                console.print(line, markup=False)

        yield progress


def show(result: Result) -> None:
    """Figures as a table, then the questions whose source was not among the first five."""
    from rich.console import Console
    from rich.table import Table

    console, table, figures = Console(highlight=False), Table(box=None), result.figures
    for name in asdict(figures):
        table.add_column(name, justify="right")
    table.add_row(*(f"{value:g}" for value in asdict(figures).values()))
    console.print(table)
    for question in result.missed:
        console.print(f"not found: {question.question}  ({question.source})", markup=False)
