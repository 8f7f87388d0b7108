"""A resource is left in the task that entered it, as anyio and every MCP client require."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest
from livekit.agents import RunResult
from livekit.agents.llm.mcp import MCPServerStdio, MCPToolset
from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client

from agent.conversation import CallAgent
from agent.conversation.session import build_session, conversation
from agent.lifecycle import Call, Reason, Step, timeouts
from agent.lifecycle.resource import RunningTools
from agent.models import models_of
from agent.settings import Settings
from tests.agent.lifecycle.hand_transport import HandTransport

# seconds; long enough for a busy machine
PATIENCE = 60.0
SERVER = Path(__file__).with_name("mcp_server.py")

Steps = Callable[[Call], Awaitable[None]]


async def talk(call: Call) -> None:
    """The steps of a call without a session."""
    async with call.step(Step.CONNECT):
        await call.wait_connected()
    async with call.step(Step.WAIT_FOR_CALLER):
        await call.wait_for_caller()
    async with call.step(Step.STAY):
        await call.wait_ended()


async def in_conversation(line: HandTransport, steps: Steps = talk, **changes: object) -> Call:
    """A call that has reached step 7."""
    call = Call(
        line, Settings.model_validate({"memory_url": "none", "knowledge": "none", **changes})
    )
    line.arrive()
    await call.start(steps)
    assert await call.wait_greeted()
    return call


async def closed(call: Call) -> list[tuple[str, str]]:
    """Wait until the call is closed; return what it closed."""
    async with asyncio.timeout(PATIENCE):
        await call.wait_ended()
        await call.wait_closed()
    return call.closed


async def die() -> None:
    """Cancel every task and wait for them, as the SDK does in the job of a killed worker."""
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*tasks, return_exceptions=True)


async def leave(call: Call) -> None:
    """The caller hangs up."""
    call.transport.events.caller_gone(on_purpose=True)  # type: ignore[attr-defined]


async def lose_the_room(call: Call) -> None:
    """The server deletes the room."""
    call.transport.events.room_gone(removed=False)  # type: ignore[attr-defined]


async def fail(call: Call) -> None:
    """A step fails."""
    call.fail(ValueError("broken"))


ENDS: list[Callable[[Call], Awaitable[None]]] = [
    leave,
    lose_the_room,
    fail,
    Call.hang_up,
    Call.on_job_stopped,
    Call.wait_closed,
]


# ---------------------------------------------------------------------- a task group


@asynccontextmanager
async def group(log: list[str], name: str) -> AsyncIterator[anyio.abc.TaskGroup]:
    """Holds a task group open, which no other task may close."""
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.sleep_forever)
            log.append(f"open {name}")
            try:
                yield tasks
            finally:
                log.append(f"close {name}")
                tasks.cancel_scope.cancel()
    except RuntimeError:
        log.append(f"{name} was left by another task")
        raise


async def test_anyio_minds_when_another_task_leaves() -> None:
    """The tests below rely on this."""
    log: list[str] = []
    held = group(log, "one")

    async def enter() -> None:
        await held.__aenter__()

    await asyncio.create_task(enter())
    with pytest.raises(RuntimeError, match="different task"):
        await held.__aexit__(None, None, None)
    assert log[-1] == "one was left by another task"


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__)
async def test_task_groups_are_left_by_the_task_that_entered_them_however_the_call_ends(
    end: Callable[[Call], Awaitable[None]],
) -> None:
    log: list[str] = []

    async def opens_two_at_once(call: Call) -> None:
        async with call.step(Step.OPEN_INFRASTRUCTURE):
            await asyncio.gather(
                call.open("one", group(log, "one")), call.open("two", group(log, "two"))
            )
        await talk(call)

    call = await in_conversation(HandTransport(), opens_two_at_once)
    # a tool's task, which ends long before the call
    await asyncio.create_task(call.open("three", group(log, "three")))
    await end(call)
    assert await closed(call) == [("three", "ok"), ("two", "ok"), ("one", "ok"), ("room", "ok")]
    assert log[3:] == ["close three", "close two", "close one"]


async def test_task_groups_are_left_by_the_task_that_entered_them_when_the_process_dies() -> None:
    log: list[str] = []
    call = await in_conversation(HandTransport())
    for name in ("one", "two"):
        await call.open(name, group(log, name))
    await die()
    # in any order: anyio cancels each group's task once more
    assert sorted(log[2:]) == ["close one", "close two"]


async def test_a_resource_that_breaks_is_left_at_once_and_the_call_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Anyio cancels the task whose group has a failure: that does not mean a dying process."""
    log: list[str] = []
    left = asyncio.Event()

    @asynccontextmanager
    async def fragile() -> AsyncIterator[anyio.abc.TaskGroup]:
        try:
            async with group(log, "fragile") as tasks:
                yield tasks
        finally:
            left.set()

    async def fails() -> None:
        raise ValueError("the server went away")

    line = HandTransport()
    call = await in_conversation(line)
    await call.open("older", group(log, "older"))
    tasks = await call.open("fragile", fragile())
    await call.open("younger", group(log, "younger"))
    tasks.start_soon(fails)
    async with asyncio.timeout(PATIENCE):
        await left.wait()
    assert "fragile broke" in caplog.text
    assert (call.reason, line.guarded, log[3:]) == (None, 0, ["close fragile"])
    await leave(call)
    assert await closed(call) == [
        ("younger", "ok"),
        ("fragile", "error"),
        ("older", "ok"),
        ("room", "ok"),
    ]
    assert call.reason == Reason.CALLER_LEFT


