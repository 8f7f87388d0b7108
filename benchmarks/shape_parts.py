"""The same parts for every shape of an entrypoint; copied into the project as `agent.bench_parts`.

Two resources that note their opening and closing in a file, which a killed worker cannot lose, and
a model that fails on request.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import time
from types import TracebackType
from typing import Any, Self

from livekit.agents import APIStatusError

NOTES = os.environ.get("BENCH_NOTES", os.devnull)
# a caller who writes this gets no answer
FAILING = "the model is down"
OPEN = "The pool is open."
# in rooms of this name the client takes so long to close
SLOW, SLOW_SECONDS = "slow", 12.0
# and in these it never closes
STUCK = "stuck"


def note(room: str, resource: str, event: str) -> None:
    """Append a line with the event, its time and its process."""
    line = json.dumps(
        {"at": time.time(), "room": room, "pid": os.getpid(), "resource": resource, "event": event}
    )
    file = os.open(NOTES, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, f"{line}\n".encode())
    finally:
        os.close(file)


class Resource:
    """A resource that a call's answers need; open inside `async with`.

    A class, not a generator: a dying event loop closes generators, but not a pool. The resource
    called client closes slowly, or never, in rooms named for it.
    """

    def __init__(self, name: str, room: str) -> None:
        self.name, self.room, self.is_open = name, room, False

    async def __aenter__(self) -> Self:
        note(self.room, self.name, "opened")
        self.is_open = True
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.is_open = False
        try:
            if self.name == "client" and self.room.startswith(SLOW):
                await asyncio.sleep(SLOW_SECONDS)
            elif self.name == "client" and self.room.startswith(STUCK):
                await asyncio.Event().wait()
        except BaseException:
            note(self.room, self.name, "cut")
            raise
        note(self.room, self.name, "closed")

    def ask(self) -> str:
        """Give a part of an answer; raises ConnectionError unless it is open."""
        if not self.is_open:
            raise ConnectionError(f"the {self.name} is closed")
        return f"The {self.name} is open."


def fail_when_asked() -> None:
    """Make the scripted model fail, as with a wrong key, on every turn that asks for it."""
    scripted: Any = importlib.import_module("agent.models.scripted")
    respond = scripted.respond

    def respond_or_fail(context: Any, *others: Any) -> Any:
        said = [
            item.text_content
            for item in context.items
            if item.type == "message" and item.role == "user"
        ]
        if said and said[-1] == FAILING:
            raise APIStatusError(FAILING, status_code=401)
        return respond(context, *others)

    scripted.respond = respond_or_fail
