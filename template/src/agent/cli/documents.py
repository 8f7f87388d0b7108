"""The commands that look after the index of documents, and what a worker does before it starts."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from agent.cli.checks import Finding, fail
from agent.cli.terminal import busy, make_console, progress_bar, report
from agent.knowledge import IngestReport, KnowledgeUnavailable, index_of, local_embedder
from agent.settings import Settings, load_settings

if TYPE_CHECKING:
    from agent.knowledge.evaluate import Result

# What reads documents, and numpy, takes most of a second to import: the functions do it.


def ingest(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[PATH]...", help="Folders and files instead of knowledge/; remembered."
        ),
    ] = None,
) -> int:
    """Read the documents into the index that answers are looked up in; a worker does it too.

    Markdown, text, HTML and PDF; only what has changed is read again. Exit code 2 if a document
    had to be left out.
    """
    done = asyncio.run(_ingest(load_settings(), paths or []))
    changes = f", unchanged {done.unchanged}" * bool(done.unchanged)
    changes += f", removed {done.removed}" * bool(done.removed)
    report(f"documents indexed: {done.documents}, passages: {done.passages}{changes}")
    return 2 if done.skipped else 0


def evaluate(
    file: Annotated[
        Path,
        typer.Argument(help='JSON lines, such as {"question": "…", "source": "opening-hours.md"}.'),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Measure how often the documents that answer are found: recall at 1, 3 and 5, and more.

    Also the mean reciprocal rank, and the milliseconds of a search.
    """
    from agent.knowledge.evaluate import evaluate, questions_in

    settings = load_settings()
    questions = questions_in(file)

    async def run() -> Result:
        async with local_embedder(settings, wait=True, alone=True) as inside:
            with progress_bar("asking the questions") as progress:
                return await evaluate(inside, questions, progress)

    result = asyncio.run(run())
    if as_json:
        print(json.dumps(asdict(result.figures)))
    else:
        print_result(result)
    return 0


def download_files() -> int:
    """Fetch the embedding model that AGENT_EMBEDDINGS=local needs, for a start without a network.

    It is put into models/.
    """
    from agent.knowledge.embedder import load, models_folder
    from agent.knowledge.embeddings import model_of

    settings = load_settings()
    if settings.knowledge == "none" or settings.embeddings != "local":
        report("there is nothing to fetch: AGENT_EMBEDDINGS is not local")
        return 0
    with busy(f"fetching {model_of(settings)}"):
        load(model_of(settings), settings.home, download=True)
    report(f"{model_of(settings)} is in {models_folder(settings.home)}")
    return 0


def print_result(result: Result) -> None:
    """Print the figures as a table, then the questions whose source was not in the first five."""
    console, table, figures = make_console(), Table(box=None), asdict(result.figures)
    for name in figures:
        table.add_column(name, justify="right")
    table.add_row(*(f"{value:g}" for value in figures.values()))
    console.print(table)
    for question in result.missed:
        console.print(f"not found: {question.question}  ({question.source})", markup=False)


# ---------------------------------------------------------------------- before a worker starts


def index_changed_documents(settings: Settings) -> None:
    """Index the documents if they changed; raises KnowledgeUnavailable if there are none to read.

    An index that several machines share is left alone: that it is not up to date is reported. An
    embedder that fails costs the vectors, not the start.
    """
    try:
        with busy("reading the documents"):
            done = asyncio.run(_index_changed_documents(settings))
    except KnowledgeUnavailable as error:
        if settings.knowledge != "pgvector":
            raise
        # and calls find them as soon as the server is there
        report(f"calls go on without documents: {error}")
        return
    if done is not None:
        for skipped in done.skipped:
            report(f"{skipped.source} is left out: it {skipped.reason}")
        report(f"documents indexed: {done.documents}, passages: {done.passages}")