# ---------------------------------------------------------------------- an MCP server


@asynccontextmanager
async def mcp_client(folder: Path, *arguments: str) -> AsyncIterator[ClientSession]:
    """An owner's resource, as in resources.py."""
    server = StdioServerParameters(command=sys.executable, args=[str(SERVER), *arguments])
    with (folder / "server.log").open("w") as log:
        async with (
            stdio_client(server, errlog=log) as (read, write),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            yield session


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes may start and end as slowly as on a busy machine."""
    monkeypatch.setattr(timeouts, "SESSION_OPEN_SECONDS", PATIENCE)
    monkeypatch.setattr(timeouts, "SESSION_CLOSE_SECONDS", PATIENCE)
    monkeypatch.setattr(timeouts, "TOOLSET_SECONDS", PATIENCE)


async def with_client(folder: Path, *arguments: str) -> tuple[Call, int]:
    """A call in conversation that has opened and used a server, and the server's process."""
    call = await in_conversation(HandTransport(), close_seconds=8)
    client = mcp_client(folder, *arguments)
    return call, await process_of(
        await call.open("mcp", client, open_seconds=PATIENCE, close_seconds=PATIENCE)
    )


async def process_of(session: ClientSession) -> int:
    """The id of the server's process, from its own tool."""
    result = await session.call_tool("whoami")
    content: Any = result.content[0]
    return int(content.text)


@pytest.mark.parametrize("arguments", [(), ("stubborn",)], ids=["willing", "stubborn"])
async def test_an_mcp_server_is_opened_used_and_gone_when_the_caller_hangs_up(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    call, server = await with_client(tmp_path, *arguments)
    assert psutil.pid_exists(server)
    await leave(call)
    assert await closed(call) == [("mcp", "ok"), ("room", "ok")]
    assert not psutil.pid_exists(server)


@pytest.mark.parametrize("arguments", [(), ("stubborn",)], ids=["willing", "stubborn"])
async def test_an_mcp_server_does_not_outlive_a_dying_process(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    _, server = await with_client(tmp_path, *arguments)
    assert psutil.pid_exists(server)
    await die()
    assert not psutil.pid_exists(server)


# ---------------------------------------------------------------------- the SDK's own client


async def with_toolset(call: Call) -> None:
    """The steps of a call whose agent has an MCP server's tools, and a model that obeys."""
    async with call.step(Step.CONNECT):
        await call.wait_connected()
    async with call.step(Step.WAIT_FOR_CALLER):
        caller = await call.wait_for_caller()
    server = MCPServerStdio(sys.executable, [str(SERVER)], client_session_timeout_seconds=PATIENCE)
    agent = CallAgent(
        call, instructions="Be brief.", tools=[MCPToolset(id="mcp", mcp_server=server)]
    )
    session = build_session(call, models_of(call.settings), agent)
    await call.open_session(conversation(call, session, agent, caller))
    async with call.step(Step.STAY):
        await call.wait_ended()


async def with_server(**changes: object) -> tuple[Call, psutil.Process]:
    """Such a call in conversation, and the server's process."""
    before = psutil.Process().children()
    call = await in_conversation(
        HandTransport(), with_toolset, models="scripted", close_seconds=8, **changes
    )
    await call.tools.wait_connected()
    (server,) = [process for process in psutil.Process().children() if process not in before]
    return call, server


async def say(call: Call, words: str) -> str:
    """Say something; return all replies."""
    assert call.session is not None
    run: RunResult[None] = call.session.run(user_input=words)
    await run
    return str(run.events)


@pytest.mark.usefixtures("unhurried")
@pytest.mark.parametrize("end", [leave, Call.on_job_stopped], ids=lambda end: end.__name__)
async def test_the_sdks_own_mcp_toolset_works_and_its_server_is_gone_with_the_call(
    end: Callable[[Call], Awaitable[None]],
) -> None:
    call, server = await with_server()
    assert str(server.pid) in await say(call, "/tool whoami {}")
    await end(call)
    assert await closed(call) == [("session", "ok"), ("room", "ok")]
    assert not psutil.pid_exists(server.pid)


@pytest.mark.usefixtures("unhurried")
async def test_a_tool_of_an_mcp_server_that_hangs_is_given_up_at_its_deadline() -> None:
    call, server = await with_server(tool_seconds=0.1)
    assert "No answer within 0.1 s" in await say(call, "/tool hang {}")
    await leave(call)
    assert await closed(call) == [("session", "ok"), ("room", "ok")]
    assert not psutil.pid_exists(server.pid)


@pytest.mark.usefixtures("unhurried")
async def test_a_tool_of_an_mcp_server_that_hangs_does_not_hold_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called = asyncio.Event()
    scope = RunningTools.running

    def noticed(
        tools: RunningTools, deadline: asyncio.Timeout, grace: float, agent: object
    ) -> AbstractContextManager[None]:
        called.set()
        return scope(tools, deadline, grace, agent)

    monkeypatch.setattr(RunningTools, "running", noticed)
    call, server = await with_server()
    assert call.session is not None
    call.session.run(user_input="/tool hang {}")
    async with asyncio.timeout(PATIENCE):
        await called.wait()
    await leave(call)
    assert await closed(call) == [("session", "ok"), ("room", "ok")]
    assert not psutil.pid_exists(server.pid)


@pytest.mark.usefixtures("unhurried")
async def test_the_server_of_an_mcp_toolset_does_not_outlive_a_dying_process() -> None:
    _, server = await with_server()
    await die()
    assert not psutil.pid_exists(server.pid)
