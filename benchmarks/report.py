"""What measurements share: the machine, a project to measure, saved raw numbers, the docs page."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.support.projects import PAIRS, Project
from tests.support.server import Unavailable, find_binary
from tests.support.templates import WORK_TREE, isolated_environment, make_template
from tools.history import ROOT

RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
PLOTS = ROOT / "docs" / "plots"

Results = dict[str, Any]


def tools_of(*packages: str) -> dict[str, Any]:
    """The machine, and the versions of these packages."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
        "git": subprocess.run(
            ["git", "--version"], capture_output=True, text=True, check=True
        ).stdout.strip(),
        **{name: version(name) for name in packages},
    }


def machine() -> dict[str, Any]:
    """The machine, for measurements of calls."""
    server = subprocess.run(
        [find_binary(), "--version"], capture_output=True, text=True
    ).stdout.strip()
    return tools_of("copier", "livekit-agents") | {"livekit-server": server}


def finish(results: Results, seconds: float) -> None:
    """Note how the machine was at the end."""
    results["machine"]["load_after"] = round(os.getloadavg()[0], 2)
    results["seconds"] = round(seconds, 1)


def describe(results: Results) -> str:
    """The machine in one sentence, and the template's version unless it is the work tree."""
    about, released = results["machine"], results["version"] != WORK_TREE
    return (
        f"{'Template ' + results['version'] + '. ' if released else ''}"
        f"{about['date'][:10]}, {about['system']} with {about['cpus']} CPUs, load"
        f" {about['load_before']} before and {about['load_after']} after; Python"
        f" {about['python']}, livekit-agents {about['livekit-agents']}, {about['livekit-server']}."
    )


class Progress:
    """Prints on standard error what is being done, and since when."""

    def __init__(self) -> None:
        self.began = time.monotonic()

    def __call__(self, what: str) -> None:
        print(f"\n{self.seconds:6.1f} s  {what} ...", end="", file=sys.stderr, flush=True)

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self.began

    @staticmethod
    def dot() -> None:
        """Print a dot: one more of many is done."""
        print(".", end="", file=sys.stderr, flush=True)


# ---------------------------------------------------------------------- a project to measure


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of every measurement."""
    parser.add_argument(
        "--quick", action="store_true", help="little of everything, and keep nothing"
    )
    parser.add_argument(
        "--version",
        default=WORK_TREE,
        help="of the template, such as v0.1.0 (default: the work tree)",
    )


@contextmanager
def workshop() -> Iterator[Path]:
    """A temporary folder, and an environment without the tester's own settings."""
    # The Makefile sets it; users have compiled modules.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    # The callers' side: their rooms are deleted on purpose.
    logging.getLogger("livekit").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(isolated_environment(Path(folder)))
        yield Path(folder)


def make_project(scratch: Path, template_version: str) -> Project:
    """An installed project with defaults, of this version of the template."""
    template = make_template(scratch / "template")
    path = scratch / "bench-agent"
    template.copy(path, template_version, project_name="Bench Agent", **PAIRS[0].data())
    project = Project(path, PAIRS[0])
    project.install()
    return project


def has_server() -> bool:
    """Whether a livekit-server is available; prints why not."""
    try:
        find_binary()
    except Unavailable as why:
        print(f"bench: {why}: put livekit-server or Go on PATH", file=sys.stderr)
        return False
    return True


# ---------------------------------------------------------------------- saved numbers


def keep(kind: str, results: Results) -> Path:
    """Write the raw numbers into benchmarks/results/."""
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{kind}-{re.sub(r'[^0-9T]', '', results['machine']['date'][:16])}.json"
    file.write_text(dump(results), encoding="utf-8")
    return file


def dump(results: Results) -> str:
    """JSON with one line for each key and list element, so that long runs stay readable."""

    def value(of: object) -> str:
        if isinstance(of, list) and of:
            return "[\n" + ",\n".join(f"  {json.dumps(element)}" for element in of) + "\n ]"
        return json.dumps(of)

    return (
        "{\n"
        + ",\n".join(f" {json.dumps(key)}: {value(of)}" for key, of in results.items())
        + "\n}\n"
    )


def newest(kind: str) -> Results | None:
    """The newest saved raw numbers of this kind."""
    files = sorted(RESULTS.glob(f"{kind}-[0-9]*.json"))
    if not files:
        return None
    results: Results = json.loads(files[-1].read_text(encoding="utf-8"))
    return results


def write_section(name: str, text: str) -> None:
    """Replace the text between the marks of this section in docs/benchmarks.md."""
    page = PAGE.read_text(encoding="utf-8")
    begin, end = re.search(rf"<!-- {name}: .*-->", page), f"<!-- end of {name} -->"
    assert begin is not None, f"{PAGE} has no section {name}"
    before, after = begin.end(), page.index(end, begin.end())
    PAGE.write_text(f"{page[:before]}\n\n{text}\n\n{page[after:]}", encoding="utf-8")


def command(
    kind: str,
    measure: Callable[..., Coroutine[Any, Any, Results]],
    tables: Callable[[Results], str],
    *,
    about: str,
    quick: str,
) -> int:
    """A benchmark as a command, `quick` being its short form; 1 if no server is available.

    `measure` gets a folder that is gone afterwards, and whether it is to be quick.
    """
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--quick", action="store_true", help=quick)
    short: bool = parser.parse_args().quick
    if not has_server():
        return 1
    with workshop() as scratch:
        results = asyncio.run(measure(scratch, quick=short))
    report(kind, results, tables, quick=short)
    return 0


def report(kind: str, results: Results, tables: Callable[[Results], str], *, quick: bool) -> None:
    """Save the numbers, print the tables and fill in the page; `quick` only prints."""
    if not quick:
        print(f"\nraw numbers: {keep(kind, results)}", file=sys.stderr)
    text = tables(results)
    print(f"\n{text}")
    if quick:
        print(dump(results))
    else:
        write_section(kind, text)
