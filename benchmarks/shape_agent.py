"""The rivals of benchmarks/shapes.py: common shapes of an entrypoint, chosen by BENCH_SHAPE.

They run in a rendered project's environment: all have the same SDK, models and resources.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import math
import os
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

from livekit.agents import Agent, AgentServer, AgentSession, JobContext, function_tool
from livekit.agents.cli.log import JsonFormatter
from livekit.agents.voice.room_io import RoomOptions

GREETING = "Hello! How can I help you?"
# only "one door" has such a limit
CALLER_WAIT_SECONDS = float(os.environ["AGENT_CALLER_WAIT_SECONDS"])

parts: Any = importlib.import_module("agent.bench_parts")
scripted: Any = importlib.import_module("agent.models.scripted")
parts.fail_when_asked()
log = logging.getLogger("bench")


class Server(AgentServer):
    """The SDK's server, with JSON records also in dev."""

    async def run(self, *, devmode: bool = False, unregistered: bool = False) -> None:
        for handler in logging.getLogger().handlers:
            handler.setFormatter(JsonFormatter())
        await super().run(devmode=devmode, unregistered=unregistered)


server = Server(port=int(os.environ["AGENT_PORT"]), load_fnc=lambda: 0.0, load_threshold=math.inf)


class Answering(Agent):
    """An agent whose answers need an open resource."""

    def __init__(self, pool: Any) -> None:
        super().__init__(instructions="You are friendly.")
        self._pool = pool

    @function_tool
    async def look_up(self) -> str:
        """Ask the pool."""
        answer: str = self._pool.ask()
        return answer


def new_session() -> AgentSession[None]:
    """A session with the keyless models."""
    models = scripted.build(None)
    return AgentSession[None](llm=models.llm, tts=models.tts, turn_handling=models.turn_handling)


async def open_two(ctx: JobContext) -> tuple[AsyncExitStack, Any]:
    """Open both resources; return the stack, which closes them in reverse order, and the pool."""
    stack = AsyncExitStack()
    pool = await stack.enter_async_context(parts.Resource("pool", ctx.job.room.name))
    await stack.enter_async_context(parts.Resource("client", ctx.job.room.name))
    return stack, pool


def close_at_shutdown(ctx: JobContext, stack: AsyncExitStack) -> None:
    """Clean up in the job's shutdown callback."""

    async def cleanup() -> None:
        await stack.aclose()

    ctx.add_shutdown_callback(cleanup)


async def copied_cure(ctx: JobContext) -> None:
    """Await a method that no session has: the error is swallowed, all is closed during the call."""
    stack, pool = await open_two(ctx)
    try:
        await ctx.connect()
        session: Any = new_session()
        await session.start(Answering(pool), room=ctx.room)
        session.say(GREETING)
        await session.wait_for_completion()
    except Exception:
        log.exception("the call failed")
    finally:
        await stack.aclose()


async def starter(ctx: JobContext, options: RoomOptions | None = None) -> None:
    """Start, connect, return; the SDK does the rest. The shape of LiveKit's own starter."""
    stack, pool = await open_two(ctx)
    close_at_shutdown(ctx, stack)
    session = new_session()
    await session.start(Answering(pool), room=ctx.room, room_options=options or RoomOptions())
    await ctx.connect()
    session.say(GREETING)


async def starter_deleting(ctx: JobContext) -> None:
    """The starter with the option that deletes the room when the session closes."""
    await starter(ctx, RoomOptions(delete_room_on_close=True))


async def kept_alive(ctx: JobContext) -> None:
    """Wait in the entrypoint until the session has closed."""
    stack, pool = await open_two(ctx)
    over = asyncio.Event()
    try:
        session = new_session()
        session.on("close", lambda event: over.set())
        await session.start(Answering(pool), room=ctx.room)
        await ctx.connect()
        session.say(GREETING)
        await over.wait()
    finally:
        await stack.aclose()


async def one_door(ctx: JobContext) -> None:
    """Return once the call runs; the session's close ends the job, one callback cleans up."""
    stack, pool = await open_two(ctx)
    close_at_shutdown(ctx, stack)
    await ctx.connect()
    try:
        async with asyncio.timeout(CALLER_WAIT_SECONDS):
            await ctx.wait_for_participant()
    except TimeoutError:
        ctx.shutdown("nobody came")
        return
    session = new_session()
    session.on("close", lambda event: ctx.shutdown(event.reason.value))
    await session.start(Answering(pool), room=ctx.room)
    session.say(GREETING)


SHAPES: dict[str, Callable[[JobContext], Awaitable[None]]] = {
    "copied cure": copied_cure,
    "starter": starter,
    "starter, delete_room_on_close": starter_deleting,
    "kept alive": kept_alive,
    "one door": one_door,
}


@server.rtc_session(agent_name=os.environ["AGENT_NAME"])
async def entrypoint(ctx: JobContext) -> None:
    """A call in the shape that the environment names."""
    await SHAPES[os.environ["BENCH_SHAPE"]](ctx)
