"""An OpenAI-compatible server on loopback that answers by a script, and fails as it is ordered.

`async with openai_server() as server:` serves `/v1`: models, chat completions, transcriptions,
speech, embeddings, and realtime over WebSocket. It speaks the protocol; models has it none.
"""

from tests.support.openai_server.faults import ENDPOINTS, KINDS, Endpoint, Kind
from tests.support.openai_server.requests import MODELS, Asked
from tests.support.openai_server.server import OpenAIServer, in_background, openai_server

__all__ = [
    "ENDPOINTS",
    "KINDS",
    "MODELS",
    "Asked",
    "Endpoint",
    "Kind",
    "OpenAIServer",
    "in_background",
    "openai_server",
]
