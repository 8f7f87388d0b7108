"""`agent calls` and `agent report`: what happened, for people and for programs."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import subprocess
import sys
import termios
from datetime import datetime, timedelta

import pytest

from agent.__main__ import main
from agent.reports import Cost, Said
from agent.reports.delivery import KEPT, Waiting, deliver
from agent.reports.kept import open_kept
from agent.settings import load_settings
from tests.agent.cli.test_commands import Agent, agent, home
from tests.agent.reports.made import HEARD, full_report, leave, newer_report, report
from tests.agent.reports.test_going import begin_and_be_killed
from tests.support.processes import process

__all__ = ["agent", "home"]


@pytest.fixture
def called(home: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two calls have ended: one is kept, and the report of the newer one still waits."""
    monkeypatch.setenv("AGENT_KEEP_STRANGERS_WORDS", "true")
    load_settings.cache_clear()
    settings = load_settings()
    leave(settings, report("AJ_old", ago=600, reason="no-show", seconds=60))
    asyncio.run(deliver(settings, KEPT))
    leave(settings, full_report("AJ_new"), ["ann"])


def test_calls_are_a_table_the_newest_first_one_that_waits_too(agent: Agent, called: None) -> None:
    ended = agent("calls")

    assert ended.code == 0
    head, new, old, *times = ended.out.splitlines()
    assert head.split()[:4] == ["when", "call", "who", "reason"]
    assert re.search(r"AJ_new +ann +caller left +0:12 +4 +1\.10 s \(model\)", new)
    assert re.search(r"AJ_old +nobody +no-show +1:00 +0", old)
    assert "Seconds until the answers (1) were heard:" in times
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


def test_a_table_is_folded_to_a_narrow_terminal_but_for_the_ids(
    called: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # pytest-xdist's, which would be taken for the terminal's width
    monkeypatch.delenv("COLUMNS", raising=False)
    screen, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 72))
    with process(main, ["calls"], terminal=os.ttyname(theirs)) as ran:
        ran.join()
    shown = re.sub(r"\x1b\[\d*m", "", os.read(screen, 65536).decode()).splitlines()
    os.close(theirs)
    os.close(screen)

    assert max(map(len, shown)) <= 72
    assert any(re.search(r"AJ_new +ann", line) for line in shown)


def test_what_a_caller_typed_does_not_steer_the_terminal(
    agent: Agent, home: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENT_KEEP_STRANGERS_WORDS", "true")
    load_settings.cache_clear()
    said = [Said(1.0, "user", "one\x1b[2J\ntwo\u202e")]
    leave(load_settings(), report("AJ_1", caller="ann\x1b]0;x\x07", said=said))

    out = agent("report", "last").out + agent("calls").out
    assert "one\ufffd[2J two\ufffd" in out
    assert all(one.isprintable() or one == "\n" for one in out)


def test_where_no_words_are_kept_the_report_says_why(agent: Agent, home: object) -> None:
    load_settings.cache_clear()
    leave(load_settings(), full_report("AJ_1", caller=None))

    out = agent("report", "last").out
    assert "not kept: see AGENT_KEEP_STRANGERS_WORDS" in out
    assert "1.10 s: model 0.60, turn 0.30, voice 0.20" in out
    assert "At nine." not in out


def test_a_call_that_was_killed_is_listed_without_a_worker(agent: Agent, home: object) -> None:
    with process(begin_and_be_killed) as call:
        call.join()

    (one,) = json.loads(agent("calls", "--json").out)
    assert (one["call"], one["reason"]) == ("AJ_1", "job died")


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
        "0:05  agent   And on Sunday",
        "interrupted",
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


NEWER = "written by a newer version of this project: update this one\n"


@pytest.fixture
def newer(called: None) -> None:
    """The newest call was kept by a newer version, and one more of its reports waits here."""

    async def keep() -> None:
        async with open_kept(load_settings()) as kept:
            await kept.add(Waiting(newer_report("AJ_kept", ago=1), []))

    asyncio.run(keep())
    leave(load_settings(), newer_report("AJ_waits", ago=2))


def test_calls_of_a_newer_version_are_left_out_and_counted(agent: Agent, newer: None) -> None:
    ended = agent("calls", "--json")

    assert [one["call"] for one in json.loads(ended.out)] == ["AJ_new", "AJ_old"]
    assert (ended.code, ended.err) == (0, f"2 reports left out, {NEWER}")
    assert agent("calls", "--last", "1").out == ""
    assert agent("report", "AJ_new").code == 0


@pytest.mark.parametrize("name", ["AJ_kept", "AJ_waits", "last"])
def test_a_report_of_a_newer_version_says_what_to_do(name: str, agent: Agent, newer: None) -> None:
    ended = agent("report", name)

    assert (ended.code, ended.out) == (2, "")
    assert ended.err == f"agent: the report of {name!r} was {NEWER}"


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
        f"  {before:%Y-%m-%d}   1.0000 EUR, 1 call",
    ]
    (unknown,) = [line for line in out.splitlines() if "AJ_3" in line]
    assert unknown.endswith("?")
    assert re.search(r"cost +unknown\n", agent("report", "AJ_3").out)
    told = {one["call"]: one["cost"] for one in json.loads(agent("calls", "--json").out)}
    assert told == {"AJ_1": 0.25, "AJ_2": 0.5, "AJ_3": None, "AJ_4": 1.0}


def test_a_reader_who_has_seen_enough_is_no_error(called: None) -> None:
    listed = [sys.executable, "-m", "agent", "calls", "--json"]
    read_end, write_end = os.pipe()
    os.close(read_end)
    ended = subprocess.run(listed, stdout=write_end, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write_end)

    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_store_that_is_away_is_named_with_what_to_do(
    agent: Agent, called: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENT_MEMORY_URL", "redis://127.0.0.1:1/0")
    ended = agent("calls")

    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("agent: ")
    assert "127.0.0.1:1" in ended.err
    # what waits for it is not lost
    assert len(list(load_settings().data.glob("reports/kept/*.json"))) == 1


def test_files_of_another_user_are_named_with_what_to_do(agent: Agent, called: None) -> None:
    (load_settings().data / "reports" / "kept" / ".lock").unlink()
    (load_settings().data / "reports" / "kept" / ".lock").mkdir()
    ended = agent("calls")

    assert (ended.code, ended.out) == (2, "")
    assert ended.err.endswith("ask as the user who runs the agent\n")
