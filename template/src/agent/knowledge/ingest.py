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
    Embedder,
    IndexManifest,
    IngestReport,
    KnowledgeUnavailable,
    Skipped,
    Writer,
    index_of,
)
from agent.knowledge.documents import READABLE, Document, documents_in, roots_of
from agent.knowledge.embeddings import embedder_of, model_of
from agent.settings import Settings

# raise it when documents are cut in another way: every index is then built again
SCHEMA = 2
# texts that are embedded at once: the local model needs gigabytes for a few hundred
EMBEDDED_AT_ONCE = 16
# seconds, before a batch is tried again
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)

Progress = Callable[[str, int, int], None]
"""Gets a line about a document, or nothing; how many are done; how many there are."""


def _silent(line: str, done: int, documents: int) -> None:
    pass


async def ingest(
    settings: Settings, paths: Sequence[Path] = (), progress: Progress = _silent
) -> IngestReport:
    """Bring the index up to date with the documents below `paths`.

    Without any, those of the ingest before are read, or the project's knowledge/. Raises
    KnowledgeUnavailable if there is nothing to read, nothing to embed it or nowhere to write; then
    the old index stays.
    """
    index = index_of(settings)
    await index.upgrade()
    old = await index.manifest()
    given = paths or ([Path(root) for root in old.roots] if old else [])
    roots = roots_of(settings, given)
    digests = {document.source: document.digest for document in documents_in(roots)}
    async with AsyncExitStack() as stack:
        embedder = await stack.enter_async_context(embedder_of(settings))
        dimension = len((await embedder.embed(["How long is a vector?"]))[0]) if embedder else 0
        remembered = tuple(map(str, roots)) if given else ()
        manifest = IndexManifest(SCHEMA, model_of(settings), dimension, remembered, digests)
        known = old.digests if old and old.fits(manifest) else {}
        writer = await stack.enter_async_context(index.rebuild(manifest))
        pipe = _Pipe(writer, embedder, progress, len(digests))
        for document in documents_in(roots):
            await pipe.take(document, keep=known.get(document.source) == document.digest)
        await pipe.flush()
        if not pipe.documents:
            first = f"; {pipe.skipped[0].source} {pipe.skipped[0].reason}" if pipe.skipped else ""
            raise KnowledgeUnavailable(
                f"{', '.join(map(str, roots))} has no document that can be read{first}: "
                f"put documents there ({READABLE})"
            )
    removed = len(set(old.digests if old else ()) - set(digests))
    return replace(pipe.report(), removed=removed)


async def stale(settings: Settings) -> bool:
    """Whether the index is damaged, of other documents, or made for another model.

    It is not stale because documents are missing here: they may be on another machine, or on a disk
    that is not mounted yet.
    """
    if settings.knowledge == "none":
        return False
    index = index_of(settings)
    manifest = await index.manifest()
    if manifest is None or not is_current(manifest, settings):
        return True
    roots = [Path(root) for root in manifest.roots] or [settings.documents]
    if not all(root.exists() for root in roots):
        return not index.shared and not manifest.roots
    digests = {document.source: document.digest for document in documents_in(roots)}
    return manifest.digests != digests


def is_current(manifest: IndexManifest, settings: Settings) -> bool:
    """Whether the index was made as it would be made now, whatever the documents are."""
    return manifest.schema == SCHEMA and manifest.model == model_of(settings)


async def _patiently(embedder: Embedder, texts: list[str]) -> NDArray[np.float32]:
    """Embed, also where the server refuses for a moment: that must not cost the whole ingest."""
    for pause in PAUSES:
        try:
            return await embedder.embed(texts)
        except KnowledgeUnavailable:
            await asyncio.sleep(pause)
    return await embedder.embed(texts)


class _Pipe:
    """Documents on their way into the index, a batch at a time, so that memory stays flat."""

    def __init__(
        self, writer: Writer, embedder: Embedder | None, progress: Progress, total: int
    ) -> None:
        self._writer, self._embedder = writer, embedder
        self._progress, self._total = progress, total
        self._waiting: list[tuple[str, list[tuple[str, str]]]] = []
        self._done = 0
        self.documents, self.passages, self.unchanged = 0, 0, 0
        self.skipped: list[Skipped] = []

    async def take(self, document: Document, *, keep: bool) -> None:
        """Keep, read or skip a document."""
        if not document.problem and keep and (passages := await self._writer.keep(document.source)):
            self.unchanged += 1
            self._count(passages)
            return self._report("")
        try:
            # a large PDF takes its time
            pieces = await asyncio.to_thread(document.passages)
        except KnowledgeUnavailable as error:
            self.skipped.append(Skipped(document.source, str(error)))
            return self._report(f"{document.source} skipped: it {error}")
        self._count(len(pieces))
        self._waiting.append((document.source, pieces))
        passage = "passage" if len(pieces) == 1 else "passages"
        self._report(f"{document.source}: {len(pieces)} {passage}", done=0)
        if sum(len(pieces) for _, pieces in self._waiting) >= EMBEDDED_AT_ONCE:
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
            self._report("")
        self._waiting.clear()

    async def _embedded(self, texts: list[str]) -> NDArray[np.float32] | None:
        if self._embedder is None or not texts:
            return None
        batches = [
            await _patiently(self._embedder, texts[at : at + EMBEDDED_AT_ONCE])
            for at in range(0, len(texts), EMBEDDED_AT_ONCE)
        ]
        return np.concatenate(batches)

    def _count(self, passages: int) -> None:
        self.documents, self.passages = self.documents + 1, self.passages + passages

    def _report(self, line: str, done: int = 1) -> None:
        self._done += done
        self._progress(line, self._done, self._total)

    def report(self) -> IngestReport:
        return IngestReport(self.documents, self.passages, self.skipped, self.unchanged)
