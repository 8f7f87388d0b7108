"""A call that has cost `AGENT_MAX_CALL_COST` ends with a sentence."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from livekit.agents import APIConnectOptions, llm

from agent import entrypoint
from agent.conversation import CallAgent
from agent.lifecycle import Call, Reason
from agent.models.scripted import ScriptedLLM
from agent.reports.cost import load_prices
from template.tests.talk import talk

PRICES = """
date = "2026-11-29"
[llm]
dear = { input = 1_000_000, output = 1_000_000 }
"""


class Stream(llm.LLMStream):
    """An answer, and what it used."""

    async def _run(self) -> None:
        usage = llm.CompletionUsage(prompt_tokens=1, completion_tokens=1, total_tokens=2)
        self._event_ch.send_nowait(
            llm.ChatChunk(id="1", delta=llm.ChoiceDelta(role="assistant", content="I do."))
        )
        self._event_ch.send_nowait(llm.ChatChunk(id="1", usage=usage))


class Sold(ScriptedLLM):
    """A model that somebody sells."""

    name = "dear"

    def chat(self, **options: Any) -> llm.LLMStream:
        return Stream(
            self, chat_ctx=options["chat_ctx"], tools=[], conn_options=APIConnectOptions()
        )

    @property
    def model(self) -> str:
        return self.name

    @property
    def provider(self) -> str:
        return "a shop"


class Unlisted(Sold):
    name = "unlisted"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    load_prices.cache_clear()
    (tmp_path / "prices.toml").write_text(PRICES, encoding="utf-8")
    return tmp_path


def use(model: type[Sold], monkeypatch: pytest.MonkeyPatch) -> None:
    def build(call: Call) -> CallAgent:
        return CallAgent(call, instructions="", llm=model())

    monkeypatch.setattr(entrypoint, "build_persona", build)


async def test_a_call_that_is_too_expensive_ends_with_a_sentence(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(Sold, monkeypatch)
    async with talk(home=home, knowledge="none", max_call_cost=0.5) as call:
        await call.say("Do you hear me?")
        async with asyncio.timeout(20):
            await call.call.wait_ended()
        await call.ended()

    report = call.call.report()
    assert report.reason == Reason.TOO_EXPENSIVE
    assert "for as long as I can" in report.said[-1].text
    assert report.cost is not None
    assert report.cost.parts["llm dear"] >= 0.5


async def test_a_limit_that_does_not_know_every_price_says_so(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    use(Unlisted, monkeypatch)
    async with talk(home=home, knowledge="none", max_call_cost=0.5) as call:
        await call.say("Do you hear me?")
        await call.say("And now?")
        assert call.reason is None

    sentence = "AGENT_MAX_CALL_COST does not count what has no price in prices.toml: llm unlisted"
    warned = [one for one in caplog.records if one.levelname == "WARNING"]
    assert [one.getMessage() for one in warned] == [sentence]
    assert [one.problem for one in call.call.report().failures] == [sentence]
