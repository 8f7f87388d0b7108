"""The server: where requests arrive, faults are met, and answers are sent."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any, TypeVar

from aiohttp import web

from agent.models.scripted import hum
from tests.support.openai_server.audio import Ears, Voice, speech, transcription
from tests.support.openai_server.chat import completion
from tests.support.openai_server.embeddings import embeddings
from tests.support.openai_server.faults import GARBAGE, Endpoint, Fault, Kind, Refusal
from tests.support.openai_server.realtime import Realtime
from tests.support.openai_server.requests import MODELS, Answer, Asked, as_json, read
from tests.support.openai_server.script import Script, scripted

T = TypeVar("T")

# seconds; long enough for a busy machine
PATIENCE = 120.0


class OpenAIServer:
    """What was asked so far, and how it is answered from now on; all may be changed meanwhile."""

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[Asked] = []
        # the names of models that there are
        self.models: set[str] = {*MODELS.values()}
        # what is said to a conversation, how it sounds, and what is heard in a sound
        self.script: Script = scripted
        self.voice: Voice = hum
        self.ears: Ears = self._next_words
        # what the ears hear next, if they are not replaced
        self.words: deque[str] = deque()
        # whether speech comes as server-sent events if asked for, as from OpenAI alone
        self.speech_events = False
        # whether a realtime connection is refused by an event in it, as by OpenAI, or before it
        self.refuses_by_event = False
        self._faults: dict[Endpoint, Fault] = {}
        self._noted = asyncio.Condition()
        self._connections: set[Realtime] = set()

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which OpenAI's client, and so the SDK's plugin, finds this server."""
        return {"OPENAI_BASE_URL": self.url, "OPENAI_API_KEY": "sk-test"}

    # ------------------------------------------------------------------ for the test

    def fault(
        self,
        endpoint: Endpoint,
        kind: Kind,
        *,
        after: int = 0,
        times: int | None = None,
        retry_after: int = 1,
    ) -> None:
        """Let an endpoint fail from now on, or `times` times, or `after` so many requests.

        Of realtime a connection is one request, and each response in it another.
        """
        self.mend(endpoint)
        self._faults[endpoint] = Fault(kind, times, retry_after, after)

    def mend(self, endpoint: Endpoint) -> None:
        """Let an endpoint answer again; requests that hang are cut off."""
        if fault := self._faults.pop(endpoint, None):
            fault.over.set()

    def drop(self) -> None:
        """End every open realtime connection, as a broken network does."""
        for connection in self._connections:
            connection.cut()

    def requests(self, endpoint: Endpoint, type_: str | None = None) -> list[Asked]:
        """What an endpoint was asked; of realtime, the events of one type."""
        return [
            asked
            for asked in self.asked
            if asked.endpoint == endpoint and type_ in (None, asked.body.get("type"))
        ]

    async def wait_asked(
        self, endpoint: Endpoint, type_: str | None = None, *, count: int = 1
    ) -> Asked:
        """Wait until an endpoint has been asked `count` times; the last of these requests."""
        async with asyncio.timeout(PATIENCE), self._noted:
            await self._noted.wait_for(lambda: len(self.requests(endpoint, type_)) >= count)
        return self.requests(endpoint, type_)[count - 1]

    # ------------------------------------------------------------------ for the endpoints

    async def note(self, asked: Asked) -> None:
        """Write down what was asked."""
        async with self._noted:
            self.asked.append(asked)
            self._noted.notify_all()

    def next_fault(self, endpoint: Endpoint) -> Fault | None:
        """The fault that the request has which has just come."""
        fault = self._faults.get(endpoint)
        if fault is not None and fault.after > 0:
            fault.after -= 1
            return None
        if fault is not None and fault.times is not None:
            if fault.times == 0:
                return None
            fault.times -= 1
        return fault

    def app(self) -> web.Application:
        app = web.Application(client_max_size=50 * 2**20)
        to = app.router
        to.add_get("/v1/models", partial(self._answer, "models", self._models))
        to.add_get("/v1/models/{name}", partial(self._answer, "models", self._models))
        to.add_post("/v1/chat/completions", partial(self._answer, "chat", self._chat))
        to.add_post(
            "/v1/audio/transcriptions",
            partial(self._answer, "transcriptions", self._transcription),
        )
        to.add_post("/v1/audio/speech", partial(self._answer, "speech", self._speech))
        to.add_post("/v1/embeddings", partial(self._answer, "embeddings", embeddings))
        to.add_get("/v1/realtime", self._realtime)
        return app

    def over(self) -> None:
        """Let nobody wait any more."""
        for endpoint in tuple(self._faults):
            self.mend(endpoint)
        self.drop()

    async def _answer(
        self, endpoint: Endpoint, make: Callable[[Asked], Answer], request: web.Request
    ) -> web.StreamResponse:
        fault = self.next_fault(endpoint)
        try:
            asked = await read(endpoint, request)
            if name := request.match_info.get("name"):
                asked.body["model"] = name
            await self.note(asked)
            if fault and (refusal := fault.refusal):
                return refusal.response()
            self._know(asked.body.get("model"))
            # a voice or ears may take their time
            answer = await asyncio.to_thread(make, asked)
        except Refusal as refusal:
            return refusal.response()
        return await _send(answer, fault, request)

    def _know(self, model: Any) -> None:
        if model is not None and model not in self.models:
            message = f"The model `{model}` does not exist or you do not have access to it."
            raise Refusal(404, message, code="model_not_found", param="model")

    def _models(self, asked: Asked) -> Answer:
        rows = [
            {"id": name, "object": "model", "created": 1_700_000_000, "owned_by": "test"}
            for name in sorted(self.models)
        ]
        if name := asked.body.get("model"):
            return as_json(next(row for row in rows if row["id"] == name))
        return as_json({"object": "list", "data": rows})

    def _chat(self, asked: Asked) -> Answer:
        return completion(asked, self.script)

    def _transcription(self, asked: Asked) -> Answer:
        return transcription(asked, self.ears)

    def _speech(self, asked: Asked) -> Answer:
        return speech(asked, self.voice, events=self.speech_events)

    def _next_words(self, sound: bytes) -> str:
        return self.words.popleft() if self.words else ""

    async def _realtime(self, request: web.Request) -> web.StreamResponse:
        fault = self.next_fault("realtime")
        asked = await read("realtime", request)
        await self.note(Asked("realtime", asked.key, {**asked.body, "type": "connect"}))
        if fault and fault.kind in ("hang", "garbage"):
            return await _send(Answer([]), fault, request)
        refusal = fault.refusal if fault else None
        try:
            self._know(asked.body.get("model"))
        except Refusal as unknown:
            refusal = refusal or unknown
        if refusal and not self.refuses_by_event:
            return refusal.response()
        socket = web.WebSocketResponse(max_msg_size=2**24)
        await socket.prepare(request)
        assert request.transport is not None
        connection = Realtime(self, socket, request.transport, asked)
        self._connections.add(connection)
        try:
            if refusal:
                await connection.refuse(refusal)
            elif fault and fault.kind == "cut":
                connection.cut()
            elif fault:
                await fault.over.wait()
                connection.cut()
            else:
                await connection.serve()
        finally:
            self._connections.discard(connection)
        return socket