async def _index_changed_documents(settings: Settings) -> IngestReport | None:
    from agent.knowledge.ingest import is_current, stale

    index = index_of(settings)
    if not await stale(settings):
        return None
    if index.shared:
        what = "the index in PostgreSQL is missing or not made from these documents"
        report(f"{what}: run `agent ingest`")
        return None
    try:
        return await _ingest(settings, names=False)
    except KnowledgeUnavailable as error:
        if settings.embeddings == "none":
            raise
        old = await index.manifest()
        if old is not None and is_current(old, settings):
            report(f"the index stays as it was, without what has changed: {error}")
            return None
        report(f"documents are indexed by their words alone: {error}")
        return await _ingest(settings.model_copy(update={"embeddings": "none"}), names=False)


async def _ingest(
    settings: Settings, paths: Sequence[Path] = (), *, names: bool = True
) -> IngestReport:
    """Bring the index up to date; `names` prints each document that is read."""
    from agent.knowledge.ingest import ingest

    async with local_embedder(settings, wait=True, alone=True) as inside:
        with progress_bar("reading the documents") as progress:
            return await ingest(
                inside,
                paths,
                lambda line, done, total: progress(line if names else "", done, total),
            )


# ---------------------------------------------------------------------- for `agent doctor`


async def document_findings(settings: Settings) -> list[Finding]:
    """What can be indexed, whether the index is made from just that, and what else finds it."""
    from agent.knowledge.ingest import stale

    found: list[Finding] = []
    try:
        found += await _reading(settings)
        if not await stale(settings):
            found.append(Finding("ok", "index", "up to date"))
        else:
            what = "the index is missing or older than the documents"
            also = "" if settings.knowledge == "pgvector" else "; `start` and `chat` do it too"
            found.append(Finding("warn", "index", what, f"run `agent ingest`{also}"))
    except KnowledgeUnavailable as error:
        return [*found, fail("documents", str(error))]
    try:
        return [*found, await _embedder(settings)]
    except KnowledgeUnavailable as error:
        return [*found, fail("embedder", str(error))]


async def _reading(settings: Settings) -> list[Finding]:
    from agent.knowledge.documents import READABLE, documents_in, roots_of

    manifest = await index_of(settings).manifest()
    try:
        roots = roots_of(settings, [Path(root) for root in manifest.roots] if manifest else ())
    except KnowledgeUnavailable as error:
        if manifest is None:
            raise
        sentence = f"{error}; the index has {len(manifest.digests)} documents"
        return [replace(fail("documents", sentence), level="warn")]
    found: list[Finding] = []
    documents, passages = 0, 0
    for document in documents_in(roots):
        problem = document.problem
        try:
            passages += 0 if problem else len(document.passages())
        except KnowledgeUnavailable as error:
            problem = str(error)
        if problem:
            finding = fail("documents", f"{document.source} {problem}")
            found.append(replace(finding, level="warn"))
        else:
            documents += 1
    if not documents:
        raise KnowledgeUnavailable(
            f"{settings.documents} has no document that can be read: "
            f"put documents there ({READABLE})"
        )
    what = f"{documents} in {', '.join(map(str, roots))}, passages: {passages}"
    return [*found, Finding("ok", "documents", what)]


async def _embedder(settings: Settings) -> Finding:
    from agent.knowledge.embeddings import SHARE, embedder_of

    if settings.embeddings == "none":
        what = (
            "documents are found by their words alone: a model finds about one answer in ten more"
        )
        choose = "set AGENT_EMBEDDINGS=local or to a server's address (docs/agent/knowledge.md)"
        return Finding("ok", "embedder", what, f"{choose}, or leave it")
    async with local_embedder(settings, wait=True) as inside, embedder_of(inside) as embedder:
        assert embedder is not None
        dimension = (await embedder.embed(["Are you there?"])).shape[1]
        began = time.monotonic()
        await embedder.embed(["How long do you take?"])
        seconds = time.monotonic() - began
    what = f"{embedder.model} answers with {dimension} numbers in {seconds * 1000:.0f} ms"
    patience = settings.knowledge_seconds * SHARE
    if seconds < patience:
        return Finding("ok", "embedder", what)
    what += f", and a call waits {patience * 1000:.0f} ms for it"
    cure = "raise AGENT_KNOWLEDGE_SECONDS, or take one that is nearer"
    return Finding("warn", "embedder", what, cure)
