"""The packages of the page's sources, from the lock in web/, installed once in a checkout."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.templates import ROOT

WEB = ROOT / "web"
MODULES = WEB / "node_modules"
# npm writes it when it has finished
INSTALLED = MODULES / ".package-lock.json"


class Unavailable(Exception):
    """There are no packages, and they cannot be fetched; the text says why."""


def install() -> Path:
    """The folder of the packages, exactly those of the lock. Raises Unavailable."""
    if shutil.which("npm") is None:
        raise Unavailable("no npm on PATH: `apt-get install npm`")
    with (WEB / "package-lock.json").open() as lock:
        # one test process installs, the others wait
        fcntl.flock(lock, fcntl.LOCK_EX)
        if INSTALLED.exists() and INSTALLED.stat().st_mtime >= os.fstat(lock.fileno()).st_mtime:
            return MODULES
        done = subprocess.run(["npm", "ci"], cwd=WEB, capture_output=True, text=True)
        if done.returncode:
            raise Unavailable(f"npm ci in web/ failed: {' '.join(done.stderr.split())[-300:]}")
    return MODULES


def require_packages() -> Path:
    """The folder of the packages; without it the test is skipped, and fails under CI."""
    try:
        return install()
    except Unavailable as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))


if __name__ == "__main__":
    install()
