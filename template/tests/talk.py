"""A whole call in a test, without a server: your persona, resources, documents and memory."""

from __future__ import annotations

import asyncio
import importlib
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
from livekit.agents import Agent, AgentSession, RunResult
from livekit.agents.llm import LLM, FunctionCallOutput
from livekit.agents.voice.room_io import RoomOptions

from agent.entrypoint import prewarm_persona, run_call
from agent.knowledge import KnowledgeUnavailable
from agent.lifecycle import Call, Step
from agent.settings import load_settings
from agent.transport import Caller, CallEvents

# a language model that grades: a test that takes one as `judge` runs with `pytest -m judged`
Judge: TypeAlias = LLM[Any]


class FakeTransport:
    """What a room would do, a test does: arrive, leave, drop, come_back, close_room."""

    def __init__(self, *, connects: bool = True, limited: bool = True) -> None:
        self.call_id, self.room_name, self.began = "job", "room", time.monotonic()
        self.limited = limited
        self.metadata = ""
        self.livekit_room: Any = None
        self.livekit_api: Any = None
        self.events: CallEvents
        self.connects = connects
        self.finished_with: list[str] = []
        self.rooms_ended = 0
        self.connected = False
        self.early: list[str] = []
        self._arrived: asyncio.Future[Caller] = asyncio.get_running_loop().create_future()

    # the transport

    def listen(self, events: CallEvents) -> None:
        self.events = events

    @asynccontextmanager
    async def room(self) -> AsyncIterator[None]:
        if not self.connects:
            await asyncio.Event().wait()
        self.connected = True
        try:
            yield
        finally:
            self.connected = False

    async def wait_for_caller(self, is_caller: Callable[[Caller], bool]) -> Caller:
        return await asyncio.shield(self._arrived)

    async def start(
        self, session: AgentSession[None], agent: Agent, caller: Caller, options: RoomOptions
    ) -> None:
        await session.start(agent)

    async def early_texts(self) -> list[str]:
        return self.early

    async def end_room(self, caller: Caller | None) -> None:
        self.rooms_ended += 1

    def finish(self, reason: str) -> None:
        self.finished_with.append(reason)

    def guard_exit(self, seconds: float) -> None:
        return

    # the test's side

    def arrive(self, caller: str | Caller = "ann", kind: str = "standard") -> None:
        if isinstance(caller, str):
            caller = Caller(identity=caller, kind=kind)
        self._arrived.set_result(caller)

    def leave(self) -> None:
        self.events.caller_gone(on_purpose=True)

    def drop(self) -> None:
        self.events.caller_gone(on_purpose=False)

    def come_back(self) -> None:
        self.events.caller_back()

    async def type(self, text: str) -> None:
        """Write a line in a chat box, whatever is being said; returns when it has its turn."""
        await self.events.answer(text)

    def close_room(self, *, removed: bool = False) -> None:
        self.events.room_gone(removed=removed)


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
        before = len(self.said)
        await self.run(text)
        return " ".join(self.said[before:])

    async def run(self, text: str) -> RunResult[None]:
        """Say something; what came of it, whose `expect` has the SDK's own assertions."""
        assert self.call.session is not None
        await self.call.tools.wait_connected()
        run: RunResult[None] = self.call.session.run(user_input=text)
        done = asyncio.ensure_future(_finish(run))
        ended = asyncio.create_task(self.call.wait_ended())
        await asyncio.wait([done, ended], return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
        return run

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


async def _finish(run: RunResult[None]) -> None:
    with suppress(RuntimeError):  # the call ended before the answer did
        await run


async def index(*documents: str) -> None:
    """Have calls look things up in these documents alone; without any, in the project's own.

    Skips the test where nothing is looked up, or where the index is shared with others.
    """
    settings = load_settings()
    if settings.knowledge == "none":
        pytest.skip("this agent looks nothing up")
    if settings.knowledge != "sqlite":
        pytest.skip("a test does not write into an index that is shared")
    folder = settings.data / "documents"
    folder.mkdir(parents=True, exist_ok=True)
    for number, document in enumerate(documents):
        (folder / f"{number}.md").write_text(document, encoding="utf-8")
    ingest = importlib.import_module("agent.knowledge.ingest").ingest
    try:
        await ingest(settings, [folder] if documents else [])
    except KnowledgeUnavailable as error:  # such as an embedder that is not on this machine
        pytest.skip(str(error))


@asynccontextmanager
async def talk(
    caller: str | Caller = "ann",
    *,
    asks_first: bool = False,
    metadata: str = "",
    room: Any = None,
    api: Any = None,
    **changes: object,
) -> AsyncIterator[Talk]:
    """A call that `caller` has begun and been greeted in; ended on exit. `changes` are settings.

    With `asks_first` it begins with what the agent asks before it greets, such as for consent.
    `metadata`, `room` and `api` are what the call has under these names; a room and an API may be
    stand-ins of yours, and the call is in the room with this `name`.
    """
    transport = FakeTransport(limited=False)
    transport.call_id = uuid.uuid4().hex  # memory tells calls apart by it
    transport.metadata, transport.livekit_room, transport.livekit_api = metadata, room, api
    # that of a Mock is another Mock, unless it was given one
    if isinstance(name := getattr(room, "name", None), str):
        transport.room_name = name
    call = Call(transport, load_settings().model_copy(update=changes))
    prewarm_persona(call.settings)
    transport.arrive(caller)
    await call.start(run_call)
    talking = Talk(call, transport)
    try:
        assert await call.wait_for_turn(), f"the call ended before it began: {call.reason}"
        greeted = call.steps.current is Step.STAY
        assert greeted or asks_first, "it asks before it greets: write talk(asks_first=True)"
        yield talking
    finally:
        transport.leave()
        await talking.ended()
