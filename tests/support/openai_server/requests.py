"""What was asked, and what is answered: the shapes that all endpoints share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import BodyPartReader, web

from tests.support.openai_server.faults import Endpoint, Refusal

# a model for each endpoint; a server knows these, and refuses others as unknown
MODELS: dict[Endpoint, str] = {
    "chat": "llama3.1",
    "transcriptions": "whisper-tiny",
    "speech": "kokoro",
    "embeddings": "nomic-embed-text",
    "realtime": "gpt-realtime-2.1",
}


@dataclass(frozen=True)
class Asked:
    """One request: where, with which key, and what; of a realtime connection each event is one."""

    endpoint: Endpoint
    key: str
    body: dict[str, Any]
    # what was uploaded
    file: bytes = b""


@dataclass(frozen=True)
class Answer:
    """An answer, which is sent part by part."""

    parts: Sequence[bytes]
    content_type: str = "application/json"


def as_json(answer: object) -> Answer:
    return Answer([json.dumps(answer).encode()])


async def read(endpoint: Endpoint, request: web.Request) -> Asked:
    """A request's body, JSON or a form; raises Refusal."""
    key = request.headers.get("Authorization", "").removeprefix("Bearer ")
    body: dict[str, Any] = dict(request.query)
    if request.method == "GET":
        return Asked(endpoint, key, body)
    if request.content_type != "multipart/form-data":
        try:
            body = await request.json()
        except ValueError as error:
            message = "We could not parse the JSON body of your request."
            raise Refusal(400, message) from error
        return Asked(endpoint, key, body)
    file = b""
    async for part in await request.multipart():
        assert isinstance(part, BodyPartReader)
        if part.filename:
            file, body[part.name or ""] = bytes(await part.read()), part.filename
        else:
            body[part.name or ""] = await part.text()
    return Asked(endpoint, key, body, file)


def required(asked: Asked, *names: str) -> None:
    """Raises Refusal if one of these parameters is missing."""
    for name in names:
        if not asked.body.get(name):
            message = f"Missing required parameter: '{name}'."
            raise Refusal(400, message, code="missing_required_parameter", param=name)
