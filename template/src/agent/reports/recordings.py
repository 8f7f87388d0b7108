"""Recordings of calls: one file each in `AGENT_DATA_DIR/recordings`, kept as long as reports.

Beside each is a file with digests of what its caller is known by, so that it can be forgotten.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from agent.reports.delivery import DAY, key_digest
from agent.settings import Settings

log = logging.getLogger("agent.reports")

# between two looks for what is too old
TIDY_SECONDS = 3600.0


def folder_of(settings: Settings) -> Path:
    """Where the recordings are."""
    return settings.data / "recordings"


def prepare(settings: Settings, call: str, keys: Iterable[str]) -> Path:
    """The file that a call is to be recorded into, which nobody else may read. Raises OSError."""
    folder = folder_of(settings)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = folder / f"{re.sub(r'[^A-Za-z0-9_-]', '_', call)}.ogg"
    for made in (file, _digests_of(file)):
        made.touch(mode=0o600)
    digests = [key_digest(settings, key) for key in keys]
    _digests_of(file).write_text(json.dumps(digests), encoding="ascii")
    return file


def forget(settings: Settings, keys: Iterable[str]) -> int:
    """Delete the recordings of a caller, by every key of theirs; how many. Raises OSError."""
    digests, gone = {key_digest(settings, key) for key in keys}, 0
    for file in folder_of(settings).glob("*.ogg"):
        with suppress(FileNotFoundError, ValueError):
            if digests & set(json.loads(_digests_of(file).read_text(encoding="ascii"))):
                _delete(file)
                gone += 1
    return gone


def tidy(settings: Settings) -> None:
    """Delete the recordings that are older than `memory_days`. Raises OSError."""
    oldest = time.time() - settings.memory_days * DAY
    for file in folder_of(settings).glob("*.ogg"):
        with suppress(FileNotFoundError):
            if file.stat().st_mtime < oldest:
                _delete(file)


async def keep_tidy(settings: Settings) -> None:
    """Delete what is too old, now and each hour, until cancelled; raises nothing."""
    while True:
        try:
            tidy(settings)
        except OSError as error:
            log.warning("old recordings cannot be deleted: %s", error)
        await asyncio.sleep(TIDY_SECONDS)


def _digests_of(file: Path) -> Path:
    return file.with_suffix(".json")


def _delete(file: Path) -> None:
    # first what is said; without the digests nobody could be asked to forget it
    os.unlink(file)
    _digests_of(file).unlink(missing_ok=True)
