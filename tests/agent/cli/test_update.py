"""`agent update` finds the template's newest release, and hands over to the updater there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent.cli.update import address_of, answer
from agent.settings import SettingsError

UV = """#!/bin/sh
printf '%s\\n' "$PWD" "${PYTHONPATH-unset}" "${UV_WORKING_DIR-unset}" "$@"
exit 7
"""


@pytest.mark.parametrize(
    ("source", "address"),
    [
        ("gh:somebody/template", "https://github.com/somebody/template.git"),
        ("gl:group/part/template.git", "https://gitlab.com/group/part/template.git"),
        ("git+https://example.com/template", "https://example.com/template"),
        ("https://ann:token@example.com/a/b.git", "https://ann:token@example.com/a/b.git"),
        ("git@example.com:somebody/template.git", "ssh://git@example.com/somebody/template.git"),
        ("git+ssh://git@example.com:22/a/b.git", "ssh://git@example.com:22/a/b.git"),
        ("git+file:///srv/template", "file:///srv/template"),
        ("/srv/the template", "file:///srv/the%20template"),
        ("~/template", f"file://{Path.home()}/template"),
    ],
)
def test_git_and_uv_are_given_an_address_that_both_take(source: str, address: str) -> None:
    assert address_of(source) == address


@pytest.mark.parametrize("source", ["", "../template", "template", "gh:"])
def test_a_source_that_is_no_address_is_refused(source: str) -> None:
    with pytest.raises(SettingsError, match="does not say where the template is"):
        address_of(source)


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("_src_path: gh:somebody/template", "gh:somebody/template"),
        ("_src_path: 'it''s: here'", "it's: here"),
        ("_src_path: /a folded\n    path", "/a folded path"),
        ("_commit: v1", ""),
    ],
)
def test_an_answer_is_read_as_copier_writes_it(line: str, value: str, tmp_path: Path) -> None:
    (tmp_path / ".copier-answers.yml").write_text(f"# Yours.\n{line}\nagent_name: x\n", "utf-8")
    assert answer(tmp_path, "_src_path") == value


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=folder, check=True)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A project whose template is a repository here, with the releases v0.9.0 and v0.10.0."""
    source = tmp_path / "the template"
    source.mkdir()
    git(source, "init", "--quiet")
    git(source, "commit", "--quiet", "--allow-empty", "--message=one")
    for tag in ("v0.9.0", "v0.10.0", "20261127", "v1", "v1.0.0rc1", "x/v2.0.0"):
        git(source, "tag", tag)
    home = tmp_path / "project"
    (home / "src" / "agent").mkdir(parents=True)
    (home / ".template.toml").touch()
    answers = f"_commit: v0.9.0\n_src_path: {source}\nagent_name: desk\n"
    (home / ".copier-answers.yml").write_text(answers, "utf-8")
    return home


def update(home: Path, *arguments: str, path: Path | None = None) -> tuple[int, str, str]:
    """Run `agent update` somewhere in the project, with a stand-in for uv."""
    bin_folder = home.parent / "bin"
    bin_folder.mkdir()
    (bin_folder / "uv").write_text(UV, encoding="utf-8")
    (bin_folder / "uv").chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name != "UV"}
    environment["UV_WORKING_DIR"] = "project"
    environment["PATH"] = str(path) if path else f"{bin_folder}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [sys.executable, "-m", "agent", "update", *arguments],
        cwd=home / "src",
        env=environment,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout, done.stderr


def test_it_becomes_the_updater_of_the_newest_release_in_the_projects_folder(home: Path) -> None:
    code, out, _ = update(home, "--to", "v0.9.1", "-d", "a=b c", "--data", "d=e", "--preview")

    tool = f"git+{(home.parent / 'the template').as_uri()}@v0.10.0#subdirectory=updater"
    called = ["tool", "run", "--from", tool, "agent-update"]
    options = ["--to=v0.9.1", "--data=a=b c", "--data=d=e", "--preview"]
    assert code == 7, "the updater's exit code is the command's"
    assert out.splitlines() == [str(home), "unset", "unset", *called, *options]


@pytest.mark.parametrize(
    ("answers", "problem"),
    [
        ("memory: sqlite\n", "does not say where the template is (_src_path: missing): restore it"),
        ("_src_path: ../template\n", "(_src_path: ../template): restore it, or write an address"),
        ("_src_path: /nowhere\n", "git cannot ask file:///nowhere for the template's releases: fa"),
        (
            "_src_path: https://a:hunter2@localhost:1/b\n",
            "git cannot ask https://***@localhost:1/b for",
        ),
    ],
)
def test_without_a_template_it_says_so_in_a_line(home: Path, answers: str, problem: str) -> None:
    (home / ".copier-answers.yml").write_text(f"agent_name: desk\n{answers}", encoding="utf-8")

    code, out, err = update(home)

    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("agent: ")
    assert problem in err
    assert "hunter2" not in err


def test_the_answers_to_another_template_are_not_taken_for_its_own(home: Path) -> None:
    answers = (home / ".copier-answers.yml").rename(home / ".copier-answers.agent.yml")
    answers.write_text(f"{answers.read_text('utf-8')}memory: sqlite\n", "utf-8")
    others = "_commit: v3\n_src_path: gh:other/one\n"
    # another one may ask the same
    (home / ".copier-answers.yml").write_text(f"{others}agent_name: bob\n", "utf-8")

    assert update(home)[0] == 7
    answers.unlink()
    (home / ".copier-answers.yml").write_text(others, "utf-8")
    assert answer(home, "_src_path") == ""


def test_a_template_without_a_release_is_refused(home: Path) -> None:
    git(home.parent / "the template", "tag", "--delete", "v0.9.0", "v0.10.0")

    assert "no tag there is like v1.2.3" in update(home)[2]


@pytest.mark.parametrize(("missing", "there"), [("git", "uv"), ("uv", "git")])
def test_without_git_or_uv_it_says_so(home: Path, tmp_path: Path, missing: str, there: str) -> None:
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / there).write_text("#!/bin/sh\n", encoding="utf-8")
    (tmp_path / "path" / there).chmod(0o755)

    code, _, err = update(home, path=tmp_path / "path")

    assert code == 2
    assert f"there is no {missing}" in err
