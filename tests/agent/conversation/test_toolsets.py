"""Tools of servers that are slow, down or noisy: no caller waits, and the log says so."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from livekit.agents import function_tool
from livekit.agents.llm import Tool, Toolset
from livekit.agents.llm.mcp import MCPServer, MCPServerHTTP, MCPServerStdio, MCPToolset

from agent import entrypoint
from agent.conversation import CallAgent
from agent.lifecycle import Call, Step, timeouts
from agent.settings import load_settings
from template.tests.talk import FakeTransport, Talk, talk
from tests.agent.conversation.test_greeting import ended_call

# seconds; long enough for a busy machine
PATIENCE = 60.0
SERVER = Path(__file__).parents[1] / "lifecycle" / "mcp_server.py"

NOISY = f"""
print("Starting up", flush=True)
print('{{"level": "info", "message": "ready"}}', flush=True)
import runpy
runpy.run_path({str(SERVER)!r}, run_name="__main__")
"""


def stdio(*arguments: str, command: str = sys.executable) -> MCPServerStdio:
    return MCPServerStdio(
        command, list(arguments), env=dict(os.environ), client_session_timeout_seconds=PATIENCE
    )


@asynccontextmanager
async def server_over_http() -> AsyncIterator[str]:
    """The address of a real MCP server on loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(SERVER), "http", str(port), stderr=asyncio.subprocess.PIPE
    )
    try:
        assert process.stderr is not None
        async with asyncio.timeout(PATIENCE):
            while b"running on" not in (line := await process.stderr.readline()):
                assert line, "the server did not start"
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        process.kill()
        await process.wait()


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeouts, "TOOLSET_SECONDS", PATIENCE)
    monkeypatch.setattr(timeouts, "SESSION_CLOSE_SECONDS", PATIENCE)
    monkeypatch.setattr(timeouts, "SESSION_OPEN_SECONDS", PATIENCE)
    monkeypatch.setattr(Step.START_SESSION, "seconds", PATIENCE)


Cast = Callable[..., None]


@pytest.fixture
def cast(monkeypatch: pytest.MonkeyPatch) -> Cast:
    """Have the agent use these servers; `needed` says that a call cannot do without."""

    def play(
        *servers: MCPServer, needed: bool = False, tools: Sequence[Tool] = (), **options: Any
    ) -> None:
        class Persona(CallAgent):
            must_have_tools = frozenset({"crm0"}) if needed else frozenset()

        def build(call: Call) -> CallAgent:
            sets = [MCPToolset(id=f"crm{n}", mcp_server=one) for n, one in enumerate(servers)]
            return Persona(call, instructions="Be brief.", tools=[*sets, *tools], **options)

        monkeypatch.setattr(entrypoint, "build_persona", build)

    return play


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "agent.call" and record.levelno >= logging.WARNING
    ]


def degraded(caplog: pytest.LogCaptureFixture) -> list[str]:
    parts = [getattr(record, "fields", {}).get("degraded", "") for record in caplog.records]
    return sorted(part for part in parts if part.startswith("tools"))


BROKEN: dict[str, tuple[Callable[[], MCPServer], str]] = {
    "exits at once": (lambda: stdio("-c", "raise SystemExit(3)"), "MCPError: Connection closed"),
    "is not there": (lambda: stdio(command="/no/such/command"), "FileNotFoundError"),
    "is down": (lambda: MCPServerHTTP("http://127.0.0.1:9/mcp"), "ConnectError"),
    "crashes": (lambda: stdio("-c", "import no_such_module"), "MCPError: Connection closed"),
}


@pytest.mark.parametrize("trouble", BROKEN)
async def test_a_call_goes_on_without_a_server_that_is_broken_and_says_so_once(
    trouble: str, cast: Cast, caplog: pytest.LogCaptureFixture
) -> None:
    server, cause = BROKEN[trouble]
    cast(server())
    async with talk() as call:
        assert "There is no tool called whoami" in await call.say("/tool whoami {}")
        await call.say("Thank you.")
        (warning,) = warnings(caplog)
        assert warning.startswith("this call goes on, but the tools of crm0 did not open: ")
        assert cause in warning
        assert degraded(caplog) == ["tools of crm0"]
    assert ("session", "ok") in call.call.closed


@pytest.mark.parametrize("trouble", ["exits at once", "is down"])
async def test_a_call_that_must_have_a_servers_tools_ends_without_them(
    trouble: str, cast: Cast, caplog: pytest.LogCaptureFixture
) -> None:
    server, cause = BROKEN[trouble]
    cast(server(), needed=True)
    transport = FakeTransport()
    call = await ended_call(transport)
    assert call.reason == "error in step 5 (start the session)"
    assert cause in warnings(caplog)[0]
    assert "the tools of crm0 did not open" in warnings(caplog)[0]
    assert transport.rooms_ended == 1


async def test_nobody_waits_for_a_server_that_says_nothing(cast: Cast) -> None:
    cast(stdio("-c", "import time; time.sleep(120)"))
    before = psutil.Process().children()
    async with talk() as call:
        assert call.said == ["Hello! How can I help you?"]
        # it still connects, and nobody has waited for it
        assert call.call.tools.connecting
        await call.transport.type("Thank you.")
        assert call.said[-1] == "You are welcome."
        assert call.call.tools.connecting
    assert ("session", "ok") in call.call.closed
    assert not call.call.tools.connecting
    assert not [one for one in psutil.Process().children() if one not in before]


