"""Logs, metrics and traces. The contract of all three is in docs/agent/logs.md.

A job's records travel to the worker and are formatted there, so what a record carries in `fields`
is plain data; and they are counted there: a metric of a job's own would have to survive its
process, which lives for one call.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from multiprocessing import util
from typing import Any, Protocol, TextIO

from agent.settings import traces_are_exported, words_are_asked_for


class Journal(Protocol):
    """Where a part of a call reports: the call's own journal, or a log outside a call."""

    def fields(self, **fields: object) -> dict[str, Any]:
        """`extra=` of a record about this call."""
        ...

    def warn_once(self, part: str, log: logging.Logger, sentence: str) -> None:
        """Warn, and count, that the call goes on without a part; later sentences are DEBUG."""
        ...

    def took(self, name: str, began: int, **attributes: str | int) -> None:
        """Add a span from `began` (time.time_ns) until now."""
        ...

    def looked_up(self, question: str, passages: list[str], outcome: str, began: int) -> None:
        """Documents were asked, from `began` (time.time_ns) until now."""
        ...


class LogJournal:
    """A `Journal` of what runs outside a call: records name no call, and nothing is traced."""

    def __init__(self) -> None:
        self._degraded: set[str] = set()

    def fields(self, **fields: object) -> dict[str, Any]:
        return {"fields": fields}

    def warn_once(self, part: str, log: logging.Logger, sentence: str) -> None:
        known = part in self._degraded
        self._degraded.add(part)
        extra = self.fields() if known else self.fields(degraded=part)
        log.log(logging.DEBUG if known else logging.WARNING, "%s", sentence, extra=extra)

    def took(self, name: str, began: int, **attributes: str | int) -> None:
        return

    def looked_up(self, question: str, passages: list[str], outcome: str, began: int) -> None:
        return


FLUSH_SECONDS = 3.0  # for the last spans of a job; below the exit guard's 8 s

# what has to reach the worker from its jobs, whatever level is shown
COUNTED = {
    "agent.call": logging.INFO,
    "agent.memory": logging.INFO,
    "agent.knowledge": logging.INFO,
}

# how the SDK's names of what is personal begin
PRIVATE = "lk.pii."
# and who is a caller, which it does not mark: a phone's identity is its number
WHO = {"participant", "participant_identity", "identity"}

# a phone's room, as LiveKit's telephone service calls it after the caller: call-_+49301234567_a1B2
CALLERS_NUMBER = re.compile(r"(?<=_)\+?\d{6,15}(?=_\w+$)")

# what the SDK logs of a tool that raised: the error's own words may be its arguments, the caller's
TOOL_RAISED = "exception occurred while executing tool"
SECRET_WORDS = "(not shown: it may say what the caller said; `agent report` does)"

# what the SDK logs as an error whenever a room is left, once for each channel
LEFT = re.compile(r"publisher data channel '\w+' closed unexpectedly")

# the fields that only the record of an ended call has
END = {"call", "reason", "seconds", "turns"}

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {
    "message",
    "asctime",
    "fields",
    "taskName",
}


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """What a record carries beside its message: the agent's `fields`, others' `extra=`.

    The SDK marks what was said, also in its warnings, and mostly who said it: that is left out,
    unless it is asked for.
    """
    asked_for = words_are_asked_for()
    hidden = ("_",) if asked_for else ("_", PRIVATE)
    who = set() if asked_for or not record.name.startswith("livekit") else WHO
    extra = {
        key: value
        for key, value in record.__dict__.items()
        if key not in _STANDARD | who and not key.startswith(hidden)
    }
    fields = {**extra, **getattr(record, "fields", {})}
    if not asked_for and isinstance(room := fields.get("room"), str):
        fields["room"] = without_number(room)
    return fields


def without_number(room: str) -> str:
    """A room's name without the number of the phone that it is for."""
    return CALLERS_NUMBER.sub("[number]", room)


def message_of(record: logging.LogRecord) -> str:
    """What it says; in a job's record the error that was raised follows, as text."""
    said, _, error = (whole := record.getMessage()).partition("\n")
    return f"{said}\n{exception_of(record, error)}" if error and said == TOOL_RAISED else whole


def exception_of(record: logging.LogRecord, text: str) -> str:
    """An error as it was raised; of one in a tool its type and place, unless more is asked for."""
    if words_are_asked_for() or not record.getMessage().startswith(TOOL_RAISED):
        return text
    places = re.findall(r'^  File ".*", line \d+, in .*$', text, re.M)
    kind = re.search(r"^([\w.]+)(?=:|$)", text.rpartition(places[-1])[2] if places else "", re.M)
    return "\n".join([*places, f"{kind[1] if kind else 'an error'} {SECRET_WORDS}"])


def without_keys(line: str) -> str:
    """Without the key that an HTTP client quotes when it cannot send it."""
    return re.sub(r"(Illegal header value )b(\\?[\"']).*?\2", r"\1(not shown)", line)


