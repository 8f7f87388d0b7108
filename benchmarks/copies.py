"""How long copies and updates take: this template against one of three files, in pairs.

    python -m benchmarks.copies [--quick]

`copier copy`, `copier update` and `cookiecutter`, each in its own process, as a user runs them; the
number of processes that each starts; and all combinations of answers by both tools.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml
from cookiecutter.main import cookiecutter  # type: ignore[import-untyped]

from benchmarks.report import Progress, Results, finish, report, tools_of, workshop
from tests.support.templates import (
    ASKED,
    COMBINATIONS,
    WORK_TREE,
    Project,
    Template,
    git,
    make_template,
    released,
)

OURS, FLOOR = "ours", "floor"
# times the floor
GOALS = {"copy": 1.6, "update": 1.6}
# for all combinations by both tools
ALL_SECONDS = 60
TITLES = {"copy": "`copier copy`", "update": "`copier update`", "cookiecutter": "`cookiecutter`"}
METHOD = {
    "pairs": "ours and the floor take turns, and which goes first alternates; other programs may"
    " have been running, so only the ratio of a pair has a meaning",
    "floor": "three files, one of them rendered, and as many questions as ours, all plain; for"
    " Copier the third is its answers file, and an update changes one of the other two",
    "started": "by the tools' own Python processes, counted in a separate run by an audit hook"
    " (subprocess.Popen) in each",
    "git": "every git process, also those that git starts, as git itself traces them"
    " (GIT_TRACE2_EVENT); helpers of git that are shell scripts are not counted",
    "combinations": "both tools in one process, one after the other; Cookiecutter's hooks are"
    " separate processes",
}

# Every Python process below a measured command loads it, so that the processes are counted.
COUNTER = """\
import os, sys

def count(event, arguments):
    if event == "subprocess.Popen":
        with open(os.environ["BENCH_STARTED"], "a") as log:
            log.write("started\\n")

sys.addaudithook(count)
"""


# ---------------------------------------------------------------------- the sides


@dataclass(frozen=True)
class Side:
    """A template for Copier, one for Cookiecutter, and a project that is a version behind."""

    copier: Template
    cookiecutter: Template
    # for Cookiecutter, which does not choose the newest release by itself
    checkout: str
    older: Project

    def copy(self, scratch: Path) -> float:
        """Seconds of one `copier copy --defaults`."""
        return timed(copier("copy", self.copier.url, str(scratch / "copied")), scratch / "copied")

    def update(self, scratch: Path) -> float:
        """Seconds of one `copier update --defaults` of the project that is a version behind."""
        project = Project(scratch / "updated")
        shutil.copytree(self.older.path, project.path)
        # git has to read every copied file once: not in the measured time
        git(project.path, "status")
        seconds = timed(copier("update", str(project.path)))
        assert project.answers()["_commit"] != self.older.answers()["_commit"]
        shutil.rmtree(project.path)
        return seconds

    def bake(self, scratch: Path) -> float:
        """Seconds of one `cookiecutter --no-input`."""
        baked = scratch / "baked"
        command = [
            sys.executable,
            "-m",
            "cookiecutter",
            "--no-input",
            "--output-dir",
            str(baked),
            self.cookiecutter.url,
        ]
        return timed([*command, "--checkout", self.checkout], baked)


def copier(verb: str, *arguments: str) -> list[str]:
    """The command that a user types."""
    return [sys.executable, "-m", "copier", verb, "--quiet", "--defaults", *arguments]


def timed(command: Sequence[str], made: Path | None = None) -> float:
    """Run a command; seconds. What it made is deleted."""
    began = time.perf_counter()
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - began
    if made:
        shutil.rmtree(made)
    return seconds


def begin_template(folder: Path, files: dict[str, str]) -> Template:
    """A git repository with these files, tagged v1.0.0."""
    template = Project(folder)
    for name, text in files.items():
        template.write(name, text)
    template.commit()
    git(folder, "tag", "v1.0.0")
    return Template(folder)


def small_for_copier(folder: Path) -> Template:
    """Three files, and a second version in which one of them has changed."""
    questions = {name: {"type": "str", "default": name.replace("_", "-")} for name in ASKED}
    template = begin_template(
        folder,
        {
            "copier.yml": yaml.safe_dump({"_subdirectory": "template", **questions}),
            "template/{{ _copier_conf.answers_file }}.jinja": (
                "{{ _copier_answers | to_nice_yaml }}"
            ),
            "template/README.md.jinja": "# {{ project_name }}\n",
            "template/agent.py": '"""An agent."""\n',
        },
    )
    Project(folder).write("template/agent.py", '"""An agent."""\n\nNAME = "agent"\n')
    Project(folder).commit()
    git(folder, "tag", "v2.0.0")
    return template


def small_for_cookiecutter(folder: Path) -> Template:
    """Three files, too."""
    root = "{{ cookiecutter.project_slug }}"
    return begin_template(
        folder,
        {
            "cookiecutter.json": "{"
            + ", ".join(f'"{name}": "{name.replace("_", "-")}"' for name in ASKED)
            + "}",
            f"{root}/README.md": "# {{ cookiecutter.project_name }}\n",
            f"{root}/agent.py": '"""An agent."""\n',
            f"{root}/prompt.txt": "Be kind.\n",
        },
    )


def make_sides(scratch: Path) -> dict[str, Side]:
    """Both sides, with projects of the previous release."""
    ours, small = make_template(scratch / "ours"), small_for_copier(scratch / "small")
    older = {
        OURS: ours.copy(scratch / "older-ours", released()[-1]),
        FLOOR: small.copy(scratch / "older-floor", "v1.0.0"),
    }
    for project in older.values():
        project.commit()
    return {
        OURS: Side(ours, ours, WORK_TREE, older[OURS]),
        FLOOR: Side(
            small, small_for_cookiecutter(scratch / "small-cookiecutter"), "v1.0.0", older[FLOOR]
        ),
    }


# ---------------------------------------------------------------------- measuring

OPERATIONS: dict[str, Callable[[Side, Path], float]] = {
    "copy": Side.copy,
    "update": Side.update,
    "cookiecutter": Side.bake,
}


def measure_pairs(
    operation: Callable[[Side, Path], float], sides: dict[str, Side], scratch: Path, pairs: int
) -> dict[str, list[float]]:
    """Seconds of every run."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for pair in range(pairs):
        for name in sorted(sides, reverse=bool(pair % 2)):
            seconds[name].append(operation(sides[name], scratch))
        Progress.dot()
    return seconds


