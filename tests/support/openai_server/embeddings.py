"""`/v1/embeddings`: simple vectors, as numbers or in base64; texts about one thing are alike."""

from __future__ import annotations

import base64
import struct
from typing import Any

from tests.support.embeddings_server import THINGS, vector_of
from tests.support.openai_server.requests import Answer, Asked, as_json, required


def embeddings(asked: Asked) -> Answer:
    """A vector for each text of a request; raises Refusal."""
    required(asked, "model", "input")
    given = asked.body["input"]
    texts = [given] if isinstance(given, str) else given
    dimension = asked.body.get("dimensions") or len(THINGS) + 1
    packed = asked.body.get("encoding_format") == "base64"
    rows = [
        {"object": "embedding", "index": at, "embedding": _packed(vector) if packed else vector}
        for at, vector in enumerate(vector_of(text, dimension) for text in texts)
    ]
    usage = {"prompt_tokens": len(texts), "total_tokens": len(texts)}
    return as_json({"object": "list", "data": rows, "model": asked.body["model"], "usage": usage})


def _packed(vector: list[Any]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
