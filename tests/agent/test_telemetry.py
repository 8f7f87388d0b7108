"""The log contract of docs/agent/logs.md: JSON lines for machines, one readable line for people."""

from __future__ import annotations

import io
import json
import logging
import multiprocessing.util
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client import CollectorRegistry

from agent.metrics import Metrics
from agent.reasons import REASONS
from agent.settings import load_settings
from agent.telemetry import (
    CallLogHandler,
    JsonLines,
    Readable,
    export_spans,
    format_root,
    hush_hang_ups,
    log_to,
    protected_logging,
)
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


@pytest.mark.parametrize(
    ("message", "level"),
    [
        ("rtc_session - publisher data channel '_reliable' closed unexpectedly", "DEBUG"),
        ("rtc_session - publisher data channel '_data_track' closed unexpectedly", "DEBUG"),
        ("the connection of the recognizer closed unexpectedly", "ERROR"),
    ],
)
def test_a_hang_up_is_no_error(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, message: str, level: str
) -> None:
    sdk = logging.getLogger("livekit")
    monkeypatch.setattr(sdk, "filters", [])
    hush_hang_ups()
    with caplog.at_level(logging.DEBUG, "livekit"):
        sdk.error("%s", message)
    with caplog.at_level(logging.INFO, "livekit"):
        sdk.error("%s", message)
    shown = [record.levelname for record in caplog.records]
    assert shown == ([level] if level == "DEBUG" else [level] * 2)


@pytest.mark.parametrize("formatter", [JsonLines(), Readable()])
@pytest.mark.parametrize("key", ["sk-very-secret ", "sk-very'secret\n"])
def test_a_key_that_cannot_be_sent_is_in_no_line(formatter: logging.Formatter, key: str) -> None:
    error = ValueError(f"Illegal header value {b'Bearer ' + key.encode()!r}")  # as h11 says it
    said = f"failed (caused by LocalProtocolError: {error}), retrying in 2.0s"
    odd = record(msg=said, exc_info=(ValueError, error, None), fields={"why": str(error)})
    line = formatter.format(odd)
    assert "very" not in line
    assert "Illegal header value (not shown)), retrying in 2.0s" in line
    if isinstance(formatter, JsonLines):
        assert set(json.loads(line)) >= {"message", "why", "exception"}


def test_what_a_record_cannot_say_in_json_does_not_break_the_log() -> None:
    assert (
        json.loads(JsonLines().format(record(fields={"odd": object})))["odd"] == "<class 'object'>"
    )


