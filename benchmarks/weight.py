"""What an owner receives and waits for: the last release against the work tree.

    python -m benchmarks.weight [--quick] [--before v0.4.0]

Files and lines of a project rendered with defaults; `uv run pytest` there; and `agent update`, the
project's tests included. Both sides take turns on one machine in one run.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.copies import ratio, spread, verdict
from benchmarks.report import Progress, Results, finish, report, tools_of, workshop
from tests.support.projects import PAIRS, Project
from tests.support.templates import WORK_TREE, Template, git, make_template

BEFORE, AFTER = "before", "after"
GOALS = {"pytest": 0.25, "update": 0.35, "files": 80, "lines": 0.8}
# a file that every release has
FIXED = "src/agent/settings.py"
METHOD = {
    "pytest": "`uv run pytest` in an installed project with defaults; both sides take turns",
    "update": "`uv run agent update` of a committed, installed project to the same version with a"
    " line more in one file: copy, merge, lock, sync, the project's tests, patch, sync",
    "from the release": "the same for a project of the release, by its own command, to the work"
    " tree: its owner's wait",
}


@dataclass(frozen=True)
class Side:
    """A version of the template, a project of it, and a later version with one fix."""

    version: str
    later: str
    project: Project

    def test(self) -> float:
        """Seconds of the project's own tests."""
        return timed(self.project, "uv", "run", "pytest")

    def update(self) -> float:
        """Seconds of an update to the version with the fix; the project is reset afterwards."""
        return updated(self.project, self.later)


def timed(project: Project, *command: str) -> float:
    """Run a command in the project; seconds."""
    began = time.perf_counter()
    project.run(*command)
    return time.perf_counter() - began


def updated(project: Project, version: str) -> float:
    """Seconds of an update of the project to `version`, which is then undone."""
    seconds = timed(project, "uv", "run", "agent", "update", "--to", version)
    assert project.answers()["_commit"] == version
    git(project.path, "reset", "--quiet", "--hard")
    git(project.path, "clean", "--quiet", "--force", "-d")
    project.install()
    return seconds


def with_fix(template: Template, version: str, later: str) -> None:
    """Tag `later`: `version` with one more line in one of the template's files."""
    git(template.path, "checkout", "--quiet", "--detach", version)
    template.add_line(FIXED, "# A fix that owners wait for.")
    if version == WORK_TREE:
        template.release(later)
    else:
        # another version of tools/ownership.py wrote its list of files
        git(template.path, "commit", "--quiet", "--all", "--message", later)
        git(template.path, "tag", "--annotate", "--message", later, later)
    git(template.path, "checkout", "--quiet", "main")


def make_side(template: Template, folder: Path, version: str, later: str) -> Side:
    """A project of this version, installed and committed with its lock."""
    copied = template.copy(folder / version / "front-desk", version, **PAIRS[0].data())
    project = Project(copied.path, PAIRS[0])
    project.install()
    project.commit()
    return Side(version, later, project)


def weigh(project: Project) -> dict[str, int]:
    """How much was rendered: files, and lines of Python by purpose."""
    listed = git(project.path, "ls-files").split()
    python = [name for name in listed if name.endswith(".py")]
    lines = {name: len(project.read(name).splitlines()) for name in python}
    agent = {name: count for name, count in lines.items() if name.startswith("src/")}
    return {
        "files": len([name for name in listed if name != "uv.lock"]),
        "lines of Python": sum(lines.values()),
        "of the agent": sum(agent.values()),
        "of tests": sum(lines.values()) - sum(agent.values()),
    }


def template_lines(template: Template, version: str) -> int:
    """Lines of all Python below template/, for all answers."""
    listed = git(template.path, "ls-tree", "-r", "--name-only", version, "--", "template")
    names = [name for name in listed.splitlines() if name.endswith(".py")]
    return sum(len(git(template.path, "show", f"{version}:{name}").splitlines()) for name in names)


