"""However a call ends, its resources are closed once, in reverse order, for one named reason."""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from agent.conversation.fallback import StreamTimeout, with_timeout
from agent.lifecycle import Call, Reason, Step, timeouts
from agent.lifecycle.journal import CallOver
from agent.lifecycle.resource import OpenFailed
from agent.memory import CallMemory, CallRecord, Item, Note, Profile, Turn, open_memory
from agent.settings import Settings
from agent.transport import Caller
from template.tests.talk import FakeTransport

Steps = Callable[[Call], Awaitable[None]]


def failed(step: Step) -> str:
    """The reason of a call that this step ended."""
    return Reason.error(step.number, step.title)


def quick(**changes: object) -> Settings:
    """Settings with short limits, so that tests of hanging parts are quick."""
    return Settings.model_validate(
        {"memory_url": "sqlite", "close_seconds": 1.0, "goodbye_seconds": 0.5, **changes}
    )


@asynccontextmanager
async def resource(log: list[str], name: str, *, turns: int = 0) -> AsyncIterator[Any]:
    """Logs when it is opened and closed; closing takes so many turns of the event loop."""
    log.append(f"open {name}")
    try:
        yield name
    finally:
        for _ in range(turns):
            await asyncio.sleep(0)
        log.append(f"close {name}")


@asynccontextmanager
async def task_bound(seen: list[asyncio.Task[None] | None]) -> AsyncIterator[None]:
    seen.append(asyncio.current_task())
    yield
    seen.append(asyncio.current_task())


@asynccontextmanager
async def never_opens() -> AsyncIterator[None]:
    await asyncio.Event().wait()
    yield


@asynccontextmanager
async def never_closes() -> AsyncIterator[Any]:
    yield
    await asyncio.Event().wait()


@asynccontextmanager
async def clings() -> AsyncIterator[None]:
    """Swallows the cancellation of its close for a while."""
    yield
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        try:
            await asyncio.sleep(until - time.monotonic())
        except asyncio.CancelledError:
            continue


@asynccontextmanager
async def raises_on_close(error: BaseException) -> AsyncIterator[None]:
    yield
    raise error


async def talk(call: Call) -> None:
    """The eight steps without a session."""
    async with call.step(Step.OPEN_INFRASTRUCTURE):
        pass
    async with call.step(Step.CONNECT):
        await call.wait_connected()
    async with call.step(Step.BUILD):
        pass
    async with call.step(Step.WAIT_FOR_CALLER):
        await call.wait_for_caller()
    async with call.step(Step.START_SESSION):
        pass
    async with call.step(Step.GREET):
        pass
    async with call.step(Step.STAY):
        await call.wait_ended()


async def in_conversation(
    line: FakeTransport, settings: Settings | None = None, steps: Steps = talk
) -> Call:
    """A call that has reached step 7."""
    call = Call(line, settings or quick())
    line.arrive()
    await call.start(steps)
    assert await call.wait_greeted()
    return call


async def closed(call: Call) -> list[tuple[str, str]]:
    """Wait until the call is closed; return what it closed."""
    async with asyncio.timeout(10):
        await call.wait_ended()
        await call.wait_closed()
    return call.closed


# ---------------------------------------------------------------------- ends


async def test_a_caller_who_hangs_up_ends_the_call_and_the_room() -> None:
    line = FakeTransport()
    call = await in_conversation(line)
    line.leave()
    assert await closed(call) == [("room", "ok")]
    assert (call.reason, line.finished_with, line.rooms_ended) == (
        Reason.CALLER_LEFT,
        [Reason.CALLER_LEFT],
        1,
    )


@pytest.mark.parametrize(
    ("removed", "reason"), [(False, Reason.ROOM_CLOSED), (True, Reason.REMOVED)]
)
async def test_losing_the_room_ends_the_call(removed: bool, reason: str) -> None:
    line = FakeTransport()
    call = await in_conversation(line)
    line.close_room(removed=removed)
    await closed(call)
    assert call.reason == reason
    # an agent that was removed does not strand its caller
    assert line.rooms_ended == (1 if removed else 0)


async def test_an_agent_that_hangs_up_removes_the_caller() -> None:
    line = FakeTransport()
    call = await in_conversation(line)
    await call.hang_up()
    await closed(call)
    assert (call.reason, line.rooms_ended) == (Reason.AGENT_HUNG_UP, 1)


async def test_an_empty_room_is_not_kept_open_for_ever() -> None:
    line = FakeTransport()
    call = Call(line, quick(caller_wait_seconds=0.01))
    await call.start(talk)
    await closed(call)
    assert call.reason == Reason.NO_SHOW


async def test_a_call_has_a_longest_length() -> None:
    line = FakeTransport()
    call = Call(line, quick(max_call_seconds=0.01))
    line.arrive()
    await call.start(talk)
    await closed(call)
    assert call.reason == Reason.TOO_LONG


