"""Each answer is timed from the end of the caller's words, and each tool and lookup reported."""

from __future__ import annotations

import asyncio
import json
import logging
import time

import pytest
from livekit.agents import function_tool
from livekit.agents.llm import ChatMessage
from livekit.agents.llm.chat_context import MetricsReport

from agent import entrypoint
from agent.conversation import CallAgent
from agent.conversation.answers import Answers
from agent.lifecycle import Call
from agent.reports import STAGES
from agent.settings import load_settings
from template.tests.talk import FakeTransport, talk


class Clerk(CallAgent):
    """Has a tool that takes its time, one that fails and one that hangs."""

    def __init__(self, call: Call) -> None:
        super().__init__(call, instructions="Be a clerk.")
        self.began = asyncio.Event()

    @function_tool
    async def stamp(self, colour: str, copies: int = 1) -> dict[str, str]:
        """Stamp."""
        await asyncio.sleep(0.05)
        return {"stamped": colour}

    @function_tool
    async def fail(self) -> str:
        """Raise an error."""
        raise ValueError("no ink")

    @function_tool
    async def hang(self) -> str:
        """Wait for ever."""
        self.began.set()
        await asyncio.Event().wait()
        return "never"


@pytest.fixture(autouse=True)
def clerks(monkeypatch: pytest.MonkeyPatch) -> list[Clerk]:
    made: list[Clerk] = []

    def build(call: Call) -> CallAgent:
        made.append(Clerk(call))
        return made[-1]

    monkeypatch.setattr(entrypoint, "build_persona", build)
    return made


async def test_an_answer_to_a_typed_line_is_timed_and_the_greeting_is_not() -> None:
    async with talk() as call:
        await call.say("Hello")
        report = call.call.report()

    greeting, words, answer = report.said
    assert (greeting.heard_ms, words.heard_ms) == (None, None)
    assert answer.heard_ms is not None
    assert sum(answer.stages.values()) == answer.heard_ms
    assert report.slowest == answer


async def test_a_tool_is_reported_with_its_arguments_and_its_time_is_the_tools() -> None:
    async with talk() as call:
        await call.say('/tool stamp {"colour": "red", "copies": 2}')
        report = call.call.report()

    (tool,) = report.tools
    assert (tool.name, tool.outcome, tool.result) == ("stamp", "ok", '{"stamped":"red"}')
    assert json.loads(tool.arguments) == {"colour": "red", "copies": 2}
    assert tool.ms >= 50
    assert report.said[-1].stages["tools"] >= 50


async def test_a_tool_that_fails_and_one_that_the_end_cuts_are_reported(
    clerks: list[Clerk],
) -> None:
    async with talk(tool_finish_seconds=0) as call:
        await call.say("/tool fail {}")
        hanging = asyncio.create_task(call.say("/tool hang {}"))
        await clerks[0].began.wait()
        call.transport.leave()
        await call.ended()
        await hanging

    failed, hung = call.call.report().tools
    assert (failed.outcome, failed.result) == ("error", "ValueError: no ink")
    assert (hung.name, hung.outcome) == ("hang", "unfinished")


async def test_the_log_names_the_slow_stage_in_words(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "agent.call")
    async with talk() as call:
        await call.say('/tool stamp {"colour": "red"}')

    (record,) = [one for one in caplog.records if "answered after" in one.message]
    fields = vars(record)["fields"]
    # on a busy machine it need not be the tools
    slowest, ms = max(fields["stages"].items(), key=lambda stage: stage[1])
    assert record.message.endswith(f", {ms / 1000:.2f} s of it {STAGES[slowest]}")
    assert fields["stages"][fields["slowest"]] == ms
    assert fields["stages"]["tools"] >= 50
    assert sum(fields["stages"].values()) == fields["heard_ms"]


# spoken words, whose metrics the SDK gives


def heard(role: str, text: str, **metrics: float) -> ChatMessage:
    report: MetricsReport = metrics  # type: ignore[assignment]
    kind = "user" if role == "user" else "assistant"
    return ChatMessage(role=kind, content=[text], metrics=report)  # type: ignore[arg-type]


async def test_spoken_words_are_timed_from_their_end_through_every_stage() -> None:
    call = Call(FakeTransport(), load_settings())
    answers, now = Answers(call), time.time()
    answers.add(
        heard(
            "user",
            "When do you open?",
            started_speaking_at=now - 1,
            stopped_speaking_at=now,
            transcription_delay=0.2,
            end_of_turn_delay=0.5,
        ),
        "When do you open?",
        realtime=False,
    )
    call.journal.waits.add("model", now + 0.5, now + 0.9)
    # the first words do not make a sentence yet
    call.journal.waits.add("voice", now + 0.9, now + 1.3)
    first = heard(
        "assistant",
        "At nine.",
        started_speaking_at=now + 1.3,
        e2e_latency=1.3,
        llm_node_ttft=0.4,
        llm_node_ttfs=0.6,
    )
    answers.add(first, "At nine.", realtime=False)
    again = heard("assistant", "And more.", started_speaking_at=now + 3, e2e_latency=3)
    answers.add(again, "And more.", realtime=False)

    _, answer, more = call.journal.draft.said
    assert answer.heard_ms == 1300
    assert answer.stages == {"transcript": 200, "turn": 300, "model": 600, "voice": 200}
    # it answers the same words, which have been answered
    assert more.heard_ms is None


async def test_what_a_realtime_model_takes_is_the_models_time() -> None:
    call = Call(FakeTransport(), load_settings())
    answers, now = Answers(call), time.time()
    reply = heard("assistant", "At nine.", started_speaking_at=now + 0.8, e2e_latency=0.8)
    answers.add(reply, "At nine.", realtime=True)

    (answer,) = call.journal.draft.said
    assert (answer.heard_ms, answer.stages) == (800, {"model": 800})
