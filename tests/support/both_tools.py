"""Every combination of answers by both tools, in this process, each rendered on first use."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from cookiecutter.main import cookiecutter  # type: ignore[import-untyped]

from tests.support.templates import Project, Template, git, identify

# the hook's name for its module
EXTENSION = "livekit_agent_template_copier_yml"


class BothTools:
    """Read-only projects of Copier and of Cookiecutter."""

    def __init__(self, template: Template, folder: Path) -> None:
        self.template, self.folder = template, folder
        self.seconds: dict[tuple[str, str], float] = {}
        self._reshaped: Path | None = None

    def copied(self, case: dict[str, str]) -> Project:
        """Copier's project for these choices."""
        project = Project(self.folder / "copied" / identify(case) / "my-agent")
        if not project.path.exists():
            began = time.monotonic()
            self.template.copy(project.path, **case)
            self.seconds["copier", identify(case)] = time.monotonic() - began
        return project

    def baked(self, case: dict[str, str]) -> Project:
        """Cookiecutter's project for these choices."""
        parent = self.folder / "baked" / identify(case)
        if not parent.exists():
            began = time.monotonic()
            source = self._reshaped = self._reshaped or self._reshape()
            sys.modules.pop(EXTENSION, None)
            with contextlib.redirect_stdout(io.StringIO()):
                cookiecutter(str(source), no_input=True, extra_context=case, output_dir=str(parent))
            self.seconds["cookiecutter", identify(case)] = time.monotonic() - began
        return Project(parent / "my-agent")

    def _reshape(self) -> Path:
        """The repository after its pre_prompt hook; no answer changes it, so once is enough."""
        copy = self.folder / "reshaped"
        shutil.copytree(self.template.path, copy)
        git(copy, "checkout", "--quiet", "--detach")
        hook = copy / "hooks" / "pre_prompt.py"
        subprocess.run([sys.executable, str(hook)], cwd=copy, check=True, env=os.environ)
        hook.unlink()
        return copy
