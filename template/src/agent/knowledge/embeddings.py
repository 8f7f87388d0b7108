"""Texts as vectors, from any server that speaks OpenAI's `/v1/embeddings`.

The local model is such a server as well: one process beside the worker (embedder.py), on a Unix socket, for all of the
worker's calls.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import numpy as np
from numpy.typing import NDArray

from agent.circuit_breaker import CircuitBreaker
from agent.knowledge import About, Embedder, KnowledgeUnavailable
from agent.settings import Settings

log = logging.getLogger("agent.knowledge")

SHARE = 0.6  # of what an answer waits for the documents, for the question's vector
SOCKET = "_AGENT_EMBEDDER"  # where the worker tells its jobs the socket
LOCAL_MODEL, SERVED_MODEL = "sentence-transformers/all-MiniLM-L6-v2", "text-embedding-3-small"
ANSWER_SECONDS = 60.0  # for a batch of an ingest; a call has a deadline of its own


def model_of(settings: Settings) -> str:
    """The name of the model that the settings choose; empty for none."""
    if settings.embeddings == "none":
        return ""
    return settings.embeddings_model or (
        LOCAL_MODEL if settings.embeddings == "local" else SERVED_MODEL
    )


@asynccontextmanager
async def embedder_of(settings: Settings) -> AsyncIterator[Embedder | None]:
    """Yield what the settings choose, None if they choose none; closed on exit. The first use connects."""
    if settings.embeddings == "none":
        yield None
        return
    socket = os.environ.get(SOCKET, "") if settings.embeddings == "local" else ""
    connector = aiohttp.UnixConnector(socket) if socket else None
    base = "http://embedder/v1" if settings.embeddings == "local" else settings.embeddings
    timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS, connect=5)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as client:
        yield HttpEmbedder(
            client, base, settings, reachable=bool(socket) or settings.embeddings != "local"
        )


class HttpEmbedder:
    """An `Embedder`."""

    def __init__(
        self, client: aiohttp.ClientSession, base: str, settings: Settings, *, reachable: bool
    ) -> None:
        self.model = model_of(settings)
        self._client, self._url, self._reachable = client, f"{base}/embeddings", reachable
        parts = urlsplit(base)  # without a user and a password
        address = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        self._where = "the local embedder" if settings.embeddings == "local" else address
        key = settings.embeddings_key.get_secret_value()
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Ask the server; vectors come back in any order, and are made as long as 1."""
        if not self._reachable:
            raise KnowledgeUnavailable(
                "the local embedder is not running: `agent start`, `dev` and `chat` start it"
            )
        try:
            try:
                found = await self._asked(texts)
            except (
                aiohttp.ServerDisconnectedError
            ):  # it had closed a connection that was not used for a while
                found = await self._asked(texts)
            rows = sorted(found["data"], key=lambda row: int(row["index"]))
            vectors = np.array([row["embedding"] for row in rows], dtype=np.float32)
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise KnowledgeUnavailable(
                f"{self._where} gives no embeddings ({type(error).__name__}): start it, or correct AGENT_EMBEDDINGS"
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
        return vectors / np.maximum(lengths, 1e-12)  # type: ignore[no-any-return]

    async def _asked(self, texts: Sequence[str]) -> Any:
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


class Meaning:
    """Questions of a call as vectors. Late, dead or of another model, the answer goes on by words alone."""

    def __init__(self, embedder: Embedder | None, settings: Settings) -> None:
        self._embedder, self._seconds = embedder, settings.knowledge_seconds * SHARE
        self._breaker = CircuitBreaker(settings.data / "embedder.outage")
        self._warned = False
        self._asking: set[asyncio.Task[NDArray[np.float32]]] = set()

    async def of(self, question: str) -> NDArray[np.float32] | None:
        """The question as a vector of length 1, None if there is none in time."""
        if self._embedder is None or self._breaker.open:
            return None
        asking = asyncio.create_task(self._embedder.embed([question]), name="embed a question")
        self._asking.add(
            asking
        )  # to its end, though nobody may wait for it: cancelled, it would cost the connection
        asking.add_done_callback(self._asked)
        done, _ = await asyncio.wait([asking], timeout=self._seconds)
        error = asking.exception() if done else None
        if not done or isinstance(error, KnowledgeUnavailable):
            self._breaker.failed()
            self._warn(str(error or f"no embedding within {self._seconds:g} s"))
            return None
        (vector,) = asking.result()
        self._breaker.worked()
        return vector  # type: ignore[no-any-return]

    def _asked(self, asking: asyncio.Task[NDArray[np.float32]]) -> None:
        self._asking.discard(asking)
        if not asking.cancelled():
            asking.exception()  # whoever still waits for it is told; nobody else needs to be

    def fits(self, about: About, vector: NDArray[np.float32]) -> bool:
        """Whether the index was made with this model; told once if it was not."""
        assert self._embedder is not None
        if (about.model, about.dimension) == (self._embedder.model, len(vector)):
            return True
        made = f"{about.model} of {about.dimension} numbers" if about.model else "none"
        self._warn(
            f"the index was made with the embeddings of {made}, not {self._embedder.model} of {len(vector)}: "
            "run `agent ingest`"
        )
        return False

    def _warn(self, sentence: str) -> None:
        level = logging.DEBUG if self._warned else logging.WARNING
        degraded = {} if self._warned else {"fields": {"degraded": "embedder"}}
        log.log(level, "documents are found by their words alone: %s", sentence, extra=degraded)
        self._warned = True
