"""A caller with a voice is heard, understood and answered aloud: one call, from end to end.

The agent's models are those of `AGENT_MODELS=local`: real recognisers and a real voice, without a
network. What it says is recognised here once more, so that a fact has gone from a document to a
caller's ear. The tests are one conversation, in this order.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
import pytest_asyncio

from agent.models import local
from tests.support.caller import PATIENCE
from tests.support.projects import PAIRS, render
from tests.support.server import LiveKit
from tests.support.speech import (
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
from tests.support.worker import Worker, worker

pytestmark = pytest.mark.asyncio(loop_scope="session")

AGENT = "front-desk"
SILENCE_SECONDS = 10
ACCURACY = 0.9


@dataclass
class Conversation:
    """A call that goes on through the tests."""

    caller: SpeakingCaller
    running: Worker
    # everything that the caller has said
    said: list[str] = field(default_factory=list)

    async def say(self, words: str, *, breath: float = 0.0) -> None:
        """Say this, with a breath inside it, and wait until the agent speaks."""
        self.said.append(words)
        await self.caller.make(with_breath(voice(words), breath))
        await self.caller.begin_to_hear()

    async def ask(self, question: str, *, breath: float = 0.0) -> list[str]:
        """Ask a question; the words that are heard as its answer."""
        await self.say(question, breath=breath)
        return plain(await self.caller.answer())


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def call(
    template: Template, tmp_path_factory: pytest.TempPathFactory, livekit: LiveKit
) -> AsyncIterator[Conversation]:
    """A call to an agent that hears and speaks on this machine."""
    need_speech()
    await asyncio.to_thread(local.load)
    project = render(template, tmp_path_factory.mktemp("heard") / AGENT, PAIRS[0])
    project.install("--group", "speech")
    settings = {
        "AGENT_MODELS": "local",
        "AGENT_NAME": AGENT,
        "AGENT_IDLE_PROCESSES": "1",
        "AGENT_MAX_SILENCE_SECONDS": str(SILENCE_SECONDS),
    }
    async with worker(project.path, project.agent, livekit, **settings) as running:
        room = f"heard-{uuid.uuid4().hex[:8]}"
        async with SpeakingCaller(livekit, room) as caller:
            yield Conversation(caller, running)


async def test_what_was_said_before_the_agent_came_is_answered(call: Conversation) -> None:
    question = "How much does a puncture cost?"
    call.said.append(question)
    await call.caller.switch_on(AGENT, voice(question))

    heard = plain(await call.caller.answer(sentences=2))

    assert heard[:2] == ["hello", "how"]
    assert {"14", "euros"} <= {*heard}


async def test_a_spoken_question_is_answered_aloud_from_the_documents(call: Conversation) -> None:
    assert {"9", "months"} <= {*await call.ask("How long is your work guaranteed?")}


async def test_a_breath_in_the_middle_of_a_question_is_not_its_end(call: Conversation) -> None:
    heard = await call.ask("Which bus stops, near the workshop?", breath=0.8)

    assert "23" in heard
    # there is not one answer for each half
    assert call.caller.sentences.empty()


async def test_a_cough_and_noise_do_not_stop_the_agent(call: Conversation) -> None:
    await call.say("What is the address of your workshop?")
    understood = len(call.caller.understood)

    await call.caller.make(street(1.0), cough(), pause(0.5), cough())

    heard = plain(await call.caller.answer())
    assert {"14", "bakery", "gate"} <= {*heard}
    assert len(call.caller.understood) == understood


async def test_the_agent_stops_when_the_caller_speaks_and_answers_that(call: Conversation) -> None:
    caller = call.caller
    await call.say("When do you close for the summer?")
    question = "Can I borrow a bicycle during a repair?"
    call.said.append(question)

    await caller.make(voice(question))

    # for half a second, before the caller had finished
    assert caller.is_quiet
    heard = plain(await caller.answer(sentences=2))
    assert "mondays" not in heard
    assert {"50", "cargo"} <= {*heard}


async def test_what_the_caller_said_was_understood(call: Conversation) -> None:
    said, understood = " ".join(call.said), " ".join(call.caller.understood)

    assert 1 - wrong_words(said, understood) / len(plain(said)) >= ACCURACY


async def test_a_silent_caller_is_asked_once_and_the_agent_hangs_up(call: Conversation) -> None:
    caller = call.caller
    await caller.begin_to_hear()

    async with asyncio.timeout(PATIENCE):
        await caller.cut_off.wait()

    heard = plain(await caller.heard())
    assert heard.count("there") == 1
    assert "".join(heard).endswith("goodbye")
    end = await call.running.ended(caller.room_name)
    assert end["reason"] == "too silent"
    assert call.running.complaints() == []