class JsonLines(logging.Formatter):
    """One JSON object a record: time, level, logger, message, then its fields."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": message_of(record),
            **fields_of(record),
        }
        if text := self.formatException(record.exc_info) if record.exc_info else record.exc_text:
            line["exception"] = exception_of(record, text)
        return without_keys(json.dumps(line, ensure_ascii=False, default=str))


class Readable(logging.Formatter):
    """One line for a person; of a call's own records only how long what failed took."""

    def format(self, record: logging.LogRecord) -> str:
        fields = fields_of(record)
        for known in ("call", "room", "pid"):
            fields.pop(known, None)
        if record.name == "agent.call":
            fields = {
                key: fields[key]
                for key in ("outcome", "ms")
                if key in fields and fields[key] != "ok"
            }
        clock = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        level = "" if record.levelno == logging.INFO else f"{record.levelname} "
        details = "  ".join(f"{key}={value}" for key, value in fields.items())
        line = f"{clock} {level}{message_of(record)}" + (f"  {details}" if details else "")
        if record.exc_info:
            line += f"\n{exception_of(record, self.formatException(record.exc_info))}"
        return without_keys(line)


def format_root(*, readable: bool, level: str = "INFO") -> None:
    """Format what the SDK's handler in the worker shows, from `level` on.

    Loggers whose records are counted keep a level of their own: the end of a call is counted
    whatever is shown, so its record has to reach the worker.
    """
    for handler in logging.getLogger().handlers:
        if _is_terminal(handler):
            handler.setFormatter(Readable() if readable else JsonLines())
            handler.setLevel(level)
    for name, least in COUNTED.items():
        if not (logger := logging.getLogger(name)).isEnabledFor(least):
            logger.setLevel(least)


def log_to(stream: TextIO = sys.stderr, *, level: str = "INFO") -> None:
    """Write this process's logs to `stream`, readable; the SDK's own only from WARNING on."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(Readable())
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("agent").setLevel(level)


def hush_hang_ups() -> None:
    """In a job: no error of the SDK's because somebody has hung up, but DEBUG."""
    logging.getLogger("livekit").addFilter(_hushed)


def _hushed(record: logging.LogRecord) -> bool:
    if not LEFT.search(record.getMessage()):
        return True
    record.levelno, record.levelname = logging.DEBUG, "DEBUG"
    return logging.getLogger(record.name).isEnabledFor(logging.DEBUG)


@contextmanager
def protected_logging() -> Iterator[None]:
    """Inside, an owner's module is imported, which may set up logging as a program does.

    Its basicConfig() would show every record twice; a forced one, or a dictConfig(), would cut what
    carries the records of a job to its worker. Of what it adds only files and services stay, and
    these in the worker alone, where the records of all jobs arrive.
    """
    root = logging.getLogger()
    kept, level = [*root.handlers], root.level
    for handler in kept:
        vars(handler)["close"] = lambda: None
    try:
        yield
    finally:
        for handler in kept:
            vars(handler).pop("close", None)
        added = [] if kept else [one for one in root.handlers if not _is_terminal(one)]
        root.handlers = [*kept, *added]
        root.setLevel(level)
        for name, logger in root.manager.loggerDict.items():
            if isinstance(logger, logging.Logger) and name.startswith(("agent", "livekit")):
                logger.disabled = False


def _is_terminal(handler: logging.Handler) -> bool:
    # rich's handler has its stream in a console
    console = getattr(handler, "console", None)
    return getattr(handler, "stream", getattr(console, "file", None)) in (sys.stdout, sys.stderr)


# ---------------------------------------------------------------------- metrics


class Counts(Protocol):
    """What counts records: `agent.metrics.Metrics`."""

    def count(self, record: str, fields: dict[str, Any]) -> None:
        """Count what a record of this logger says."""
        ...


class CallLogHandler(logging.Handler):
    """Reads, in the worker, what its jobs log of their calls.

    It knows which have ended, and has them counted if somebody wants to know.
    """

    def __init__(self, counts: Counts | None = None) -> None:
        super().__init__()
        # jobs and why their calls ended, until their processes have closed too
        self.ended: dict[str, str] = {}
        self._counts = counts

    def emit(self, record: logging.LogRecord) -> None:
        """Take in the end of a call, the close of a resource, and a part that failed."""
        try:
            fields = getattr(record, "fields", {})
            is_end = record.name == "agent.call" and fields.keys() >= END
            ended = {fields["call"]: fields["reason"]} if is_end else {}
            if self._counts is not None and record.name in COUNTED:
                self._counts.count(record.name, fields)
            self.ended |= ended
        except Exception:  # what is raised here would end the thread that reads the job's log
            self.handleError(record)


# ---------------------------------------------------------------------- traces


def export_spans() -> None:
    """Send this job's spans where OTEL_EXPORTER_OTLP_ENDPOINT says, without what was said.

    The names are OpenTelemetry's own; LIVEKIT_TELEMETRY_ALLOW_PII=true, the SDK's, adds the
    conversation.
    """
    if not traces_are_exported():
        return
    from livekit.agents.telemetry import set_tracer_provider
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    from agent.private_spans import PrivateTracerProvider

    words = words_are_asked_for()
    provider = (TracerProvider if words else PrivateTracerProvider)(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    set_tracer_provider(provider, allow_pii=words)

    def flush() -> None:
        # a collector that does not answer must not hold the worker's slot
        flushing = threading.Thread(target=provider.shutdown, daemon=True)
        flushing.start()
        flushing.join(FLUSH_SECONDS)

    # job processes run no atexit handlers
    util.Finalize(None, flush, exitpriority=10)
