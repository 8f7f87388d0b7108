"""The one door: whatever opens is closed once, in reverse, for one named reason, however the call ends."""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from livekit.agents import AgentServer
from livekit.agents.ipc import job_proc_lazy_main as sdk

from agent import lifecycle
from agent.lifecycle import Call, CallOver, OpenFailed, Reason
from agent.memory import CallMemory, CallRecord, Turn
from agent.settings import Settings
from tests.line import TestLine

Steps = Callable[[Call], Awaitable[None]]


def quick(**changes: float) -> Settings:
    """Settings with short limits, so that tests of hanging parts end soon."""
    return Settings.model_validate({"close_seconds": 1.0, "goodbye_seconds": 0.5, **changes})


@asynccontextmanager
async def resource(log: list[str], name: str, *, turns: int = 0) -> AsyncIterator[str]:
    """Notes when it is opened and closed; closing takes so many turns of the event loop."""
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
async def never_closes() -> AsyncIterator[None]:
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
async def raises_on_close() -> AsyncIterator[None]:
    yield
    raise ValueError("no")


async def talk(call: Call) -> None:
    """The eight steps without a session."""
    async with call.step(1, "open infrastructure"):
        pass
    async with call.step(2, "connect"):
        await call.connected()
    async with call.step(3, "build agent and session"):
        pass
    async with call.step(4, "wait for the caller"):
        await call.wait_for_caller()
    async with call.step(5, "start the session"):
        pass
    async with call.step(6, "greet"):
        pass
    async with call.step(7, "stay for the conversation"):
        await call.over()


async def in_conversation(line: TestLine, settings: Settings | None = None, steps: Steps = talk) -> Call:
    """A call that has reached step 7."""
    call = Call(line, settings or quick())
    line.arrive()
    await call.begin(steps)
    assert await call.talking()
    return call


async def closed(call: Call) -> list[tuple[str, str]]:
    """Wait for the door; what it closed."""
    async with asyncio.timeout(10):
        await call.over()
        await call.finished()
    return call.closed


# ---------------------------------------------------------------------- ends


async def test_a_caller_who_hangs_up_ends_the_call_and_leaves_the_room_to_others() -> None:
    line = TestLine()
    call = await in_conversation(line)
    line.leave()
    assert await closed(call) == [("room", "ok")]
    assert (call.reason, line.finished_with, line.taken_along) == (Reason.CALLER_LEFT, [Reason.CALLER_LEFT], 0)


@pytest.mark.parametrize(("removed", "reason"), [(False, Reason.ROOM_CLOSED), (True, Reason.REMOVED)])
async def test_losing_the_room_ends_the_call(removed: bool, reason: str) -> None:
    line = TestLine()
    call = await in_conversation(line)
    line.close_room(removed=removed)
    await closed(call)
    assert call.reason == reason
    assert line.taken_along == (1 if removed else 0)  # an agent that was removed does not strand its caller


async def test_an_agent_that_hangs_up_takes_the_caller_along() -> None:
    line = TestLine()
    call = await in_conversation(line)
    await call.hang_up()
    await closed(call)
    assert (call.reason, line.taken_along) == (Reason.AGENT_HUNG_UP, 1)


async def test_an_empty_room_is_not_kept_open_for_ever() -> None:
    line = TestLine()
    call = Call(line, quick(caller_wait_seconds=0.01))
    await call.begin(talk)
    await closed(call)
    assert call.reason == Reason.NO_SHOW


async def test_a_call_has_a_longest_length() -> None:
    line = TestLine()
    call = Call(line, quick(max_call_seconds=0.01))
    line.arrive()
    await call.begin(talk)
    await closed(call)
    assert call.reason == Reason.TOO_LONG


async def test_a_stopping_worker_ends_the_call_while_it_waits_for_its_caller() -> None:
    line = TestLine()
    call = Call(line, quick())
    await call.begin(talk)
    async with asyncio.timeout(1):
        await call.finished()  # what on_session_end awaits
    assert (call.reason, line.connected) == (Reason.WORKER_STOPPED, False)


