"""What every commit has to pass: format, lint, types, and the tests of the agent, run in place.

With --static no test is run.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent


def run(what: str, *command: str, cwd: Path = ROOT, **environment: str) -> bool:
    """Run one check, say how it went; what it printed only when it failed."""
    began = time.monotonic()
    done = subprocess.run(
        [str(BIN / command[0]), *command[1:]],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    outcome = "FAILED" if done.returncode else "ok    "
    print(f"{outcome} {what} ({time.monotonic() - began:.1f} s)", flush=True)
    if done.returncode:
        print(done.stdout + done.stderr, flush=True)
    elif what.startswith("tests"):
        print("       " + done.stdout.strip().splitlines()[-1], flush=True)
    return done.returncode == 0


def main() -> int:
    """Run every check, also after a failure; 1 if any failed."""
    parser = argparse.ArgumentParser(description="Check the sources of the template.")
    parser.add_argument("--static", action="store_true", help="run no test")
    static = parser.parse_args().static
    template = ROOT / "template"
    here = {
        "PYTHONPATH": f"{template / 'src'}{os.pathsep}{template}",
        "MYPYPATH": f"src{os.pathsep}.",
    }
    checks = [
        partial(
            run,
            "types of the template",
            *("mypy", "--strict", "--explicit-package-bases", "src/agent", "tests", "main.py"),
            cwd=template,
            **here,
        ),
        partial(
            run,
            "types of the updater, the generation tests and the tools",
            *("mypy", "updater", "tests", "benchmarks", "tools"),
        ),
        partial(
            run,
            "types of the hooks",
            "mypy",
            "--config-file",
            "../pyproject.toml",
            ".",
            cwd=ROOT / "hooks",
        ),
        partial(run, "format", "ruff", "format", "--check", "--quiet", "."),
        partial(run, "lint", "ruff", "check", "--quiet", "."),
        partial(
            run, "the agent's rooms", "lint-imports", "--no-cache", PYTHONPATH=here["PYTHONPATH"]
        ),
        partial(run, "ownership is up to date", "python", "tools/ownership.py", "--check"),
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(lambda check: check(), checks))
    if static:
        return 0 if all(results) else 1
    side_by_side = ("-n", str(2 * (os.cpu_count() or 1)), "--dist", "loadgroup")
    pytest = ("python", "-m", "pytest", "-q")
    results.append(run("tests of the agent", *pytest, *side_by_side, "tests/agent"))
    results.append(run("tests that a project has", *pytest, "tests", cwd=template, **here))
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
