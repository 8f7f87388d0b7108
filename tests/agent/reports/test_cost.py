"""What a call costs: by a dated table, the owner's over the template's, never silently low."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from livekit.agents.metrics import LLMModelUsage, STTModelUsage, TTSModelUsage

from agent.reports.cost import Prices, cost_of, load_prices
from agent.settings import SettingsError
from tests.support.templates import ROOT

PRICES = Prices.model_validate(
    {
        "date": "2026-11-01",
        "llm": {
            "openai/small": {"input": 1, "cached": 0.25, "output": 4},
            "plain": {"input": 1, "output": 1},
            "writes": {"input": 1, "written": 1.25, "output": 1},
            "speaks": {
                "input": 4,
                "cached": 1,
                "output": 16,
                "audio": {"input": 32, "cached": 2, "output": 64},
            },
        },
        "stt": {"ears": {"minute": 0.6}},
        "tts": {"voice": {"characters": 50}},
        "minutes": {"room": 0.01, "phone": 0.02},
    }
)


def test_models_and_minutes_are_priced_by_what_they_are_billed_for() -> None:
    small = LLMModelUsage(
        provider="livekit",
        model="openai/small",
        input_tokens=1_000_000,
        input_cached_tokens=400_000,
        output_tokens=500_000,
    )
    ears = STTModelUsage(provider="deepgram", model="ears", audio_duration=30)
    voice = TTSModelUsage(provider="cartesia", model="voice", characters_count=2000)

    cost = cost_of([small, ears, voice], {"room": 121, "phone": 61}, PRICES)

    assert cost.parts == pytest.approx(
        {"llm openai/small": 2.7, "stt ears": 0.3, "tts voice": 0.1, "room": 0.03, "phone": 0.04}
    )
    assert cost.total == pytest.approx(3.17)
    assert (cost.currency, cost.priced, cost.unpriced) == ("USD", "2026-11-01", [])


def test_a_minute_that_has_begun_is_paid() -> None:
    assert cost_of([], {"room": 1, "phone": 0}, PRICES).parts == {"room": 0.01}


def test_a_model_of_a_reseller_has_not_its_makers_price() -> None:
    resold = LLMModelUsage(provider="livekit", model="openai/plain", input_tokens=10)

    assert cost_of([resold], {}, PRICES).unpriced == ["llm openai/plain"]


def test_what_has_no_price_is_named_and_what_runs_here_costs_nothing() -> None:
    dear = LLMModelUsage(provider="openai", model="unheard-of", input_tokens=10)
    here = LLMModelUsage(provider="agent", model="scripted", input_tokens=10)

    no_minutes = PRICES.model_copy(update={"minutes": {}})
    cost = cost_of([dear, here], {"room": 60, "phone": 60}, no_minutes)

    assert (cost.parts, cost.unpriced) == ({}, ["llm unheard-of", "room", "phone"])
    assert not cost.is_known
    assert cost_of([here], {}, PRICES).is_known


def test_sound_has_a_price_of_its_own() -> None:
    used = LLMModelUsage(
        provider="api.openai.com",
        model="speaks",
        input_tokens=1_000_000,
        input_audio_tokens=800_000,
        input_cached_tokens=300_000,
        input_cached_audio_tokens=200_000,
        output_tokens=200_000,
        output_audio_tokens=150_000,
    )
    text = 0.1 * 4 + 0.1 * 1 + 0.05 * 16
    sound = 0.6 * 32 + 0.2 * 2 + 0.15 * 64

    assert cost_of([used], {}, PRICES).total == pytest.approx(text + sound)
    deaf = used.model_copy(update={"model": "plain"})
    assert cost_of([deaf], {}, PRICES).unpriced == ["llm plain"]


def test_what_is_written_to_a_cache_has_a_price_of_its_own() -> None:
    used = LLMModelUsage(
        provider="x", model="writes", input_tokens=1_000_000, input_cache_creation_tokens=400_000
    )

    assert cost_of([used], {}, PRICES).total == pytest.approx(1.1)


def test_cached_tokens_without_a_price_of_their_own_cost_as_others() -> None:
    plain = LLMModelUsage(
        provider="x", model="plain", input_tokens=1_000_000, input_cached_tokens=900_000
    )

    assert cost_of([plain], {}, PRICES).total == pytest.approx(1)


def test_an_owners_prices_win_and_the_others_stay(tmp_path: Path) -> None:
    own = 'date = "2030-01-01"\n[llm]\n"gpt-6-luna" = { input = 9, output = 9 }\n'
    own += "[tts]\nmine = { characters = 7 }"
    (tmp_path / "prices.toml").write_text(own, encoding="utf-8")
    prices = load_prices(tmp_path)

    assert (prices.date, prices.llm["gpt-6-luna"].input) == ("2030-01-01", 9)
    assert prices.tts["mine"].characters == 7
    assert "gpt-realtime-2.1" in prices.llm


def test_the_example_in_the_page_is_a_table_of_prices(tmp_path: Path) -> None:
    page = (ROOT / "template" / "docs" / "agent" / "reports.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```toml\n(.*?)```", page, re.S)
    (tmp_path / "prices.toml").write_text(example, encoding="utf-8")

    prices = load_prices(tmp_path)

    assert {"openai/gpt-6-luna", "gpt-realtime-2.1"} <= prices.llm.keys()
    assert prices.minutes.keys() == {"room", "phone"}


def test_prices_in_another_currency_stand_alone(tmp_path: Path) -> None:
    own = 'date = "2030-01-01"\ncurrency = "EUR"'
    (tmp_path / "prices.toml").write_text(own, encoding="utf-8")

    assert load_prices(tmp_path).llm == {}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("date =", "cannot be read"),
        ("currency = 'USD'", "date: Field required"),
        (
            "date = 'x'\n[llm]\na = { input = -1, output = 1 }",
            "llm.a.input: Input should be greater",
        ),
        ("date = 'x'\n[llm]\na = { input = 1 }", "llm.a.output: Field required"),
        (
            "date = 'x'\n[llm]\na = { input = nan, output = 1 }",
            "llm.a.input: Input should be a fin",
        ),
        ("date = 'x'\n[minutes]\nphone = -1", "minutes.phone: Input should be greater"),
        ("date = 'x'\n[minutes]\ntaxi = 1", "minutes.taxi"),
        ("date = 'x'\ncurrency = 'dollars'", "currency: String should match"),
        ("date = 'x'\n= 1", "at line 2, column 1"),
        ("date = 'x'\n[lmm]", "lmm: Extra inputs"),
    ],
)
def test_a_mistake_in_the_owners_prices_is_named(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "prices.toml").write_text(text, encoding="utf-8")

    with pytest.raises(SettingsError, match=problem):
        load_prices(tmp_path)