def turns(sides: dict[str, Callable[[], float]], pairs: int) -> dict[str, list[float]]:
    """Seconds of every run; which side goes first alternates."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for pair in range(pairs):
        for name in sorted(sides, reverse=bool(pair % 2)):
            seconds[name].append(sides[name]())
            Progress.dot()
    return seconds


def measure(scratch: Path, before: str, *, quick: bool) -> Results:
    """Every raw number; seconds unless named otherwise."""
    say = Progress()
    results: Results = {
        "machine": tools_of("copier"),
        "method": METHOD,
        "before": before,
        "quick": quick,
    }
    say("making projects")
    template = make_template(scratch / "template")
    with_fix(template, before, f"{before}.post1")
    with_fix(template, WORK_TREE, "v999.1.0")
    sides = {
        BEFORE: make_side(template, scratch, before, f"{before}.post1"),
        AFTER: make_side(template, scratch, WORK_TREE, "v999.1.0"),
    }
    results["weight"] = {name: weigh(side.project) for name, side in sides.items()}
    results["template lines"] = {
        name: template_lines(template, side.version) for name, side in sides.items()
    }
    pairs = 1 if quick else 3
    say("the projects' own tests")
    results["pytest"] = turns({name: side.test for name, side in sides.items()}, pairs)
    say("agent update")
    results["update"] = turns({name: side.update for name, side in sides.items()}, pairs)
    say(f"agent update from {before} to the work tree")
    old = sides[BEFORE].project
    results["update from the release"] = [updated(old, WORK_TREE) for _ in range(pairs)]
    say("done")
    finish(results, say.seconds)
    return results


def tables(results: Results) -> str:
    """The results as Markdown."""
    about, before = results["machine"], results["before"]
    lines = [
        f"{about['date'][:10]}, {about['system']} with {about['cpus']} CPUs, load"
        f" {about['load_before']} before and {about['load_after']} after; Python"
        f" {about['python']}, Copier {about['copier']}. {before} and this version take turns.",
        "",
        f"| a project with defaults | {before} | this version | ratio | goal |",
        "|---|---|---|---|---|",
    ]
    was, now = results["weight"][BEFORE], results["weight"][AFTER]
    for name in now:
        goal = verdict(now[name], GOALS["files"]) if name == "files" else ""
        lines.append(
            f"| {name} | {was[name]} | {now[name]} | {now[name] / was[name]:.2f} | {goal} |"
        )
    old, new = results["template lines"][BEFORE], results["template lines"][AFTER]
    goal = verdict(round(new / old, 2), GOALS["lines"])
    lines.append(f"| lines of Python in template/ | {old} | {new} | {new / old:.2f} | {goal} |")
    for name, title in (("pytest", "`uv run pytest`"), ("update", "`agent update`, one fix")):
        ours, theirs = results[name][AFTER], results[name][BEFORE]
        middle, low, high = ratio(ours, theirs)
        goal = verdict(round(middle, 2), GOALS[name])
        share = f"{middle:.2f} ({low:.2f} to {high:.2f})"
        lines.append(f"| {title} | {spread(theirs)} | {spread(ours)} | {share} | {goal} |")
    taken, theirs = results["update from the release"], results["update"][BEFORE]
    share = statistics.median(taken) / statistics.median(theirs)
    goal = verdict(round(share, 2), GOALS["update"])
    title = f"`agent update` from {before} to this version"
    lines.append(f"| {title} | {spread(theirs)} | {spread(taken)} | {share:.2f} | {goal} |")
    return "\n".join(lines)


def main() -> int:
    """Measure and report; a missed goal is not an error."""
    parser = argparse.ArgumentParser(description="Measure what an owner receives and waits for.")
    parser.add_argument("--quick", action="store_true", help="one of everything, and keep nothing")
    parser.add_argument("--before", default="v0.4.0", help="the release to compare with")
    given = parser.parse_args()
    with workshop() as scratch:
        results = measure(scratch, given.before, quick=given.quick)
        shutil.rmtree(scratch / "template", ignore_errors=True)
    report("weight", results, tables, quick=given.quick)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as error:
        sys.exit(f"bench: {error}")