async def test_a_dropped_caller_has_a_window_to_come_back_and_a_whole_one_the_second_time() -> None:
    line = TestLine()
    call = await in_conversation(line, quick(rejoin_seconds=0.05))
    line.drop()
    line.come_back()
    await asyncio.sleep(0.1)
    assert call.reason is None
    line.drop()
    await closed(call)
    assert call.reason == Reason.CALLER_DROPPED


async def test_a_phone_has_no_window_to_come_back() -> None:
    line = TestLine()
    call = Call(line, quick())
    line.arrive(kind="sip")
    await call.begin(talk)
    await call.talking()
    line.drop()
    await closed(call)
    assert call.reason == Reason.CALLER_LEFT


async def test_a_server_that_ends_the_job_before_the_room_is_not_taken_for_a_stopping_worker() -> None:
    line = TestLine()
    call = await in_conversation(line)
    stopping = asyncio.create_task(call.stopped())
    await asyncio.sleep(0)
    line.close_room()
    await stopping
    await closed(call)
    assert call.reason == Reason.ROOM_CLOSED


async def test_the_first_reason_wins() -> None:
    line = TestLine()
    call = await in_conversation(line)
    line.leave()
    line.close_room()
    await call.stopped()
    call.fail(ValueError("late"))
    await closed(call)
    assert line.finished_with == [Reason.CALLER_LEFT]


# ---------------------------------------------------------------------- steps


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 6])
async def test_an_error_in_any_step_ends_the_call_with_that_step_as_its_reason(number: int) -> None:
    async def fails(call: Call) -> None:
        async with call.step(number, "this one"):
            raise ValueError("broken")

    line = TestLine()
    call = Call(line, quick())
    await call.begin(fails)
    await closed(call)
    assert call.reason == f"error in step {number} (this one)"


