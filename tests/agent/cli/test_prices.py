"""A mistake in the owner's prices: commands that would need them say where it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.reports.cost import load_prices
from tests.agent.cli.test_commands import Agent, agent, home

__all__ = ["agent", "home"]

MISTAKE = 'date = "2026-11-29"\n[llm]\nsmall = { input = "dear", output = 1 }\n'


@pytest.fixture(autouse=True)
def prices(home: Path) -> Path:
    load_prices.cache_clear()
    file = home / "prices.toml"
    file.write_text(MISTAKE, encoding="utf-8")
    return file


@pytest.mark.parametrize("command", ["start", "dev"])
def test_no_worker_starts_with_wrong_prices(
    command: str, agent: Agent, prices: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENT_MODELS", "scripted")

    ended = agent(command)

    assert (ended.code, ended.out) == (2, "")
    (line,) = [line for line in ended.err.splitlines() if "prices.toml" in line]
    assert f"{prices}: llm.small.input: Input should be a valid number" in line


def test_doctor_names_the_place(agent: Agent, prices: Path) -> None:
    found = json.loads(agent("doctor", "--json").out)["findings"]

    (finding,) = [one for one in found if one["check"] == "prices"]
    assert (finding["level"], finding["what"]) == (
        "fail",
        f"{prices}: llm.small.input: Input should be a valid number, unable to parse string as a"
        " number",
    )
    prices.unlink()
    load_prices.cache_clear()
    found = json.loads(agent("doctor", "--json").out)["findings"]
    assert [one for one in found if one["check"] == "prices"] == []


def test_a_date_needs_no_quotes(home: Path, prices: Path) -> None:
    prices.write_text("date = 2026-11-29\n", encoding="utf-8")
    assert load_prices(home).date == "2026-11-29"
