"""What can be ordered to go wrong, and what a client gets then."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from aiohttp import web

Endpoint = Literal["models", "chat", "transcriptions", "speech", "embeddings", "realtime"]
Kind = Literal[
    "401",  # the key is refused
    "429",  # too many requests; Retry-After says when to come back
    "500",
    "hang",  # the request is taken, and never answered
    "silent",  # the answer begins with its headers, and nothing follows
    "cut",  # the connection ends in the middle of the answer
    "garbage",  # a web page with status 200, as a wrong address or a proxy gives
]
ENDPOINTS: tuple[Endpoint, ...] = get_args(Endpoint)
KINDS: tuple[Kind, ...] = get_args(Kind)

GARBAGE = "<!doctype html><title>Welcome</title><p>It works!</p>"


@dataclass(eq=False)
class Refusal(Exception):
    """A request that is answered with an error, in OpenAI's words and form."""

    status: int
    message: str
    type: str = "invalid_request_error"
    code: str | None = None
    param: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def error(self) -> dict[str, Any]:
        """What is in an answer's `error`."""
        return {
            "message": self.message,
            "type": self.type,
            "param": self.param,
            "code": self.code,
        }

    def response(self) -> web.Response:
        return web.json_response({"error": self.error}, status=self.status, headers=self.headers)


@dataclass
class Fault:
    """One fault of one endpoint, for `times` requests or all, after those that are still good."""

    kind: Kind
    times: int | None = None
    retry_after: int = 1
    after: int = 0
    # whoever waits for a fault that is over is cut off
    over: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def refusal(self) -> Refusal | None:
        """The error of a fault that is one."""
        match self.kind:
            case "401":
                message = "Incorrect API key provided: sk-...rong."
                return Refusal(401, message, code="invalid_api_key")
            case "429":
                return Refusal(
                    429,
                    f"Rate limit reached for requests. Please try again in {self.retry_after}s.",
                    type="requests",
                    code="rate_limit_exceeded",
                    headers={"Retry-After": str(self.retry_after)},
                )
            case "500":
                message = "The server had an error while processing your request. Sorry about that!"
                return Refusal(500, message, type="server_error")
            case _:
                return None
