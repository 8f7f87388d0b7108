"""The commands that say what happened: the last calls, and one of them from beginning to end."""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from agent.cli.terminal import busy, make_console
from agent.cli.terminal import report as tell
from agent.reports import NEWER, STAGES, NewerReport, NotDelivered, Report, Said
from agent.reports.delivery import KEPT, deliver, unread
from agent.reports.going import report_deaths
from agent.reports.kept import KeptCalls, open_kept
from agent.settings import Settings, SettingsError, load_settings

SHOWN = 20
# characters of what a tool was given, and gave
LONGEST = 300
# columns of a file, or of another program
UNFOLDED = 1000
# what decides that a report has no words
NOT_KEPT = "AGENT_KEEP_STRANGERS_WORDS and AGENT_KEEP_TRANSCRIPTS in docs/agent/reports.md"
SIDES = {"user": "caller", "assistant": "agent"}
COLUMNS = ("when", "call", "who", "reason", "length", "turns", "slowest answer", "cost")


def calls(
    last: Annotated[
        int, typer.Option("--last", metavar="N", min=1, help="How many, the newest.")
    ] = SHOWN,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array.")] = False,
) -> int:
    """List the last calls: when, who, why they ended, how long, the slowest answer, the cost."""
    settings = load_settings()
    found, left_out = _ask(settings, lambda kept: kept.newest(last))
    if left_out:
        _tell_left_out(left_out)
    elif not (found or as_json):
        tell("no call is kept" + ("" if settings.calls_kept else ": AGENT_CALLS_KEPT=0"))
    with _read_or_not():
        if as_json:
            print(json.dumps([summary_of(one) for one in found], indent=2))
        elif found:
            _print_table(found)
            for line in [*percentiles(found), *costs_by_day(found)]:
                print(line)
    return 0