async def _send(answer: Answer, fault: Fault | None, request: web.Request) -> web.StreamResponse:
    """Send an answer part by part, or as much of it as a fault leaves."""
    if fault is not None and fault.kind == "hang":
        await fault.over.wait()
        _cut(request)
        return web.Response()
    if fault is not None and fault.kind == "garbage":
        return web.Response(text=GARBAGE, content_type="text/html")
    headers = {"Content-Type": answer.content_type, "x-request-id": f"req_{uuid.uuid4().hex}"}
    response = web.StreamResponse(headers=headers)
    await response.prepare(request)
    if fault is None:
        for part in answer.parts:
            await response.write(part)
        await response.write_eof()
        return response
    if fault.kind == "cut":
        whole = b"".join(answer.parts)
        await response.write(whole[: len(whole) // 2])
    else:
        await fault.over.wait()
    _cut(request)
    return response


def _cut(request: web.Request) -> None:
    """End the connection as a broken network does, if the client has not ended it itself."""
    if request.transport is not None:
        request.transport.close()


@asynccontextmanager
async def openai_server() -> AsyncIterator[OpenAIServer]:
    """Serve on a free port of loopback while this is open."""
    server = OpenAIServer()
    runner = web.AppRunner(server.app(), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    addresses: Sequence[Any] = runner.addresses
    server.url = f"http://127.0.0.1:{addresses[0][1]}/v1"
    try:
        yield server
    finally:
        server.over()
        await runner.cleanup()


@contextmanager
def in_background() -> Iterator[OpenAIServer]:
    """The same in a thread, for code that has an event loop of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="openai_server")
    thread.start()

    def done(work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, loop).result(PATIENCE)

    serving = openai_server()
    try:
        server = done(serving.__aenter__())
        try:
            yield server
        finally:
            done(serving.__aexit__(None, None, None))
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