@pytest.mark.parametrize("number", [1, 2, 3, 5, 6])
async def test_a_step_that_hangs_ends_the_call_at_its_deadline(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    async def hangs(call: Call) -> None:
        async with call.step(number, "this one"):
            await asyncio.Event().wait()

    monkeypatch.setitem(lifecycle.STEP_SECONDS, number, 0.01)
    call = Call(TestLine(), quick())
    await call.begin(hangs)
    await closed(call)
    assert call.reason == f"error in step {number} (this one)"


async def test_a_room_that_never_connects_ends_the_call_although_the_first_step_hangs_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(lifecycle.STEP_SECONDS, 2, 0.01)
    line = TestLine(connects=False)
    call = Call(line, quick())
    await call.begin(talk)  # returns: the entrypoint is never held
    await closed(call)
    assert call.reason == Reason.error(2, "connect")


async def test_a_cancelled_future_of_a_library_is_an_error_and_not_a_silent_end() -> None:
    async def cancelled(call: Call) -> None:
        async with call.step(6, "greet"):
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            future.cancel()
            await future

    call = Call(TestLine(), quick())
    await call.begin(cancelled)
    await closed(call)
    assert call.reason == Reason.error(6, "greet")


async def test_the_entrypoint_returns_while_the_caller_is_still_awaited() -> None:
    call = Call(TestLine(), quick())
    async with asyncio.timeout(1):
        await call.begin(talk)
    assert call.reason is None
    await call.finished()
    await closed(call)


# ---------------------------------------------------------------------- opening and closing


async def test_everything_is_closed_once_in_reverse_order() -> None:
    log: list[str] = []
    line = TestLine()
    call = await in_conversation(line)
    for name in ("one", "two", "three"):
        assert await call.open(name, resource(log, name)) == name
    line.leave()
    assert await closed(call) == [("three", "ok"), ("two", "ok"), ("one", "ok"), ("room", "ok")]
    assert log == ["open one", "open two", "open three", "close three", "close two", "close one"]


async def test_a_resource_is_left_in_the_task_that_entered_it() -> None:
    seen: list[asyncio.Task[None] | None] = []
    line = TestLine()
    call = await in_conversation(line)
    await call.open("bound", task_bound(seen))
    line.leave()
    await closed(call)
    assert len(seen) == 2
    assert seen[0] is seen[1]
    assert seen[0] is not None


async def test_a_close_that_hangs_or_clings_or_raises_does_not_stop_the_others() -> None:
    log: list[str] = []
    line = TestLine()
    call = await in_conversation(line)
    await call.open("first", resource(log, "first"))
    await call.open("hangs", never_closes(), close_seconds=0.05)
    await call.open("clings", clings(), close_seconds=0.05)
    await call.open("raises", raises_on_close())
    line.leave()
    assert await closed(call) == [
        ("raises", "error"),
        ("clings", "timeout"),
        ("hangs", "timeout"),
        ("first", "ok"),
        ("room", "ok"),
    ]


async def test_a_librarys_cancelled_future_while_hanging_up_leaves_nothing_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def cancelled(self: TestLine, caller: object) -> None:
        raise asyncio.CancelledError

    monkeypatch.setattr(TestLine, "take_along", cancelled)
    log: list[str] = []
    call = await in_conversation(TestLine())
    await call.open("pool", resource(log, "pool"))
    await call.hang_up()
    assert await closed(call) == [("pool", "ok"), ("room", "ok")]


async def test_what_is_still_opening_when_the_call_ends_is_given_up_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    line = TestLine()
    call = await in_conversation(line)
    opening = asyncio.create_task(call.open("slow", never_opens(), open_seconds=60, close_seconds=60))
    await asyncio.sleep(0)
    line.leave()
    assert await closed(call) == [("room", "ok")]
    with pytest.raises(OpenFailed):
        await opening


async def test_an_owners_resource_may_have_any_name() -> None:
    log: list[str] = []
    line = TestLine()
    call = await in_conversation(line)
    for name in ("session", "memory", "room"):
        await call.open(name, resource(log, name))
    await call.hang_up()
    assert [name for name, _ in await closed(call)] == ["room", "memory", "session", "room"]
    assert line.taken_along == 1


async def test_closes_share_one_budget_however_many_there_are() -> None:
    line = TestLine()
    call = await in_conversation(line, quick(close_seconds=0.3))
    for number in range(10):
        await call.open(f"slow {number}", never_closes(), close_seconds=5)
    line.leave()
    assert {outcome for _, outcome in await closed(call)} == {"timeout", "ok"}


async def test_an_open_that_hangs_fails_at_its_deadline_and_is_never_closed() -> None:
    line = TestLine()
    call = await in_conversation(line)
    with pytest.raises(OpenFailed, match=r"slow did not open within 0\.01 s"):
        await call.open("slow", never_opens(), open_seconds=0.01)
    line.leave()
    assert await closed(call) == [("room", "ok")]


class Store:
    """A store of callers that keeps nothing but the records of calls."""

    def __init__(self) -> None:
        self.records: list[CallRecord] = []

    async def check(self) -> None: ...

    async def recall(self, caller: str) -> None: ...

    async def remember(self, caller: str, turn: Turn) -> None: ...

    async def record(self, caller: str, call: CallRecord) -> None:
        self.records.append(call)

    async def forget(self, caller: str) -> int:
        return 0


async def test_memory_gets_the_record_of_the_call_before_it_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    store, line = Store(), TestLine()

    @asynccontextmanager
    async def open_store(settings: Settings) -> AsyncIterator[Store]:
        yield store

    monkeypatch.setattr("agent.memory.call.open_memory_of", open_store)
    call = await in_conversation(line)
    call.memory = await call.open("memory", CallMemory.open(call.settings))
    call.memory.know("ann")
    line.leave()
    await closed(call)
    (record,) = store.records
    assert (record.call, record.room, record.reason) == ("job", "room", Reason.CALLER_LEFT)


async def test_nothing_is_opened_or_started_after_the_end() -> None:
    log: list[str] = []
    line = TestLine()
    call = await in_conversation(line)
    line.leave()
    with pytest.raises(CallOver, match="the call is over"):
        await call.open("late", resource(log, "late"))
    with pytest.raises(CallOver, match="the call is over"):
        call.spawn(asyncio.sleep(0))
    await closed(call)
    assert log == []


async def test_a_dying_process_still_closes_everything_in_reverse() -> None:
    """A worker that is killed makes the SDK cancel every task of the job at once and run no callback."""
    log: list[str] = []
    line = TestLine()
    call = await in_conversation(line)
    await call.open("one", resource(log, "one"))
    await call.open("two", resource(log, "two", turns=20))  # closing takes a while, and the older one waits for it
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert log[2:] == ["close two", "close one"]
    assert not line.connected


# ---------------------------------------------------------------------- tools and background tasks


async def test_the_end_of_the_call_cancels_a_running_tool_at_once() -> None:
    line = TestLine()
    call = await in_conversation(line)
    started = asyncio.Event()

    async def tool() -> None:
        async with asyncio.timeout(60) as deadline:
            with call.tool_scope(deadline):
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
    line = TestLine()
    call = await in_conversation(line)
    await call.open("store", resource(log, "store"))

    async def write() -> None:
        await call.over()
        await asyncio.sleep(0.01)
        log.append("written")

    call.spawn(write())
    line.leave()
    await closed(call)
    assert log == ["open store", "written", "close store"]


async def test_a_background_task_that_never_ends_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "CLOSE_SECONDS", 0.05)
    line = TestLine()
    call = await in_conversation(line)
    task = call.spawn(asyncio.sleep(3600))
    line.leave()
    await closed(call)
    assert task.cancelled()


