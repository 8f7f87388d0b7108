"""Measure how soon a caller hears the greeting of a voice that takes a while to its first sound.

    python -m benchmarks.first_word [--quick]

Ours keeps the sound of what it has said before; the rival is the bare agent of benchmarks.run with
the same voice. They take turns on one server.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from benchmarks.calls import BARE_NAME, OURS, measure_first_audio
from benchmarks.report import (
    Progress,
    Results,
    command,
    describe,
    finish,
    machine,
    make_project,
)
from benchmarks.run import ratio, spread
from tests.support.server import livekit_server
from tests.support.templates import WORK_TREE

LATE_VOICE = Path(__file__).with_name("late_voice.py")
FIRST_SOUND_SECONDS = 0.3
GOAL = 0.7  # of the bare agent's
PART = "first audio"


async def measure(scratch: Path, *, quick: bool) -> Results:
    """Pairs of calls, in seconds."""
    tell = Progress()
    tell("making a template and a project")
    project = make_project(scratch, WORK_TREE)
    shutil.copyfile(LATE_VOICE, project.path / "src" / "agent" / "persona.py")
    results: Results = {"machine": machine(), "version": WORK_TREE, "quick": quick}
    results["first sound seconds"] = FIRST_SOUND_SECONDS
    async with livekit_server() as server:
        tell("calling, up to the first sound")
        results[PART] = await measure_first_audio(
            project,
            server,
            pairs=2 if quick else 20,
            BENCH_VOICE="agent.persona:LateTTS",
            BENCH_FIRST_SOUND=str(FIRST_SOUND_SECONDS),
        )
    tell("done")
    finish(results, tell.seconds)
    return results


def table(results: Results) -> str:
    """The results as Markdown."""
    ours, bare = (
        [sample["join to sound"] for sample in results[PART][side]] for side in (OURS, BARE_NAME)
    )
    middle, low, high = ratio(ours, bare)
    met = "met" if middle <= GOAL else "**missed**"
    return "\n".join(
        [
            f"{describe(results)} {len(ours)} pairs of calls; the voice takes"
            f" {results['first sound seconds'] * 1000:.0f} ms to its first sound.",
            "",
            "| median (smallest to largest) | ours | bare | ratio of medians (95 %) | goal |",
            "|---|---|---|---|---|",
            f"| join to sound | {spread(ours)} | {spread(bare)}"
            f" | {middle:.2f} ({low:.2f} to {high:.2f}) | at most {GOAL}: {met} |",
        ]
    )


def main() -> int:
    """Measure and report; 1 if no server is available. A missed goal is not an error."""
    return command(
        "first-word",
        measure,
        table,
        about="Measure how soon the greeting is heard.",
        quick="two pairs, and keep nothing",
    )


if __name__ == "__main__":
    sys.exit(main())
