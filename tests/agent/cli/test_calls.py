"""`agent calls` and `agent report`: what happened, for people and for programs."""

from __future__ import annotations

import asyncio
import json
import re
from datetime import datetime, timedelta

import pytest

from agent.reports import Cost
from agent.reports.delivery import KEPT, deliver, leave
from agent.settings import load_settings
from tests.agent.cli.test_commands import Agent, agent, home
from tests.agent.reports.made import HEARD, full_report, report

__all__ = ["agent", "home"]


@pytest.fixture
def called(home: object) -> None:
    """Two calls have ended: one is kept, and the report of the newer one still waits."""
    load_settings.cache_clear()
    settings = load_settings()
    leave(settings, report("AJ_old", ago=600, reason="no-show", seconds=60), [])
    asyncio.run(deliver(settings, KEPT))
    leave(settings, full_report("AJ_new"), ["ann"])


def test_calls_are_a_table_the_newest_first_one_that_waits_too(agent: Agent, called: None) -> None:
    ended = agent("calls")

    assert ended.code == 0
    head, new, old, *times = ended.out.splitlines()
    assert head.split()[:4] == ["when", "call", "who", "reason"]
    assert re.search(r"AJ_new +ann +caller left +0:12 +3 +1\.10 s \(model\)", new)
    assert re.search(r"AJ_old +nobody +no-show +1:00 +0", old)
    assert "1 answers, in seconds until they were heard:" in times
    assert any(re.search(r"model +p50 +0\.60 +p95 +0\.60", line) for line in times)


def test_calls_are_json_for_programs(agent: Agent, called: None) -> None:
    new, old = json.loads(agent("calls", "--json").out)

    assert (new["call"], new["caller"], new["slowest_ms"], new["slowest_stage"]) == (
        *("AJ_new", "ann", sum(HEARD.values()), "model"),
    )
    assert (old["reason"], old["slowest_ms"]) == ("no-show", None)
    assert [one["call"] for one in json.loads(agent("calls", "--last", "1", "--json").out)] == [
        "AJ_new"
    ]


def test_without_calls_there_is_a_line(agent: Agent) -> None:
    ended = agent("calls")
    assert (ended.code, ended.out) == (0, "")
    assert ended.err.endswith("no call is kept\n")
    assert agent("calls", "--json").out == "[]\n"


@pytest.mark.parametrize("name", ["AJ_new", "AJ_n", "room of AJ_new", "last"])
def test_a_report_tells_the_call_in_order(name: str, agent: Agent, called: None) -> None:
    ended = agent("report", name)

    assert ended.code == 0
    told = [
        "0:01  agent   Hello!",
        "0:03  caller  When do you <b>open</b>?",
        "0:04  lookup  When do you open?",
        "ok in 12 ms: hours.md > Hours",
        '0:04  tool    book {"day":"Monday"}',
        'ok in 80 ms: {"id":7}',
        "0:05  agent   At nine.",
        "1.10 s: model 0.60, turn 0.30, voice 0.20",
        "0:06  failed  text-to-speech: APIError: 503",
        "the caller was told",
        "0:12  closed  session",
        "timeout in 2000 ms",
    ]
    lines = [line.strip() for line in ended.out.splitlines()]
    assert [line for line in lines if line in told] == told


def test_a_report_is_the_whole_value_as_json(agent: Agent, called: None) -> None:
    made = json.loads(agent("report", "AJ_new", "--json").out)

    assert made == full_report("AJ_new", began=made["began"]).to_dict()


def test_a_report_is_one_page_in_which_nothing_that_was_said_is_markup(
    agent: Agent, called: None
) -> None:
    page = agent("report", "AJ_new", "--html").out

    assert "When do you &lt;b&gt;open&lt;/b&gt;?" in page
    assert "<b>" not in page
    assert "default-src 'none'" in page
    assert not re.search(r"(src|href)=|url\(", page)
    assert 'title="the language model: 600 ms"' in page


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["AJ_none"], "no report of 'AJ_none' is kept"),
        (["AJ_"], "several calls begin with 'AJ_': write more of one of AJ_new, AJ_old"),
        (["last", "--json", "--html"], "choose one"),
    ],
)
def test_a_report_that_cannot_be_shown_is_one_line(
    arguments: list[str], problem: str, agent: Agent, called: None
) -> None:
    ended = agent("report", *arguments)

    assert (ended.code, ended.out) == (2, "")
    assert problem in ended.err
    assert ended.err.splitlines()[-1].startswith("agent: ")


def test_who_is_forgotten_is_in_no_report_any_more(agent: Agent, called: None) -> None:
    assert agent("forget", "ann").err.endswith("1 reports of calls of ann deleted\n")
    assert [one["call"] for one in json.loads(agent("calls", "--json").out)] == ["AJ_old"]


def cost(total: float, *unpriced: str) -> Cost:
    parts = {"llm small": total} if total else {}
    return Cost(total, "EUR", "2026-11-29", parts, list(unpriced))


def test_costs_are_summed_by_day_and_what_is_unknown_is_not_nothing(
    agent: Agent, home: object
) -> None:
    load_settings.cache_clear()
    settings = load_settings()
    yesterday = datetime.now() - timedelta(days=1)
    noon = yesterday.replace(hour=12, minute=0).timestamp()
    for call, ago, paid in (
        ("AJ_1", 0.0, cost(0.25)),
        ("AJ_2", 1.0, cost(0.5, "room")),
        ("AJ_3", 2.0, cost(0, "tts voice")),
        ("AJ_4", 3 * 86_400.0, cost(1.0)),
    ):
        leave(settings, report(call, began=noon - ago, cost=paid), [])
    asyncio.run(deliver(settings, KEPT))

    out = agent("calls").out
    at = out.splitlines().index("cost of these calls, by day:")
    newest, before = (datetime.fromtimestamp(noon - ago) for ago in (0, 3 * 86_400))
    assert out.splitlines()[at + 1 :] == [
        f"  {newest:%Y-%m-%d}   0.7500 EUR and more, 2 calls",
        f"  {before:%Y-%m-%d}   1.0000 EUR, 1 calls",
    ]
    (unknown,) = [line for line in out.splitlines() if "AJ_3" in line]
    assert unknown.endswith("unknown")
    told = {one["call"]: one["cost"] for one in json.loads(agent("calls", "--json").out)}
    assert told == {"AJ_1": 0.25, "AJ_2": 0.5, "AJ_3": None, "AJ_4": 1.0}
