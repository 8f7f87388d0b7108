"""YOURS: who calls from your web page.

Updates of the template never touch this file.
"""

from __future__ import annotations

from aiohttp import web

from agent.transport import Caller


async def caller_of(request: web.Request) -> Caller | None:
    """Who is signed in, as your own session says; None for a guest, whom nobody remembers.

    The agent remembers a caller by `identity` and tells them what it knows, so it must be one
    person's, and never what the page itself sends. To take calls of people who have signed in only,
    raise `web.HTTPUnauthorized(text="Sign in to call.")`.
    """
    return None
