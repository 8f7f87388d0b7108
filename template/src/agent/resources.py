"""YOURS: your own pools and clients, opened for a call and closed for you however it ends.

Updates of the template never touch this file.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp

from agent.lifecycle import Call


@dataclass(frozen=True)
class Resources:
    """What your tools use: `self.call.resources.http` in persona.py."""

    http: aiohttp.ClientSession


@asynccontextmanager
async def http_client() -> AsyncIterator[aiohttp.ClientSession]:
    """An HTTP client for one call; replace it with your database pool, or add one beside it."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as client:
        yield client


async def open_resources(call: Call) -> Resources:
    """Open what a call needs; each `call.open` is closed for you, once, in reverse order."""
    return Resources(http=await call.open("http", http_client()))
