"""The log contract of docs/agent/logs.md: JSON lines for machines, one readable line for people."""

from __future__ import annotations

import io
import json
import logging
import multiprocessing.util
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client import REGISTRY

from agent.telemetry import CallLogHandler, JsonLines, Readable, export_spans, format_root
from tests.support.processes import process


def record(**attributes: object) -> logging.LogRecord:
    """A record of a call, a second and a half after the epoch."""
    standard = {
        "msg": "step 2: connect",
        "levelname": "INFO",
        "levelno": 20,
        "name": "agent.call",
        "created": 1.5,
    }
    return logging.makeLogRecord({**standard, **attributes})


def test_a_record_is_one_json_object_with_its_time_in_utc_milliseconds() -> None:
    fields = {"step": 2, "name": "connect", "ms": 101}
    line = JsonLines().format(record(fields=fields, room="room"))
    assert json.loads(line) == {
        "time": "1970-01-01T00:00:01.500+00:00",
        "level": "INFO",
        "logger": "agent.call",
        "message": "step 2: connect",
        "room": "room",
        **fields,
    }


def test_what_a_record_cannot_say_in_json_does_not_break_the_log() -> None:
    assert (
        json.loads(JsonLines().format(record(fields={"odd": object})))["odd"] == "<class 'object'>"
    )


def test_a_person_reads_what_went_wrong_and_how_long_it_took() -> None:
    line = Readable().format(
        record(fields={"step": 2, "outcome": "error", "ms": 8500, "call": "job", "room": "room"})
    )
    assert line.endswith("step 2: connect  outcome=error  ms=8500")


@pytest.fixture
def ledger() -> Iterator[CallLogHandler]:
    """A ledger that counts; a process has one, so its metrics go with it."""
    ledger = CallLogHandler(counting=True)
    yield ledger
    for metric in vars(ledger._counts).values():
        REGISTRY.unregister(metric)


def test_the_worker_counts_calls_turns_and_closes_from_their_records(
    ledger: CallLogHandler,
) -> None:
    ledger.handle(
        record(
            fields={
                "resource": "memory",
                "outcome": "timeout",
                "ms": 2000,
                "call": "a",
                "room": "r",
            }
        )
    )
    ledger.handle(
        record(fields={"reason": "too long", "seconds": 90.0, "turns": 4, "call": "a", "room": "r"})
    )
    ledger.handle(
        record(
            fields={"reason": "job died", "seconds": 2.0, "turns": None, "call": "b", "room": "r"}
        )
    )
    ledger.handle(record(fields={"ending": "too long", "ms": 1, "call": "c", "room": "r"}))
    ledger.handle(record(name="livekit.agents", fields={"reason": "another logger's", "call": "d"}))
    assert ledger.ended == {"a", "b"}
    value = REGISTRY.get_sample_value
    assert value("agent_calls_total", {"reason": "too long"}) == 1
    assert value("agent_calls_total", {"reason": "job died"}) == 1
    assert value("agent_turns_total") == 4
    assert value("agent_call_seconds_sum") == 92.0
    assert value("agent_closes_total", {"resource": "memory", "outcome": "timeout"}) == 1


class Raising:
    """Fields that raise when they are read."""

    def __contains__(self, name: object) -> bool:
        raise RuntimeError(str(name))


OWN = {"reason": "of an owner's own", "call": "mine", "seconds": 1.0, "turns": 1}


@pytest.mark.parametrize("name", ["agent.call", "agent.memory"])
@pytest.mark.parametrize(
    "fields",
    [
        *(None, 7, "reason", ["reason"], Raising()),
        {"reason": OWN["reason"]},
        {"reason": OWN["reason"], "call": "mine"},
        {"reason": OWN["reason"], "seconds": 1.0, "turns": 1},
        {**OWN, "call": ["mine"]},
        {**OWN, "seconds": "a while"},
        {**OWN, "turns": "many"},
        {**OWN, "turns": -1},
        {"resource": "memory"},
    ],
)
def test_an_owners_record_with_odd_fields_ends_no_thread_and_counts_as_no_call(
    fields: object, name: str, ledger: CallLogHandler
) -> None:
    for one in (ledger, CallLogHandler(counting=False)):
        # an error would end the SDK's thread
        one.handle(record(name=name, fields=fields))

    assert ledger.ended == set()
    ledger.handle(
        record(fields={"reason": "too long", "seconds": 90.0, "turns": 4, "call": "a", "room": "r"})
    )
    assert ledger.ended == {"a"}
    counted = {sample.name: sample for metric in REGISTRY.collect() for sample in metric.samples}
    assert counted["agent_calls_total"].labels == {"reason": "too long"}
    values = [
        counted[name].value
        for name in ("agent_calls_total", "agent_call_seconds_count", "agent_turns_total")
    ]
    assert values == [1, 1, 4]


def export_a_span() -> None:
    """Export a span with a caller's words and end, like a job."""
    from livekit.agents.telemetry import trace_types, tracer

    export_spans()
    tracer.start_span("call", attributes={trace_types.ATTR_RESPONSE_TEXT: "private words"}).end()
    vars(multiprocessing.util)["_exit_function"]()


@pytest.fixture
def collected(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[ExportTraceServiceRequest]]:
    """The requests to the collector of traces that the environment names."""
    requests: list[ExportTraceServiceRequest] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            requests.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            return

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
        yield requests
        server.shutdown()


@pytest.mark.parametrize(("allow", "private"), [(None, False), ("true", True)])
def test_spans_go_where_the_environment_says_and_leave_out_what_was_said(
    collected: list[ExportTraceServiceRequest],
    monkeypatch: pytest.MonkeyPatch,
    allow: str | None,
    private: bool,
) -> None:
    """In a separate process, like a job: a tracer provider cannot be replaced."""
    if allow:
        monkeypatch.setenv("LIVEKIT_TELEMETRY_ALLOW_PII", allow)

    with process(export_a_span) as job:
        job.join(60)

    spans = [
        span
        for request in collected
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    assert [(span.name, "private words" in str(span)) for span in spans] == [("call", private)]


def test_the_end_of_a_call_is_taken_down_also_where_only_warnings_are_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown, ledger = io.StringIO(), CallLogHandler(counting=False)
    root, calls = logging.getLogger(), logging.getLogger("agent.call")
    monkeypatch.setattr(root, "handlers", [logging.StreamHandler(shown), ledger])
    before = root.level, calls.level
    root.setLevel(logging.WARNING)
    try:
        format_root(readable=False, level="WARNING")
        fields = {"reason": "too long", "seconds": 1.0, "turns": 1, "call": "a", "room": "r"}
        calls.info("call ended: too long", extra={"fields": fields})
        calls.warning("the voice failed")
    finally:
        root.setLevel(before[0])
        calls.setLevel(before[1])
    assert ledger.ended == {"a"}
    assert [json.loads(line)["message"] for line in shown.getvalue().splitlines()] == [
        "the voice failed"
    ]