def report(
    call: Annotated[
        str, typer.Argument(help="Its id or how that begins, its room, or `last`.", metavar="CALL")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    as_html: Annotated[
        bool, typer.Option("--html", help="Print one HTML file, with a timeline.")
    ] = False,
) -> int:
    """Show a call from beginning to end: what was said, done and looked up, and what failed."""
    if as_json and as_html:
        raise SettingsError(["--json and --html are two forms of one thing: choose one"])
    found = _find(load_settings(), call)
    with _read_or_not():
        if as_json:
            print(json.dumps(found.to_dict(), indent=2))
        elif as_html:
            from agent.cli.report_page import page_of

            print(page_of(found))
        else:
            for line in _lines(found):
                print(_plain(line))
    return 0


# ---------------------------------------------------------------------- what is kept


def _find(settings: Settings, call: str) -> Report:
    if call == "last":
        found, left_out = _ask(settings, lambda kept: kept.newest(1))
    else:
        found, left_out = _ask(settings, lambda kept: kept.find(call))
        left_out = {one for one in left_out if one.startswith(call)}
    if not found:
        problem = f"no report of {call!r} is kept: `agent calls` lists the calls that are"
        raise SettingsError([f"the report of {call!r} was {NEWER}" if left_out else problem])
    if left_out:
        _tell_left_out(left_out)
    begin = sorted({one.call for one in found if one.call.startswith(call)})
    if len(begin) > 1 and call not in begin:
        problem = f"several calls begin with {call!r}: write more of one of {', '.join(begin[:5])}"
        raise SettingsError([problem])
    return next((one for one in found if one.call == call), found[0])


def _ask(
    settings: Settings, question: Callable[[KeptCalls], Awaitable[list[Report]]]
) -> tuple[list[Report], set[str]]:
    """What is kept, with what waits on this machine delivered first, and the calls left out."""

    async def ask() -> tuple[list[Report], set[str]]:
        report_deaths(settings)
        with suppress(NewerReport):
            await deliver(settings, KEPT)
        async with open_kept(settings) as kept:
            return await question(kept), {*kept.unread, *unread(settings, KEPT)}

    try:
        with busy("asking for the calls that are kept"):
            return asyncio.run(ask())
    except NotDelivered as error:
        raise SettingsError([str(error)]) from error
    except OSError as error:
        problem = f"what waits in {settings.data} cannot be read ({error.strerror})"
        raise SettingsError([f"{problem}: ask as the user who runs the agent"]) from error


def _tell_left_out(calls: set[str]) -> None:
    tell(f"{len(calls)} report{'s' * (len(calls) > 1)} left out, {NEWER}")


# ---------------------------------------------------------------------- in words


def summary_of(one: Report) -> dict[str, object]:
    """A call in a line."""
    slowest = one.slowest
    cost = one.cost if one.cost and one.cost.is_known else None
    return {
        "call": one.call,
        "room": one.room,
        "began": one.began,
        "caller": one.caller,
        "kind": one.kind,
        "reason": one.reason,
        "seconds": one.seconds,
        "turns": len(one.said),
        "slowest_ms": slowest.heard_ms if slowest else None,
        "slowest_stage": slow_stage(slowest) if slowest else None,
        "cost": cost.total if cost else None,
        "currency": cost.currency if cost else None,
    }


def slow_stage(said: Said) -> str | None:
    """What took longest of the wait for an answer."""
    return max(said.stages, key=lambda stage: said.stages[stage], default=None)


def who(one: Report) -> str:
    """The caller: a key where they are remembered, else what they called with."""
    return one.caller or {"": "nobody", "sip": "a phone", "standard": "a stranger"}.get(
        one.kind, one.kind
    )


def when(one: Report) -> str:
    """When the call began, in this machine's time."""
    return datetime.fromtimestamp(one.began).astimezone().strftime("%Y-%m-%d %H:%M")


def length(seconds: float) -> str:
    """Minutes and seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def cost_of(one: Report, unknown: str = "unknown") -> str:
    """What it cost, in words."""
    if one.cost is None or not one.cost.is_known:
        return unknown
    more = " and more" if one.cost.unpriced else ""
    return f"{one.cost.total:.4f} {one.cost.currency}{more}"


def wait_of(said: Said) -> str:
    """How long the caller waited for this answer, and for what, longest first."""
    if said.heard_ms is None:
        return ""
    parts = sorted(said.stages.items(), key=lambda stage: -stage[1])
    # what took no hundredth of a second is not worth a word
    spent = ", ".join(f"{stage} {ms / 1000:.2f}" for stage, ms in parts if ms >= 5)
    return f"{said.heard_ms / 1000:.2f} s" + (f": {spent}" if spent else "")


def detail_of(said: Said) -> str:
    """What else there is to say of a turn."""
    return "; ".join(filter(None, [wait_of(said), "interrupted" if said.interrupted else ""]))


def percentiles(found: list[Report]) -> Iterator[str]:
    """The median and the slowest twentieth of all answers, as a whole and by stage."""
    answers = [said for one in found for said in one.said if said.heard_ms is not None]
    if not answers:
        return
    waits = {"answers": [said.heard_ms or 0 for said in answers]}
    for stage in STAGES:
        if any(stage in said.stages for said in answers):
            waits[stage] = [said.stages.get(stage, 0) for said in answers]
    yield ""
    yield f"Seconds until the answers ({len(answers)}) were heard:"
    for name, values in waits.items():
        p50, p95 = (_percentile(values, part) / 1000 for part in (0.5, 0.95))
        yield f"  {name:<12} p50 {p50:6.2f}   p95 {p95:6.2f}"


def costs_by_day(found: list[Report]) -> Iterator[str]:
    """What these calls have cost, by the day on which they began, the newest first."""
    days = dict[tuple[str, str], list[Report]]()
    for one in found:
        if one.cost is not None and one.cost.is_known:
            days.setdefault((when(one)[:10], one.cost.currency), []).append(one)
    if not any(one.cost and one.cost.total for of_day in days.values() for one in of_day):
        return
    yield ""
    yield "cost of these calls, by day:"
    for (day, currency), of_day in days.items():
        costs = [one.cost for one in of_day if one.cost is not None]
        more = " and more" if any(cost.unpriced for cost in costs) else ""
        total = sum(cost.total for cost in costs)
        number = f"{len(of_day)} call" + "s" * (len(of_day) > 1)
        yield f"  {day}   {total:.4f} {currency}{more}, {number}"


def _percentile(values: list[int], part: float) -> int:
    return sorted(values)[max(0, math.ceil(part * len(values)) - 1)]


def _print_table(found: list[Report]) -> None:
    """A line a call; a narrow terminal folds what is not the call's id."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in COLUMNS:
        width = len("2026-11-29") if name == "when" else None
        table.add_column(name, no_wrap=name == "call", overflow="fold", min_width=width)
    for one in found:
        table.add_row(*(Text(_plain(cell)) for cell in _row(one)))
    console = make_console()
    if not console.is_terminal:
        console.width = UNFOLDED
    with console.capture() as lines:
        console.print(table)
    for line in lines.get().splitlines():
        print(line.rstrip())


def _row(one: Report) -> tuple[str, ...]:
    slowest, slow = one.slowest, ""
    if slowest is not None:
        slow = f"{(slowest.heard_ms or 0) / 1000:.2f} s ({slow_stage(slowest)})"
    ended = one.reason, length(one.seconds), str(len(one.said))
    return (when(one), one.call, who(one), *ended, slow, cost_of(one, "?"))


@dataclass(frozen=True)
class Entry:
    """Something that happened, `at` seconds after the call began."""

    at: float
    kind: str
    text: str
    detail: str = ""
    said: Said | None = None


def timeline(one: Report) -> list[Entry]:
    """All that happened, in order; what was closed comes last."""
    entries = [
        Entry(said.at, SIDES.get(said.role, said.role), said.text, detail_of(said), said)
        for said in one.said
    ]
    for tool in one.tools:
        text = f"{tool.name} {_short(tool.arguments)}".rstrip()
        result = f": {_short(tool.result)}" if tool.result else ""
        entries.append(Entry(tool.at, "tool", text, f"{tool.outcome} in {tool.ms} ms{result}"))
    for asked in one.lookups:
        found = "; ".join(asked.passages) or "nothing"
        detail = f"{asked.outcome} in {asked.ms} ms: {found}"
        entries.append(Entry(asked.at, "lookup", asked.question, detail))
    entries += [
        Entry(failure.at, "failed", f"{failure.part}: {failure.problem}", failure.done)
        for failure in one.failures
    ]
    entries += [
        Entry(step.at, "step", f"{step.number}: {step.name}", step.outcome)
        for step in one.steps
        if step.outcome != "ok"
    ]
    ordered = sorted(entries, key=lambda entry: entry.at)
    return ordered + [
        Entry(one.seconds, "closed", close.name, f"{close.outcome} in {close.ms} ms")
        for close in one.closes
    ]


def head(one: Report) -> list[tuple[str, str]]:
    """What there is to say of the call as a whole."""
    facts = [
        ("call", one.call),
        ("room", one.room),
        ("began", f"{when(one)}, {length(one.seconds)} long"),
        ("ended", one.reason),
        ("caller", who(one)),
        ("cost", cost_of(one)),
    ]
    if one.cost is not None:
        parts = ", ".join(f"{part} {cost:.4f}" for part, cost in one.cost.parts.items())
        facts.append(("of it", f"{parts} (prices of {one.cost.priced})" if parts else ""))
        facts.append(("no price", ", ".join(one.cost.unpriced)))
    if one.said and not any(said.text for said in one.said):
        facts.append(("words", f"not kept: see {NOT_KEPT}"))
    facts.append(("used", ", ".join(f"{name} {value}" for name, value in one.usage.items())))
    facts.append(("recording", one.recording or ""))
    return [(name, value) for name, value in facts if value]


def _lines(one: Report) -> Iterator[str]:
    for name, value in head(one):
        yield f"{name:<10} {value}"
    yield ""
    for entry in timeline(one):
        yield f"{length(entry.at):>6}  {entry.kind:<7} {entry.text}"
        if entry.detail:
            yield f"{'':>16}{entry.detail}"


def _plain(text: str) -> str:
    """The text on one line: what a caller said is not to steer the owner's terminal."""
    text = re.sub(r"\s", " ", text)
    return "".join(one if one.isprintable() else "\ufffd" for one in text)


@contextmanager
def _read_or_not() -> Iterator[None]:
    """Inside is printed for somebody who may not read on, as of `agent calls | head`."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} …"
