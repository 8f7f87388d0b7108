"""`agent update` with a real git, and a stand-in for uv that changes files as Copier does."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from agent.__main__ import main

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="an update needs git")

UV = r"""#!/bin/sh
here=$(dirname "$0")
IFS=$(printf '\037')
printf '%s\036%s\n' "$PWD" "$*" >> "$here/log"
case "$1 $2 $3" in
    "tool run --from") part=copier ;;
    "lock "* | "sync "*) part=$1 ;;
    "run pytest ") part=pytest ;;
    *) exit 99 ;;
esac
[ ! -f "$here/$part.py" ] || exec {python} -IS "$here/$part.py"
"""
FIX = """
for name, before, after in (
    ("src/agent/lifecycle.py", "slow", "quick"),
    (".copier-answers.yml", "v1.0.0", "v1.1.0"),
):
    path = pathlib.Path(name)
    path.write_text(path.read_text().replace(before, after))
"""
OURS = ["src/agent/lifecycle.py", "src/agent/memory/sqlite.py"]
FILES = {
    ".gitignore": ".env.local\n*.log\n*.rej\n",
    ".copier-answers.yml": "# Yours.\n_commit: v1.0.0\n_src_path: gh:somebody/template\nmemory: sqlite\n",
    "src/agent/lifecycle.py": "# slow\n",
    "src/agent/memory/sqlite.py": "# rows\n",
    "src/agent/persona.py": "# mine\n",
    "uv.lock": "locked\n",
}


class Ended(NamedTuple):
    code: int
    out: str
    err: str


class Uv:
    """The stand-in: what its commands do, and how they were called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "uv").write_text(
            UV.replace("{python}", shlex.quote(sys.executable)), encoding="utf-8"
        )
        (folder / "uv").chmod(0o755)

    def does(self, command: str, code: str) -> None:
        """What copier, lock, sync or pytest runs in the folder it is called in."""
        (self.folder / f"{command}.py").write_text(
            f"import os, pathlib, sys\n{code}", encoding="utf-8"
        )

    def calls(self) -> list[tuple[Path, list[str]]]:
        """Folder and arguments of every call."""
        log = self.folder / "log"
        lines = log.read_text(encoding="utf-8").split("\n")[:-1] if log.exists() else []
        calls = [line.split("\036") for line in lines]
        return [(Path(folder), arguments.split("\037")) for folder, arguments in calls]


