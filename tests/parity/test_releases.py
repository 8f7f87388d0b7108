"""Both tools render a release unless asked for something else, and no release needs trust."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import copier
import pytest
import yaml

from tests.parity.test_parity import assert_same
from tests.support.templates import (
    WORK_TREE,
    Project,
    Template,
    cookiecut,
    git,
    released,
)

VERSIONS = [*released(), WORK_TREE]
NEEDS = "This template needs Cookiecutter 2.4 or newer with its hooks"


@pytest.fixture
def as_of(template: Template, tmp_path: Path) -> Callable[[str], Template]:
    """The repository as it was when a version was the newest; its branch may be further on."""

    def make(version: str) -> Template:
        past = Template(tmp_path / "livekit-agent-template")
        shutil.copytree(template.path, past.path)
        newer = VERSIONS[VERSIONS.index(version) + 1 :]
        git(past.path, "tag", "--delete", *newer)
        return past

    return make


@pytest.mark.parametrize("version", VERSIONS[:-1])
def test_without_being_asked_for_one_both_tools_render_the_newest_release(
    as_of: Callable[[str], Template], version: str, tmp_path: Path
) -> None:
    template = as_of(version)
    copier.run_copy(template.url, tmp_path / "copied", defaults=True, quiet=True)
    done = cookiecut(template.url, tmp_path / "baked")
    assert done.returncode == 0, done.stderr + done.stdout
    assert f"This is {version}, the newest release." in done.stderr
    baked = Project(tmp_path / "baked" / "my-agent")
    assert_same(Project(tmp_path / "copied"), baked)
    assert baked.answers()["_commit"] == version


def test_a_local_checkout_with_work_in_it_is_rendered_as_its_newest_release(
    as_of: Callable[[str], Template], tmp_path: Path
) -> None:
    template = as_of(VERSIONS[0])
    template.add_line("README.md", "Not released.")
    copier.run_copy(str(template.path), tmp_path / "copied", defaults=True, quiet=True)
    assert cookiecut(str(template.path), tmp_path / "baked").returncode == 0
    assert_same(Project(tmp_path / "copied"), Project(tmp_path / "baked" / "my-agent"))
    assert git(template.path, "status", "--porcelain", "--branch").splitlines()[0] == "## main"
    assert "Not released." in template.source("README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("checkout", "said", "commit"),
    [("main", True, "v0.1.0"), ("v0.1.0", False, "v0.1.0"), ("origin/main", False, "v0.1.0-")],
)
def test_a_commit_is_rendered_as_asked_and_a_branch_as_its_release(
    as_of: Callable[[str], Template], tmp_path: Path, checkout: str, said: bool, commit: str
) -> None:
    done = cookiecut(as_of("v0.1.0").url, tmp_path / "baked", "--checkout", checkout)
    assert done.returncode == 0, done.stderr + done.stdout
    assert ("the newest release" in done.stderr) == said
    recorded = Project(tmp_path / "baked" / "my-agent").answers()["_commit"]
    assert recorded.startswith(commit) if commit.endswith("-") else recorded == commit


def uvx(tool: str, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a released tool; if it is not available, skip, or fail in CI."""
    run = [
        str(Path(sys.executable).with_name("uvx")),
        "--python",
        sys.executable,
        "--from",
        tool,
        command,
    ]
    if (
        not Path(run[0]).exists()
        or subprocess.run([*run, "--help"], capture_output=True, check=False).returncode
    ):
        message = f"uvx cannot get {tool}"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return subprocess.run(
        [*run, *arguments], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )


def assert_told(done: subprocess.CompletedProcess[str], sentence: str, folder: Path) -> None:
    """The tool failed, its last lines say what is needed, and nothing was made."""
    assert done.returncode == 1
    said = " ".join((done.stdout + done.stderr).split())
    assert sentence in said.replace("│ ", "")[-400:]
    assert not folder.exists()


@pytest.mark.parametrize("version", ["2.3.1", "2.1.1"])
def test_an_old_cookiecutter_is_told_what_is_needed(
    template: Template, tmp_path: Path, version: str
) -> None:
    out = tmp_path / "out"
    done = uvx(
        f"cookiecutter=={version}",
        "cookiecutter",
        "--no-input",
        "--output-dir",
        str(out),
        str(template.path),
    )
    assert_told(done, NEEDS, out)


def test_a_very_old_cookiecutter_is_told_in_the_name_of_the_module(
    template: Template, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = uvx(
        "cookiecutter==1.7.3",
        "cookiecutter",
        "--no-input",
        "--output-dir",
        str(out),
        str(template.path),
    )
    assert_told(done, "needs_cookiecutter_2_4_or_newer_with_its_hooks__or_copier", out)


def test_cruft_is_told_what_is_needed(template: Template, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = uvx(
        "cruft==2.16.0",
        "cruft",
        "create",
        "--no-input",
        "--output-dir",
        str(out),
        str(template.path),
    )
    assert_told(done, NEEDS, out)


def test_a_cookiecutter_that_may_not_run_hooks_is_told_what_is_needed(
    template: Template, tmp_path: Path
) -> None:
    done = cookiecut(str(template.path), tmp_path / "out", "--accept-hooks", "no")
    assert_told(done, NEEDS, tmp_path / "out")


def parts_of(template: Template, version: str) -> tuple[dict[str, object], dict[str, object]]:
    """copier.yml and cookiecutter.json of a version."""
    read = [
        git(template.path, "show", f"{version}:{name}")
        for name in ("copier.yml", "cookiecutter.json")
    ]
    return yaml.safe_load(read[0]), json.loads(read[1])


@pytest.mark.parametrize("version", VERSIONS)
def test_no_release_has_anything_that_needs_trust(template: Template, version: str) -> None:
    config, bare = parts_of(template, version)
    assert config.keys() & {"_tasks", "_migrations", "_jinja_extensions", "_extensions"} == set()
    # A release that needed trust once would need it for every update that leaves it.
    extensions = bare.get("_extensions", [])
    assert extensions in (
        [],
        ["needs_cookiecutter_2_4_or_newer_with_its_hooks__or_copier.Template"],
    )
    hooks = git(template.path, "ls-tree", "--name-only", f"{version}:hooks").split()
    assert set(hooks) == {"copier_yml.py", "post_gen_project.py", "pre_prompt.py"}
    assert "_extensions" not in git(template.path, "show", f"{version}:hooks/copier_yml.py")


@pytest.mark.parametrize("version", VERSIONS)
def test_every_release_is_copied_without_trust(
    template: Template, version: str, tmp_path: Path
) -> None:
    # The fixture `_isolated` has Copier's settings trust nobody.
    assert template.copy(tmp_path / "project", version).answers()["_commit"] == version
