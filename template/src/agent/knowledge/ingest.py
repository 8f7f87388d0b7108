"""Documents into the index: only what has changed, and all of it at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agent.knowledge import (
    About,
    Embedder,
    IngestReport,
    KnowledgeUnavailable,
    Skipped,
    Writer,
    index_of,
)
from agent.knowledge.chunks import SCHEMA
from agent.knowledge.documents import KINDS, Document, documents_in, roots_of
from agent.knowledge.embeddings import embedder_of, model_of
from agent.settings import Settings

BATCH = 16  # texts that are embedded at once: the local model needs gigabytes for a few hundred
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds, before a batch is tried again

Progress = Callable[[str, int, int], None]
"""Told of each document: a line about it (empty if there is nothing to say), how many are done, how many there are."""


def _silent(line: str, done: int, documents: int) -> None:
    pass


async def ingest(
    settings: Settings, paths: Sequence[Path] = (), progress: Progress = _silent
) -> IngestReport:
    """Bring the index up to date with the documents below `paths`, else those given before, else knowledge/.

    Raises KnowledgeUnavailable if there is nothing to read, nothing to embed it or nowhere to write; the old index
    then stays.
    """
    if (index := index_of(settings)) is None:
        raise KnowledgeUnavailable(
            "this agent looks nothing up (AGENT_KNOWLEDGE=none), so there is nothing to ingest"
        )
    old = await index.about()
    given = paths or ([Path(root) for root in old.roots] if old else [])
    roots = roots_of(settings, given)
    digests = {document.source: document.digest for document in documents_in(roots)}
    async with AsyncExitStack() as stack:
        embedder = await stack.enter_async_context(embedder_of(settings))
        dimension = len((await embedder.embed(["How long is a vector?"]))[0]) if embedder else 0
        about = About(
            SCHEMA, model_of(settings), dimension, tuple(map(str, roots)) if given else (), digests
        )
        known = old.digests if old and old.fits(about) else {}
        writer = await stack.enter_async_context(index.rebuild(about))
        pipe = _Pipe(writer, embedder, progress, len(digests))
        for document in documents_in(roots):
            await pipe.take(document, keep=known.get(document.source) == document.digest)
        await pipe.flush()
        if not pipe.documents:
            first = f"; {pipe.skipped[0].source} {pipe.skipped[0].reason}" if pipe.skipped else ""
            raise KnowledgeUnavailable(
                f"{', '.join(map(str, roots))} has no document that can be read{first}: put documents there ({KINDS})"
            )
    removed = len(set(old.digests if old else ()) - set(digests))
    return replace(pipe.report(), removed=removed)


async def stale(settings: Settings) -> bool:
    """Whether the documents are not the ones in the index, or it is damaged, or made for another model.

    Nor is it for want of documents on this machine: they may be on another one, or on a disk that is not there yet.
    """
    if (index := index_of(settings)) is None:
        return False
    about = await index.about()
    if about is None or about.schema != SCHEMA or about.model != model_of(settings):
        return True
    roots = [Path(root) for root in about.roots] or [settings.documents]
    if not all(root.exists() for root in roots):
        return not index.shared and not about.roots
    return about.digests != {document.source: document.digest for document in documents_in(roots)}


async def _patiently(embedder: Embedder, texts: list[str]) -> NDArray[np.float32]:
    """Embed, though the server may have had enough for a moment: thousands of passages are not lost for one of them."""
    for pause in PAUSES:
        try:
            return await embedder.embed(texts)
        except KnowledgeUnavailable:
            await asyncio.sleep(pause)
    return await embedder.embed(texts)


class _Pipe:
    """Documents on their way into the index, a batch at a time, so that memory stays flat."""

    def __init__(
        self, writer: Writer, embedder: Embedder | None, progress: Progress, of: int
    ) -> None:
        self._writer, self._embedder, self._progress, self._of = writer, embedder, progress, of
        self._waiting: list[tuple[str, list[tuple[str, str]]]] = []
        self._done = 0
        self.documents, self.passages, self.unchanged = 0, 0, 0
        self.skipped: list[Skipped] = []

    async def take(self, document: Document, *, keep: bool) -> None:
        """Keep, read or skip a document."""
        if not document.problem and keep and (passages := await self._writer.keep(document.source)):
            self.unchanged += 1
            self._count(passages)
            return self._tell("")
        try:
            if document.problem:
                raise KnowledgeUnavailable(document.problem)
            pieces = await asyncio.to_thread(document.passages)  # a large PDF takes its time
        except KnowledgeUnavailable as error:
            self.skipped.append(Skipped(document.source, str(error)))
            return self._tell(f"{document.source} skipped: it {error}")
        self._count(len(pieces))
        self._waiting.append((document.source, pieces))
        self._tell(
            f"{document.source}: {len(pieces)} passage{'' if len(pieces) == 1 else 's'}", done=0
        )
        if sum(len(pieces) for _, pieces in self._waiting) >= BATCH:
            await self.flush()
        return None

    async def flush(self) -> None:
        """Embed and write what waits."""
        texts = [f"{title}\n{text}" for _, pieces in self._waiting for title, text in pieces]
        vectors = await self._embedded(texts)
        start = 0
        for source, pieces in self._waiting:
            end = start + len(pieces)
            await self._writer.add(source, pieces, None if vectors is None else vectors[start:end])
            start = end
            self._tell("")
        self._waiting.clear()

    async def _embedded(self, texts: list[str]) -> NDArray[np.float32] | None:
        if self._embedder is None or not texts:
            return None
        batches = [
            await _patiently(self._embedder, texts[at : at + BATCH])
            for at in range(0, len(texts), BATCH)
        ]
        return np.concatenate(batches)

    def _count(self, passages: int) -> None:
        self.documents, self.passages = self.documents + 1, self.passages + passages

    def _tell(self, line: str, done: int = 1) -> None:
        self._done += done
        self._progress(line, self._done, self._of)

    def report(self) -> IngestReport:
        return IngestReport(self.documents, self.passages, self.skipped, self.unchanged)
