"""The worker's part in the callers' memory: what calls could not have written, it has written later."""

from __future__ import annotations

import asyncio
import logging

from agent.memory import spool
from agent.memory.call_memory import breaker_of
from agent.memory.store import MemoryUnavailable
from agent.settings import Settings

log = logging.getLogger("agent.memory")

DELIVERY_SECONDS = 5.0  # between looks into the spool; whoever finds it empty asks no store


async def keep_delivering(settings: Settings) -> None:
    """Deliver what waits in the spool, now and whenever the store may be back, until cancelled; raises nothing."""
    told = False
    while True:
        try:
            await deliver(settings)
            told = False
        except Exception as error:
            if not told:
                why = (
                    error
                    if isinstance(error, MemoryUnavailable | OSError)
                    else type(error).__name__
                )
                log.warning("memory: what earlier calls have left is not delivered yet: %s", why)
            told = True
        await asyncio.sleep(DELIVERY_SECONDS)


async def deliver(settings: Settings) -> None:
    """Deliver what waits, and let calls ask the store again if it takes it. Raises MemoryUnavailable, OSError."""
    if written := await spool.deliver(settings):
        breaker_of(settings).worked()
        log.info(
            "memory: %d turns, notes and records of earlier calls have been delivered", written
        )
