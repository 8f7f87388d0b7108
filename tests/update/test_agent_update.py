"""`agent update` in real projects: the real uv fetches the updater, and their tests run."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import projects
from tests.support.templates import WORK_TREE, Template, released
from tests.update.test_update import FIX, FIXED, NEXT, make_it_theirs

# small, and the template does not need it
DEPENDENCY = "tomli-w"
MOVED = "src/agent/lifecycle.py"


@dataclass(frozen=True)
class Desk:
    """An owner's project; its environment is outside, so that its files can be compared."""

    project: projects.Project
    environment: dict[str, str]

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return self.project.run(*command, check=False, env=self.environment)

    def sees(self, *command: str, code: int, report: str) -> None:
        """Run an owner's command; check its exit code and its report."""
        done = self.run(*command)
        assert done.returncode == code, done.stderr + done.stdout
        assert report in done.stderr + done.stdout


def unkind_settings(folder: Path) -> Path:
    """Global settings of git that people use, and that make Copier drop their lines."""
    (folder / "attributes").write_text("* -diff\n", encoding="utf-8")
    (folder / "excludes").write_text("AGENTS.md\npyproject.toml\n", encoding="utf-8")
    core = f"[core]\nattributesFile = {folder}/attributes\nexcludesFile = {folder}/excludes\n"
    settings = folder / "gitconfig"
    settings.write_text(
        f"{core}[apply]\nwhitespace = error\n[status]\nshowUntrackedFiles = no\n", encoding="utf-8"
    )
    return settings


def render(template: Template, folder: Path, version: str) -> Desk:
    """A project of this version, not committed yet."""
    chosen = projects.Answers()
    path = template.copy(folder / "desk", version, **chosen.data()).path
    environment = {
        "GIT_CONFIG_GLOBAL": str(unkind_settings(folder)),
        "GIT_CONFIG_NOSYSTEM": "1",
        # the other tests are run by the tests of the template
        "PYTEST_ADDOPTS": "tests/yours/test_persona.py",
        "PYTHONDONTWRITEBYTECODE": "1",
        "UV_PROJECT_ENVIRONMENT": str(folder / "environment"),
    }
    return Desk(projects.Project(path, chosen), environment)


def test_the_fix_and_its_dependency_arrive_and_the_owners_lines_stay(
    own_template: Template, tmp_path: Path
) -> None:
    own_template.add_line(FIXED, FIX)
    own_template.add_dependency(DEPENDENCY)
    own_template.release(NEXT)
    desk = render(own_template, tmp_path, WORK_TREE)
    project = desk.project
    make_it_theirs(project)
    project.write("notes.md", "Two spaces at the end  \nare a line break.\n")
    desk.sees("uv", "sync", "--quiet", code=0, report="")
    project.commit()
    before = project.files()
    assert DEPENDENCY not in project.read("uv.lock")

    desk.sees("uv", "run", "agent", "update", code=0, report=f"from {WORK_TREE} to {NEXT}")

    after = project.files()
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert changed == {FIXED, "pyproject.toml", "uv.lock", ".copier-answers.yml", ".template.toml"}
    assert FIX in project.read(FIXED)
    assert '"httpx' in project.read("pyproject.toml")
    assert f'name = "{DEPENDENCY}"' in project.read("uv.lock")
    desk.sees("uv", "run", "--no-sync", "python", "-c", "import tomli_w", code=0, report="")

    project.commit()
    desk.sees("uv", "run", "agent", "update", code=0, report=f"the project is at {NEXT}")
    assert project.changes() == []


def test_the_command_of_v0_4_0_brings_the_one_that_hands_over(
    template: Template, tmp_path: Path
) -> None:
    desk = render(template, tmp_path, "v0.4.0")
    project = desk.project
    desk.sees("uv", "sync", "--quiet", code=0, report="")
    text = project.read(MOVED)
    project.write(MOVED, f"{text}# The owner's.\n")
    project.commit()
    before = project.files()

    desk.sees("uv", "run", "agent", "update", code=1, report=f"{MOVED} was changed by you")
    assert project.files() == before
    assert project.changes() == []

    project.write(MOVED, text)
    project.commit()
    desk.sees("uv", "run", "agent", "update", code=0, report=f"from v0.4.0 to {WORK_TREE}")
    assert {"owner", "shared", "template", "moved"} <= project.ownership().keys()
    project.commit()
    desk.sees("uv", "run", "agent", "update", code=0, report=f"the project is at {WORK_TREE}")


@pytest.mark.parametrize("version", released())
def test_the_updater_runs_by_itself_on_a_project_of_any_release(
    template: Template, version: str, tmp_path: Path
) -> None:
    desk = render(template, tmp_path, version)
    project = desk.project
    moves = (project.path / MOVED).exists()
    if moves:
        project.write(MOVED, "# The owner's.\n")
    project.commit()
    before = project.files()
    updater = ("uv", "tool", "run", "--from", f"{template.url}#subdirectory=updater")

    stopped = f"{MOVED} is now src/agent/lifecycle/call.py: put your change there"
    code, said = (1, stopped) if moves else (0, "Nothing was changed")
    desk.sees(*updater, "agent-update", "--preview", code=code, report=said)
    assert project.files() == before
    assert project.changes() == []
