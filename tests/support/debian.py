"""Debian's packages, which tests install where they may."""

from __future__ import annotations

import os
import shutil
import subprocess


def install(*packages: str) -> bool:
    """Install packages; False where that takes more than being root on a Debian.

    Raises RuntimeError, with the last that apt-get says, if it fails.
    """
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        return False
    for command in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
        done = subprocess.run(["apt-get", "-qq", *command], capture_output=True, text=True)
        if done.returncode:
            said = " ".join(done.stderr.split())[-300:]
            raise RuntimeError(f"apt-get {' '.join(command)} failed: {said}")
    return True
