"""`agent update`, without the project's tests, against plain `copier update` of the same project.

    python -m benchmarks.updates [--quick]

A project of the newest release goes to the work tree; both sides take turns on one machine in one
run. What is measured twice: all but the tests, and all that needs no uv.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.copies import ratio, spread, verdict
from benchmarks.report import Progress, Results, finish, report, tools_of, workshop
from tests.support.projects import PAIRS, UV, Project, clean_environment
from tests.support.templates import ROOT, WORK_TREE, git, make_template, released

GOAL = 2.0  # times `copier update`
COPIER, MERGED, WHOLE = "copier update", "without uv", "without tests"
TITLES = {
    WHOLE: "`agent update` without the tests: with lock, sync of the copy, sync of the project",
    MERGED: "the same without uv: merge, judge, patch",
}
METHOD = {
    "sides": "`copier update --defaults` and the updater of the work tree, each in a process of its"
    " own, to the same version; the project is then reset, and git has read its files again",
    WHOLE: "the real uv, which is told nothing but to leave out `uv run pytest`; its cache is warm",
    MERGED: "in place of uv a command that does nothing",
}
WITHOUT_TESTS = '#!/bin/sh\n[ "$1 $2" = "run pytest" ] || exec \'{uv}\' "$@"\n'


def timed(project: Project, command: Sequence[str], more: dict[str, str]) -> float:
    """Seconds of an update of the project to the work tree, which is then undone."""
    environment = clean_environment() | {
        name: value for name, value in os.environ.items() if name.startswith("GIT_")
    }
    began = time.perf_counter()
    subprocess.run(
        command, cwd=project.path, env=environment | more, check=True, capture_output=True
    )
    seconds = time.perf_counter() - began
    assert project.answers()["_commit"] == WORK_TREE
    git(project.path, "reset", "--quiet", "--hard")
    git(project.path, "clean", "--quiet", "--force", "-d")
    git(project.path, "status")
    return seconds


def measure(scratch: Path, *, quick: bool) -> Results:
    """Every raw number, in seconds."""
    say, version = Progress(), released()[-1]
    results: Results = {
        "machine": tools_of("copier"),
        "method": METHOD,
        "from": version,
        "quick": quick,
    }
    say("making a project")
    template = make_template(scratch / "template")
    copied = template.copy(scratch / "front-desk", version, **PAIRS[0].data())
    project = Project(copied.path, PAIRS[0])
    project.install()
    project.commit()
    results["files"] = len(git(project.path, "ls-files").splitlines())
    without_tests = scratch / "uv"
    without_tests.write_text(WITHOUT_TESTS.format(uv=UV), encoding="utf-8")
    without_tests.chmod(0o755)
    to = ["--vcs-ref", WORK_TREE]
    ours = [sys.executable, "-m", "agent_update", "--to", WORK_TREE]
    updater = {"PYTHONPATH": str(ROOT / "updater")}
    sides: dict[str, tuple[list[str], dict[str, str]]] = {
        COPIER: ([sys.executable, "-m", "copier", "update", "--quiet", "--defaults", *to], {}),
        MERGED: (ours, updater | {"UV": "true"}),
        WHOLE: (ours, updater | {"UV": str(without_tests)}),
    }
    say("warming up")
    for side in sides.values():
        timed(project, *side)
        project.install()
    say("updates")
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(1 if quick else 9):
        for name in sorted(sides, reverse=bool(turn % 2)):
            seconds[name].append(timed(project, *sides[name]))
            Progress.dot()
    results["seconds of each"] = seconds
    say("done")
    finish(results, say.seconds)
    return results


def tables(results: Results) -> str:
    """The results as Markdown."""
    about, seconds = results["machine"], results["seconds of each"]
    lines = [
        f"{about['date'][:10]}, {about['system']} with {about['cpus']} CPUs, load"
        f" {about['load_before']} before and {about['load_after']} after; Python"
        f" {about['python']}, Copier {about['copier']}, {about['git']}. {len(seconds[COPIER])}"
        f" rounds, from {results['from']} to the work tree, {results['files']} files.",
        "",
        "| median (smallest to largest) | seconds | times `copier update`: median (95 %) | goal |",
        "|---|---|---|---|",
        f"| `copier update` | {spread(seconds[COPIER])} | 1 |  |",
    ]
    for name, title in TITLES.items():
        middle, low, high = ratio(seconds[name], seconds[COPIER])
        goal = verdict(round(middle, 2), GOAL)
        share = f"{middle:.2f} ({low:.2f} to {high:.2f})"
        lines.append(f"| {title} | {spread(seconds[name])} | {share} | {goal} |")
    return "\n".join(lines)


def main() -> int:
    """Measure and report; a missed goal is not an error."""
    parser = argparse.ArgumentParser(description="Measure updates against plain Copier.")
    parser.add_argument("--quick", action="store_true", help="one of everything, and keep nothing")
    quick: bool = parser.parse_args().quick
    with workshop() as scratch:
        results = measure(scratch, quick=quick)
        shutil.rmtree(scratch / "template", ignore_errors=True)
    report("updates", results, tables, quick=quick)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as error:
        sys.exit(f"bench: {error}\n{error.stderr}")