async def test_a_stopping_worker_ends_the_call_while_it_waits_for_its_caller() -> None:
    line = FakeTransport()
    call = Call(line, quick())
    await call.start(talk)
    async with asyncio.timeout(1):
        # on_session_end awaits it
        await call.wait_closed()
    assert (call.reason, line.connected) == (Reason.WORKER_STOPPED, False)


async def test_a_dropped_caller_has_a_window_to_come_back_and_a_whole_one_the_second_time() -> None:
    line = FakeTransport()
    call = await in_conversation(line, quick(rejoin_seconds=0.05))
    line.drop()
    line.come_back()
    await asyncio.sleep(0.1)
    assert call.reason is None
    line.drop()
    await closed(call)
    assert call.reason == Reason.CALLER_DROPPED


async def test_a_phone_has_no_window_to_come_back() -> None:
    line = FakeTransport()
    call = Call(line, quick())
    line.arrive(kind="sip")
    await call.start(talk)
    await call.wait_greeted()
    line.drop()
    await closed(call)
    assert call.reason == Reason.CALLER_LEFT


async def test_a_server_that_ends_the_job_before_the_room_is_not_taken_for_a_stopping_worker() -> (
    None
):
    line = FakeTransport()
    call = await in_conversation(line)
    stopping = asyncio.create_task(call.on_job_stopped())
    await asyncio.sleep(0)
    line.close_room()
    await stopping
    await closed(call)
    assert call.reason == Reason.ROOM_CLOSED


async def test_the_first_reason_wins() -> None:
    line = FakeTransport()
    call = await in_conversation(line)
    line.leave()
    line.close_room()
    await call.on_job_stopped()
    call.fail(ValueError("late"))
    await closed(call)
    assert line.finished_with == [Reason.CALLER_LEFT]


# ---------------------------------------------------------------------- steps


@pytest.mark.parametrize("step", list(Step)[:6])
async def test_an_error_in_any_step_ends_the_call_with_that_step_as_its_reason(step: Step) -> None:
    async def fails(call: Call) -> None:
        async with call.step(step):
            raise ValueError("broken")

    line = FakeTransport()
    call = Call(line, quick())
    await call.start(fails)
    await closed(call)
    assert call.reason == f"error in step {step.number} ({step.title})"


@pytest.mark.parametrize("step", [step for step in Step if step.seconds])
async def test_a_step_that_hangs_ends_the_call_at_its_deadline(
    step: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hangs(call: Call) -> None:
        async with call.step(step):
            await asyncio.Event().wait()

    monkeypatch.setattr(step, "seconds", 0.01)
    call = Call(FakeTransport(), quick())
    await call.start(hangs)
    await closed(call)
    assert call.reason == f"error in step {step.number} ({step.title})"


async def test_a_room_that_never_connects_ends_the_call_although_the_first_step_hangs_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Step.CONNECT, "seconds", 0.01)
    line = FakeTransport(connects=False)
    call = Call(line, quick())
    # it returns: the entrypoint is never held
    await call.start(talk)
    await closed(call)
    assert call.reason == failed(Step.CONNECT)


async def test_a_cancelled_future_of_a_library_is_an_error_and_not_a_silent_end() -> None:
    async def cancelled(call: Call) -> None:
        async with call.step(Step.GREET):
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            future.cancel()
            await future

    call = Call(FakeTransport(), quick())
    await call.start(cancelled)
    await closed(call)
    assert call.reason == failed(Step.GREET)


async def test_the_entrypoint_returns_while_the_caller_is_still_awaited() -> None:
    call = Call(FakeTransport(), quick())
    async with asyncio.timeout(1):
        await call.start(talk)
    assert call.reason is None
    await call.wait_closed()
    await closed(call)


# ---------------------------------------------------------------------- opening and closing


async def test_everything_is_closed_once_in_reverse_order() -> None:
    log: list[str] = []
    line = FakeTransport()
    call = await in_conversation(line)
    for name in ("one", "two", "three"):
        assert await call.open(name, resource(log, name)) == name
    line.leave()
    assert await closed(call) == [("three", "ok"), ("two", "ok"), ("one", "ok"), ("room", "ok")]
    assert log == ["open one", "open two", "open three", "close three", "close two", "close one"]


async def test_a_resource_is_left_in_the_task_that_entered_it() -> None:
    seen: list[asyncio.Task[None] | None] = []
    line = FakeTransport()
    call = await in_conversation(line)
    await call.open("bound", task_bound(seen))
    line.leave()
    await closed(call)
    assert len(seen) == 2
    assert seen[0] is seen[1]
    assert seen[0] is not None


async def test_a_close_that_hangs_or_clings_or_raises_does_not_stop_the_others() -> None:
    log: list[str] = []
    line = FakeTransport()
    call = await in_conversation(line)
    await call.open("first", resource(log, "first"))
    await call.open("hangs", never_closes(), close_seconds=0.05)
    await call.open("clings", clings(), close_seconds=0.05)
    errors = (
        ValueError("no"),
        asyncio.CancelledError(),
        BaseExceptionGroup("two", [asyncio.CancelledError()]),
    )
    for error in errors:
        await call.open("raises", raises_on_close(error))
    line.leave()
    assert await closed(call) == [
        ("raises", "error"),
        ("raises", "error"),
        ("raises", "error"),
        ("clings", "timeout"),
        ("hangs", "timeout"),
        ("first", "ok"),
        ("room", "ok"),
    ]


