"""A server of `/v1/embeddings` on loopback with simple vectors: texts about one thing are alike."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

THINGS = [
    ("dog", "dogs", "hound", "poodle", "pet"),
    ("parking", "park", "car", "vehicle", "automobile"),
    ("refund", "refunds", "cancelled", "money", "reimbursed"),
]


class EmbeddingsServer:
    """The requests so far, and how the server answers from now on."""

    def __init__(self) -> None:
        self.url = ""
        self.texts: list[str] = []
        self.keys: list[str] = []
        self.dimension = len(THINGS) + 1
        self.status = 200
        # a status by the number of the request, from 1
        self.refusals: dict[int, int] = {}
        self.asked = asyncio.Event()
        # instead of vectors
        self.answer: Any = None
        self.stalled = asyncio.Event()
        self.stalled.set()

    async def _embeddings(self, request: web.Request) -> web.Response:
        asked = await request.json()
        self.texts += asked["input"]
        self.keys.append(request.headers.get("Authorization", ""))
        self.asked.set()
        await self.stalled.wait()
        if refusal := self.refusals.get(len(self.keys)):
            return web.json_response({}, status=refusal)
        if self.status != 200:
            return web.json_response({"error": {"message": "no"}}, status=self.status)
        if self.answer is not None:
            return web.json_response(self.answer)
        rows = [
            {"index": at, "embedding": vector_of(text, self.dimension)}
            for at, text in enumerate(asked["input"])
        ]
        # the order is not promised
        return web.json_response({"data": rows[::-1]})


def vector_of(text: str, dimension: int) -> list[float]:
    words = text.lower().replace("?", " ").replace(".", " ").split()
    return ([float(sum(word in thing for word in words)) for thing in THINGS] + [0.2] * dimension)[
        :dimension
    ]


@asynccontextmanager
async def embeddings_server() -> AsyncIterator[EmbeddingsServer]:
    """Serve while this is open."""
    server, app = EmbeddingsServer(), web.Application()
    app.router.add_post("/v1/embeddings", server._embeddings)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    addresses: Sequence[Any] = runner.addresses
    server.url = f"http://127.0.0.1:{addresses[0][1]}/v1"
    try:
        yield server
    finally:
        server.stalled.set()
        await runner.cleanup()
