"""`make canary`: real calls with the lowest and the newest livekit-agents that a project takes.

A call's end relies on behaviour that the SDK does not promise, and a new installation gets the
newest SDK. This renders projects, pins each of the two versions in them, tests them and calls them,
so that a change of the SDK fails here first.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
SDK = "livekit-agents"
CALLS = (
    "tests/call/test_ends.py",
    "tests/call/test_first_call.py::test_its_sdk_is_as_calls_rely_on_it",
    "tests/call/test_first_call.py::test_it_takes_a_call_and_knows_the_caller_the_second_time",
    "tests/call/test_first_call.py::test_its_own_tests_pass_without_keys_or_network"
    "[sqlite-sqlite-Apache-2.0]",
)


def declared() -> str:
    """The SDK requirement of a rendered project, such as livekit-agents>=1.8.9,<1.9."""
    manifest = (ROOT / "template" / "pyproject.toml.jinja").read_text(encoding="utf-8")
    found = re.findall(rf'^ *"({re.escape(SDK)}\b[^"]*)",$', manifest, flags=re.MULTILINE)
    if len(found) != 1:
        raise SystemExit(
            f"template/pyproject.toml.jinja requires {SDK} {len(found)} times, not once"
        )
    return str(found[0])


def published(requirement: str, resolution: str) -> str:
    """The lowest or the highest version, published today, that fits `requirement`."""
    command = [
        str(BIN / "uv"),
        "pip",
        "compile",
        "--quiet",
        "--no-deps",
        "--no-header",
        "--no-annotate",
    ]
    asked = [*command, "--refresh-package", SDK, "--resolution", resolution, "-"]
    done = subprocess.run(
        asked, input=requirement, cwd=ROOT, capture_output=True, text=True, check=False
    )
    found = re.search(rf"^{re.escape(SDK)}==(\S+)$", done.stdout, flags=re.MULTILINE)
    if found is None:
        raise SystemExit(
            f"{' '.join(asked)} found no version of {requirement}:\n{done.stdout}{done.stderr}"
        )
    return found[1]


def call_with(version: str) -> bool:
    """Run the tests with `version` in every rendered project; return whether all passed."""
    began = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-n", "2", "--dist", "loadgroup", *CALLS]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "CANARY_SDK": version}, check=False)
    passed = done.returncode == 0
    print(
        f"{'ok    ' if passed else 'FAILED'} {SDK} {version} ({time.monotonic() - began:.0f} s)",
        flush=True,
    )
    return passed


def main() -> int:
    """Call with both versions, even if the lowest fails; return 1 if any failed."""
    requirement = declared()
    lowest, newest = (published(requirement, resolution) for resolution in ("lowest", "highest"))
    print(
        f"a project takes {requirement}: today's lowest is {lowest}, the newest {newest}",
        flush=True,
    )
    if lowest == newest:
        print(f"both are {lowest}, so one run is enough", flush=True)
    results = []
    for version in dict.fromkeys((lowest, newest)):
        print(f"calling with {SDK} {version} ...", flush=True)
        results.append(call_with(version))
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
