"""A whole call in a test: your persona, resources, documents and memory, without a server."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from livekit.agents.llm import FunctionCallOutput

from agent.entrypoint import run_call
from agent.lifecycle import Call
from agent.settings import load_settings

from .fake_transport import FakeTransport


@dataclass(frozen=True)
class Talk:
    """A call in step 7, with the caller's side in the test's hands."""

    call: Call
    transport: FakeTransport

    if TYPE_CHECKING:
        # of the type that the owner's open_resources returns
        resources = Call.resources
    else:

        @property
        def resources(self):
            """What resources.py opened."""
            return self.call.resources

    @property
    def said(self) -> list[str]:
        """What the agent has said so far, sentence by sentence."""
        assert self.call.session is not None
        messages = self.call.session.history.messages()
        return [message.text_content or "" for message in messages if message.role == "assistant"]

    @property
    def reason(self) -> str | None:
        """Why the call ended."""
        return self.call.reason

    async def say(self, text: str) -> str:
        """Say something; what the agent answered, if it did before the call ended."""
        assert self.call.session is not None
        before = len(self.said)
        run = asyncio.ensure_future(_finish(self.call.session.run(user_input=text)))
        ended = asyncio.create_task(self.call.wait_ended())
        await asyncio.wait([run, ended], return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
        return " ".join(self.said[before:])

    def tool_output(self, name: str) -> str:
        """What the last use of a tool gave back to the model."""
        assert self.call.session is not None
        items = self.call.session.history.items
        outputs = [item for item in items if isinstance(item, FunctionCallOutput)]
        return [item.output for item in outputs if item.name == name][-1]

    async def ended(self) -> None:
        """Wait until the call has ended and everything is closed."""
        async with asyncio.timeout(10):
            await self.call.wait_ended()
            await self.call.wait_closed()

    @property
    def line(self) -> FakeTransport:
        """The transport, as tests of projects before v0.5.0 call it."""
        return self.transport


async def _finish(run: object) -> None:
    with suppress(RuntimeError):  # the call ended before the answer did
        await run  # type: ignore[misc]


@asynccontextmanager
async def talk(caller: str = "ann", **changes: object) -> AsyncIterator[Talk]:
    """A call that `caller` has begun and been greeted in; ended on exit. `changes` are settings."""
    transport = FakeTransport(limited=False)
    transport.call_id = uuid.uuid4().hex  # memory tells calls apart by it
    call = Call(transport, load_settings().model_copy(update=changes))
    transport.arrive(caller)
    await call.start(run_call)
    talking = Talk(call, transport)
    try:
        assert await call.wait_greeted(), f"the call ended before it began: {call.reason}"
        yield talking
    finally:
        transport.leave()
        await talking.ended()