async def test_a_librarys_cancelled_future_while_hanging_up_leaves_nothing_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def cancelled(self: FakeTransport, caller: object) -> None:
        raise asyncio.CancelledError

    monkeypatch.setattr(FakeTransport, "end_room", cancelled)
    log: list[str] = []
    call = await in_conversation(FakeTransport())
    await call.open("pool", resource(log, "pool"))
    await call.hang_up()
    assert await closed(call) == [("pool", "ok"), ("room", "ok")]


async def test_what_is_still_opening_when_the_call_ends_is_given_up_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = FakeTransport()
    call = await in_conversation(line)
    opening = asyncio.create_task(
        call.open("slow", never_opens(), open_seconds=60, close_seconds=60)
    )
    await asyncio.sleep(0)
    line.leave()
    assert await closed(call) == [("room", "ok")]
    with pytest.raises(OpenFailed):
        await opening


async def test_an_owners_resource_may_have_any_name() -> None:
    log: list[str] = []
    line = FakeTransport()
    call = await in_conversation(line)
    for name in ("session", "memory", "room"):
        await call.open(name, resource(log, name))
    await call.hang_up()
    assert [name for name, _ in await closed(call)] == ["room", "memory", "session", "room"]
    assert line.rooms_ended == 1


async def test_closes_share_one_budget_however_many_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(timeouts, "LAST_CHANCE_SECONDS", 0.2)
    line = FakeTransport()
    call = await in_conversation(line, quick(close_seconds=0.2, goodbye_seconds=0.1))
    await call.open("quick", resource([], "quick", turns=5))
    await call.open_session(never_closes())
    for number in range(3):
        await call.open(f"slow {number}", never_closes(), close_seconds=20)
    await call.hang_up()
    slow = [(f"slow {number}", "timeout") for number in reversed(range(3))]
    assert await closed(call) == [("session", "timeout"), *slow, ("quick", "ok"), ("room", "ok")]
    # without any budget left, each still has its last chance
    assert line.rooms_ended == 1


async def test_a_close_that_is_cut_is_a_warning_and_says_which_limit_it_was(
    caplog: pytest.LogCaptureFixture,
) -> None:
    call = await in_conversation(FakeTransport(), quick(close_seconds=0.2))
    await call.open("asks too much", never_closes(), close_seconds=20)
    assert "asks too much asks for 20 s to close" in caplog.text
    assert "AGENT_CLOSE_SECONDS=0.2" in caplog.text
    caplog.clear()
    await call.open("has little", never_closes(), close_seconds=0.01)
    # the template's own default is no wish of the owner's
    await call.open("says nothing", resource([], "says nothing"))
    assert not caplog.records
    await call.hang_up()
    await closed(call)
    warnings = {
        record.getMessage().split(" was cut")[0]: record.getMessage()
        for record in caplog.records
        if record.levelno == logging.WARNING
    }
    assert warnings.keys() == {"asks too much", "has little"}
    assert "its close_seconds had passed" in warnings["has little"]
    assert "AGENT_CLOSE_SECONDS" in warnings["asks too much"]


async def test_a_task_of_the_owners_that_the_end_of_the_job_cancels_is_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def write_a_report() -> None:
        await asyncio.Event().wait()

    async def is_quick() -> None:
        await done.wait()

    done = asyncio.Event()
    call = await in_conversation(FakeTransport(), quick(home=Path(__file__).parent))
    cut = asyncio.create_task(write_a_report(), name="report")
    quickly = asyncio.create_task(is_quick(), name="quick")
    elsewhere = asyncio.create_task(asyncio.Event().wait(), name="of a library")
    await call.hang_up()
    await closed(call)
    await call.on_job_ending()
    done.set()
    await quickly
    # as the SDK does next
    for task in (cut, elsewhere):
        task.cancel()
    await asyncio.wait([cut, elsewhere])
    await asyncio.sleep(0)
    (told,) = [r.getMessage() for r in caplog.records if "cancelled by the end" in r.getMessage()]
    assert "the task report" in told
    assert "write_a_report, test_call.py, line " in told


async def test_an_open_that_hangs_fails_at_its_deadline_and_is_never_closed() -> None:
    line = FakeTransport()
    call = await in_conversation(line)
    with pytest.raises(OpenFailed, match=r"slow did not open within 0\.01 s"):
        await call.open("slow", never_opens(), open_seconds=0.01)
    line.leave()
    assert await closed(call) == [("room", "ok")]


class Store:
    """A store of callers that keeps only the records of calls."""

    def __init__(self) -> None:
        self.records: list[CallRecord] = []

    async def check(self) -> None: ...

    async def recall(self, caller: str) -> None: ...

    async def write(self, caller: str, item: Item) -> None:
        if isinstance(item, CallRecord):
            self.records.append(item)

    async def forget(self, caller: str) -> int:
        return 0