class Project:
    """An owner's project in a git repository."""

    def __init__(self, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.home, self._capsys = home, capsys

    def write(self, name: str, text: str) -> None:
        (self.home / name).parent.mkdir(parents=True, exist_ok=True)
        (self.home / name).write_text(text, encoding="utf-8")

    def read(self, name: str) -> str:
        return (self.home / name).read_text(encoding="utf-8")

    def git(self, *arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=self.home, check=True, capture_output=True, text=True
        ).stdout.strip()

    def commit(self) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message=work")

    def files(self) -> dict[str, bytes]:
        """Every file, ignored ones too, and what git says of them."""
        found = [
            path for path in self.home.rglob("*") if path.is_file() and ".git" not in path.parts
        ]
        files = {path.relative_to(self.home).as_posix(): path.read_bytes() for path in found}
        return files | {".git": self.git("status", "--porcelain", "--branch").encode()}

    def update(self, *arguments: str) -> Ended:
        with pytest.raises(SystemExit) as ended:
            main(["update", *arguments])
        return Ended(int(ended.value.code or 0), *self._capsys.readouterr())

    def leaves_all(self, *arguments: str, code: int = 1) -> Ended:
        """An update that fails, and of which nothing is left."""
        before = self.files()
        ended = self.update(*arguments)
        assert ended.code == code, ended
        assert self.files() == before
        return ended


@pytest.fixture(scope="module", autouse=True)
def _isolated() -> Iterator[None]:
    """Nothing that the tester has configured for git or uv has a say."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name in [name for name in os.environ if name.startswith(("GIT_", "UV"))]:
            monkeypatch.delenv(name)
        for role in ("AUTHOR", "COMMITTER"):
            monkeypatch.setenv(f"GIT_{role}_NAME", "tester")
            monkeypatch.setenv(f"GIT_{role}_EMAIL", "tester")
        monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
        monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
        yield


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where previews are made."""
    (tmp_path / "previews").mkdir()
    return tmp_path / "previews"


@pytest.fixture
def uv(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Uv:
    """A uv whose Copier brings a fix."""
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    stand_in = Uv(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{stand_in.folder}{os.pathsep}{os.environ['PATH']}")
    stand_in.does("copier", FIX)
    stand_in.does("lock", "pathlib.Path('uv.lock').write_text('locked anew\\n')")
    return stand_in


def fill(home: Path) -> None:
    """Write the files of an untouched project."""
    digests = "".join(
        f'"{name}" = "{hashlib.sha256(FILES[name].encode()).hexdigest()}"\n' for name in OURS
    )
    ownership = f"ours = {json.dumps([*OURS, '.copier-answers.yml'])}\n[sha256]\n{digests}"
    for name, text in {**FILES, ".template.toml": ownership}.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in a repository, everything committed; to be copied."""
    home = tmp_path_factory.mktemp("committed")
    fill(home)
    for arguments in (
        ["init", "--quiet", "--initial-branch=main"],
        ["add", "--all"],
        ["commit", "--quiet", "-m", "it"],
    ):
        subprocess.run(["git", *arguments], cwd=home, check=True)
    return home


@pytest.fixture
def project(
    committed: Path,
    tmp_path: Path,
    folder: Path,
    uv: Uv,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Project]:
    """A committed project; no test leaves a worktree or a folder behind."""
    project = Project(tmp_path / "front desk", capsys)
    shutil.copytree(committed, project.home)
    project.write(".env.local", "SECRET=1\n")
    monkeypatch.setenv("AGENT_HOME", str(project.home))
    yield project
    if (project.home / ".git" / "HEAD").exists():
        assert project.git("worktree", "list").count("\n") == 0
    assert list(folder.iterdir()) == []


# ---------------------------------------------------------------------- what fits


def test_an_update_that_fits_is_left_for_its_owner_to_commit(project: Project, uv: Uv) -> None:
    head = project.git("rev-parse", "HEAD")
    uv.does(
        "copier", f"{FIX}\npathlib.Path('new.py').write_text('# new\\n'); os.remove('{OURS[1]}')"
    )

    ended = project.update()

    assert ended.code == 0, ended
    assert project.read("src/agent/lifecycle.py") == "# quick\n"
    assert project.read("uv.lock") == "locked anew\n"
    assert project.read("new.py") == "# new\n"
    assert not (project.home / OURS[1]).exists()
    assert project.read(".env.local") == "SECRET=1\n"
    assert project.git("rev-parse", "HEAD") == head
    assert project.git("diff", "--cached") == ""
    assert "from v1.0.0 to v1.1.0" in ended.out
    assert (
        "  new      new.py\n  changed  src/agent/lifecycle.py\n  deleted  src/agent/memory/sqlite.py\n"
        in ended.out
    )
    assert "https://github.com/somebody/template/blob/v1.1.0/CHANGELOG.md" in ended.out


def test_the_copy_is_locked_installed_and_tested_before_the_project_is_touched(
    project: Project, uv: Uv
) -> None:
    (project.home / ".venv").mkdir()
    project.write(".gitignore", FILES[".gitignore"] + ".venv/\n")
    project.commit()
    uv.does("pytest", f"assert open({str(project.home / OURS[0])!r}).read() == '# slow\\n'")

    assert project.update().code == 0

    calls = [(arguments[0], folder == project.home) for folder, arguments in uv.calls()]
    assert calls == [
        ("tool", False),
        ("lock", False),
        ("sync", False),
        ("run", False),
        ("sync", True),
    ]
    assert "--inexact" in uv.calls()[-1][1], "what the owner installed beside it stays"


def test_a_lock_that_is_not_committed_is_not_made(project: Project, uv: Uv) -> None:
    project.git("rm", "--quiet", "uv.lock")
    project.commit()

    assert project.update().code == 0

    assert not (project.home / "uv.lock").exists()
    assert ["lock"] not in [arguments for _, arguments in uv.calls()]


def test_a_file_that_always_had_a_conflict_marker_has_no_conflict(project: Project, uv: Uv) -> None:
    project.write("notes.md", "<<<<<<< is how a conflict begins\n")
    project.commit()
    uv.does("copier", f"{FIX}\nopen('notes.md', 'a').write('More.\\n')")

    assert project.update().code == 0


def test_copier_is_given_the_version_and_the_answers_and_never_trust(
    project: Project, uv: Uv
) -> None:
    project.update("--to", "1.1.0", "-d", "memory=redis", "-d", "memory=a b=c")

    _, arguments = uv.calls()[0]
    assert arguments[:5] == ["tool", "run", "--from", "copier>=9.15,<10", "copier"]
    assert arguments[-6:] == [
        "--vcs-ref",
        "v1.1.0",
        "--data",
        "memory=redis",
        "--data",
        "memory=a b=c",
    ]
    assert "--trust" not in arguments


def test_the_copys_commands_cannot_reach_the_project_through_the_environment(
    project: Project, uv: Uv, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {
        "GIT_DIR",
        "GIT_INDEX_FILE",
        "VIRTUAL_ENV",
        "UV_WORKING_DIR",
        "PYTHONPATH",
        "UV_FROZEN",
        "UV_ENV_FILE",
    }
    for name in (*names, "UV_PROJECT_ENVIRONMENT"):
        monkeypatch.setenv(name, str(project.home / name))
    monkeypatch.setenv("GIT_SSH_COMMAND", "ssh -i key")

    check = f"assert not os.environ.keys() & { ({*names, 'AGENT_HOME'})!r} and 'GIT_SSH_COMMAND' in os.environ\n"
    alone = "assert 'UV_PROJECT_ENVIRONMENT' not in os.environ\n"
    for command, code in (("copier", FIX), ("lock", alone), ("sync", alone), ("pytest", alone)):
        uv.does(command, check + code)

    assert project.update().code == 0
    assert len(uv.calls()) == 4

    for name in ("GIT_DIR", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name)


def test_copier_sees_none_of_the_settings_by_which_git_leaves_lines_out(
    project: Project, uv: Uv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tmp_path / "gitconfig"
    settings.write_text(
        f"[apply]\nwhitespace = error\n[core]\nattributesFile = {settings}\nexcludesFile = {settings}\n"
    )
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(settings))
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "http.proxy")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "proxy")
    asked = "said = lambda name: os.popen(f'git config {name}').read().strip()\n"
    names = ("apply.whitespace", "core.attributesFile", "core.excludesFile", "http.proxy")
    uv.does(
        "copier",
        f"{FIX}\n{asked}assert {[*map(said_of, names)]!r} == [said(name) for name in {names!r}]",
    )

    assert project.update().code == 0


def said_of(name: str) -> str:
    """What git says of a setting in the copy."""
    return {"apply.whitespace": "nowarn", "http.proxy": "proxy"}.get(name, os.devnull)


def test_files_that_the_owner_deleted_are_named_as_not_updated(project: Project) -> None:
    project.git("rm", "--quiet", OURS[1])
    project.commit()

    assert f"Not updated, because you deleted or moved them: {OURS[1]}\n" in project.update().out


def test_where_nothing_is_newer_nothing_is_done(project: Project, uv: Uv) -> None:
    uv.does("copier", "")

    ended = project.leaves_all(code=0)

    assert "Nothing to do: the project is at v1.0.0" in ended.out
    assert len(uv.calls()) == 1


def test_a_preview_tries_everything_and_changes_nothing(project: Project, uv: Uv) -> None:
    ended = project.leaves_all("--preview", code=0)

    assert "  changed  src/agent/lifecycle.py\n" in ended.out
    assert uv.calls()[-1][1] == ["run", "pytest"]
    uv.does("pytest", "sys.exit(1)")
    project.leaves_all("--preview", code=1)


def test_a_new_file_arrives_although_the_owner_has_git_ignore_its_kind(
    project: Project, uv: Uv
) -> None:
    uv.does("copier", FIX + "pathlib.Path('example.log').write_bytes(bytes(range(256)))")

    ended = project.update()

    assert ended.code == 0
    assert "add it by force: git add --force example.log\n" in ended.out
    assert (project.home / "example.log").read_bytes() == bytes(range(256))


def test_a_project_may_be_a_folder_of_a_repository(
    project: Project, uv: Uv, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    inner = Project(project.home / "apps" / "desk", capsys)
    fill(inner.home)
    project.commit()
    project.write("unrelated.txt", "not committed\n")
    monkeypatch.setenv("AGENT_HOME", str(inner.home))
    uv.does("copier", f"open('{OURS[0]}', 'w').write('<<<<<<< before updating\\n# mine\\n')")
    assert "\nsrc/agent/lifecycle.py:1 was changed" in inner.leaves_all().err
    uv.does("copier", FIX)

    assert inner.update().code == 0

    assert inner.read("src/agent/lifecycle.py") == "# quick\n"
    assert inner.read("uv.lock") == "locked anew\n"
    assert project.read("src/agent/lifecycle.py") == "# slow\n"
    assert uv.calls()[0][0].parts[-2:] == ("apps", "desk")


# ---------------------------------------------------------------------- what does not fit


def test_conflict_markers_are_shown_and_the_project_is_left_alone(project: Project, uv: Uv) -> None:
    conflict = "# 1\n<<<<<<< before updating\n# mine\n=======\n# theirs\n>>>>>>> after updating\n"
    uv.does("copier", f"{FIX}\npathlib.Path('{OURS[0]}').write_text({conflict!r})")

    ended = project.leaves_all()

    assert "src/agent/lifecycle.py:2 was changed" in ended.err
    assert "\n    # mine\n    =======\n    # theirs\n" in ended.err
    assert "uvx copier update" in ended.err
    assert len(uv.calls()) == 1


def test_a_file_that_git_calls_unmerged_is_a_conflict_without_markers_too(
    project: Project, uv: Uv
) -> None:
    blob = project.git("rev-parse", f"HEAD:{OURS[0]}")
    index = f"0 {'0' * 40}\t{OURS[0]}\n100644 {blob} 1\t{OURS[0]}\n100644 {blob} 2\t{OURS[0]}\n"
    unmerged = f"with os.popen('git update-index --index-info', 'w') as git: git.write({index!r})"
    uv.does("copier", f"{FIX}\n{unmerged}")

    assert "src/agent/lifecycle.py was changed here" in project.leaves_all().err


def test_a_rejected_hunk_is_a_conflict_also_where_git_ignores_it(project: Project, uv: Uv) -> None:
    uv.does(
        "copier",
        FIX + "pathlib.Path('pyproject.toml.rej').write_text('@@ -1 +1 @@\\n-old\\n+new\\n')",
    )

    ended = project.leaves_all()

    assert "pyproject.toml: this change of yours fits nowhere in the new version:" in ended.err
    assert "    +new\n" in ended.err


def test_a_changed_file_is_not_deleted_in_silence(project: Project, uv: Uv) -> None:
    project.write(OURS[1], "# rows, and a fix of mine\n")
    project.commit()
    uv.does("copier", f"{FIX}\nos.remove('{OURS[1]}')")

    assert "src/agent/memory/sqlite.py was changed by you" in project.leaves_all().err


def test_a_file_that_is_not_the_templates_is_not_deleted_in_silence(
    project: Project, uv: Uv
) -> None:
    uv.does("copier", f"{FIX}\nos.remove('src/agent/persona.py')")

    assert "src/agent/persona.py is not one of the template's files" in project.leaves_all().err


@pytest.mark.parametrize("command", ["pytest", "lock", "sync"])
def test_what_fails_in_the_copy_does_not_reach_the_project(
    project: Project, uv: Uv, command: str
) -> None:
    uv.does(command, "print('E   assert 1 == 2', flush=True); sys.exit('the last word')")

    ended = project.leaves_all()

    assert "E   assert 1 == 2" in ended.err
    assert ended.err.endswith("the last word\n")


def test_of_copiers_refusal_its_own_last_words_are_shown(project: Project, uv: Uv) -> None:
    uv.does("copier", "raise ValueError('Invalid choice for memory')")

    ended = project.leaves_all("-d", "memory=paper")

    assert ended.err.endswith("\n\nValueError: Invalid choice for memory\n")
    assert "Traceback" not in ended.err


def test_a_question_that_the_template_does_not_ask_is_told(project: Project) -> None:
    ended = project.leaves_all("-d", "memmory=redis")

    assert "no question memmory, only memory" in ended.err


def test_an_ignored_file_in_the_way_stops_the_whole_update(project: Project, uv: Uv) -> None:
    uv.does("copier", FIX + "pathlib.Path('audit.log').write_text('the template\\n')")
    project.write("audit.log", "the owner\n")

    assert "audit.log: already exists" in project.leaves_all().err


@pytest.mark.parametrize(
    ("there", "new"), [("ops", "ops/run.py"), ("ops/run.py/mine", "ops/run.py")]
)
def test_what_git_finds_in_its_way_half_way_through_undoes_what_it_has_done(
    project: Project, uv: Uv, there: str, new: str
) -> None:
    project.write(".gitignore", FILES[".gitignore"] + "ops\n")
    project.commit()
    code = f"\nos.remove('{OURS[1]}')\nos.mkdir('ops')\npathlib.Path('{new}').write_text('the template')"
    uv.does("copier", FIX + code)
    project.write(there, "the owner\n")

    assert "cannot be put into the project, which is as it was" in project.leaves_all().err


def test_work_that_is_done_meanwhile_is_left_alone(project: Project, uv: Uv) -> None:
    uv.does("pytest", f"open({str(project.home / 'meanwhile.py')!r}, 'w').write('# mine')")

    ended = project.update()

    assert ended.code == 1
    assert "changed while" in ended.err
    assert project.git("status", "--porcelain") == "?? meanwhile.py"


def test_no_password_of_the_templates_address_is_shown(project: Project, uv: Uv) -> None:
    project.write(
        ".copier-answers.yml",
        "_commit: v1.0.0\n_src_path: https://ann:hunter2@example.com/template.git\n",
    )
    project.commit()
    uv.does("copier", "sys.exit('fatal: no https://ann:hunter2@example.com/template.git')")

    ended = project.leaves_all()

    assert "hunter2" not in ended.out + ended.err
    assert "https://***@example.com/template.git" in ended.err


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_leaves_nothing_behind(
    project: Project, uv: Uv, number: signal.Signals, code: int
) -> None:
    before = project.files()
    uv.does("pytest", f"import signal; os.kill(os.getppid(), {int(number)}); signal.pause()")

    ended = subprocess.run(
        [sys.executable, "-m", "agent", "update"], capture_output=True, text=True, timeout=60
    )

    assert ended.returncode == code, ended
    assert "Traceback" not in ended.stderr
    assert project.files() == before


# ---------------------------------------------------------------------- what has to be right before


def refused(project: Project, *arguments: str) -> str:
    """The one line that says why nothing was begun."""
    ended = project.update(*arguments)
    assert ended.code == 2, ended
    assert ended.err.startswith("agent: ")
    assert ended.err.count("\n") == 1
    return ended.err


def test_work_that_is_not_committed_is_refused_and_named(project: Project, uv: Uv) -> None:
    project.write("notes.txt", "not committed\n")
    assert "notes.txt is not committed" in refused(project)
    project.write(OURS[0], "# changed\n")
    assert "src/agent/lifecycle.py and 1 more are not committed" in refused(project)
    assert uv.calls() == []


@pytest.mark.parametrize(
    "content", [b"# caf\xe9\n", "# a\n".encode("utf-16-le")], ids=["latin-1", "utf-16"]
)
def test_a_file_that_copier_would_mangle_is_refused(
    project: Project, uv: Uv, content: bytes
) -> None:
    (project.home / OURS[0]).write_bytes(content)
    project.commit()
    assert "src/agent/lifecycle.py holds bytes that are no UTF-8 text" in refused(project)
    assert uv.calls() == []


def test_an_unfinished_merge_is_refused(project: Project) -> None:
    project.write(".git/MERGE_HEAD", project.git("rev-parse", "HEAD"))
    assert "in the middle of a merge or the like (MERGE_HEAD): finish it" in refused(project)


def test_a_folder_without_a_repository_or_a_commit_is_refused(project: Project) -> None:
    project.git("update-ref", "-d", "HEAD")
    assert "nothing is committed in" in refused(project)
    shutil.rmtree(project.home / ".git")
    assert "is in no git repository: run `git init" in refused(project)


@pytest.mark.parametrize(
    ("answers", "problem"),
    [
        ("memory: sqlite\n", "does not say which version"),
        ("_commit: v1.0.0\n", "does not say which version"),
        ("_commit: v1.0.0\n_src_path: ../template\n", "has the relative _src_path ../template"),
    ],
)
def test_answers_that_lead_nowhere_are_refused(
    project: Project, answers: str, problem: str
) -> None:
    project.write(".copier-answers.yml", answers)
    project.commit()
    assert problem in refused(project)


def test_a_project_without_answers_or_ownership_is_refused(project: Project) -> None:
    project.git("rm", "--quiet", "--cached", ".copier-answers.yml")
    project.write(".gitignore", FILES[".gitignore"] + ".copier-answers.yml\n")
    project.commit()
    assert ".copier-answers.yml is ignored by git" in refused(project)
    (project.home / ".copier-answers.yml").unlink()
    assert ".copier-answers.yml is missing" in refused(project)


@pytest.mark.parametrize(
    "source", ["'gh:somebody/template'", "git@example.com:a/b.git", "/srv/template", "~/template"]
)
def test_an_address_or_a_whole_path_is_a_source(project: Project, source: str) -> None:
    project.write(".copier-answers.yml", f"_commit: v1.0.0\n_src_path: {source}\nmemory: sqlite\n")
    project.commit()
    assert project.update("--preview").code == 0


@pytest.mark.parametrize("answer", ["memory", "=redis", "--trust"])
def test_an_answer_that_is_none_is_refused(project: Project, answer: str) -> None:
    assert f"-d {answer}: write a question and its answer" in refused(project, f"--data={answer}")


def test_without_git_or_uv_nothing_is_begun(
    project: Project, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git = shutil.which("git")
    assert git is not None
    path = os.environ["PATH"]
    monkeypatch.setenv("PATH", str(folder))
    assert "there is no git here" in refused(project)
    (folder / "git").symlink_to(git)
    assert "there is no uv here" in refused(project)
    (folder / "git").unlink()
    monkeypatch.setenv("PATH", path)
