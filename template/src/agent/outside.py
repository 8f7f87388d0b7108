"""The owner's resources and persona outside of a call: to see whether they work, and after a call.

They are opened as for a call, by the same code, for a moment; nobody is in it, and it leaves no
record, no report and no metric.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from livekit.agents import Agent, AgentSession
from livekit.agents.voice.room_io import RoomOptions

from agent import one_line
from agent.entrypoint import open_resources
from agent.lifecycle import Call
from agent.lifecycle.journal import CallJournal
from agent.settings import Settings
from agent.transport import Caller, CallEvents

log = logging.getLogger("agent.call")

# for one ping, and for all that is opened and asked
PING_SECONDS, CHECK_SECONDS = 2.0, 15.0
# how old an answer of `/ready` may be: whoever asks often, opens nothing often
FRESH_SECONDS = 10.0


@dataclass(frozen=True)
class Checked:
    """A resource that was opened and asked; `problem` is empty if it works."""

    name: str
    problem: str = ""


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Call]:
    """Yield a call without a caller that has the owner's resources, and close them on exit.

    Raises what they raise.
    """
    call = Call(_NoRoom(), settings)
    call.journal = _QuietJournal("", "", time.monotonic())
    call.running_steps = asyncio.current_task()
    try:
        call.resources = await open_resources(call)
        yield call
    finally:
        await call.opened.close_all(time.monotonic() + settings.close_seconds, but=None)


async def check(settings: Settings) -> list[Checked]:
    """Open the owner's resources and ask each that has a ping; raises nothing."""
    found: list[Checked] = []
    try:
        async with asyncio.timeout(CHECK_SECONDS), opened(settings) as call:
            for name, ping in call.pings.items():
                problem = ""
                if ping is not None:
                    try:
                        async with asyncio.timeout(PING_SECONDS):
                            await ping()
                    except TimeoutError:
                        problem = f"no answer within {PING_SECONDS:g} s"
                    except Exception as error:
                        problem = one_line(error)
                found.append(Checked(name, problem))
    except Exception as error:  # of open_resources, which is the owner's
        found.append(Checked("resources.py", one_line(error)))
    return found


class Readiness:
    """Whether the owner's resources work, for those who ask over HTTP: no error's words are told.

    Whoever asks while a check runs has its answer.
    """

    def __init__(self, settings: Callable[[], Settings]) -> None:
        self._settings, self._lock = settings, asyncio.Lock()
        self._found: list[Checked] = []
        self._until = 0.0

    async def check(self) -> dict[str, bool]:
        """Whether each works; why it does not is in the log, when that changes."""
        async with self._lock:
            if time.monotonic() >= self._until:
                found = await check(self._settings())
                for one in found:
                    if one.problem and one not in self._found:
                        log.warning("not ready: %s: %s", one.name, one.problem)
                self._found, self._until = found, time.monotonic() + FRESH_SECONDS
        return {one.name: not one.problem for one in self._found}


class _QuietJournal(CallJournal):
    """Of what is no call: nothing is recorded but warnings."""

    def record(self, message: str, **fields: object) -> None:
        log.debug(message)

    def _start_span(self, *_: Any, **__: Any) -> Any:
        from opentelemetry import trace

        return trace.INVALID_SPAN


class _NoRoom:
    """A transport that carries nobody."""

    # without an id nothing is reported, see lifecycle/closing.py
    call_id, room_name, metadata, limited = "", "", "", False
    livekit_room = livekit_api = None

    def __init__(self) -> None:
        self.began = time.monotonic()

    def listen(self, events: CallEvents) -> None:
        return

    @asynccontextmanager
    async def room(self) -> AsyncIterator[None]:
        yield

    async def wait_for_caller(self, is_caller: Callable[[Caller], bool]) -> Caller:
        raise NotImplementedError

    async def start(
        self, session: AgentSession[None], agent: Agent, caller: Caller, options: RoomOptions
    ) -> None:
        raise NotImplementedError

    async def early_texts(self) -> list[str]:
        return []

    async def end_room(self, caller: Caller | None) -> None:
        return

    def finish(self, reason: str) -> None:
        return

    def guard_exit(self, seconds: float) -> None:
        return