async def test_an_error_in_a_background_task_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def broken() -> None:
        raise ValueError("broken")

    line = TestLine()
    call = await in_conversation(line)
    task = call.spawn(broken(), name="my task")
    await asyncio.wait([task])
    line.leave()
    await closed(call)
    assert "background task my task: ValueError: broken" in caplog.text


# ---------------------------------------------------------------------- records


async def test_every_call_logs_its_steps_its_closes_and_its_end_in_order(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "agent.call")
    log: list[str] = []
    line = TestLine()
    call = await in_conversation(line)
    await call.open("pool", resource(log, "pool"))
    line.leave()
    await closed(call)
    records = [record.fields for record in caplog.records if hasattr(record, "fields")]
    assert [record["step"] for record in records if "step" in record] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [(record["resource"], record["outcome"]) for record in records if "resource" in record] == call.closed
    assert records[-1].items() >= {"reason": Reason.CALLER_LEFT, "turns": 0, "call": "job", "room": "room"}.items()
    assert all({"call", "room", "ms"} <= record.keys() for record in records if "step" in record)


# ---------------------------------------------------------------------- the SDK's deadlines


def test_the_sdk_still_has_the_deadlines_that_ours_fit_under() -> None:
    source = inspect.getsource(sdk)
    assert f"_SESSION_ACLOSE_TIMEOUT = {lifecycle.SDK_ACLOSE_SECONDS}" in source
    assert f"timeout={lifecycle.SDK_ENTRYPOINT_SECONDS:g})" in source
    assert f"await asyncio.sleep({lifecycle.SDK_CONNECT_WARNING_SECONDS:g})" in source
    server = inspect.signature(AgentServer.__init__).parameters
    assert server["session_end_timeout"].default == lifecycle.SDK_SESSION_END_SECONDS
    assert server["shutdown_process_timeout"].default == lifecycle.SDK_KILL_SECONDS


def test_our_deadlines_fit_under_the_sdks() -> None:
    settings = Settings.model_validate({"close_seconds": 8, "goodbye_seconds": 15})  # the most that either may be
    longest_close = lifecycle.UNWIND_SECONDS + settings.close_seconds + settings.goodbye_seconds
    assert longest_close < lifecycle.SDK_ACLOSE_SECONDS < lifecycle.SDK_SESSION_END_SECONDS
    assert max(lifecycle.STEP_SECONDS[1], lifecycle.STEP_SECONDS[2]) < lifecycle.SDK_CONNECT_WARNING_SECONDS
    assert lifecycle.EXIT_SECONDS < lifecycle.SDK_KILL_SECONDS
    with pytest.raises(ValueError, match="close_seconds"):
        Settings.model_validate({"close_seconds": 9})
