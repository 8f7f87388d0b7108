"""A bucket of S3's protocol, at AWS or elsewhere, in which recordings are kept.

obstore talks to it, which owners add to their project; it reads AWS's own variables.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

from agent.reports import NotDelivered
from agent.settings import Settings

# for one answer, and for it with what is tried again
ANSWER, PATIENCE = timedelta(seconds=30), timedelta(seconds=20)
# of an object: digests of what its caller is known by
CALLERS = "callers"
AT_ONCE = 16


def url_of(settings: Settings, name: str) -> str:
    """Where an object is, or will be; agents that share a bucket have a folder each."""
    return f"{settings.recordings_url}/{settings.name}/{name}"


class Bucket:
    """The recordings of one agent. Everything raises NotDelivered."""

    def __init__(self, settings: Settings) -> None:
        try:
            self._obstore = import_module("obstore")
            self._error = import_module("obstore.exceptions").BaseError
            store = import_module("obstore.store").S3Store
        except ModuleNotFoundError as error:
            raise NotDelivered(
                "AGENT_RECORDINGS_URL needs obstore, which is not installed: run"
                " `uv add 'obstore>=0.12,<1'`"
            ) from error
        self._url = settings.recordings_url
        # whether it is HTTP, the endpoint says
        client = {"timeout": ANSWER, "allow_http": True}
        retries = {"max_retries": 2, "retry_timeout": PATIENCE}
        with self._failing():
            self._store = store.from_url(
                f"{self._url}/{settings.name}", client_options=client, retry_config=retries
            )

    async def check(self) -> None:
        """Whether it answers, and takes the keys."""
        async for _ in self._listed():
            return

    async def put(self, name: str, file: Path, digests: list[str]) -> None:
        """Copy a recording there; the same name replaces it."""
        about = {"Content-Type": "audio/ogg", CALLERS: ",".join(digests)}
        with self._failing():
            await self._obstore.put_async(self._store, name, file, attributes=about)

    async def delete_older(self, days: float) -> None:
        """Delete what has been there for longer."""
        oldest = datetime.now(UTC) - timedelta(days=days)
        await self._delete(
            [one["path"] async for one in self._listed() if one["last_modified"] < oldest]
        )

    async def forget(self, digests: Collection[str]) -> int:
        """Delete the recordings of a caller; how many that were."""
        paths = [one["path"] async for one in self._listed()]
        free = asyncio.Semaphore(AT_ONCE)

        async def is_theirs(path: str) -> bool:
            async with free:
                with self._failing():
                    found = await self._obstore.get_async(self._store, path, options={"head": True})
            return bool(set(digests) & set(found.attributes.get(CALLERS, "").split(",")))

        theirs = await asyncio.gather(*map(is_theirs, paths))
        return await self._delete([path for path, its in zip(paths, theirs, strict=True) if its])

    async def _listed(self) -> AsyncIterator[Any]:
        with self._failing():
            async for some in self._obstore.list(self._store):
                for one in some:
                    # whatever else is in the folder is not ours
                    if one["path"].endswith(".ogg"):
                        yield one

    async def _delete(self, paths: list[str]) -> int:
        for path in paths:
            with self._failing():
                await self._obstore.delete_async(self._store, path)
        return len(paths)

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except (self._error, ValueError, OSError) as error:
            # the first line says what, the others what Rust calls it
            what = (str(error).splitlines() or [type(error).__name__])[0]
            raise NotDelivered(
                f"the bucket {self._url} does not work ({what}): check AGENT_RECORDINGS_URL, and"
                " AWS's variables for its keys and address"
            ) from error
