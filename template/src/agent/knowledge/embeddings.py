"""Texts as vectors, from any server that speaks OpenAI's `/v1/embeddings`.

The local model is such a server as well: one process beside the worker (embedder.py), on a Unix
socket, for all of the worker's calls.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import numpy as np
from numpy.typing import NDArray

from agent.circuit_breaker import CircuitBreaker, LeftAlone, Unanswered
from agent.knowledge import Embedder, IndexManifest, KnowledgeUnavailable
from agent.settings import Settings
from agent.telemetry import Journal

log = logging.getLogger("agent.knowledge")

# of the time that an answer waits for the documents, for the vector of the question
SHARE = 0.6
LOCAL_MODEL, SERVED_MODEL = "sentence-transformers/all-MiniLM-L6-v2", "text-embedding-3-small"
# how AGENT_EMBEDDINGS begins where the local embedder runs: what follows is its socket
UNIX = "unix:"
# for a batch of an ingest; a call has a deadline of its own
EMBEDDING_SECONDS = 60.0


def is_local(settings: Settings) -> bool:
    """Whether a process beside the worker embeds."""
    return settings.embeddings == "local" or settings.embeddings.startswith(UNIX)


def model_of(settings: Settings) -> str:
    """The name of the model that the settings choose; empty for none."""
    if settings.embeddings == "none":
        return ""
    return settings.embeddings_model or (LOCAL_MODEL if is_local(settings) else SERVED_MODEL)


@asynccontextmanager
async def embedder_of(settings: Settings) -> AsyncIterator[Embedder | None]:
    """Yield the embedder of the settings, None if they choose none; the first use connects."""
    if settings.embeddings == "none":
        yield None
        return
    runs = settings.embeddings.startswith(UNIX)
    connector = aiohttp.UnixConnector(settings.embeddings.removeprefix(UNIX)) if runs else None
    timeout = aiohttp.ClientTimeout(total=EMBEDDING_SECONDS, connect=5)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as client:
        yield HttpEmbedder(client, settings)


class HttpEmbedder:
    """An `Embedder`."""

    def __init__(self, client: aiohttp.ClientSession, settings: Settings) -> None:
        self.model, self._client = model_of(settings), client
        self._reachable = settings.embeddings != "local"
        local = is_local(settings)
        base = "http://embedder/v1" if local else settings.embeddings
        self._url = f"{base}/embeddings"
        # without a user and a password
        parts = urlsplit(base)
        address = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        self._where = "the local embedder" if local else address
        key = settings.embeddings_key.get_secret_value()
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Ask the server; vectors come back in any order, and are scaled to length 1."""
        if not self._reachable:
            raise KnowledgeUnavailable(
                "the local embedder is not running: `agent start`, `dev` and `chat` start it"
            )
        try:
            try:
                found = await self._ask(texts)
            except aiohttp.ServerDisconnectedError:
                # it had closed a connection that was not used for a while
                found = await self._ask(texts)
            rows = sorted(found["data"], key=lambda row: int(row["index"]))
            vectors = np.array([row["embedding"] for row in rows], dtype=np.float32)
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise KnowledgeUnavailable(
                f"{self._where} gives no embeddings ({type(error).__name__}): start it, or correct "
                "AGENT_EMBEDDINGS"
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise KnowledgeUnavailable(
                f"{self._where} does not answer as /v1/embeddings does: correct AGENT_EMBEDDINGS"
            ) from error
        if vectors.ndim != 2 or len(vectors) != len(texts):
            raise KnowledgeUnavailable(
                f"{self._where} answers {len(vectors)} vectors for {len(texts)} texts"
            )
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        # numpy's types differ: for Python 3.11 this is Any, for newer ones an array of floats
        unit: NDArray[np.float32] = (vectors / np.maximum(lengths, 1e-12)).astype(
            np.float32, copy=False
        )
        return unit

    async def _ask(self, texts: Sequence[str]) -> Any:
        asked = {"model": self.model, "input": list(texts), "encoding_format": "float"}
        async with self._client.post(self._url, json=asked, headers=self._headers) as answer:
            if answer.status != 200:
                raise KnowledgeUnavailable(self._refused(answer.status))
            return await answer.json(content_type=None)

    def _refused(self, status: int) -> str:
        cure = {
            401: "correct AGENT_EMBEDDINGS_KEY",
            403: "correct AGENT_EMBEDDINGS_KEY",
            404: "correct AGENT_EMBEDDINGS (it ends in /v1) or AGENT_EMBEDDINGS_MODEL",
            429: "it has had too many requests",
        }.get(status, "its own log says why")
        return f"{self._where} refuses embeddings of {self.model} (HTTP {status}): {cure}"


class QuestionEmbedder:
    """The `Questions` of a call."""

    def __init__(self, embedder: Embedder | None, settings: Settings, journal: Journal) -> None:
        self._embedder, self._journal = embedder, journal
        self._seconds = settings.knowledge_seconds * SHARE
        outage = settings.data / "embedder.outage"
        self._breaker = CircuitBreaker("the embedder", outage, opened_by=(KnowledgeUnavailable,))
        self._asking: set[asyncio.Task[NDArray[np.float32]]] = set()

    async def embed(self, question: str) -> NDArray[np.float32] | None:
        if (embedder := self._embedder) is None:
            return None
        try:
            (vector,) = await self._breaker.ask(
                lambda: self._to_the_end(embedder, question), self._seconds
            )
        except LeftAlone:
            return None
        except (KnowledgeUnavailable, Unanswered) as error:
            self._warn(str(error))
            return None
        return vector  # type: ignore[no-any-return]

    def _to_the_end(self, embedder: Embedder, question: str) -> asyncio.Future[NDArray[np.float32]]:
        """Ask, and go on when nobody waits any longer: cancelling would cost the connection."""
        asking = asyncio.create_task(embedder.embed([question]), name="embed a question")
        self._asking.add(asking)
        asking.add_done_callback(self._asked)
        return asyncio.shield(asking)

    def _asked(self, asking: asyncio.Task[NDArray[np.float32]]) -> None:
        self._asking.discard(asking)
        # retrieved, because nobody may be waiting for it
        if not asking.cancelled():
            asking.exception()

    def fits(self, manifest: IndexManifest, vector: NDArray[np.float32]) -> bool:
        assert self._embedder is not None
        model, dimension = self._embedder.model, len(vector)
        if (manifest.model, manifest.dimension) == (model, dimension):
            return True
        made = f"{manifest.model} of {manifest.dimension} numbers" if manifest.model else "none"
        self._warn(
            f"the index was made with the embeddings of {made}, not {model} of {dimension}: "
            "run `agent ingest`"
        )
        return False

    def _warn(self, sentence: str) -> None:
        sentence = f"documents are found by their words alone: {sentence}"
        self._journal.warn_once("embedder", log, sentence)