async def test_a_server_that_says_nothing_is_given_up(
    cast: Cast, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(timeouts, "TOOLSET_SECONDS", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        cast(MCPServerHTTP(f"http://127.0.0.1:{silent.getsockname()[1]}/mcp", timeout=PATIENCE))
        async with talk() as call:
            await call.say("Thank you.")
            assert warnings(caplog) == [
                "this call goes on, but the tools of crm0 did not open: nothing for 0.2 s"
            ]


async def its_tool_is_used() -> None:
    """A call uses the tool of the server."""
    async with talk() as call:
        await call.say("/tool whoami {}")
        assert '"type":"text"' in call.tool_output("whoami")


@pytest.mark.parametrize("noisy", [False, True], ids=["quiet", "prints to stdout"])
@pytest.mark.parametrize("needed", [False, True], ids=["optional", "needed"])
async def test_the_tools_of_a_server_over_stdio_are_used(
    noisy: bool, needed: bool, cast: Cast, caplog: pytest.LogCaptureFixture
) -> None:
    cast(stdio("-c", NOISY) if noisy else stdio(str(SERVER)), needed=needed)
    await its_tool_is_used()
    assert warnings(caplog) == []


async def test_the_tools_of_a_server_over_http_are_used(
    cast: Cast, caplog: pytest.LogCaptureFixture
) -> None:
    async with server_over_http() as address:
        cast(MCPServerHTTP(address, client_session_timeout_seconds=PATIENCE))
        await its_tool_is_used()
        assert warnings(caplog) == []


async def test_two_broken_servers_are_two_warnings_and_the_third_serves(
    cast: Cast, caplog: pytest.LogCaptureFixture
) -> None:
    cast(stdio("-c", ""), stdio("-c", ""), stdio(str(SERVER)))
    await its_tool_is_used()
    assert degraded(caplog) == ["tools of crm0", "tools of crm1"]


async def test_servers_given_by_the_older_option_are_no_exception(
    cast: Cast, caplog: pytest.LogCaptureFixture
) -> None:
    cast(mcp_servers=[stdio("-c", "raise SystemExit(3)"), stdio(str(SERVER))])
    await its_tool_is_used()
    assert degraded(caplog) == ["tools of mcp_1"]


async def test_a_server_whose_tool_has_a_name_that_is_taken_costs_no_reply(
    cast: Cast, caplog: pytest.LogCaptureFixture
) -> None:
    @function_tool
    async def whoami() -> str:
        """Say something else."""
        return "your own"

    cast(stdio(str(SERVER)), tools=[whoami])
    async with talk() as call:
        assert await call.say("/tool whoami {}") == "your own"
        (warning,) = warnings(caplog)
        assert "the tools of crm0 did not open: ValueError: duplicate" in warning


async def test_an_agent_that_takes_over_has_its_tools_in_its_first_reply(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(timeouts, "TOOLSET_WAIT_SECONDS", PATIENCE)

    class Orders(CallAgent):
        def __init__(self, call: Call) -> None:
            tools = [MCPToolset(id="crm", mcp_server=stdio(str(SERVER)))]
            super().__init__(call, instructions="Be brief.", tools=tools)

        async def on_enter(self) -> None:
            await self.session.generate_reply(user_input="/tool whoami {}")

    class Desk(CallAgent):
        @function_tool
        async def to_orders(self) -> CallAgent:
            """Hand over."""
            return Orders(self.call)

    monkeypatch.setattr(entrypoint, "build_persona", lambda call: Desk(call, instructions=""))
    async with talk() as call:
        await call.say("/tool to_orders {}")
        assert '"type":"text"' in call.tool_output("whoami")


class Slow(Toolset):
    """A tool set of an owner's own, which connects when the test lets it."""

    def __init__(self) -> None:
        super().__init__(id="slow")
        self.go_on = asyncio.Event()
        self.closed = False

    async def setup(self) -> Slow:
        await self.go_on.wait()
        return self

    async def aclose(self) -> None:
        self.closed = True

    @function_tool
    async def rest(self) -> str:
        """Rest."""
        return "rested"


async def test_a_tool_set_of_any_kind_is_offered_once_it_has_connected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow: list[Slow] = []

    def build(call: Call) -> CallAgent:
        slow.append(Slow())
        return CallAgent(call, instructions="", tools=[slow[-1]])

    monkeypatch.setattr(entrypoint, "build_persona", build)
    async with talk() as call:
        await call.transport.type("/tool rest {}")
        assert "There is no tool called rest" in call.said[-1]
        slow[0].go_on.set()
        assert await call.say("/tool rest {}") == "rested"
    assert slow[0].closed


async def test_a_call_that_ends_while_a_tool_set_connects_does_not_wait_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        entrypoint, "build_persona", lambda call: CallAgent(call, instructions="", tools=[Slow()])
    )
    talking: Talk
    async with talk() as talking:
        assert talking.call.tools.connecting
    assert ("session", "ok") in talking.call.closed
    assert not talking.call.tools.connecting


async def test_a_caller_who_leaves_while_a_needed_tool_set_connects_ends_the_call_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connecting = asyncio.Event()

    class NeverThere(Slow):
        async def setup(self) -> NeverThere:
            connecting.set()
            await super().setup()
            return self

    class Persona(CallAgent):
        must_have_tools = frozenset({"slow"})

    monkeypatch.setattr(
        entrypoint,
        "build_persona",
        lambda call: Persona(call, instructions="", tools=[NeverThere()]),
    )
    transport = FakeTransport()
    call = Call(transport, load_settings())
    transport.arrive()
    await call.start(entrypoint.run_call)
    async with asyncio.timeout(PATIENCE / 2):
        await connecting.wait()
        call.caller_gone(on_purpose=True)
        await call.wait_closed()
    assert not call.tools.connecting
