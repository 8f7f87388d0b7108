"""Step 8 of a call: how everything is closed, whatever ended it."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING

from agent import is_own_cancellation, one_line
from agent.lifecycle import timeouts
from agent.lifecycle.journal import CallJournal, usage_of
from agent.lifecycle.timeouts import Step
from agent.memory import CallRecord
from agent.outbox import in_a_thread
from agent.reasons import Reason
from agent.reports import Report, delivery
from agent.reports.delivery import Waiting
from agent.reports.going import Going

if TYPE_CHECKING:
    from agent.lifecycle.call import Call

log = logging.getLogger("agent.call")

PACKAGE = Path(__file__).parents[1]


class ClosingSequence:
    """Closes one call in five phases, each bounded, within one budget.

    The steps stop, and running tools finish; the session says goodbye and closes; the room is
    deleted; memory gets the record of the call; the resources close in reverse order of opening,
    the room last. Then the report of the call is left for those who want it.
    """

    def __init__(self, call: Call) -> None:
        self._call = call
        self._began_at = time.time()
        self._task: asyncio.Task[None] | None = None
        self._room_ended, self._recorded, self._exit_guarded = False, False, False
        self._reported = False
        self._noting: asyncio.Task[None] | None = None
        self._going: Going | None = None

    @property
    def journal(self) -> CallJournal:
        """The call's."""
        return self._call.journal

    def note(self) -> None:
        """Have workers see what is known of the call by now, should its process die; at once."""
        call = self._call
        if call.transport.call_id and delivery.is_wanted(call.settings):
            known = Waiting.of(call.settings, replace(call.report(), cost=None), call.caller_keys)
            self._noting = asyncio.create_task(self._note(known, self._noting), name="call_note")

    async def _note(self, known: Waiting, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await before
        settings, seconds = self._call.settings, timeouts.REPORT_SECONDS
        # where nothing can be written, the report at the end says so
        with suppress(OSError):
            if self._going is None:
                begin = partial(Going, settings, known)
                self._going = await in_a_thread(begin, seconds, "call_note")
            else:
                await in_a_thread(partial(self._going.know, known), seconds, "call_note")

    def begin(self) -> None:
        """Close the call, once, in a task of its own."""
        self._task = asyncio.create_task(self._run(), name="call_close")

    async def wait(self) -> None:
        """Wait until everything is closed; a dying process closes nothing here, see `die`."""
        if self._task is not None:
            await asyncio.shield(self._task)

    def is_dying(self) -> bool:
        """Whether the process is ending: the SDK has cancelled every task and runs no callback."""
        task = self._task or self._call.running_steps
        return task is None or task.done() or task.cancelling() > 0

    def die(self) -> None:
        """In a dying process, do what closing would have done; each resource leaves by itself."""
        self._call.died()
        if not self._exit_guarded:
            self.guard_exit()
        self.write_record()
        if self._is_to_report():
            self._leave_report(self._call.report())

    def guard_exit(self) -> None:
        """The process ends by force, should it stay much longer."""
        self._exit_guarded = True
        self._call.transport.guard_exit(timeouts.EXIT_SECONDS)

    async def _run(self) -> None:
        call = self._call
        try:
            with call.journal.step(Step.CLEAN_UP):
                await self._stop_steps()
                await call.tools.settle()
                goodbye = call.goodbye_seconds if call.can_speak else 0.0
                until = time.monotonic() + call.settings.close_seconds + goodbye
                # background tasks may finish while the goodbye is said
                settling = asyncio.create_task(call.background.settle(until), name="call_settle")
                await self._close_session(goodbye, until)
                await self.end_room(until)
                await settling
                self.write_record()
                await self._close_resources(until)
        except Exception as error:
            sentence, extra = "closing the call failed: %s", call.journal.fields()
            log.error(sentence, one_line(error), exc_info=error, extra=extra)
        if self._is_to_report():
            if self._noting is not None:
                await self._noting
            leave = partial(self._leave_report, call.report())
            try:
                await in_a_thread(leave, timeouts.REPORT_SECONDS, "report")
            except TimeoutError as error:
                self._report_is_lost(error)
        call.journal.call_ended(call.reason, call.turns, call.cost())

    async def _stop_steps(self) -> None:
        steps = self._call.running_steps
        if steps is None or steps is asyncio.current_task():
            return
        if self._call.steps.current is not Step.STAY:  # which returns by itself
            steps.cancel()
        await asyncio.wait([steps], timeout=timeouts.UNWIND_SECONDS)

    async def _close_session(self, goodbye: float, until: float) -> None:
        if (session := self._call.session_resource) is not None:
            await self._call.opened.close(session, session.close_seconds + goodbye, until)

    async def end_room(self, until: float) -> None:
        """Delete the room, once, unless there is none any more.

        An agent that merely leaves strands a phone in silence, and a caller who comes back to an
        old room, for which their token asks for no agent. `until` is of time.monotonic().
        """
        call = self._call
        if self._room_ended or call.reason == Reason.ROOM_CLOSED:
            return
        seconds = min(timeouts.END_ROOM_SECONDS, until - time.monotonic())
        try:
            async with asyncio.timeout(max(seconds, timeouts.LAST_CHANCE_SECONDS)):
                await call.transport.end_room(call.caller)
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and is_own_cancellation():
                raise  # the whole process is ending, and the room's own task is next to try
            sentence = "the room could not be deleted: %s"
            log.warning(sentence, one_line(error), extra=call.journal.fields())
        self._room_ended = True

    def write_record(self) -> None:
        """Have memory keep the call, once: after its last sentence, before memory is closed."""
        call = self._call
        if call.memory is None or self._recorded:
            return
        self._recorded = True
        call.memory.add_call(
            CallRecord(
                call=call.transport.call_id,
                room=call.transport.room_name,
                reason=call.reason or "",
                seconds=call.journal.age_seconds,
                turns=call.turns,
                at=self._began_at,
                usage=usage_of(call.session),
            )
        )

    def _is_to_report(self) -> bool:
        """Whether the report is still to be left, and wanted; true once."""
        before, self._reported = self._reported, True
        is_a_call = bool(self._call.transport.call_id)
        return is_a_call and not before and delivery.is_wanted(self._call.settings)

    def _leave_report(self, report: Report) -> None:
        """Leave the report where a worker finds it."""
        call = self._call
        try:
            delivery.leave(call.settings, Waiting.of(call.settings, report, call.caller_keys))
        except OSError as error:
            self._report_is_lost(error)
        if self._going is not None:
            with suppress(OSError):
                self._going.over()

    def _report_is_lost(self, error: OSError) -> None:
        sentence = (
            "the report of the call is lost, because %s cannot be written (%s): let this user"
            " write there, and make room"
        )
        where, why = self._call.settings.data / "reports", error.strerror or "it takes too long"
        log.warning(sentence, where, why, extra=self._call.journal.fields())

    async def _close_resources(self, until: float) -> None:
        await self._call.opened.close_all(until, but=self._call.session_resource)


def warn_of_long_close(call: Call, name: str, seconds: float) -> None:
    """A resource asks for more than everything together has."""
    most = call.settings.close_seconds
    if seconds > max(most, timeouts.CLOSE_SECONDS):
        sentence = "%s asks for %g s to close, but everything together has AGENT_CLOSE_SECONDS=%g"
        log.warning(sentence, name, seconds, most, extra=call.journal.fields())


def warn_of_cut_tasks(call: Call) -> None:
    """The SDK cancels whatever still runs when a job ends: say so of the project's own tasks."""

    def ended(task: asyncio.Task[object]) -> None:
        if task.cancelled():
            sentence = (
                "%s was cancelled by the end of the job: begin it with `call.spawn` while the call"
                " goes on, or do its work when a resource of yours closes"
            )
            log.warning(sentence, _described(task), extra=call.journal.fields())

    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        # a resource that was cut has been reported
        if _is_of_the_project(task, call.settings.home) and not task.get_name().startswith(
            "resource:"
        ):
            task.add_done_callback(ended)


def _code(task: asyncio.Task[object]) -> CodeType | None:
    code = getattr(task.get_coro(), "cr_code", None)
    return code if isinstance(code, CodeType) else None


def _is_of_the_project(task: asyncio.Task[object], home: Path) -> bool:
    """Whether its code is the project's; an image has the package among the installed ones."""
    if (code := _code(task)) is None:
        return False
    path = Path(code.co_filename)
    installed = "site-packages" in path.parts
    return PACKAGE in path.parents or (home in path.parents and not installed)


def _described(task: asyncio.Task[object]) -> str:
    code = _code(task)
    assert code is not None
    place = f"{Path(code.co_filename).name}, line {code.co_firstlineno}"
    return f"the task {task.get_name()} ({code.co_qualname}, {place})"