@pytest.mark.parametrize("formatter", [JsonLines(), Readable()])
def test_what_the_sdk_says_of_a_caller_is_in_no_line(
    formatter: logging.Formatter, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = {"lk.pii.user_input": "my secret", "participant": "sip_+49301234567", "speech": 7}
    skipped = {"name": "livekit.agents", **words}

    line = formatter.format(record(**skipped))
    assert not any(secret in line for secret in ("secret", "49301234567"))
    assert "speech" in line
    # an owner's own
    assert "49301234567" in formatter.format(record(**{**skipped, "name": "shop"}))
    monkeypatch.setenv("LIVEKIT_TELEMETRY_ALLOW_PII", "true")
    asked_for = formatter.format(record(**skipped))
    assert all(secret in asked_for for secret in ("secret", "49301234567"))


def test_a_person_reads_what_went_wrong_and_how_long_it_took() -> None:
    line = Readable().format(
        record(fields={"step": 2, "outcome": "error", "ms": 8500, "call": "job", "room": "room"})
    )
    assert line.endswith("step 2: connect  outcome=error  ms=8500")


@pytest.fixture
def registry() -> CollectorRegistry:
    """The metrics of one test."""
    return CollectorRegistry()


@pytest.fixture
def ledger(registry: CollectorRegistry) -> CallLogHandler:
    """A ledger that counts."""
    return CallLogHandler(Metrics(load_settings(), REASONS, registry=registry))


def test_the_worker_counts_calls_turns_and_closes_from_their_records(
    ledger: CallLogHandler, registry: CollectorRegistry
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
    assert ledger.ended == {"a": "too long", "b": "job died"}
    value = registry.get_sample_value
    assert value("agent_calls_total", {"reason": "too long"}) == 1
    assert value("agent_calls_total", {"reason": "job died"}) == 1
    assert value("agent_turns_total") == 4
    assert value("agent_call_seconds_sum") == 92.0
    assert value("agent_closes_total", {"resource": "memory", "outcome": "timeout"}) == 1


def test_the_worker_counts_how_long_answers_and_their_stages_took(
    ledger: CallLogHandler, registry: CollectorRegistry
) -> None:
    stages = {"turn": 500, "model": 750}
    fields = {"heard_ms": 1250, "slowest": "model", "stages": stages, "call": "a", "room": "r"}
    ledger.handle(record(fields=fields))

    value = registry.get_sample_value
    assert value("agent_answer_seconds_sum") == 1.25
    assert value("agent_answer_stage_seconds_sum", {"stage": "model"}) == 0.75
    assert value("agent_answer_stage_seconds_bucket", {"stage": "turn", "le": "0.5"}) == 1


class Raising:
    """Fields that raise when they are read."""

    def __contains__(self, name: object) -> bool:
        raise RuntimeError(str(name))


OWN: dict[str, Any] = {"reason": "of an owner's own", "call": "mine", "seconds": 1.0, "turns": 1}


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
    fields: object, name: str, ledger: CallLogHandler, registry: CollectorRegistry
) -> None:
    for one in (ledger, CallLogHandler()):
        # an error would end the SDK's thread
        one.handle(record(name=name, fields=fields))

    assert ledger.ended == {}
    ledger.handle(
        record(fields={"reason": "too long", "seconds": 90.0, "turns": 4, "call": "a", "room": "r"})
    )
    assert ledger.ended == {"a": "too long"}
    values = [
        registry.get_sample_value(*wanted)
        for wanted in (
            ("agent_calls_total", {"reason": "too long"}),
            ("agent_call_seconds_count",),
            ("agent_turns_total",),
        )
    ]
    assert registry.get_sample_value("agent_calls_total", {"reason": OWN["reason"]}) is None
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


def spans_in(collected: list[ExportTraceServiceRequest]) -> list[Any]:
    """Every span of the requests."""
    return [
        span
        for request in collected
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


@pytest.mark.parametrize(("allow", "private"), [(None, False), ("", False), ("true", True)])
def test_spans_go_where_the_environment_says_and_leave_out_what_was_said(
    collected: list[ExportTraceServiceRequest],
    monkeypatch: pytest.MonkeyPatch,
    allow: str | None,
    private: bool,
) -> None:
    """In a separate process, like a job: a tracer provider cannot be replaced."""
    if allow is not None:
        monkeypatch.setenv("LIVEKIT_TELEMETRY_ALLOW_PII", allow)

    with process(export_a_span) as job:
        job.join(60)

    found = [(span.name, "private words" in str(span)) for span in spans_in(collected)]
    assert found == [("call", private)]


def export_a_reply() -> None:
    """As the SDK does for each reply: the whole conversation, if the span takes it."""
    from livekit.agents.telemetry import gen_ai, tracer

    export_spans()
    with tracer.start_as_current_span("llm_node") as node:
        written = node.is_recording() or gen_ai.capture_content_enabled()
        tracer.start_span(f"written: {written}").end()
    vars(multiprocessing.util)["_exit_function"]()


@pytest.mark.parametrize(("allow", "written"), [("", False), ("true", True)])
def test_what_traces_leave_out_is_not_written_down_for_them(
    collected: list[ExportTraceServiceRequest],
    monkeypatch: pytest.MonkeyPatch,
    allow: str,
    written: bool,
) -> None:
    monkeypatch.setenv("LIVEKIT_TELEMETRY_ALLOW_PII", allow)

    with process(export_a_reply) as job:
        job.join(60)

    inner, node = spans_in(collected)
    assert [inner.name, node.name] == [f"written: {written}", "llm_node"]
    # which is still where the rest hangs
    assert inner.parent_span_id == node.span_id


def test_the_end_of_a_call_is_taken_down_also_where_only_warnings_are_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown, ledger = io.StringIO(), CallLogHandler()
    monkeypatch.setattr(sys, "stdout", shown)
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
    assert ledger.ended == {"a": "too long"}
    assert [json.loads(line)["message"] for line in shown.getvalue().splitlines()] == [
        "the voice failed"
    ]


# ---------------------------------------------------------------------- an owner's own set-up

SET_UPS = {
    "basicConfig": "logging.basicConfig()",
    "with a level": "logging.basicConfig(level=logging.ERROR, stream=sys.stdout)",
    "by force": "logging.basicConfig(level=logging.ERROR, force=True)",
    "a handler": "logging.getLogger().addHandler(logging.StreamHandler(sys.stdout))",
    "rich": "import rich.logging; logging.basicConfig(handlers=[rich.logging.RichHandler()])",
    "dictConfig": "import logging.config; logging.config.dictConfig({'version': 1, 'handlers': "
    "{'shown': {'class': 'logging.StreamHandler'}}, "
    "'root': {'handlers': ['shown'], 'level': 'ERROR'}})",
    "a file": "logging.basicConfig(filename='own.log', format='own: %(message)s')",
}


class ToWorker(logging.StreamHandler[Any]):
    """As the SDK's in a job, it carries nothing once it is closed."""

    def close(self) -> None:
        self.setStream(io.StringIO())


def log_an_end(place: str, set_up: str) -> None:
    """Log the end of a call in a `place` where an owner's module has been imported."""
    root = logging.getLogger()
    if place == "job":
        root.addHandler(ToWorker(sys.stdout))
        root.setLevel(logging.INFO)
    logging.getLogger("agent.call")
    with protected_logging():
        exec(set_up)
    if place == "worker":
        # as the SDK does
        root.addHandler(logging.StreamHandler(sys.stdout))
        root.setLevel(logging.INFO)
        format_root(readable=False)
    elif place == "chat":
        log_to(sys.stderr)
    logging.getLogger("agent.call").info("call ended")


@pytest.mark.parametrize("place", ["worker", "job", "chat"])
@pytest.mark.parametrize("set_up", SET_UPS.values(), ids=SET_UPS)
def test_the_records_of_a_call_arrive_once_however_an_owners_module_sets_up_logging(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, set_up: str, place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    output, own = tmp_path / "output", tmp_path / "own.log"

    with process(log_an_end, place, set_up, output=output) as logging_process:
        logging_process.join(60)

    assert output.read_text(encoding="utf-8").count("call ended") == 1
    if "own.log" in set_up:
        # every record of a job arrives in the worker, too
        written = own.read_text(encoding="utf-8") if own.exists() else ""
        assert written == ("" if place == "job" else "own: call ended\n")
