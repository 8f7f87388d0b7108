"""An OpenTelemetry collector: receives spans as OTLP over HTTP, like a real one, and keeps them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.support.server import free_port
from tests.support.worker import is_of


@dataclass(frozen=True)
class Span:
    """A received span."""

    name: str
    trace: str
    parent: str
    id: str
    attributes: dict[str, Any]


@dataclass
class Collector:
    """Every span received so far."""

    port: int
    spans: list[Span] = field(default_factory=list)
    # of everything that was received, events and resources too
    text: str = ""
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    @property
    def environment(self) -> dict[str, str]:
        """The variables that make an agent send its spans here."""
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.port}"}

    async def receive(self, request: web.Request) -> web.Response:
        """Take one batch."""
        message = ExportTraceServiceRequest.FromString(await request.read())
        async with self._changed:
            self.text += str(message)
            for resource in message.resource_spans:
                for scope in resource.scope_spans:
                    self.spans += [
                        Span(
                            name=span.name,
                            trace=span.trace_id.hex(),
                            parent=span.parent_span_id.hex(),
                            id=span.span_id.hex(),
                            attributes={
                                a.key: getattr(
                                    a.value, a.value.WhichOneof("value") or "string_value"
                                )
                                for a in span.attributes
                            },
                        )
                        for span in scope.spans
                    ]
            self._changed.notify_all()
        return web.Response()

    async def wait_for(self, wanted: Callable[[Span], bool], seconds: float = 60.0) -> Span:
        """The first span that is `wanted`, received already or later."""
        try:
            async with asyncio.timeout(seconds), self._changed:
                while True:
                    for span in self.spans:
                        if wanted(span):
                            return span
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(
                f"no such span; there are {sorted({s.name for s in self.spans})}"
            ) from None

    async def call(self, room: str) -> Span:
        """The span of the call in `room`."""
        return await self.wait_for(
            lambda span: span.name == "call" and is_of(span.attributes, room)
        )


@asynccontextmanager
async def collector() -> AsyncIterator[Collector]:
    """A collector on a free port of loopback, ended on exit."""
    collecting = Collector(free_port())
    app = web.Application()
    app.router.add_post("/v1/traces", collecting.receive)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", collecting.port).start()
    try:
        yield collecting
    finally:
        await runner.cleanup()
