"""A rendered project passes its own CI on every Python that it names."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import quick
from tests.support.projects import UV, Answers, clean_environment, render
from tests.support.templates import Template

CI = ".github/workflows/ci.yml"
JOB: dict[str, Any] = yaml.safe_load(quick.render(CI)[CI])["jobs"]["test"]


def interpreter(version: str) -> str:
    """A Python of this version that uv finds or gets; without one the test is skipped."""
    # those of pyenv are on PATH only where they were chosen
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
    own = [str(folder) for folder in pyenv.glob(f"versions/{version}*/bin")]
    environment = clean_environment()
    environment["PATH"] = os.pathsep.join([*own, environment["PATH"]])

    def python(*arguments: str) -> subprocess.CompletedProcess[str]:
        asked = [str(UV), "python", *arguments, version]
        return subprocess.run(asked, env=environment, capture_output=True, text=True, check=False)

    found = python("find", "--no-project")
    if found.returncode:
        got = python("install")
        found = python("find", "--no-project")
        if found.returncode:
            said = " ".join(got.stderr.split())
            pytest.skip(f"there is no Python {version} here, and uv cannot get it: {said[-200:]}")
    return found.stdout.strip()


# `make test` proves the Python that it runs on in tests/call/test_first_call.py
@pytest.mark.slow
@pytest.mark.parametrize("version", JOB["strategy"]["matrix"]["python"])
def test_a_project_passes_its_ci(
    version: str, template: Template, tmp_path: Path, mypy_cache: Path
) -> None:
    environment = {"UV_PYTHON": interpreter(version), "MYPY_CACHE_DIR": str(mypy_cache)}
    project = render(template, tmp_path / "project", Answers())

    for step in JOB["steps"]:
        if "run" in step:
            project.run(*shlex.split(step["run"]), env=environment)

    assert project.run("uv", "run", "python", "-V", env=environment).stdout[7:].startswith(version)