async def test_memory_gets_the_record_of_the_call_before_it_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, line = Store(), FakeTransport()

    @asynccontextmanager
    async def open_store(settings: Settings) -> AsyncIterator[Store]:
        yield store

    monkeypatch.setattr("agent.memory.call_memory.open_store", open_store)
    call = await in_conversation(line)
    opening = open_memory(call.settings, call.journal)
    assert opening is not None
    call.memory = await call.open("memory", opening)
    call.memory.identify("ann")
    line.leave()
    await closed(call)
    (record,) = store.records
    assert (record.call, record.room, record.reason) == ("job", "room", Reason.CALLER_LEFT)


async def test_nothing_is_opened_or_started_after_the_end() -> None:
    log: list[str] = []
    line = FakeTransport()
    call = await in_conversation(line)
    line.leave()
    with pytest.raises(CallOver, match="the call is over"):
        await call.open("late", resource(log, "late"))
    with pytest.raises(CallOver, match="the call is over"):
        call.spawn(asyncio.sleep(0))
    await closed(call)
    assert log == []


async def test_a_dying_process_still_closes_everything_in_reverse() -> None:
    """When a worker is killed, the SDK cancels every task of the job at once, without callbacks."""
    log: list[str] = []
    line = FakeTransport()
    call = await in_conversation(line)
    await call.open("one", resource(log, "one"))
    # closing takes a while, and the older one waits for it
    await call.open("two", resource(log, "two", turns=20))
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert log[2:] == ["close two", "close one"]
    assert not line.connected


# ---------------------------------------------------------------------- tools and background tasks


async def test_the_end_of_the_call_cancels_a_running_tool_at_once() -> None:
    line = FakeTransport()
    call = await in_conversation(line)
    started = asyncio.Event()

    async def tool() -> None:
        async with asyncio.timeout(60) as deadline:
            with call.tools.running(deadline, 0):
                started.set()
                await asyncio.Event().wait()

    running = asyncio.create_task(tool())
    await started.wait()
    line.leave()
    with pytest.raises(TimeoutError):
        await running
    await closed(call)


async def test_a_background_task_is_awaited_before_what_it_uses_is_closed() -> None:
    log: list[str] = []
    line = FakeTransport()
    call = await in_conversation(line)
    await call.open("store", resource(log, "store"))

    async def write() -> None:
        await call.wait_ended()
        await asyncio.sleep(0.01)
        log.append("written")

    call.spawn(write())
    line.leave()
    await closed(call)
    assert log == ["open store", "written", "close store"]


async def test_a_background_task_that_never_ends_is_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(timeouts, "CLOSE_SECONDS", 0.05)
    line = FakeTransport()
    call = await in_conversation(line)
    task = call.spawn(asyncio.sleep(3600))
    line.leave()
    await closed(call)
    assert task.cancelled()


async def test_an_error_in_a_background_task_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def broken() -> None:
        raise ValueError("broken")

    line = FakeTransport()
    call = await in_conversation(line)
    task = call.spawn(broken(), name="my task")
    await asyncio.wait([task])
    line.leave()
    await closed(call)
    assert "background task my task: ValueError: broken" in caplog.text


# ---------------------------------------------------------------------- records


async def test_every_call_logs_its_steps_its_closes_and_its_end_in_order(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "agent.call")
    log: list[str] = []
    line = FakeTransport()
    call = await in_conversation(line)
    await call.open("pool", resource(log, "pool"))
    line.leave()
    await closed(call)
    records = [record.fields for record in caplog.records if hasattr(record, "fields")]
    assert [record["step"] for record in records if "step" in record] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [
        (record["resource"], record["outcome"]) for record in records if "resource" in record
    ] == call.closed
    assert (
        records[-1].items()
        >= {"reason": Reason.CALLER_LEFT, "turns": 0, "call": "job", "room": "room"}.items()
    )
    assert all({"call", "room", "ms"} <= record.keys() for record in records if "step" in record)


# ---------------------------------------------------------------------- the SDK's deadlines


def test_our_deadlines_fit_under_the_sdks() -> None:
    # the maximum of both
    settings = Settings.model_validate({"close_seconds": 8, "goodbye_seconds": 15})
    longest_close = timeouts.UNWIND_SECONDS + settings.close_seconds + settings.goodbye_seconds
    assert longest_close < timeouts.SDK_ACLOSE_SECONDS < timeouts.SDK_SESSION_END_SECONDS
    before_connected = (Step.OPEN_INFRASTRUCTURE.seconds or 0, Step.CONNECT.seconds or 0)
    assert max(before_connected) < timeouts.SDK_CONNECT_WARNING_SECONDS
    assert timeouts.EXIT_SECONDS < timeouts.SDK_KILL_SECONDS
    with pytest.raises(ValueError, match="close_seconds"):
        Settings.model_validate({"close_seconds": 9})


# ---------------------------------------------------------------------- found by mutants


