"""A whole call in a test: your persona, resources, documents and memory; no server, no keys, no sound."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from livekit.agents.llm import FunctionCallOutput

from agent.entrypoint import answer
from agent.lifecycle import Call
from agent.settings import load_settings

from .fake_transport import FakeTransport


@dataclass(frozen=True)
class Talk:
    """A call in step 7, with the caller's side in the test's hands."""

    call: Call
    line: FakeTransport

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
        over = asyncio.create_task(self.call.over())
        await asyncio.wait([run, over], return_when=asyncio.FIRST_COMPLETED)
        over.cancel()
        return " ".join(self.said[before:])

    def tool_output(self, name: str) -> str:
        """What the last use of a tool gave back to the model."""
        assert self.call.session is not None
        outputs = [
            item for item in self.call.session.history.items if isinstance(item, FunctionCallOutput)
        ]
        return [item.output for item in outputs if item.name == name][-1]

    async def ended(self) -> None:
        """Wait until the call has ended and everything is closed."""
        async with asyncio.timeout(10):
            await self.call.over()
            await self.call.finished()


async def _finish(run: object) -> None:
    try:
        await run  # type: ignore[misc]
    except RuntimeError:  # the call ended before the answer did
        return


@asynccontextmanager
async def talk(caller: str = "ann", **changes: object) -> AsyncIterator[Talk]:
    """A call that `caller` has begun and been greeted in; hung up on exit. `changes` are settings."""
    line = FakeTransport(limited=False)
    line.call_id = uuid.uuid4().hex  # memory tells calls apart by it
    call = Call(line, load_settings().model_copy(update=changes))
    line.arrive(caller)
    await call.begin(answer)
    talking = Talk(call, line)
    try:
        assert await call.talking(), f"the call ended before it began: {call.reason}"
        yield talking
    finally:
        line.leave()
        await talking.ended()
