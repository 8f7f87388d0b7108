"""The page and its token endpoint as an aiohttp application."""

from __future__ import annotations

import gzip
import hashlib
import ipaddress
import logging
import mimetypes
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from aiohttp import web

from agent.transport import Caller
from agent.web.tokens import NO_STORE, Refused, Tokens

log = logging.getLogger("agent.web")

PAGE = Path(__file__).with_name("page")
COOKIE = "agent_visitor"

CallerOf = Callable[[web.Request], Awaitable[Caller | None]]


async def guest(request: web.Request) -> Caller | None:
    """Nobody is known."""
    return None


def web_app(
    tokens: Tokens, caller_of: CallerOf = guest, *, livekit_url: str, page: Path = PAGE
) -> web.Application:
    """The page at /, its files beside it, and POST /token.

    An application of yours can have it below a path: `add_subapp("/talk/", web_app(…))`.
    """
    app = web.Application()
    headers = page_headers(livekit_url)

    async def protect(_: web.Request, response: web.StreamResponse) -> None:
        for name, value in headers.items():
            response.headers.setdefault(name, value)

    app.on_response_prepare.append(protect)
    app.router.add_post("/token", Endpoint(tokens, caller_of).post)
    for path in sorted(page.iterdir()):
        app.router.add_get("/" if path.name == "index.html" else f"/{path.name}", File(path).get)
    return app


def page_headers(livekit_url: str) -> dict[str, str]:
    """What tells a browser to load and reach nothing but this page's own files and LiveKit."""
    parts = urlsplit(livekit_url)
    secure = "s" if parts.scheme in {"wss", "https"} else ""
    hosts = [parts.netloc]
    if (parts.hostname or "").endswith(".livekit.cloud"):
        hosts.append("*.livekit.cloud")  # callers are sent to the region that is near them
    reached = " ".join(f"ws{secure}://{host} http{secure}://{host}" for host in hosts)
    policy = {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self' data:",
        "media-src": "'self'",
        "connect-src": f"'self' {reached}",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return {
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "Permissions-Policy": "microphone=(self), camera=(), display-capture=(), geolocation=()",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
    }


@dataclass(frozen=True)
class Endpoint:
    """POST /token."""

    tokens: Tokens
    caller_of: CallerOf

    async def post(self, request: web.Request) -> web.Response:
        visitor = request.cookies.get(COOKIE) or secrets.token_hex(16)

        async def who() -> Caller | str:
            return await self.caller_of(request) or visitor

        try:
            answer = await self.tokens.answer(
                await request.read(),
                origin=request.headers.get("Origin"),
                address=address_of(request.remote, request.headers.get("X-Forwarded-For")),
                who=who,
            )
        except Refused as refused:
            return web.json_response(refused.json, status=refused.status, headers=refused.headers)
        except web.HTTPException as error:  # the owner's: not for this visitor
            return json_answer({"error": error.text or error.reason}, error.status)
        except Exception:
            log.exception("no call: the token endpoint failed")
            return json_answer({"error": "No call can be started just now."}, 500)
        response = json_answer(answer)
        if not request.cookies.get(COOKIE):
            secure = request.headers["Origin"].startswith("https:")
            response.set_cookie(COOKIE, visitor, httponly=True, samesite="Strict", secure=secure)
        return response


def json_answer(answer: dict[str, str], status: int = 200) -> web.Response:
    """An answer of the endpoint, which nobody keeps."""
    return web.json_response(answer, status=status, headers=NO_STORE)


def address_of(peer: str | None, forwarded: str | None) -> str:
    """Where a request comes from: what the nearest proxy says, if it comes from one beside us."""
    try:
        beside = ipaddress.ip_address(peer or "").is_private
    except ValueError:
        beside = True  # a proxy on a local socket
    said = (forwarded or "").rpartition(",")[2].strip()
    if said.count(":") == 1:  # Azure's gateways say the port, too, which is another every time
        said = said.partition(":")[0]
    return said if beside and said else peer or ""


class File:
    """One file of the page, read once."""

    def __init__(self, path: Path) -> None:
        self._body = path.read_bytes()
        self._zipped = gzip.compress(self._body, mtime=0)
        self._tag = hashlib.sha256(self._body).hexdigest()[:32]
        kind, _ = mimetypes.guess_type(path.name)
        self._headers = {
            "Content-Type": kind or "application/octet-stream",
            "ETag": f'W/"{self._tag}"',
            "Vary": "Accept-Encoding",
            # asked for every time, and answered in a line while it is the same
            "Cache-Control": "no-cache",
        }
        if (kind or "").startswith("text/"):
            self._headers["Content-Type"] += "; charset=utf-8"

    async def get(self, request: web.Request) -> web.Response:
        if any(tag.value in {self._tag, "*"} for tag in request.if_none_match or ()):
            return web.Response(status=304, headers=self._headers)
        if "gzip" in request.headers.get("Accept-Encoding", ""):
            headers = {**self._headers, "Content-Encoding": "gzip"}
            return web.Response(body=self._zipped, headers=headers)
        return web.Response(body=self._body, headers=self._headers)