class NotingLine(FakeTransport):
    """Logs the hang-up, which takes a few turns of the loop, and the guard of the exit."""

    def __init__(self, log: list[str]) -> None:
        super().__init__()
        self.log = log
        self.hanging_up = asyncio.Event()

    async def end_room(self, caller: Caller | None) -> None:
        self.hanging_up.set()
        for _ in range(50):
            await asyncio.sleep(0)
        self.log.append("hang up")

    def guard_exit(self, seconds: float) -> None:
        self.log.append("guard")


class Exits:
    """Notes the exception that its close gets; if it clings, it opens only once it is cancelled."""

    def __init__(self, *, clings: bool = False) -> None:
        self.told: list[object] = []
        self.left = asyncio.Event()
        self.clings = clings

    async def __aenter__(self) -> None:
        if self.clings:
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        self.told.append(kind)
        self.left.set()


def complaints() -> list[dict[str, Any]]:
    """The loop's reports of callbacks that raise."""
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
    return told


@pytest.mark.parametrize(
    ("reason", "heard"),
    [
        (Reason.AGENT_HUNG_UP, True),
        (Reason.TOO_LONG, True),
        (Reason.TOO_SILENT, True),
        (Reason.WORKER_STOPPED, True),
        (failed(Step.GREET), True),
        (Reason.CALLER_LEFT, False),
        (Reason.CALLER_DROPPED, False),
        (Reason.NO_SHOW, False),
        (Reason.ROOM_CLOSED, False),
        (Reason.REMOVED, False),
        (Reason.WORKER_DIED, False),
    ],
)
async def test_a_last_sentence_is_for_a_caller_who_is_still_there(reason: str, heard: bool) -> None:
    nobody = Call(FakeTransport(), quick())
    await nobody.start(talk)
    away, there = await in_conversation(FakeTransport()), await in_conversation(FakeTransport())
    away.caller_gone(on_purpose=False)
    for call in (nobody, away, there):
        call.end(reason)
    # both are too late to change anything
    there.caller_gone(on_purpose=False)
    away.caller_back()
    assert (nobody.can_speak, away.can_speak, there.can_speak) == (False, False, heard)
    stopping = there.goodbye_seconds == there.settings.stop_goodbye_seconds
    assert stopping == (reason == Reason.WORKER_STOPPED)
    for call in (nobody, away, there):
        await closed(call)


async def test_only_a_caller_who_is_away_comes_back_and_who_is_away_twice_comes_back_once() -> None:
    line = FakeTransport()
    call = await in_conversation(line, quick(rejoin_seconds=0.02))
    line.come_back()
    line.drop()
    line.drop()
    line.come_back()
    # longer than either window
    await asyncio.sleep(0.05)
    assert call.reason is None
    line.leave()
    await closed(call)
    unknown = Call(FakeTransport(), quick())
    await unknown.start(talk)
    unknown.caller_gone(on_purpose=False)
    await closed(unknown)
    assert unknown.reason == Reason.CALLER_LEFT


