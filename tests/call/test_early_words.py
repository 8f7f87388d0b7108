"""Speech and text from before the agent has joined are heard, and answered after the greeting."""

from __future__ import annotations

import array
import math
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from livekit import rtc

from tests.support.caller import Caller
from tests.support.projects import PAIRS, Project, render
from tests.support.server import LiveKit
from tests.support.templates import Template
from tests.support.worker import Worker, worker

pytestmark = pytest.mark.asyncio(loop_scope="session")

RATE, RECORDED_SECONDS = 48_000, 1.5
SLOW_RESOURCE = """
    # the agent is in the room by then, and does not listen yet
    await asyncio.sleep(2)
"""
LISTENING = '''

class Ear(stt.STT):
    """Logs how much sound it has heard."""

    def __init__(self) -> None:
        super().__init__(capabilities=stt.STTCapabilities(streaming=True, interim_results=False))

    async def _recognize_impl(self, *args: Any, **kwargs: Any) -> stt.SpeechEvent:
        raise ValueError("only streams")

    def stream(self, *, language: Any = None, conn_options: Any = None) -> stt.RecognizeStream:
        return Hearing(stt=self, conn_options=conn_options)


class Slow(Toolset):
    """Is set up slowly, like one that asks a server."""

    def __init__(self) -> None:
        super().__init__(id="slow")

    async def setup(self) -> "Slow":
        await asyncio.sleep(2)
        return self


class Hearing(stt.RecognizeStream):
    """One stream of sound."""

    async def _run(self) -> None:
        log, loud, logged = logging.getLogger("agent.mine"), 0.0, 0.0
        async for frame in self._input_ch:
            if isinstance(frame, rtc.AudioFrame) and max(map(abs, frame.data)) > 1000:
                loud += frame.duration
            if loud > logged + 0.1:
                logged = loud
                log.info("heard", extra={"fields": {"loud_seconds": loud}})
'''


@pytest.fixture(scope="module")
def listening(template: Template, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project that logs what it hears, and with a slow resource."""
    project = render(template, tmp_path_factory.mktemp("listening") / "front-desk", PAIRS[0])
    persona = project.read("src/agent/persona.py")
    imports = (
        "import asyncio\nimport logging\nfrom typing import Any\nfrom livekit import rtc\n"
        "from livekit.agents import stt\nfrom livekit.agents.llm import Toolset\nfrom datetime"
    )
    persona = persona.replace("from datetime", imports, 1)
    persona = persona.replace(
        "instructions=INSTRUCTIONS", "instructions=INSTRUCTIONS, stt=Ear(), tools=[Slow()]"
    )
    last = 'knows who it is."""\n'
    needed = '\n    must_have_tools = frozenset({"slow"})\n'
    project.write("src/agent/persona.py", persona.replace(last, last + needed) + LISTENING)
    resources = project.read("src/agent/resources.py").replace(
        "import aiohttp", "import asyncio\nimport aiohttp"
    )
    last = "    return Resources("
    project.write(
        "src/agent/resources.py", resources.replace(last, SLOW_RESOURCE.lstrip("\n") + last)
    )
    project.install()
    return project


@asynccontextmanager
async def joined(listening: Project, livekit: LiveKit) -> AsyncIterator[tuple[Worker, Caller]]:
    """A worker with a name of its own, and a caller who has joined a room that asks for it."""
    room, agent = f"early-{uuid.uuid4().hex[:8]}", f"agent-{uuid.uuid4().hex[:8]}"
    async with (
        worker(listening.path, listening.agent, livekit, AGENT_NAME=agent) as running,
        Caller(livekit, room, agent) as caller,
    ):
        yield running, caller


async def test_early_speech_and_early_text_are_not_lost(
    listening: Project, livekit: LiveKit
) -> None:
    room = f"early-{uuid.uuid4().hex[:8]}"
    async with worker(listening.path, listening.agent, livekit, AGENT_NAME="front-desk") as running:
        async with Caller(livekit, room, "front-desk") as caller:
            await speak_early(caller)
            await caller.write("Where can I park my bicycle?")
            # the session has not started
            assert 5 not in running.steps(room)
            assert "help" in await caller.hear_text()
            await caller.hear_text_with("bicycle")
            heard = await running.wait_for(
                lambda record: record.get("loud_seconds", 0) > 0.8 * RECORDED_SECONDS
            )
            # heard once, not twice
            assert heard["loud_seconds"] < 1.2 * RECORDED_SECONDS
        assert (await running.ended(room))["reason"] == "caller left"
    assert running.complaints() == []


async def test_text_sent_while_the_session_starts_is_not_lost(
    listening: Project, livekit: LiveKit
) -> None:
    async with joined(listening, livekit) as (running, caller):
        await running.wait_for(
            lambda record: record.get("room") == caller.room_name and record.get("step") == 4
        )
        await caller.write("Where can I park my bicycle?")
        assert "help" in await caller.hear_text()
        await caller.hear_text_with("bicycle")
        assert running.complaints() == []


async def speak_early(caller: Caller) -> None:
    """Say a tone before the agent is there, and nothing from then on."""
    count = int(RATE * RECORDED_SECONDS)
    tone = array.array(
        "h", (int(9000 * math.sin(2 * math.pi * 440 * n / RATE)) for n in range(count))
    )
    source = rtc.AudioSource(RATE, 1)
    await caller.speak_early(source, tone.tobytes())
    silence = rtc.AudioFrame(bytes(RATE // 50 * 2), RATE, 1, RATE // 50)
    caller.keep(feed(source, silence))


async def feed(source: rtc.AudioSource, frame: rtc.AudioFrame) -> None:
    """A silent microphone."""
    while True:
        await source.capture_frame(frame)


async def test_lines_typed_at_once_are_all_answered_to_their_end(
    listening: Project, livekit: LiveKit
) -> None:
    async with joined(listening, livekit) as (running, caller):
        await caller.hear_text_with("help")
        for line in ("thank you", "hello", "/tool current_time {}", "thanks"):
            await caller.write(line)
        said = [await caller.hear_text() for _ in range(4)]
    assert said[:2] == ["You are welcome.", "Hello! What would you like to know?"]
    assert ":" in said[2]
    assert said[3] == "You are welcome."
    assert running.complaints() == []
