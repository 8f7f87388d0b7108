"""The job that opens an update as a pull request, run as on GitHub, with a stand-in for `gh`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.templates import Project, Template, git

WORKFLOW = ".github/workflows/update.yml"
BRANCH = "agent-update/main"
# the job has its own
IDENTITY = ("GIT_AUTHOR_", "GIT_COMMITTER_")
SAID = (
    "Updated from v1.0.0 to v1.1.0, not committed yet:\n  new      new.py\n  files: 1\n"
    "Review it:  git diff\n"
)
GH = """#!{python}
import json, pathlib, sys
here = pathlib.Path(__file__).parent
arguments = sys.argv[1:]
if arguments[:2] == ["pr", "list"]:
    print((here / "open").read_text() if (here / "open").exists() else "")
else:
    body = arguments[arguments.index("--body-file") + 1]
    with open(here / "log", "a") as log:
        print(json.dumps([arguments[1], pathlib.Path(body).read_text()]), file=log)
"""


class GitHub:
    """A project's repository, and its job."""

    def __init__(self, template: Template, folder: Path) -> None:
        self.folder, self.runs = folder, 0
        seed = template.copy(folder / "seed")
        seed.commit()
        workflow = yaml.safe_load(seed.read(WORKFLOW))
        assert workflow["defaults"]["run"]["shell"] == "bash"
        (self.keep,) = (
            step["run"] for step in workflow["jobs"]["try"]["steps"] if step.get("id") == "keep"
        )
        self.open: str = workflow["jobs"]["open"]["steps"][-1]["run"]
        assert workflow["jobs"]["try"]["permissions"] == {"contents": "read"}
        assert "secrets" not in json.dumps(workflow["jobs"]["try"])
        self.remote = folder / "remote.git"
        git(folder, "clone", "--quiet", "--bare", str(seed.path), str(self.remote))
        (folder / "bin").mkdir()
        (folder / "bin" / "gh").write_text(GH.format(python=sys.executable), encoding="utf-8")
        (folder / "bin" / "gh").chmod(0o755)

    def clone(self, branch: str = "main") -> Project:
        """A separate shallow checkout, like the job's."""
        self.runs += 1
        path = self.folder / f"clone-{self.runs}"
        git(
            self.folder,
            "clone",
            "--quiet",
            "--depth=1",
            f"--branch={branch}",
            self.remote.as_uri(),
            str(path),
        )
        return Project(path)

    def run_job(
        self, changed: dict[str, str], *, own_token: bool = False, staged: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run both jobs' scripts after `agent update` has changed these files."""
        tried, temp = self.clone(), self.folder / f"temp-{self.runs}"
        for name, text in changed.items():
            tried.write(name, text)
        if staged:
            # like the updater, of what is new and would be ignored
            git(tried.path, "add", "--force", staged)
        (temp / "update").mkdir(parents=True)
        (temp / "update" / "said.txt").write_text(SAID, encoding="utf-8")
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(IDENTITY)
        }
        environment = inherited | {
            "PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "RUNNER_TEMP": str(temp),
            "GITHUB_OUTPUT": str(temp / "output"),
            "GITHUB_REF_NAME": "main",
            "OWN_TOKEN": str(own_token).lower(),
        }
        kept = self.run_step(self.keep, tried, environment)
        changes = (
            kept.returncode == 0
            and (temp / "output").exists()
            and "changed=true" in (temp / "output").read_text()
        )
        return self.run_step(self.open, self.clone(), environment) if changes else kept

    def run_step(
        self, script: str, checkout: Project, environment: dict[str, str]
    ) -> subprocess.CompletedProcess[str]:
        """Run one step in GitHub's shell."""
        command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script]
        return subprocess.run(
            command, cwd=checkout.path, env=environment, capture_output=True, text=True, check=False
        )

    def branches(self) -> list[str]:
        return git(self.remote, "branch", "--format=%(refname:short)").split()

    def asked(self) -> list[tuple[str, str]]:
        """The calls of gh: the verb, and the text of the pull request."""
        log = self.folder / "bin" / "log"
        return (
            [tuple(json.loads(line)) for line in log.read_text().splitlines()]
            if log.exists()
            else []
        )


@pytest.fixture
def github(template: Template, tmp_path: Path) -> GitHub:
    """A project on GitHub."""
    return GitHub(template, tmp_path)


def test_where_nothing_is_newer_no_pull_request_is_opened(github: GitHub) -> None:
    assert github.run_job({}).returncode == 0
    assert github.branches() == ["main"]
    assert github.asked() == []


def test_an_update_becomes_one_commit_on_a_branch_and_a_pull_request(github: GitHub) -> None:
    done = github.run_job({"new.py": "# new\n", "LICENSE": "changed\n"})

    assert done.returncode == 0, done.stderr
    assert github.branches() == [BRANCH, "main"]
    assert git(github.remote, "diff", "--name-only", "main", BRANCH).split() == [
        "LICENSE",
        "new.py",
    ]
    assert git(github.remote, "rev-parse", f"{BRANCH}~1") == git(github.remote, "rev-parse", "main")
    subject = git(github.remote, "log", "-1", "--format=%s", BRANCH)
    assert subject == "Update the template to v1.1.0\n"
    ((verb, body),) = github.asked()
    assert verb == "create"
    assert "Updated from v1.0.0 to v1.1.0" in body
    assert "Review it" not in body
    assert "close and reopen" in body


def test_a_new_file_that_the_owner_has_git_ignore_is_in_the_pull_request(github: GitHub) -> None:
    name = "data/new.py"  # the template's own .gitignore has it

    done = github.run_job({name: "# new\n", "LICENSE": "changed\n"}, staged=name)

    assert done.returncode == 0, done.stderr
    assert git(github.remote, "show", f"{BRANCH}:{name}") == "# new\n"


def test_a_later_update_takes_the_place_of_an_open_one(github: GitHub) -> None:
    github.run_job({"new.py": "# first\n"})
    (github.folder / "bin" / "open").write_text("7", encoding="utf-8")

    assert github.run_job({"new.py": "# second\n"}, own_token=True).returncode == 0

    assert git(github.remote, "show", f"{BRANCH}:new.py") == "# second\n"
    assert git(github.remote, "rev-list", "--count", f"main..{BRANCH}") == "1\n"
    assert [verb for verb, _ in github.asked()] == ["create", "edit"]
    assert "close and reopen" not in github.asked()[1][1]


def test_work_of_a_person_on_the_branch_is_left_alone(github: GitHub) -> None:
    github.run_job({"new.py": "# first\n"})
    person = github.clone(BRANCH)
    person.write("new.py", "# resolved\n")
    person.commit()
    git(person.path, "push", "--quiet")

    done = github.run_job({"new.py": "# second\n"})

    assert done.returncode == 0
    assert "::warning::Somebody has worked on" in done.stdout
    assert git(github.remote, "show", f"{BRANCH}:new.py") == "# resolved\n"


def test_changed_workflows_need_a_token_of_the_owners(github: GitHub) -> None:
    changed = {".github/workflows/ci.yml": "name: CI\n"}

    refused = github.run_job(changed)
    assert refused.returncode == 1
    assert "::error::This update changes .github/workflows" in refused.stdout
    assert github.branches() == ["main"]

    assert github.run_job(changed, own_token=True).returncode == 0
    assert github.branches() == [BRANCH, "main"]
