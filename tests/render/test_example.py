"""The branch `example` has the default project, and a separate job pushes it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import copier
import pytest
import yaml

from tests.support.templates import ROOT, Project, git
from tests.update.test_release import make_checkout

WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/example.yml").read_text(encoding="utf-8"))
ANSWERS = ".copier-answers.yml"
GITHUB = {"GITHUB_REPOSITORY": "somebody/voice-template"}


@dataclass(frozen=True)
class Checkout:
    """A clone of a bare repository, in which the template is worked on."""

    project: Project
    remote: Path

    def example(self, *arguments: str) -> str:
        """Run tools/example.py; return its output."""
        tool = self.project.path / "tools" / "example.py"
        done = subprocess.run(
            [sys.executable, "-B", str(tool), *arguments], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def work(self, name: str, line: str) -> str:
        """Add a line to a file and commit; return the commit."""
        self.project.write(name, f"{self.project.read(name)}{line}\n")
        self.project.commit()
        return git(self.project.path, "rev-parse", "HEAD").strip()

    def seen(self, folder: Path) -> Project:
        """The example in a clone of the branch."""
        git(folder, "clone", "--quiet", "--branch=example", str(self.project.path), "seen")
        return Project(folder / "seen" / "my-agent")

    def run_workflow(self, folder: Path) -> list[str]:
        """Run the workflow's jobs as GitHub does; return the jobs that ran."""
        temp = folder / "temp"
        temp.mkdir(parents=True)
        environment = {
            **os.environ,
            **GITHUB,
            "RUNNER_TEMP": str(temp),
            "GITHUB_OUTPUT": str(temp / "output"),
        }
        jobs = ["render"]
        self.run_job("render", folder, environment)
        if "changed=true" in ((temp / "output").read_text() if (temp / "output").exists() else ""):
            jobs.append("push")
            self.run_job("push", folder, environment)
        return jobs

    def run_job(self, job: str, folder: Path, environment: dict[str, str]) -> None:
        """Run the scripts of a job in its own clone."""
        clone = folder / job
        git(folder, "clone", "--quiet", "--branch=main", self.remote.as_uri(), str(clone))
        # `make env` makes it
        (clone / ".venv").symlink_to(Path(sys.executable).parents[1])
        for script in scripts(job):
            done = subprocess.run(
                ["bash", "--noprofile", "--norc", "-e", "-c", script],
                cwd=clone,
                env=environment,
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"


def steps(job: str) -> list[dict[str, Any]]:
    """The steps of a job."""
    found: list[dict[str, Any]] = WORKFLOW["jobs"][job]["steps"]
    return found


def scripts(job: str) -> list[str]:
    """The scripts of a job, without the installation of packages."""
    return [step["run"] for step in steps(job) if step.get("run", "make env") != "make env"]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    """A clone without the branch."""
    project = make_checkout(tmp_path / "checkout")
    remote = tmp_path / "remote.git"
    git(tmp_path, "clone", "--quiet", "--bare", str(project.path), str(remote))
    git(project.path, "remote", "add", "origin", str(remote))
    return Checkout(project, remote)


def test_the_branch_has_what_copier_renders_of_the_default_answers(
    checkout: Checkout, tmp_path: Path
) -> None:
    checkout.example("--address", "gh:somebody/voice-template")

    copied = Project(tmp_path / "copied")
    source = str(checkout.project.path)
    copier.run_copy(source, copied.path, vcs_ref="HEAD", defaults=True, quiet=True)
    seen = checkout.seen(tmp_path)
    assert seen.answers() == copied.answers() | {"_src_path": "gh:somebody/voice-template"}
    shown, expected = seen.files(), copied.files()
    assert shown.pop(ANSWERS) != expected.pop(ANSWERS)
    assert shown == expected


def test_the_branch_has_a_history_of_its_own_that_names_the_templates_commits(
    checkout: Checkout,
) -> None:
    first = git(checkout.project.path, "rev-parse", "HEAD").strip()
    checkout.example()
    second = checkout.work("template/LICENSE.jinja", "One line more.")
    checkout.example()

    log = git(checkout.project.path, "log", "--format=%s", "example").splitlines()
    assert log == [f"What the template renders at {commit}" for commit in (second, first)]
    changed = git(checkout.project.path, "diff", "--name-only", "example~1", "example").split()
    assert "my-agent/LICENSE" in changed


def test_nothing_happens_where_nothing_that_is_rendered_changed(checkout: Checkout) -> None:
    checkout.example()
    made = git(checkout.project.path, "rev-parse", "example")
    assert "nothing to do" in checkout.example()

    # a commit gives the template another version
    checkout.work("CHANGELOG.md", "More to come.")

    assert "nothing to do" in checkout.example()
    assert git(checkout.project.path, "rev-parse", "example") == made


def test_work_that_is_not_committed_is_neither_shown_nor_touched(
    checkout: Checkout, tmp_path: Path
) -> None:
    checkout.project.write("template/main.py", "# half of an idea\n")
    git(checkout.project.path, "add", "template/main.py")
    checkout.project.write("template/notes.md", "# Notes\n")
    before = git(checkout.project.path, "status", "--porcelain", "--untracked-files=all")

    checkout.example()

    assert git(checkout.project.path, "status", "--porcelain", "--untracked-files=all") == before
    seen = checkout.seen(tmp_path)
    assert "half of an idea" not in seen.read("main.py")
    assert "notes.md" not in seen.files()


def test_the_workflow_pushes_each_change_once(checkout: Checkout, tmp_path: Path) -> None:
    assert checkout.run_workflow(tmp_path / "first") == ["render", "push"]
    answers = yaml.safe_load(git(checkout.remote, "show", f"example:my-agent/{ANSWERS}"))
    assert answers["_src_path"] == "gh:somebody/voice-template"

    assert checkout.run_workflow(tmp_path / "again") == ["render"]

    second = checkout.work("template/LICENSE.jinja", "One line more.")
    git(checkout.project.path, "push", "--quiet", "origin", "main")
    assert checkout.run_workflow(tmp_path / "second") == ["render", "push"]
    log = git(checkout.remote, "log", "--format=%s", "example").splitlines()
    assert len(log) == 2
    assert log[0] == f"What the template renders at {second}"
    assert git(checkout.remote, "branch", "--format=%(refname:short)").split() == [
        "example",
        "main",
    ]


def test_the_job_that_may_write_runs_nothing_but_git() -> None:
    jobs = WORKFLOW["jobs"]
    assert WORKFLOW["permissions"] == {}
    assert jobs["render"]["permissions"] == {"contents": "read"}
    assert jobs["push"]["permissions"] == {"contents": "write"}
    lines = [line for script in scripts("push") for line in script.splitlines()]
    assert lines
    assert all(line.startswith("git ") for line in lines)
    assert "secrets" not in json.dumps(WORKFLOW)
