"""A caller with a voice is heard, understood and answered aloud: one call, from end to end.

The agent's models are those of `AGENT_MODELS=local`: real recognisers and a real voice, without a
network. What it says is recognised here once more, so that a fact has gone from a document to a
caller's ear: after the call, because callers who think about what they heard are silent.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio

from agent.models import local
from tests.support.caller import PATIENCE
from tests.support.projects import PAIRS, render
from tests.support.server import LiveKit
from tests.support.speech import (
    Samples,
    SpeakingCaller,
    cough,
    need_speech,
    pause,
    plain,
    street,
    voice,
    with_breath,
    wrong_words,
)
from tests.support.templates import Template
from tests.support.worker import worker

pytestmark = pytest.mark.asyncio(loop_scope="session")

AGENT = "front-desk"
# longer than a busy machine takes to understand a question
SILENCE_SECONDS = 7
ACCURACY = 0.9
# the agent's sound after a caller's first word
INTERRUPTED_SECONDS = 1.0
TRIES = 3
SETTINGS = {
    "AGENT_MODELS": "local",
    "AGENT_NAME": AGENT,
    "AGENT_IDLE_PROCESSES": "1",
    "AGENT_MAX_SILENCE_SECONDS": str(SILENCE_SECONDS),
    # a busy machine hears slowly
    "AGENT_MIN_ENDPOINTING_SECONDS": "1.5",
    "AGENT_REPLY_SECONDS": "60",
    "AGENT_GOODBYE_SECONDS": "15",
}


@dataclass
class Conversation:
    """One call: what was said, what was understood of it, and what was heard."""

    caller: SpeakingCaller
    said: list[str] = field(default_factory=list)
    understood: list[str] = field(default_factory=list)
    # what was heard after which question
    heard: dict[str, Samples] = field(default_factory=dict)
    # texts that came without being asked for
    unasked: list[str] = field(default_factory=list)
    # what the agent went on saying after a caller's first word
    interrupted_seconds: float = 0.0
    end: dict[str, Any] = field(default_factory=dict)
    complaints: list[dict[str, Any]] = field(default_factory=list)

    async def say(self, words: str, *, breath: float = 0.0) -> None:
        """Say this, with a breath inside it, and wait until the agent speaks."""
        self.said.append(words)
        await self.caller.make(with_breath(voice(words), breath))
        await self.caller.begin_to_hear()

    async def hear(self, question: str, sentences: int = 1) -> None:
        """Hear what is said until the agent listens."""
        self.heard[question] = await self.caller.answer(sentences)
        while not self.caller.sentences.empty():
            self.unasked.append(self.caller.sentences.get_nowait())

    async def words(self, question: str) -> list[str]:
        """What was heard after a question, recognised."""
        return plain(await asyncio.to_thread(local.transcribe, self.heard[question]))


EARLY = "Do vans fit through the gate?"
PLAIN = "How far is the railway station on foot?"
WITH_A_BREATH = "How many euros is, the deposit?"
IN_NOISE = "What is the address of your workshop?"
INTERRUPTED = "How long is your work guaranteed?"
INTERRUPTING = "What do I pay if I do not come?"
NOTHING = ""


async def talk(call: Conversation) -> None:
    """The conversation, until the agent hangs up."""
    caller = call.caller
    call.said.append(EARLY)
    await caller.switch_on(AGENT, voice(EARLY))
    await call.hear(EARLY, sentences=2)

    await call.say(PLAIN)
    await call.hear(PLAIN)

    await call.say(WITH_A_BREATH, breath=0.8)
    await call.hear(WITH_A_BREATH)

    await call.say(IN_NOISE)
    await caller.make(street(1.0), cough(), pause(0.5), cough())
    await call.hear(IN_NOISE)

    # a machine that is busy at just that moment is no broken promise
    for _ in range(TRIES):
        await call.say(INTERRUPTED)
        call.said.append(INTERRUPTING)
        await caller.make(voice(INTERRUPTING))
        call.interrupted_seconds = caller.loud_until
        await call.hear(INTERRUPTING, sentences=2)
        if call.interrupted_seconds <= INTERRUPTED_SECONDS:
            break

    call.understood = list(caller.understood)
    async with asyncio.timeout(PATIENCE):
        await caller.cut_off.wait()
    call.heard[NOTHING] = caller.taken()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def call(
    template: Template, tmp_path_factory: pytest.TempPathFactory, livekit: LiveKit
) -> AsyncIterator[Conversation]:
    """A call that is over, to an agent that hears and speaks on this machine."""
    need_speech()
    await asyncio.to_thread(local.load)
    project = render(template, tmp_path_factory.mktemp("heard") / AGENT, PAIRS[0])
    project.install("--group", "speech")
    async with worker(project.path, project.agent, livekit, **SETTINGS) as running:
        async with SpeakingCaller(livekit, f"heard-{uuid.uuid4().hex[:8]}") as caller:
            call = Conversation(caller)
            await talk(call)
        call.end = await running.ended(caller.room_name)
    call.complaints = running.complaints()
    yield call


async def test_what_was_said_before_the_agent_came_is_answered(call: Conversation) -> None:
    heard = await call.words(EARLY)

    # the greeting first, and all of it
    assert " ".join(heard).startswith("hello how can i help you")
    assert {"mill", "lane"} <= {*heard}


async def test_a_spoken_question_is_answered_aloud_from_the_documents(call: Conversation) -> None:
    assert {"12", "minutes", "river"} <= {*await call.words(PLAIN)}


async def test_a_breath_in_the_middle_of_a_question_is_not_its_end(call: Conversation) -> None:
    assert {"50", "cargo"} <= {*await call.words(WITH_A_BREATH)}
    # there is not one answer for each half
    assert call.unasked == []


async def test_a_cough_and_noise_do_not_stop_the_agent(call: Conversation) -> None:
    assert {"bakery", "blue", "gate"} <= {*await call.words(IN_NOISE)}


async def test_the_agent_stops_when_the_caller_speaks_and_answers_that(call: Conversation) -> None:
    heard = await call.words(INTERRUPTING)

    assert call.interrupted_seconds <= INTERRUPTED_SECONDS
    assert "receipt" not in heard
    assert {"25", "euros"} <= {*heard}


async def test_what_the_caller_said_was_understood(call: Conversation) -> None:
    said, understood = " ".join(call.said), " ".join(call.understood)

    assert 1 - wrong_words(said, understood) / len(plain(said)) >= ACCURACY


async def test_a_silent_caller_is_asked_once_and_the_agent_hangs_up(call: Conversation) -> None:
    heard = await call.words(NOTHING)

    assert heard.count("there") == 1
    assert "".join(heard).endswith("goodbye")
    assert call.end["reason"] == "too silent"
    assert call.complaints == []
