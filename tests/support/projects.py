"""Rendered projects: rendered once by Copier, installed with uv, used by many tests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support import templates

UV = Path(sys.executable).with_name("uv")
# the livekit-agents of every project, see tools/canary.py; None: the newest
SDK = os.environ.get("CANARY_SDK")


@dataclass(frozen=True)
class Answers:
    """One choice for every question with choices."""

    knowledge: str = "sqlite"
    memory: str = "sqlite"
    license: str = "Apache-2.0"
    models: str = "livekit"
    web: str = "yes"
    telephony: str = "no"

    def __str__(self) -> str:
        """A name for a test's parameter."""
        names = self.knowledge, self.memory, self.license, self.models, self.web, self.telephony
        return "-".join(names)

    def data(self) -> dict[str, str]:
        """As Copier takes them."""
        return {
            "models": self.models,
            "knowledge": self.knowledge,
            "memory": self.memory,
            "web": self.web,
            "telephony": self.telephony,
            "license": self.license,
        }


# every pair of values of two questions is here
PAIRS = [
    Answers("sqlite", "sqlite", "Apache-2.0", "livekit", "yes", "yes"),
    Answers("sqlite", "redis", "MIT", "selfhosted", "yes", "yes"),
    Answers("sqlite", "none", "proprietary", "providers", "no", "no"),
    Answers("none", "sqlite", "MIT", "providers", "yes", "no"),
    Answers("none", "redis", "proprietary", "livekit", "no", "yes"),
    Answers("none", "none", "Apache-2.0", "selfhosted", "no", "yes"),
    Answers("pgvector", "sqlite", "proprietary", "selfhosted", "no", "no"),
    Answers("pgvector", "redis", "Apache-2.0", "providers", "yes", "yes"),
    Answers("pgvector", "none", "MIT", "livekit", "no", "no"),
    Answers("sqlite", "sqlite", "MIT", "realtime", "yes", "no"),
    Answers("none", "redis", "Apache-2.0", "realtime", "no", "no"),
    Answers("pgvector", "none", "proprietary", "realtime", "yes", "yes"),
]
# and every combination of stores
CALLED = PAIRS


def clean_environment(**more: str) -> dict[str, str]:
    """The environment without variables that would affect a rendered project or uv."""
    unwanted = ("LIVEKIT_", "AGENT_", "VIRTUAL_ENV", "PYTHON", "GIT_", "PYTEST_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(unwanted)}
    return {**kept, "PATH": f"{UV.parent}{os.pathsep}{kept['PATH']}", **more}


@dataclass(frozen=True)
class Project(templates.Project):
    """A rendered repository that can be installed and run."""

    chosen: Answers

    def run(
        self,
        *command: str,
        check: bool = True,
        stdin: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the project; the error has its output if it fails."""
        done = subprocess.run(
            command,
            cwd=self.path,
            env=clean_environment(**(env or {})),
            input=stdin,
            capture_output=True,
            text=True,
        )
        if check and done.returncode:
            raise AssertionError(
                f"{' '.join(command)} exited with {done.returncode}\n{done.stdout}\n{done.stderr}"
            )
        return done

    def install(self, *options: str) -> None:
        """`uv sync`; the project's lock has the canary's version, so that `uv run` keeps it."""
        self.run(
            "uv",
            "sync",
            "--quiet",
            *options,
            *(["--upgrade-package", f"livekit-agents=={SDK}"] if SDK else []),
        )
        if SDK and self.sdk() != SDK:
            raise AssertionError(
                f"the project was to have livekit-agents {SDK} and has {self.sdk()}"
            )

    def sdk(self) -> str:
        """The version of livekit-agents in the project."""
        code = "import importlib.metadata; print(importlib.metadata.version('livekit-agents'))"
        return self.run("uv", "run", "python", "-c", code).stdout.strip()

    @property
    def agent(self) -> list[str]:
        """The command that an owner types."""
        return ["uv", "run", "agent"]


def render(template: templates.Template, to: Path, chosen: Answers, **names: str) -> Project:
    """A fresh copy of this checkout's template in `to`, which does not exist."""
    template.copy(to, **{"project_name": "Front Desk", **chosen.data(), **names})
    return Project(to, chosen)