@contextmanager
def counted(scratch: Path) -> Iterator[dict[str, int]]:
    """The number of processes started inside; filled in at the end."""
    with_counter, traces, log = scratch / "counter", scratch / "traces", scratch / "started"
    for folder in (with_counter, traces):
        folder.mkdir()
    (with_counter / "sitecustomize.py").write_text(COUNTER, encoding="utf-8")
    log.touch()
    set_here = {
        "PYTHONPATH": str(with_counter),
        "BENCH_STARTED": str(log),
        "GIT_TRACE2_EVENT": str(traces),
    }
    before = {name: os.environ.get(name) for name in set_here}
    os.environ.update(set_here)
    counts: dict[str, int] = {}
    try:
        yield counts
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    counts |= {
        "started": len(log.read_text(encoding="utf-8").splitlines()),
        "git": len(list(traces.iterdir())),
    }
    log.unlink()
    shutil.rmtree(with_counter)
    shutil.rmtree(traces)


def count_processes(
    operation: Callable[[Side, Path], float], side: Side, scratch: Path
) -> dict[str, int]:
    """The processes that one run starts, without those that prepare an update."""
    with counted(scratch) as counts:
        operation(side, scratch)
    if operation is Side.update:
        # the `git status` of Side.update
        counts["git"] -= 1
    return counts


@contextmanager
def silence() -> Iterator[None]:
    """Nothing is printed inside, not even by the hooks, which are separate processes."""
    kept = os.dup(1)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def measure_combinations(
    ours: Template, scratch: Path, combinations: Sequence[dict[str, str]]
) -> dict[str, float]:
    """Seconds for all combinations, by each tool, in this process."""
    began = time.perf_counter()
    for number, chosen in enumerate(combinations):
        ours.copy(scratch / "copies" / str(number), **chosen)
        Progress.dot()
    copied = time.perf_counter()
    for number, chosen in enumerate(combinations):
        given = {"no_input": True, "checkout": WORK_TREE, "extra_context": chosen}
        with silence():
            cookiecutter(ours.url, output_dir=str(scratch / "bakes" / str(number)), **given)
        Progress.dot()
    return {"copier": copied - began, "cookiecutter": time.perf_counter() - copied}