async def test_a_no_show_has_no_caller_and_not_every_transport_has_limits_or_knows_who_came(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def stays(call: Call) -> None:
        await call.wait_ended()

    call = Call(FakeTransport(), quick(caller_wait_seconds=0.01))
    await call.start(stays)
    with pytest.raises(CallOver, match="no-show"):
        await call.wait_for_caller()
    await closed(call)

    call = await in_conversation(FakeTransport(limited=False), quick(max_call_seconds=0.01))
    assert (await call.wait_for_caller()).identity == "ann"
    # longer than a limited call
    await asyncio.sleep(0.05)
    assert call.reason is None
    await call.hang_up()
    await closed(call)

    async def wait_for_caller(self: FakeTransport, _: object) -> Caller:
        raise TimeoutError("the server is busy")

    monkeypatch.setattr(FakeTransport, "wait_for_caller", wait_for_caller)
    call = Call(FakeTransport(), quick())
    await call.start(talk)
    await closed(call)
    # not a no-show
    assert call.reason == failed(Step.WAIT_FOR_CALLER)


@pytest.mark.parametrize(
    ("ends", "outcome", "says"),
    [
        ("hangs", "error", "TimeoutError: no answer within 0.01 s"),
        ("times out", "error", "TimeoutError: theirs"),
        ("raises", "error", "ValueError: broken"),
        ("is late", "over", ""),
        ("is cut", "cut", ""),
        ("returns", "ok", ""),
    ],
)
async def test_how_a_step_ended_is_in_its_record_and_in_the_reason(
    ends: str,
    outcome: str,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(Step.GREET, "seconds", 0.01 if ends == "hangs" else 60)
    caplog.set_level(logging.INFO, "agent.call")
    inside, went_on = asyncio.Event(), asyncio.Event()

    async def greet(call: Call) -> None:
        async with call.step(Step.GREET):
            inside.set()
            if ends in {"hangs", "is cut"}:
                await asyncio.Event().wait()
            if ends == "is late":
                call.end(Reason.TOO_LONG)
                await call.open("late", resource([], "late"))
            if ends != "returns":
                raise TimeoutError("theirs") if ends == "times out" else ValueError("broken")
        went_on.set()

    line = FakeTransport()
    call = Call(line, quick())
    await call.start(greet)
    await inside.wait()
    if ends == "is cut":
        line.leave()
    await closed(call)
    reasons = {
        "is late": Reason.TOO_LONG,
        "is cut": Reason.CALLER_LEFT,
        "returns": Reason.AGENT_HUNG_UP,
    }
    assert call.reason == reasons.get(ends, failed(Step.GREET))
    fields = [record.fields for record in caplog.records if hasattr(record, "fields")]
    steps = [record for record in fields if "step" in record]
    assert [(step["step"], step["outcome"]) for step in steps] == [(6, outcome), (8, "ok")]
    assert any(says in record.getMessage() for record in caplog.records)
    assert went_on.is_set() == (ends == "returns")


async def test_an_entrypoint_waits_for_a_call_whose_room_fails_to_connect(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @asynccontextmanager
    async def room(self: FakeTransport) -> AsyncIterator[None]:
        raise ConnectionError("no route")
        yield

    monkeypatch.setattr(FakeTransport, "room", room)
    unwound = asyncio.Event()

    async def slowly(call: Call) -> None:
        async with call.step(Step.CONNECT):
            try:
                await call.wait_connected()
            finally:
                for _ in range(5):
                    await asyncio.sleep(0)
                unwound.set()

    call = Call(FakeTransport(), quick())
    await call.start(slowly)
    assert (unwound.is_set(), call.reason) == (True, failed(Step.CONNECT))
    await closed(call)


async def test_a_call_that_ends_before_it_has_connected_or_greeted_keeps_nobody_waiting() -> None:
    async def no_steps(call: Call) -> None:
        raise ValueError("broken")

    call = Call(FakeTransport(connects=False), quick())
    await call.start(no_steps)
    assert not await call.wait_greeted()
    await closed(call)
    assert call.reason == failed(Step.OPEN_INFRASTRUCTURE)

    line = FakeTransport()
    call = Call(line, quick())
    await call.start(talk)
    talking = asyncio.create_task(call.wait_greeted())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not talking.done()
    line.arrive()
    assert await talking
    await call.hang_up()
    await closed(call)


async def test_the_session_closes_first_then_the_room_is_deleted_then_the_rest_closes_in_reverse(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # each has more than that
    monkeypatch.setattr(timeouts, "LAST_CHANCE_SECONDS", 0.0)
    log: list[str] = []

    async def steps(call: Call) -> None:
        async with call.step(Step.STAY):
            await call.wait_ended()
            await asyncio.sleep(0)
            # the rest of this cleanup is not cut off
            log.append("steps")

    call = Call(NotingLine(log), quick())
    await call.start(steps)
    await call.open("pool", resource(log, "pool", turns=20))
    await call.open_session(resource(log, "session"))
    await call.open("late", resource(log, "late"))
    # the SDK leaves the process, for whatever reason
    await call.on_job_ending()
    assert (call.reason, log) == (
        Reason.WORKER_STOPPED,
        ["open pool", "open session", "open late", "guard"],
    )
    with pytest.raises(CallOver, match="the session was not started"):
        await call.open_session(resource(log, "another session"))
    waiting = asyncio.create_task(call.wait_closed())
    await asyncio.sleep(0)
    # a task that awaits the closing may give up without stopping it
    waiting.cancel()
    await closed(call)
    assert waiting.cancelled()
    assert log[4:] == ["steps", "close session", "hang up", "close late", "close pool"]


async def test_the_session_has_the_goodbyes_time_and_a_resource_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(timeouts, "SESSION_CLOSE_SECONDS", 0.01)
    settled: list[list[tuple[str, str]]] = []

    @asynccontextmanager
    async def slow(turns: int) -> AsyncIterator[Any]:
        yield
        for _ in range(turns):
            await asyncio.sleep(0.03)

    line = FakeTransport()
    call = await in_conversation(line, quick(close_seconds=2, goodbye_seconds=15))
    await call.open("patient", slow(5))
    await call.open("impatient", slow(1000), close_seconds=0.01)
    await call.open_session(slow(5))
    call.spawn(asyncio.sleep(3600)).add_done_callback(
        lambda task: settled.append(call.closed.copy())
    )
    await call.hang_up()
    assert await closed(call) == [
        ("session", "ok"),
        ("impatient", "timeout"),
        ("patient", "ok"),
        ("room", "ok"),
    ]
    # the goodbye does not wait for background tasks, but the rest does
    assert settled == [[("session", "ok")]]

    line = FakeTransport()
    call = await in_conversation(line, quick(close_seconds=2, goodbye_seconds=15))
    await call.open_session(slow(1000))
    # the goodbye has no listener
    line.leave()
    assert await closed(call) == [("session", "timeout"), ("room", "ok")]


@pytest.mark.parametrize(
    ("seconds", "budget"), [(0.05, 8.0), (60, 0.1)], ids=["own time", "budget"]
)
@pytest.mark.parametrize("trouble", ["raises", "hangs", "steps cling", "a task clings"])
async def test_nothing_delays_the_closing(
    trouble: str, seconds: float, budget: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("END_ROOM_SECONDS", "CLOSE_SECONDS"):
        monkeypatch.setattr(timeouts, name, seconds)
    for name in ("UNWIND_SECONDS", "LAST_CHANCE_SECONDS"):
        monkeypatch.setattr(timeouts, name, 0.05)
    freed = asyncio.Event()

    async def clinging() -> None:
        while not freed.is_set():
            with suppress(asyncio.CancelledError):
                await freed.wait()

    async def end_room(self: FakeTransport, caller: object) -> None:
        if trouble == "raises":
            raise ConnectionError("no server")
        if trouble == "hangs":
            await asyncio.Event().wait()

    async def steps(call: Call) -> None:
        await (clinging() if trouble == "steps cling" else talk(call))

    monkeypatch.setattr(FakeTransport, "end_room", end_room)
    log: list[str] = []
    line = FakeTransport()
    line.arrive()
    call = Call(line, quick(close_seconds=budget, goodbye_seconds=min(2 * budget, 15)))
    await call.start(steps)
    await call.open("pool", resource(log, "pool"), close_seconds=5)
    if trouble == "a task clings":
        call.spawn(clinging())
    await asyncio.sleep(0)
    call.shut_down()
    assert await closed(call) == [("pool", "ok"), ("room", "ok")]
    assert call.reason == Reason.AGENT_HUNG_UP
    freed.set()


async def test_steps_and_background_tasks_are_unwound_before_what_they_use_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(timeouts, "CLOSE_SECONDS", 0.05)
    log: list[str] = []
    told = complaints()

    async def unwinds(name: str, seconds: float) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(seconds)
            log.append(name)

    async def steps(call: Call) -> None:
        async with call.step(Step.GREET):
            # within UNWIND_SECONDS
            await unwinds("steps", 0.3)

    line = FakeTransport()
    call = Call(line, quick())
    await call.start(steps)
    await call.open("pool", resource(log, "pool"), close_seconds=5)
    call.spawn(unwinds("task", 0.01))
    cancelled = call.spawn(asyncio.sleep(3600))
    await asyncio.sleep(0)
    # by its owner, which is not an error
    cancelled.cancel()
    line.leave()
    await closed(call)
    assert log == ["open pool", "steps", "task", "close pool"]
    assert told == []


@pytest.mark.parametrize("waiting", [True, False])
async def test_what_clings_to_its_opening_is_left_as_soon_as_it_is_open(waiting: bool) -> None:
    line = FakeTransport()
    told = complaints()
    call = await in_conversation(line)
    exits, quick_one = Exits(clings=True), Exits()
    await call.open("quick", quick_one, open_seconds=0.01)
    opening = asyncio.create_task(call.open("slow", exits, open_seconds=0.02))
    await asyncio.sleep(0)
    if not waiting:
        # its opener no longer waits; its deadline stays
        opening.cancel()
    async with asyncio.timeout(10):
        await exits.left.wait()
    with pytest.raises(OpenFailed if waiting else asyncio.CancelledError):
        await opening
    assert (call.reason, exits.told, quick_one.told, told) == (None, [None], [], [])
    line.leave()
    await closed(call)


@pytest.mark.parametrize("then", ["raises", "lets it through", "swallows it"])
async def test_a_resource_that_breaks_costs_no_call(then: str) -> None:
    """anyio reports a failure in a task group by cancelling the task that holds the group."""
    left = asyncio.Event()

    @asynccontextmanager
    async def breaks() -> AsyncIterator[asyncio.Task[Any]]:
        holder = asyncio.current_task()
        assert holder is not None
        try:
            yield holder
        except asyncio.CancelledError:
            left.set()
            if then == "lets it through":
                raise
            holder.uncancel()
            if then == "raises":
                raise ConnectionError("the server is gone") from None

    log: list[str] = []
    line = FakeTransport()
    call = await in_conversation(line)
    await call.open("pool", resource(log, "pool"))
    holder = await call.open("breaks", breaks())
    holder.cancel()
    async with asyncio.timeout(10):
        await left.wait()
    assert (call.reason, log) == (None, ["open pool"])
    line.leave()
    assert await closed(call) == [("breaks", "error"), ("pool", "ok"), ("room", "ok")]


async def test_a_tool_has_its_end_from_the_call_only_while_it_runs() -> None:
    line = FakeTransport()
    call = await in_conversation(line)
    cleaning, cleaned = asyncio.Event(), asyncio.Event()

    async def cleans_up() -> None:
        async with asyncio.timeout(0.01) as deadline:
            with call.tools.running(deadline, 0):
                try:
                    await asyncio.Event().wait()
                finally:
                    cleaning.set()
                    await cleaned.wait()

    async def too_late() -> None:
        async with asyncio.timeout(3600) as deadline:
            with call.tools.running(deadline, 0):
                await asyncio.Event().wait()

    expired = asyncio.create_task(cleans_up())
    await cleaning.wait()
    async with asyncio.timeout(10) as after:
        with suppress(ValueError), call.tools.running(after, 0):
            raise ValueError("a mistake")
        # one deadline has passed already, the other is no longer a tool's
        line.leave()
        cleaned.set()
        with pytest.raises(TimeoutError):
            await expired
        with pytest.raises(TimeoutError):
            await too_late()
        await closed(call)
    work = asyncio.sleep(0)
    with pytest.raises(CallOver):
        call.spawn(work)
    assert inspect.getcoroutinestate(work) == inspect.CORO_CLOSED


class Records(CallMemory):
    """A memory that keeps only the records of calls."""

    def __init__(self) -> None:
        self.records: list[CallRecord] = []

    def key_of(self, identity: str, kind: str, attributes: Mapping[str, str]) -> str | None:
        return None

    def identify(self, key: str | None) -> None:
        return

    async def recall(self) -> Profile | None:
        return None

    def add_turn(self, turn: Turn) -> None:
        return

    def add_note(self, note: Note) -> bool:
        return False

    def add_call(self, record: CallRecord) -> None:
        self.records.append(record)


async def killed(call: Call) -> None:
    """End the job like that of a killed worker: cancel all tasks at once, leave the room last."""
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in sorted(tasks, key=lambda task: task is not call.running_steps):
        task.cancel()
    async with asyncio.timeout(10):
        await asyncio.shield(call.opened._opened[0].task)


async def test_a_dying_process_says_why_once_and_leaves_in_peace() -> None:
    log, memory, exits, opening = list[str](), Records(), Exits(), Exits(clings=True)
    call = await in_conversation(NotingLine(log))
    call.memory = memory
    await call.open("exits", exits)
    await call.open("pool", resource(log, "pool"))
    call.spawn(call.open("opening", opening))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await killed(call)
    assert (call.reason, [record.reason for record in memory.records]) == (
        Reason.WORKER_DIED,
        [Reason.WORKER_DIED],
    )
    assert log == ["open pool", "guard", "close pool", "hang up"]
    assert (exits.told, opening.told) == ([None], [None])
    async with asyncio.timeout(10):
        await call.wait_ended()
        # no closing has begun
        await call.wait_closed()


async def test_a_process_that_dies_while_it_hangs_up_tries_once_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(timeouts, "CLOSE_SECONDS", 0.05)
    log: list[str] = []
    line = NotingLine(log)
    call = await in_conversation(line)
    await call.open("pool", resource(log, "pool", turns=20))
    # the older ones do not wait for it for ever
    await call.open("hangs", never_closes(), close_seconds=0.05)
    await call.on_job_ending()
    await line.hanging_up.wait()
    await killed(call)
    assert (call.reason, log) == (
        Reason.WORKER_STOPPED,
        ["open pool", "guard", "close pool", "hang up"],
    )


async def test_what_a_lost_room_leads_to_is_not_taken_for_its_cause() -> None:
    """An error in the steps, or a library's cancelled future, may come before the room's event."""
    for error in (ConnectionError("the room is gone"), asyncio.CancelledError()):
        failed = asyncio.Event()

        async def fails(
            call: Call, failed: asyncio.Event = failed, error: BaseException = error
        ) -> None:
            failed.set()
            raise error

        line = FakeTransport()
        call = Call(line, quick())
        await call.start(fails)
        await failed.wait()
        line.close_room()
        await closed(call)
        assert call.reason == Reason.ROOM_CLOSED


async def test_each_part_of_a_models_stream_has_its_own_patience() -> None:
    left = asyncio.Event()

    async def parts(error: Exception | None = None) -> AsyncGenerator[str, None]:
        try:
            for part in ("one", "two"):
                await asyncio.sleep(0.01)
                yield part
            if error:
                raise error
        finally:
            left.set()

    async def hangs() -> AsyncGenerator[str, None]:
        waiting.set()
        await asyncio.Event().wait()
        yield "never"

    patience = StreamTimeout(60)
    first, stream = patience._until, parts()
    assert await patience.next_of(stream) == "one"
    assert first is not None
    assert patience._until is not None
    assert patience._until > first
    assert [part async for part in with_timeout(stream, patience)] == ["two"]

    left.clear()
    half = with_timeout(parts(), patience)
    assert await anext(half) == "one"
    # an interrupted reply
    await half.aclose()
    assert left.is_set()

    with pytest.raises(TimeoutError, match="theirs"):
        assert [part async for part in with_timeout(parts(TimeoutError("theirs")), patience)] == [
            "not reached"
        ]

    waiting, later = asyncio.Event(), StreamTimeout(0.001, begun=False)
    # its time has not begun
    assert [part async for part in with_timeout(parts(), later)] == ["one", "two"]
    hanging = asyncio.create_task(later.next_of(hangs()))
    await waiting.wait()
    later.begin()
    with pytest.raises(TimeoutError, match=r"nothing for 0\.001 s"):
        await asyncio.wait_for(hanging, 10)
    # nothing is awaited any more
    later.begin()
