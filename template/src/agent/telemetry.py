"""Logs: JSON lines for machines, one readable line for people. The contract is in docs/agent/logs.md.

A job's records travel to the worker and are formatted there, so what a record carries in `fields` is plain data.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, TextIO

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "fields", "taskName"}


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """What a record carries beside its message: ours in `fields`, everybody else's `extra=`."""
    extra = {key: value for key, value in record.__dict__.items() if key not in _STANDARD and not key.startswith("_")}
    return {**extra, **getattr(record, "fields", {})}


class JsonLines(logging.Formatter):
    """One JSON object a record: time, level, logger, message, then its fields."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **fields_of(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        elif record.exc_text:
            line["exception"] = record.exc_text
        return json.dumps(line, ensure_ascii=False, default=str)


class Readable(logging.Formatter):
    """One line for a person; the call's own records need no names of fields."""

    def format(self, record: logging.LogRecord) -> str:
        fields = fields_of(record)
        for known in ("call", "room", "pid"):
            fields.pop(known, None)
        if record.name == "agent.call":
            fields = {key: fields[key] for key in ("outcome", "ms") if key in fields and fields[key] != "ok"}
        clock = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        level = "" if record.levelno == logging.INFO else f"{record.levelname} "
        details = "  ".join(f"{key}={value}" for key, value in fields.items())
        line = f"{clock} {level}{record.getMessage()}" + (f"  {details}" if details else "")
        return line + (f"\n{self.formatException(record.exc_info)}" if record.exc_info else "")


def format_root(*, readable: bool) -> None:
    """Give the handlers that the SDK installed in the worker our format."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setFormatter(Readable() if readable else JsonLines())


def log_to(stream: TextIO = sys.stderr, *, level: str = "INFO") -> None:
    """Readable logs of this process on `stream`; the SDK's own chatter only from WARNING on."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(Readable())
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("agent").setLevel(level)
