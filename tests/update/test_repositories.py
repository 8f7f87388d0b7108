"""`agent update` in repositories as people have them, with a real git and the real Copier.

A small template stands for this one. Where a setting of git, a bot or an edit that is no conflict
is the matter, the update fits; where something is not supported, it is said before it begins.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.templates import MARK, ROOT
from tests.update.small import make_project, make_source
from tests.update.test_updater import Project


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The template, with two releases."""
    return make_source(tmp_path_factory.mktemp("source") / "template")


@pytest.fixture(scope="module")
def rendered(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A committed project of the first release; to be copied."""
    project = Project(make_project(source, tmp_path_factory.mktemp("rendered") / "desk"))
    project.git("init", "--quiet", "--initial-branch=main")
    project.commit()
    return project.home


@pytest.fixture
def desk(
    rendered: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Project]:
    """A project in a repository of its own; uv does nothing. Nothing of an update is left."""
    (tmp_path / "copies").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "copies"))
    monkeypatch.setenv("UV", "true")
    shutil.copytree(rendered, tmp_path / "desk", symlinks=True)
    yield Project(tmp_path / "desk", capsys)
    assert [*(tmp_path / "copies").iterdir()] == []


def checked_out_anew(project: Project) -> None:
    """Have git write every file again."""
    project.git("rm", "-r", "--quiet", "--cached", ".")
    project.git("reset", "--quiet", "--hard")


# ---------------------------------------------------------------------- line ends


def with_windows_ends(project: Project, kind: str) -> None:
    """Make a checkout with Windows line ends, by one of the ways there are."""
    if kind == "core.autocrlf":
        project.git("config", "core.autocrlf", "true")
        checked_out_anew(project)
    elif kind == ".gitattributes":
        project.write(".gitattributes", "* text=auto eol=crlf\n")
        project.commit()
        checked_out_anew(project)
    else:
        for path in project.home.rglob("*"):
            if path.is_file() and ".git" not in path.relative_to(project.home).parts[:1]:
                path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
        project.commit()


@pytest.mark.parametrize("kind", ["core.autocrlf", ".gitattributes", "committed"])
def test_windows_line_ends_are_no_conflict_and_stay(desk: Project, kind: str) -> None:
    with_windows_ends(desk, kind)
    dockerfile = desk.home / "Dockerfile"
    assert b"\r\n" in dockerfile.read_bytes()
    dockerfile.write_bytes(dockerfile.read_bytes() + b"RUN mine\r\n")
    desk.commit()

    ended = desk.update()

    assert ended.code == 0, ended.err
    assert dockerfile.read_bytes() == (
        f"FROM python:3.11-slim\r\n\r\nRUN quick\r\n\r\n# {MARK}\r\nRUN mine\r\n".encode()
    )
    assert (desk.home / "src/agent/settings.py").read_bytes().endswith(b"# 4\r\n# quick\r\n")
    assert not (desk.home / "src/agent/old.py").exists()
    changed = desk.git("diff", "--numstat", "HEAD").splitlines()
    assert "1\t1\tDockerfile" in changed, "one line, and not the whole file"


# ---------------------------------------------------------------------- lines that both change


def test_a_plugin_a_version_and_what_bots_raise_are_no_conflicts(desk: Project) -> None:
    text = desk.read("pyproject.toml")
    for before, after in (
        ("livekit-agents>=1.8.9,<1.9", "livekit-agents[openai]>=1.8.9,<1.9"),
        ('"0.1.0"', '"0.2.0"'),
        ("rich>=14", "rich>=15"),
        (f"    # {MARK}\n", f'    # {MARK}\n    "httpx>=0.28",\n'),
    ):
        assert before in text
        text = text.replace(before, after)
    desk.write("pyproject.toml", text)
    workflow = desk.read(".github/workflows/ci.yml")
    desk.write(".github/workflows/ci.yml", workflow.replace("3d3c # v7.0.1", "5f5e # v8.0.0"))
    desk.commit()

    ended = desk.update("-d", "description=It calls.")

    assert ended.code == 0, ended.err
    assert desk.read("pyproject.toml") == text.replace("1.8.9,<1.9", "1.9.1,<1.10").replace(
        "It answers.", "It calls."
    )
    assert "@5f5e # v8.0.0" in desk.read(".github/workflows/ci.yml")
    assert (
        "Raised by you and by the template, and now:\n"
        "  .github/workflows/ci.yml: - uses: actions/checkout@5f5e # v8.0.0\n"
        '  pyproject.toml: "livekit-agents[openai]>=1.9.1,<1.10",\n' in ended.out
    )


def test_what_both_have_really_changed_is_a_conflict_beside_what_is_settled(desk: Project) -> None:
    text = desk.read("pyproject.toml").replace(">=1.8.9,<1.9", ">=1.8.9,<1.8.12")
    desk.write("pyproject.toml", text)
    desk.commit()

    ended = desk.leaves_all()

    assert "pyproject.toml was changed by you and by the template" in ended.err


# ---------------------------------------------------------------------- repositories


@pytest.mark.parametrize("hashes", ["new repositories", "this one"])
def test_the_other_hash_of_git_is_no_obstacle(
    desk: Project, hashes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_DEFAULT_HASH", "sha256")
    if hashes == "this one":
        shutil.rmtree(desk.home / ".git")
        desk.git("init", "--quiet", "--initial-branch=main")
    desk.write("Dockerfile", desk.read("Dockerfile").replace("3.11", "3.13"))
    desk.write("src/agent/settings.py", desk.read("src/agent/settings.py").replace("4", "four"))
    desk.commit()

    assert "settings.py was changed by you and by the template" in desk.leaves_all().err

    desk.write("src/agent/settings.py", desk.read("src/agent/settings.py").replace("four", "4"))
    desk.commit()
    assert desk.update().code == 0
    assert desk.read("Dockerfile").startswith("FROM python:3.13-slim\n\nRUN quick\n")


def test_settings_that_stop_copier_half_way_or_drop_lines_are_of_no_effect(
    desk: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.write("run.sh", "true\n")
    (desk.home / "run.sh").chmod(0o755)
    (desk.home / "link").symlink_to("run.sh")
    desk.commit()
    hooks = tmp_path / "hooks"
    (hooks / "info").mkdir(parents=True)
    (hooks / "info" / "attributes").write_text("* -diff\n")
    (hooks / "info" / "exclude").write_text("Dockerfile\n")
    for name, value in (
        ("core.quotePath", "false"),
        ("core.autocrlf", "input"),
        ("core.safecrlf", "true"),
        ("apply.whitespace", "fix"),
        ("apply.ignoreWhitespace", "change"),
        ("commit.gpgSign", "true"),
        ("core.bigFileThreshold", "1"),
        ("diff.noprefix", "true"),
        ("diff.external", "false"),
        ("init.templateDir", str(hooks)),
    ):
        desk.git("config", "--file", str(tmp_path / "gitconfig"), name, value)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    monkeypatch.setenv("GIT_EXTERNAL_DIFF", "false")
    # as of `git -c`, when an alias of git's runs the update
    given = "'core.quotepath'='false' 'apply.whitespace=error'"
    given += " 'core.filemode=false' 'core.symlinks=false'"
    monkeypatch.setenv("GIT_CONFIG_PARAMETERS", given)
    (desk.home / ".git/info/attributes").write_text("* -diff -text filter=nothing\n")
    desk.write("knowledge/Öffnungszeiten.md", "Ja.  \n")
    desk.write("Dockerfile", desk.read("Dockerfile") + "RUN mine  \n")
    desk.git("add", "--all")
    desk.git("commit", "--quiet", "--no-gpg-sign", "--message=work")

    ended = desk.update()

    assert ended.code == 0, ended.err
    assert desk.read("Dockerfile").endswith("RUN quick\n\n# " + MARK + "\nRUN mine  \n")
    assert desk.read("knowledge/Öffnungszeiten.md") == "Ja.  \n"
    assert os.access(desk.home / "run.sh", os.X_OK)


def test_a_dependency_in_a_submodule_is_there_when_the_copy_is_tested(
    desk: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner, library = Project(tmp_path / "inner"), Project(tmp_path / "library")
    for project, name in ((inner, "inner.py"), (library, "library.py")):
        project.home.mkdir()
        project.git("init", "--quiet", "--initial-branch=main")
        project.write(name, "# this\n")
        project.commit()
    allowed = ("-c", "protocol.file.allow=always", "submodule", "--quiet", "add")
    library.git(*allowed, str(inner.home), "inner")
    library.commit()
    desk.git(*allowed, str(library.home), "library")
    desk.git("-c", "protocol.file.allow=always", "submodule", "update", "--init", "--recursive")
    desk.commit()
    tool = tmp_path / "uv"
    tool.write_text("#!/bin/sh\nexec cat library/library.py library/inner/inner.py\n")
    tool.chmod(0o755)
    monkeypatch.setenv("UV", str(tool))

    ended = desk.update()

    assert ended.code == 0, ended.err
    assert (desk.home / "docs/news.md").exists()


# ---------------------------------------------------------------------- said before it begins


def refused(project: Project, *arguments: str) -> str:
    """The one line that says why nothing has begun."""
    *_, line = project.leaves_all(*arguments, code=2).err.splitlines()
    assert line.startswith("agent: ")
    return line


def test_a_version_that_the_template_does_not_have_is_refused(desk: Project) -> None:
    said = refused(desk, "--to", "1.11.0")
    assert said.endswith("has no version v1.11.0: choose one of v1.0.0, v1.1.0, or leave --to out")
    assert desk.update("--to", "main", "--preview").code == 0


@pytest.mark.parametrize("described", [False, True], ids=["HEAD", "git describe"])
def test_a_commit_without_a_name_of_its_own_is_a_version(
    desk: Project, source: Path, tmp_path: Path, described: bool
) -> None:
    fork = Project(tmp_path / "fork")
    desk.git("clone", "--quiet", str(source), str(fork.home))
    fork.write("template/docs/news.md", "# Between two releases\n")
    fork.commit()
    answers = desk.read(".copier-answers.yml")
    desk.write(".copier-answers.yml", answers.replace(str(source), str(fork.home)))
    desk.commit()
    between = fork.git("describe", "--tags")

    assert desk.update("--to", between if described else "HEAD").code == 0

    assert desk.read("docs/news.md") == "# Between two releases\n"
    desk.commit()
    same = desk.leaves_all("--to", between, code=0)
    assert f"Nothing to do: the project is at {between}" in same.out


def test_a_fork_without_the_projects_version_is_refused(
    desk: Project, source: Path, tmp_path: Path
) -> None:
    fork = Project(tmp_path / "fork")
    desk.git("clone", "--quiet", str(source), str(fork.home))
    fork.git("tag", "--delete", "v1.0.0")
    answers = desk.read(".copier-answers.yml")
    desk.write(".copier-answers.yml", answers.replace(str(source), str(fork.home)))
    desk.commit()
    assert f"{fork.home} has no tag v1.0.0, the version of this project: push" in refused(desk)


def test_a_project_from_a_zip_is_told_what_to_write(desk: Project) -> None:
    answers = desk.read(".copier-answers.yml")
    desk.write(".copier-answers.yml", answers.replace("_commit: v1.0.0\n", ""))
    desk.commit()
    assert "write its release there, such as `_commit: v1.2.0`" in refused(desk)


def test_a_sparse_checkout_is_refused(desk: Project) -> None:
    # git leaves what it does not know to be unchanged, and it has not looked at this copy
    desk.git("update-index", "--refresh")
    desk.git("sparse-checkout", "set", "src")
    assert not (desk.home / ".github/workflows/ci.yml").exists()
    assert "is a sparse checkout (.github/workflows/ci.yml is not in it)" in refused(desk)


def test_a_project_of_another_user_is_refused(desk: Project) -> None:
    if os.geteuid():
        pytest.skip("only root can give files away")
    for path in (desk.home, desk.home / ".git"):
        os.chown(path, 1234, 1234)
    assert desk.update().code == 2
    # git is not asked what it refuses to say
    ended = desk.update()
    assert f"{desk.home} belongs to another user" in ended.err
    assert f"`git config --global --add safe.directory {desk.home}`" in ended.err


def test_a_renamed_package_is_refused(desk: Project) -> None:
    desk.git("mv", "src/agent", "src/desk")
    desk.write("src/desk/entrypoint.py", "")
    desk.commit()
    assert (
        "is not there, and updates bring their fixes to that folder: `git mv src/desk src/agent`"
        in refused(desk)
    )


def test_a_file_from_before_the_template_is_refused(desk: Project) -> None:
    desk.write("Dockerfile", "FROM debian\nRUN mine\n")
    desk.commit()
    said = refused(desk)
    assert f"Dockerfile has no line `{MARK}`: it is older than the template, or has lost it" in said


def test_of_two_updates_at_once_the_second_is_refused(
    desk: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the first one's uv begins the second, and that is all
    tool = tmp_path / "uv"
    updater = f"PYTHONPATH='{ROOT / 'updater'}' exec '{sys.executable}' -m agent_update"
    tool.write_text(
        f"#!/bin/sh\n[ -z \"$SECOND\" ] || exit 0\ncd '{desk.home}'\nSECOND=yes {updater}\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("UV", str(tool))

    ended = desk.leaves_all()

    assert f"another update of {desk.home} is running: wait until it has ended" in ended.err


def test_a_signal_leaves_nothing_of_copier_behind(desk: Project, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(
        f"#!{sys.executable}\nimport os, signal, tempfile\ntempfile.mkdtemp()\n"
        "os.kill(os.getppid(), signal.SIGTERM)\nsignal.pause()\n"
    )
    python.chmod(0o755)
    code = (
        f"import sys; sys.executable = {str(python)!r}\n"
        "from agent_update.__main__ import main; sys.exit(main())"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=desk.home,
        env={**os.environ, "PYTHONPATH": str(ROOT / "updater"), "TMPDIR": str(tmp_path / "copies")},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 128 + signal.SIGTERM, ended
    assert [*(tmp_path / "copies").iterdir()] == []
