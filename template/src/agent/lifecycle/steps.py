"""Which of the eight steps a call is in, and how long that may take."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from agent.lifecycle.journal import CallJournal
from agent.lifecycle.timeouts import Step


class Steps:
    """The steps of one call, one after another; what a caller may wait for are events."""

    def __init__(self, journal: CallJournal) -> None:
        self.current = Step.OPEN_INFRASTRUCTURE
        self.greeted = asyncio.Event()
        self.asking = asyncio.Event()  # while an AgentTask waits for the caller
        self.deadline: asyncio.Timeout | None = None
        self._journal = journal

    @asynccontextmanager
    async def take(self, step: Step) -> AsyncIterator[None]:
        """One step, within its deadline; one record and one span when it is done."""
        self.current = step
        if step is Step.STAY:
            self.greeted.set()
        with self._journal.step(step):
            try:
                async with asyncio.timeout(step.seconds) as deadline:
                    self.deadline = deadline
                    try:
                        yield
                    finally:
                        self.deadline = None
            except TimeoutError as error:
                if deadline.expired():
                    raise TimeoutError(f"no answer within {step.seconds:g} s") from error
                raise

    def heard(self, *, speaking: bool, asking: bool, has_asked: bool) -> None:
        """Whether somebody speaks now, and whether an AgentTask asks the caller something.

        The greeting's deadline counts silence: not while somebody speaks, and not while the
        caller thinks about an answer, which is what the limits of a call are for.
        """
        if has_asked and not speaking:
            self.asking.set()
        elif not asking:
            self.asking.clear()
        deadline = self.deadline
        if self.current is Step.GREET and deadline is not None and not deadline.expired():
            now = asyncio.get_running_loop().time()
            deadline.reschedule(None if speaking or asking else now + (Step.GREET.seconds or 0))
