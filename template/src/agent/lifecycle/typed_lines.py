"""Lines that a caller types, answered one after another."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from agent.lifecycle import timeouts

if TYPE_CHECKING:
    from agent.lifecycle.call import Call


class TypedLines:
    """The typed lines of one call."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._turn = asyncio.Lock()  # those who wait for it get it in their order

    async def answer(self, text: str) -> None:
        """Answer a line, when the answers to those before it are said and nobody speaks.

        It cuts nothing off, and is not lost.
        """
        call = self._call
        if (session := call.session) is None or call.reason is not None:
            return
        session.reset_away_timer()
        async with self._turn:
            if not await call.wait_for_turn():
                return
            try:
                await session.wait_for_idle()
            except Exception:
                if call.reason is None:
                    raise
            if call.reason is not None:  # nobody is answered after the goodbye
                return
            said = asyncio.ensure_future(session.generate_reply(user_input=text).wait_for_playout())
            # a tool of this answer may take long, or ask the caller something
            asked = asyncio.create_task(call.steps.asking.wait())
            seconds = timeouts.TYPED_SECONDS
            await asyncio.wait([said, asked], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            for wait in (said, asked):
                wait.cancel()