def measure(scratch: Path, *, quick: bool) -> Results:
    """Every raw number, in seconds."""
    tell = Progress()
    results: Results = {
        "machine": tools_of("copier", "cookiecutter"),
        "method": METHOD,
        "quick": quick,
    }
    tell("making templates and projects")
    sides = make_sides(scratch)
    results["update from"] = released()[-1]
    results["files"] = {name: len(side.older.files()) for name, side in sides.items()}
    # also compiles the tools and fills their caches
    tell("counting processes")
    results["processes"] = {
        name: {side: count_processes(operation, sides[side], scratch) for side in sides}
        for name, operation in OPERATIONS.items()
    }
    for name, operation in OPERATIONS.items():
        tell(name)
        results[name] = measure_pairs(operation, sides, scratch, pairs=2 if quick else 15)
    tell("all combinations by both tools")
    combinations = list(itertools.islice(COMBINATIONS, 2 if quick else None))
    results["combinations"] = {"count": len(combinations)} | measure_combinations(
        sides[OURS].copier, scratch, combinations
    )
    tell("done")
    finish(results, tell.seconds)
    return results


# ---------------------------------------------------------------------- the tables


def ratio(ours: Sequence[float], floor: Sequence[float]) -> tuple[float, float, float]:
    """The median ratio of a pair, and its interval in 95 % of resampled pairs."""
    ratios, chance = [a / b for a, b in zip(ours, floor, strict=True)], random.Random(0)
    drawn = sorted(statistics.median(chance.choices(ratios, k=len(ratios))) for _ in range(2000))
    return statistics.median(ratios), drawn[50], drawn[-51]


def spread(values: Sequence[float]) -> str:
    """Median, smallest and largest."""
    return f"{statistics.median(values):.2f} s ({min(values):.2f} to {max(values):.2f})"


def verdict(value: float, goal: float, unit: str = "") -> str:
    """The goal, and whether it is met."""
    return f"at most {goal}{unit}: {'met' if value <= goal else '**missed**'}"


def tables(results: Results) -> str:
    """The results as Markdown."""
    about, files, every = results["machine"], results["files"], results["combinations"]
    lines = [
        f"{about['date'][:10]}, {about['system']} with {about['cpus']} CPUs, load"
        f" {about['load_before']} before and {about['load_after']} after; Python"
        f" {about['python']}, Copier {about['copier']}, Cookiecutter {about['cookiecutter']},"
        f" {about['git']}. {len(results['copy'][OURS])} pairs each; ours writes"
        f" {files[OURS]} files, the floor {files[FLOOR]}. Updates from {results['update from']}.",
        "",
        "| median (smallest to largest) | ours | floor | ratio of a pair: median (95 %) | goal |",
        "|---|---|---|---|---|",
    ]
    for name, title in TITLES.items():
        ours, floor = results[name][OURS], results[name][FLOOR]
        middle, low, high = ratio(ours, floor)
        goal = verdict(middle, GOALS[name]) if name in GOALS else ""
        lines.append(
            f"| {title} | {spread(ours)} | {spread(floor)}"
            f" | {middle:.2f} ({low:.2f} to {high:.2f}) | {goal} |"
        )
    lines += [
        "",
        "| processes of one | started by the tool: ours | floor | git's: ours | floor |",
        "|---|---|---|---|---|",
    ]
    for name, title in TITLES.items():
        counts = results["processes"][name]
        cells = [str(counts[side][kind]) for kind in ("started", "git") for side in (OURS, FLOOR)]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    seconds = every["copier"] + every["cookiecutter"]
    lines += [
        "",
        f"All {every['count']} combinations of answers by both tools: {every['copier']:.1f} s and"
        f" {every['cookiecutter']:.1f} s, {seconds:.1f} s together;"
        f" {verdict(seconds, ALL_SECONDS, ' s')}.",
    ]
    return "\n".join(lines)


def main() -> int:
    """Measure and report; a missed goal is not an error."""
    parser = argparse.ArgumentParser(
        description="Measure copies and updates against a template of three files."
    )
    parser.add_argument("--quick", action="store_true", help="two of everything, and keep nothing")
    quick: bool = parser.parse_args().quick
    with workshop() as scratch:
        results = measure(scratch, quick=quick)
    report("copies", results, tables, quick=quick)
    return 0


if __name__ == "__main__":
    sys.exit(main())
