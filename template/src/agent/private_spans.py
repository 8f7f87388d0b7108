"""Traces without what was said: they leave it out, so nothing writes it down for them first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from livekit.agents.telemetry import gen_ai
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

# for each of these the SDK makes JSON of the whole conversation, if the span takes it
WORDY = {"llm_node"}


class PrivateTracerProvider(TracerProvider):
    """Of traces that are no longer the longer a conversation is."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        gen_ai.set_capture_content(False)

    def get_tracer(self, *args: Any, **kwargs: Any) -> trace.Tracer:
        return _Tracer(super().get_tracer(*args, **kwargs))


class _Tracer(trace.Tracer):
    """Of wordy spans only the name, the times and what is inside them are recorded."""

    def __init__(self, tracer: trace.Tracer) -> None:
        self._tracer = tracer

    def start_span(self, *args: Any, **kwargs: Any) -> trace.Span:
        return self._tracer.start_span(*args, **kwargs)

    @contextmanager
    def start_as_current_span(  # type: ignore[override]
        self, name: str, *args: Any, **kwargs: Any
    ) -> Iterator[trace.Span]:
        with self._tracer.start_as_current_span(name, *args, **kwargs) as span:
            if name not in WORDY:
                yield span
                return
            with trace.use_span(trace.NonRecordingSpan(span.get_span_context())) as unwritten:
                yield unwritten
