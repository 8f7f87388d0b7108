"""`make bench`: measure, save raw numbers in benchmarks/results/, write docs/benchmarks.md.

    python -m benchmarks.run [--quick]

Everything is measured in pairs, in one run, on this machine; `--quick` only shows that it works.
"""

from __future__ import annotations

import random
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.calls import BARE_NAME, DELETING, OURS, Sample, measure_first_audio, measure_slots
from benchmarks.report import Progress, command, finish, machine
from tests.support.projects import PAIRS, render
from tests.support.server import livekit_server
from tests.support.templates import make_template

# a ratio, and seconds
GOALS = {"join to sound": 1.05, "known to free": 0.3}


async def measure(scratch: Path, *, quick: bool) -> dict[str, Any]:
    """Every raw number, in seconds."""
    tell = Progress()
    tell("making a template and a project")
    template = make_template(scratch / "template")
    project = render(template, scratch / "bench-agent", PAIRS[0], project_name="Bench Agent")
    project.install()
    results: dict[str, Any] = {"machine": machine(), "quick": quick}
    async with livekit_server() as server:
        tell("calling, up to the first sound")
        results["first audio"] = await measure_first_audio(
            project, server, pairs=2 if quick else 20
        )
        tell("calling and hanging up")
        results["slot"] = await measure_slots(project, server, rounds=1 if quick else 5)
    tell("done")
    finish(results, tell.seconds)
    return results


# ---------------------------------------------------------------------- the tables


def spread(values: Sequence[float]) -> str:
    """Median, smallest and largest."""
    return f"{statistics.median(values):.2f} s ({min(values):.2f} to {max(values):.2f})"


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """The ratio of the medians, and its interval in 95 % of resampled pairs."""
    pairs, chance = list(zip(ours, theirs, strict=True)), random.Random(0)

    def of(sample: Sequence[tuple[float, float]]) -> float:
        return statistics.median(a for a, _ in sample) / statistics.median(b for _, b in sample)

    drawn = sorted(of(chance.choices(pairs, k=len(pairs))) for _ in range(2000))
    return of(pairs), drawn[50], drawn[-51]


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""

    def of(part: str, side: str, name: str) -> list[float]:
        samples: list[Sample] = results[part][side]
        return [sample[name] for sample in samples]

    def compared(
        what: str, ours: Sequence[float], theirs: Sequence[float], goal: float | None
    ) -> str:
        middle, low, high = ratio(ours, theirs)
        met = "" if goal is None else f"at most {goal}: {'met' if middle <= goal else '**missed**'}"
        return (
            f"| {what} | {spread(ours)} | {spread(theirs)}"
            f" | {middle:.2f} ({low:.2f} to {high:.2f}) | {met} |"
        )

    free = statistics.median(of("slot", OURS, "known to free"))
    about = results["machine"]
    lines = [
        f"{about['date'][:10]}, {about['system']} with {about['cpus']} CPUs, load"
        f" {about['load_before']} before and {about['load_after']} after; Python"
        f" {about['python']}, livekit-agents {about['livekit-agents']}, {about['livekit-server']}."
        f" {len(results['first audio'][OURS])} pairs of calls.",
        "",
        "| median (smallest to largest) | ours | rival | ratio of medians (95 %) | goal |",
        "|---|---|---|---|---|",
        *[
            compared(
                name,
                of("first audio", OURS, name),
                of("first audio", BARE_NAME, name),
                GOALS.get(name),
            )
            for name in ("join to sound", "join to agent", "agent to sound")
        ],
        "",
        f"| after a hang-up, {len(results['slot'][OURS])} calls each | slot free"
        " | since the agent could know |",
        "|---|---|---|",
    ]
    for side in (OURS, DELETING, BARE_NAME):
        times = [spread(of("slot", side, name)) for name in ("hang-up to free", "known to free")]
        lines.append(f"| {side} | {times[0]} | {times[1]} |")
    goal = GOALS["known to free"]
    lines += [
        "",
        f"Goal: ours at most {goal} s since it could know:"
        f" {'met' if free <= goal else '**missed**'}.",
    ]
    return "\n".join(lines)


def main() -> int:
    """Measure and report; 1 if no server is available. A missed goal is not an error."""
    return command(
        "calls",
        measure,
        table,
        about="Measure calls against a plain rival.",
        quick="two of everything, and keep nothing",
    )


if __name__ == "__main__":
    sys.exit(main())
