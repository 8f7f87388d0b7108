"""An owner's resources that fail if the room's name, TROUBLE--anything, asks for it."""

from __future__ import annotations

import asyncio
import logging.config
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp

from agent.lifecycle import Call

# as in a program of its own: it disables the loggers that it does not name, and closes handlers
logging.config.dictConfig({"version": 1})


@dataclass(frozen=True)
class Resources:
    """What tools use."""

    http: aiohttp.ClientSession


@asynccontextmanager
async def http_client() -> AsyncIterator[aiohttp.ClientSession]:
    """A client that works."""
    async with aiohttp.ClientSession() as client:
        yield client


@asynccontextmanager
async def pool(trouble: str) -> AsyncIterator[None]:
    """A pool that may fail."""
    if trouble == "open-fails":
        raise ConnectionError("the database is down")
    if trouble == "open-hangs":
        await asyncio.Event().wait()
    if trouble == "open-is-slow":
        await asyncio.sleep(6)
    yield
    if trouble == "close-hangs":
        await asyncio.Event().wait()
    if trouble == "close-raises":
        raise ConnectionError("the connection was lost")
    if trouble == "close-is-slow":
        await asyncio.sleep(1)
    until = asyncio.get_running_loop().time() + 30
    while trouble == "close-clings" and asyncio.get_running_loop().time() < until:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            continue


async def open_resources(call: Call) -> Resources:
    """Open a client and a pool."""
    client = await call.open("http", http_client())
    trouble = call.transport.room_name.partition("--")[0]
    await call.open("pool", pool(trouble), open_seconds=7 if trouble == "open-is-slow" else 2)
    return Resources(client)
