"""Part of `make bench`: the tests of every end, and the seconds until the slot is free.

    python -m benchmarks.ends [--quick]

The seconds count from the moment when the agent could know of the end.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import report
from benchmarks.report import Progress, Results
from tests.support.ends import ENDS
from tests.support.templates import WORK_TREE
from tools.history import ROOT

TESTS = (
    "tests/call/test_ends.py",
    "tests/call/test_slow_ends.py",
    "tests/call/test_server_trouble.py",
)
# the worker ends too: from the signal to its exit
FROM_OUTSIDE = ("dev-stop", "dev-ctrl-c")


def measure(*, quick: bool) -> list[dict[str, object]]:
    """Run the tests one after the other; return the timed ends. Raises SystemExit if one fails."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "ends.jsonl"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-n",
            "0",
            *TESTS,
            *(["-m", "not slow"] if quick else []),
        ]
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, "ENDS_MEASURED": str(file)}, check=False
        )
        if done.returncode:
            raise SystemExit("a test of an end failed, so nothing was measured")
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def table(results: Results) -> str:
    """A row for each end."""
    lines = [report.describe(results), "", "| end | reason | seconds |", "|---|---|---|"]
    for name, end in ENDS.items():
        if taken := [float(line["seconds"]) for line in results["ends"] if line["end"] == name]:
            what = "signal to exit: " if name in FROM_OUTSIDE else ""
            longest = f" (longest {max(taken):.2f})" if len(taken) > 1 else ""
            lines.append(
                f"| `{name}` | {end.reason} | {what}{statistics.median(taken):.2f}{longest} |"
            )
    return "\n".join(lines)


def main() -> int:
    """Measure and report; 1 if no server is available."""
    parser = argparse.ArgumentParser(description="How long every end takes.")
    parser.add_argument("--quick", action="store_true", help="skip the slow ends, and keep nothing")
    quick: bool = parser.parse_args().quick
    if not report.has_server():
        return 1
    tell = Progress()
    results: Results = {"machine": report.machine(), "version": WORK_TREE}
    results["ends"] = measure(quick=quick)
    report.finish(results, tell.seconds)
    report.report("ends", results, table, quick=quick)
    return 0


if __name__ == "__main__":
    sys.exit(main())
