"""The updater with a real git: what it refuses, what does not fit, and that it is all or nothing.

Most tests have a stand-in for Copier and uv, which changes files like them; the last ones have the
real Copier.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import NamedTuple

import copier
import pytest

from agent_update.__main__ import main
from agent_update.project import made_with
from tests.support import quick
from tests.support.templates import ROOT, WORK_TREE, Template, git, released
from tools.gate import cases_of, configuration

STAND_IN = r"""#!/bin/sh
here=$(dirname "$0")
IFS=$(printf '\037')
printf '%s\036%s\n' "$PWD" "$*" >> "$here/log"
case "$1 $2 $3" in
    "-m copier update") part=copier ;;
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
BROUGHT = ["src/agent/lifecycle.py", "src/agent/memory/sqlite.py"]
REAL_PYTHON = sys.executable
FILES = {
    ".gitignore": ".env.local\n*.log\n*.rej\n",
    ".copier-answers.yml": (
        "# Yours.\n_commit: v1.0.0\n_src_path: git+file:///nowhere\n"
        "agent_name: desk\nmemory: sqlite\n"
    ),
    "src/agent/lifecycle.py": "# slow\n",
    "src/agent/memory/sqlite.py": "# rows\n",
    "src/agent/persona.py": "# mine\n",
    "uv.lock": "locked\n",
}


class Ended(NamedTuple):
    """How an update ended."""

    code: int
    out: str
    err: str


class StandIn:
    """The actions of Copier and uv, and their calls."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        script = STAND_IN.replace("{python}", shlex.quote(sys.executable))
        for name in ("uv", "python"):
            (folder / name).write_text(script, encoding="utf-8")
            (folder / name).chmod(0o755)

    def __call__(self, command: str, code: str) -> None:
        """Set the code that copier, lock, sync or pytest runs in its folder."""
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

    def __init__(self, home: Path, capsys: pytest.CaptureFixture[str] | None = None) -> None:
        self.home, self.capsys = home, capsys

    def write(self, name: str, text: str) -> None:
        (self.home / name).parent.mkdir(parents=True, exist_ok=True)
        (self.home / name).write_text(text, encoding="utf-8")

    def read(self, name: str) -> str:
        return (self.home / name).read_text(encoding="utf-8")

    def git(self, *arguments: str) -> str:
        # a look that changes nothing in .git
        command = ["git", "--no-optional-locks", *arguments]
        return subprocess.run(
            command, cwd=self.home, check=True, capture_output=True, text=True
        ).stdout.strip()

    def commit(self) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message=work")

    def files(self) -> dict[str, bytes]:
        """Every file, ignored ones too, and all that git has but for objects without a name."""
        found = [
            path
            for path in self.home.rglob("*")
            if path.is_file() and ".git/objects/" not in path.as_posix()
        ]
        files = {path.relative_to(self.home).as_posix(): path.read_bytes() for path in found}
        return files | {"status": self.git("status", "--porcelain", "--branch").encode()}

    def update(self, *arguments: str) -> Ended:
        with chdir(self.home):
            code = main(arguments)
        assert self.capsys is not None
        return Ended(code, *self.capsys.readouterr())

    def leaves_all(self, *arguments: str, code: int = 1) -> Ended:
        """Run an update that fails, and check that nothing of it is left."""
        before = self.files()
        ended = self.update(*arguments)
        assert ended.code == code, ended
        assert self.files() == before
        return ended


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the copies."""
    folder = tmp_path / "copies"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


@pytest.fixture
def does(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """A Copier that brings a fix, and a uv that does nothing."""
    for name in [name for name in os.environ if name.startswith("UV")]:
        monkeypatch.delenv(name)
    does = StandIn(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{does.folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("sys.executable", str(does.folder / "python"))
    does("copier", FIX)
    does("lock", "pathlib.Path('uv.lock').write_text('locked anew\\n')")
    return does


def fill(home: Path) -> None:
    """Write the files of an untouched project."""
    digests = "".join(
        f'"{name}" = "{hashlib.sha256(FILES[name].encode()).hexdigest()}"\n' for name in BROUGHT
    )
    ownership = f"template = {json.dumps([*BROUGHT, '.copier-answers.yml'])}\n[sha256]\n{digests}"
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
    does: StandIn,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Project]:
    """A committed project; no test leaves a worktree or a folder behind."""
    project = Project(tmp_path / "front desk", capsys)
    shutil.copytree(committed, project.home)
    project.write(".env.local", "SECRET=1\n")
    yield project
    if (project.home / ".git" / "HEAD").exists():
        assert str(folder) not in project.git("worktree", "list")
    assert list(folder.iterdir()) == []


# ---------------------------------------------------------------------- what fits


def test_an_update_that_fits_is_left_for_its_owner_to_commit(
    project: Project, does: StandIn
) -> None:
    head = project.git("rev-parse", "HEAD")
    does(
        "copier", f"{FIX}\npathlib.Path('new.py').write_text('# new\\n'); os.remove('{BROUGHT[1]}')"
    )

    ended = project.update()

    assert ended.code == 0, ended
    assert project.read("src/agent/lifecycle.py") == "# quick\n"
    assert project.read("uv.lock") == "locked anew\n"
    assert project.read("new.py") == "# new\n"
    assert not (project.home / BROUGHT[1]).exists()
    assert project.read(".env.local") == "SECRET=1\n"
    assert project.git("rev-parse", "HEAD") == head
    assert project.git("diff", "--cached") == ""
    assert "from v1.0.0 to v1.1.0" in ended.out
    assert (
        "  new      new.py\n  changed  src/agent/lifecycle.py\n"
        "  deleted  src/agent/memory/sqlite.py\n" in ended.out
    )
    assert "CHANGELOG.md of git+file:///nowhere at v1.1.0" in ended.out


def test_the_copy_is_locked_installed_and_tested_before_the_project_is_touched(
    project: Project, does: StandIn
) -> None:
    (project.home / ".venv").mkdir()
    project.write(".gitignore", FILES[".gitignore"] + ".venv/\n")
    project.commit()
    does("pytest", f"assert open({str(project.home / BROUGHT[0])!r}).read() == '# slow\\n'")

    assert project.update().code == 0

    calls = [(arguments[0], folder == project.home) for folder, arguments in does.calls()]
    assert calls == [
        ("-m", False),
        ("lock", False),
        ("sync", False),
        ("run", False),
        ("sync", True),
    ]
    assert "--inexact" in does.calls()[-1][1], "what the owner installed beside it stays"


def test_a_lock_that_is_not_committed_is_not_made(project: Project, does: StandIn) -> None:
    project.git("rm", "--quiet", "uv.lock")
    project.commit()

    assert project.update().code == 0

    assert not (project.home / "uv.lock").exists()
    assert ["lock"] not in [arguments for _, arguments in does.calls()]


def test_copier_is_given_the_version_and_the_answers_and_never_trust(
    project: Project, does: StandIn
) -> None:
    project.update("--to", "1.1.0", "-d", "memory=redis", "-d", "memory=a b=c")

    _, arguments = does.calls()[0]
    assert arguments[:6] == ["-m", "copier", "update", "--defaults", "--conflict", "inline"]
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
    project: Project, does: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {
        "GIT_DIR",
        "GIT_INDEX_FILE",
        "VIRTUAL_ENV",
        "UV_WORKING_DIR",
        "PYTHONPATH",
        "UV_FROZEN",
        "UV_ENV_FILE",
        "UV_PROJECT_ENVIRONMENT",
        "AGENT_HOME",
    }
    for name in names:
        monkeypatch.setenv(name, str(project.home / name))
    monkeypatch.setenv("GIT_SSH_COMMAND", "ssh -i key")

    check = f"assert not os.environ.keys() & {names!r} and 'GIT_SSH_COMMAND' in os.environ\n"
    for command, code in (("copier", FIX), ("lock", ""), ("sync", ""), ("pytest", "")):
        does(command, check + code)

    assert project.update().code == 0
    assert len(does.calls()) == 4

    for name in ("GIT_DIR", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name)


def test_copier_sees_none_of_the_settings_by_which_git_leaves_lines_out(
    project: Project, does: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tmp_path / "gitconfig"
    settings.write_text(
        f"[apply]\nwhitespace = error\n[core]\nattributesFile = {settings}\n"
        f"excludesFile = {settings}\n"
    )
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(settings))
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "http.proxy")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "proxy")
    asked = "said = lambda name: os.popen(f'git config {name}').read().strip()\n"
    names = ("apply.whitespace", "core.attributesFile", "core.excludesFile", "http.proxy")
    does(
        "copier",
        f"{FIX}\n{asked}assert {[*map(said_of, names)]!r} == [said(name) for name in {names!r}]",
    )

    assert project.update().code == 0


def said_of(name: str) -> str:
    """The value of a setting of git in the copy."""
    return {"apply.whitespace": "nowarn", "http.proxy": "proxy"}.get(name, os.devnull)


def test_files_that_the_owner_deleted_are_named_as_not_updated(project: Project) -> None:
    project.git("rm", "--quiet", BROUGHT[1])
    project.commit()

    assert f"Not updated, because you deleted or moved them: {BROUGHT[1]}\n" in project.update().out


def test_where_copier_brings_nothing_nothing_is_done(project: Project, does: StandIn) -> None:
    does("copier", "")

    ended = project.leaves_all(code=0)

    assert "Nothing to do: the project is at v1.0.0" in ended.out
    assert len(does.calls()) == 1


def test_a_preview_tries_everything_and_changes_nothing(project: Project, does: StandIn) -> None:
    ended = project.leaves_all("--preview", code=0)

    assert "  changed  src/agent/lifecycle.py\n" in ended.out
    assert does.calls()[-1][1] == ["run", "pytest"]
    does("pytest", "sys.exit(1)")
    project.leaves_all("--preview", code=1)


def test_what_takes_long_is_said_while_it_goes_on(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent_update.processes.SILENT_SECONDS", 0)

    said = project.update().err.splitlines()

    assert "rendering the update in a copy of the project ..." in said
    assert "installing the updated copy ..." in said


def printed(ended: Ended, title: str) -> list[str]:
    """The git commands, without `git`, that are printed under a title."""
    (line,) = [line for line in ended.out.splitlines() if line.startswith(title)]
    return [part.strip().removeprefix("git ") for part in line.partition(":")[2].split("&&")]


def test_a_new_file_that_the_owner_has_git_ignore_is_committed_or_undone_with_the_rest(
    project: Project, does: StandIn
) -> None:
    does("copier", FIX + "pathlib.Path('ex ä.log').write_bytes(bytes(range(256)))")
    before = {name: text for name, text in project.files().items() if ".git/" not in name}

    ended = project.update()

    assert ended.code == 0, ended
    assert "Staged already, because you have git ignore it: ex ä.log\n" in ended.out
    (undo,) = printed(ended, "Undo it")
    project.git(*shlex.split(undo))
    assert {name: text for name, text in project.files().items() if ".git/" not in name} == before

    assert project.update().code == 0
    project.git(*shlex.split(printed(ended, "Review it")[0]))
    project.git("commit", "--quiet", "--message=update")
    assert (project.home / "ex ä.log").read_bytes() == bytes(range(256))
    assert "ex ä.log" in project.git("-c", "core.quotePath=off", "ls-files")


def test_a_file_of_the_templates_that_is_in_no_commit_is_named(project: Project) -> None:
    project.git("rm", "--quiet", "--cached", BROUGHT[1])
    project.write(".gitignore", FILES[".gitignore"] + f"{BROUGHT[1]}\n")
    project.commit()

    assert f"git ignores them: run `git add --force {BROUGHT[1]}`" in project.update().out


def test_a_project_may_be_a_folder_of_a_repository(
    project: Project, does: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    inner = Project(project.home / "apps" / "desk", capsys)
    fill(inner.home)
    project.commit()
    project.write("unrelated.txt", "not committed\n")
    does("copier", FIX + unmerged(BROUGHT[0]))
    assert "\n  src/agent/lifecycle.py was changed" in inner.leaves_all().err
    does("copier", FIX)

    assert inner.update().code == 0

    assert inner.read("src/agent/lifecycle.py") == "# quick\n"
    assert inner.read("uv.lock") == "locked anew\n"
    assert project.read("src/agent/lifecycle.py") == "# slow\n"
    (tested,) = (folder for folder, arguments in does.calls() if "pytest" in arguments)
    assert tested.parts[-2:] == ("apps", "desk")


def test_the_lock_of_a_workspace_is_listed_committed_and_undone_with_its_member(
    project: Project, does: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    inner = Project(project.home / "apps" / "desk", capsys)
    fill(inner.home)
    (inner.home / "uv.lock").unlink()
    project.commit()
    does("lock", "pathlib.Path('../../uv.lock').write_text('locked anew\\n')")
    before = {name: text for name, text in project.files().items() if ".git/" not in name}

    ended = inner.update()

    assert "  changed  ../../uv.lock\n" in ended.out
    (undo,) = printed(ended, "Undo it")
    inner.git(*shlex.split(undo))
    assert {name: text for name, text in project.files().items() if ".git/" not in name} == before

    ended = inner.update()
    inner.git(*shlex.split(printed(ended, "Review it")[0]))
    assert project.git("diff", "--name-only") == ""
    assert "uv.lock" in project.git("diff", "--cached", "--name-only").splitlines()
    inner.git("commit", "--quiet", "--message=update")
    project.write("uv.lock", "mine\n")
    assert "uv.lock is not committed" in refused(inner)


# ---------------------------------------------------------------------- what does not fit


def unmerged(name: str) -> str:
    """Change the index like Copier for a file that it cannot merge; the path is from the top."""
    return f"""
name, top = {name!r}, os.popen("git rev-parse --show-toplevel").read().strip()
blob = os.popen(f"git rev-parse HEAD:{{name}}").read().strip()
with os.popen(f"git -C '{{top}}' update-index --index-info", "w") as git:
    for entry in (f"0 {"0" * 40}", f"100644 {{blob}} 1", f"100644 {{blob}} 2"):
        git.write(f"{{entry}}\\t{{name}}\\n")
"""


def test_a_file_that_git_calls_unmerged_is_a_conflict_without_markers_too(
    project: Project, does: StandIn
) -> None:
    does("copier", FIX + unmerged(BROUGHT[0]))

    ended = project.leaves_all()

    assert "src/agent/lifecycle.py was changed by you and by the template" in ended.err
    assert len(does.calls()) == 1


def test_a_rejected_hunk_is_a_conflict_also_where_git_ignores_it(
    project: Project, does: StandIn
) -> None:
    does(
        "copier",
        FIX + "pathlib.Path('pyproject.toml.rej').write_text('@@ -1 +1 @@\\n-old\\n+new\\n')",
    )

    ended = project.leaves_all()

    assert "pyproject.toml has no place for your change" in ended.err


def test_a_changed_file_is_not_deleted_in_silence(project: Project, does: StandIn) -> None:
    project.write(BROUGHT[1], "# rows, and a fix of mine\n")
    project.commit()
    does("copier", f"{FIX}\nos.remove('{BROUGHT[1]}')")

    assert "src/agent/memory/sqlite.py was changed by you" in project.leaves_all().err


def test_a_file_that_is_not_the_templates_is_not_deleted_in_silence(
    project: Project, does: StandIn
) -> None:
    does("copier", f"{FIX}\nos.remove('src/agent/persona.py')")

    assert "src/agent/persona.py is not one of the template's files" in project.leaves_all().err


@pytest.mark.parametrize("command", ["pytest", "lock", "sync"])
def test_what_fails_in_the_copy_does_not_reach_the_project(
    project: Project, does: StandIn, command: str
) -> None:
    does(command, "print('E   assert 1 == 2', flush=True); sys.exit('the last word')")

    ended = project.leaves_all()

    assert "E   assert 1 == 2" in ended.err
    assert ended.err.endswith("the last word\n")


def test_an_answer_to_no_question_of_the_template_fails(project: Project) -> None:
    ended = project.leaves_all("-d", "memmory=redis")

    assert "no question memmory, only agent_name, memory" in ended.err


def test_an_ignored_file_in_the_way_stops_the_whole_update(project: Project, does: StandIn) -> None:
    does("copier", FIX + "pathlib.Path('audit.log').write_text('the template\\n')")
    project.write("audit.log", "the owner\n")

    assert "audit.log: already exists" in project.leaves_all().err


@pytest.mark.parametrize(
    ("there", "new"), [("ops", "ops/run.py"), ("ops/run.py/mine", "ops/run.py")]
)
def test_what_git_finds_in_its_way_half_way_through_undoes_what_it_has_done(
    project: Project, does: StandIn, there: str, new: str
) -> None:
    project.write(".gitignore", FILES[".gitignore"] + "ops\n")
    project.commit()
    code = f"\nos.remove('{BROUGHT[1]}')\nos.mkdir('ops')\n"
    code += f"pathlib.Path('{new}').write_text('the template')"
    does("copier", FIX + code)
    project.write(there, "the owner\n")

    assert "cannot be applied to the project, which is as it was" in project.leaves_all().err


def test_work_that_is_done_meanwhile_is_left_alone(project: Project, does: StandIn) -> None:
    does("pytest", f"open({str(project.home / 'meanwhile.py')!r}, 'w').write('# mine')")

    ended = project.update()

    assert ended.code == 1
    assert "changed while" in ended.err
    assert project.git("status", "--porcelain") == "?? meanwhile.py"


def test_no_password_of_the_templates_address_is_shown(project: Project, does: StandIn) -> None:
    project.write(
        ".copier-answers.yml",
        "_commit: v1.0.0\n_src_path: https://ann:hunter2@localhost:1/template.git\n"
        "agent_name: desk\n",
    )
    project.commit()
    does("copier", "sys.exit('fatal: no https://ann:hunter2@localhost:1/template.git')")

    ended = project.leaves_all()

    assert "hunter2" not in ended.out + ended.err
    assert "https://***@localhost:1/template.git" in ended.err


def update_with_signals(
    project: Project, does: StandIn, number: signal.Signals, *, ignored: bool
) -> subprocess.CompletedProcess[str]:
    """Run the updater; the project's tests send it a signal, and go on until they are ended.

    A shell that is not interactive has its background jobs ignore SIGINT, so it is set here.
    """
    wait = "" if ignored else "signal.pause()"
    does("pytest", f"import signal; os.kill(os.getppid(), {int(number)}); {wait}")
    code = (
        f"import signal, sys; sys.executable = {str(does.folder / 'python')!r}\n"
        "from agent_update.__main__ import main; sys.exit(main())"
    )
    handler = signal.SIG_IGN if ignored else signal.SIG_DFL
    return subprocess.run(
        [REAL_PYTHON, "-c", code],
        cwd=project.home,
        env={**os.environ, "PYTHONPATH": str(ROOT / "updater")},
        preexec_fn=lambda: signal.signal(number, handler),
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_leaves_nothing_behind(
    project: Project, does: StandIn, number: signal.Signals, code: int
) -> None:
    before = project.files()

    ended = update_with_signals(project, does, number, ignored=False)

    assert ended.returncode == code, ended
    assert ended.stderr == ""
    assert project.files() == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_that_was_ignored_at_the_start_stays_ignored(
    project: Project, does: StandIn, number: signal.Signals
) -> None:
    ended = update_with_signals(project, does, number, ignored=True)

    assert ended.returncode == 0, ended
    assert project.read("src/agent/lifecycle.py") == "# quick\n"


@pytest.mark.parametrize("arguments", [["--preview"], []], ids=["preview", "update"])
def test_a_work_tree_that_is_away_for_a_while_keeps_its_commits(
    project: Project, tmp_path: Path, arguments: list[str]
) -> None:
    project.git("worktree", "add", "--quiet", "--detach", str(tmp_path / "there"))
    there = Project(tmp_path / "there")
    there.write("detached.txt", "in no branch\n")
    there.commit()
    there.write("staged.txt", "in no commit\n")
    there.git("add", "--all")
    away = there.home.rename(tmp_path / "away")

    assert project.update(*arguments).code == 0

    away.rename(there.home)
    assert there.git("status", "--porcelain") == "A  staged.txt"
    assert there.git("show", "HEAD:detached.txt") == "in no branch"


def test_an_edit_that_git_does_not_see_is_not_undone(project: Project, does: StandIn) -> None:
    """Marked while the update was tried, so that it is found when the patch is applied."""
    mark = f"git -C '{project.home}' update-index --assume-unchanged {BROUGHT[0]}"
    edit = f"open({str(project.home / BROUGHT[0])!r}, 'a').write('# mine\\n')"
    does("pytest", f"os.system({mark!r}); {edit}")

    ended = project.update()

    assert ended.code == 1
    assert "which is as it was" in ended.err
    assert project.read(BROUGHT[0]) == "# slow\n# mine\n"
    assert project.read("uv.lock") == "locked\n"


# ---------------------------------------------------------------------- what has to be right before


def refused(project: Project, *arguments: str) -> str:
    """The one line that says why nothing has begun."""
    ended = project.update(*arguments)
    assert ended.code == 2, ended
    assert ended.err.startswith("agent: ")
    assert ended.err.count("\n") == 1
    return ended.err


def test_work_that_is_not_committed_is_refused_and_named(project: Project, does: StandIn) -> None:
    project.write("notes.txt", "not committed\n")
    assert "notes.txt is not committed" in refused(project)
    project.write(BROUGHT[0], "# changed\n")
    assert "src/agent/lifecycle.py and 1 more are not committed" in refused(project)
    assert does.calls() == []


@pytest.mark.parametrize(
    ("mark", "name"), [("assume-unchanged", BROUGHT[0]), ("skip-worktree", "uv.lock")]
)
def test_a_file_whose_edits_git_does_not_see_is_refused(
    project: Project, does: StandIn, mark: str, name: str
) -> None:
    project.git("update-index", f"--{mark}", "--", name, "src/agent/persona.py")
    project.write(name, "# mine\n")

    said = refused(project)

    assert f"{name} is marked as {mark}, so that git sees no edit there" in said
    assert project.read(name) == "# mine\n"
    cure = said.split("`")[3]
    assert cure.startswith("git update-index")
    project.git(*shlex.split(cure)[1:])
    assert f"{name} is not committed" in refused(project)
    assert does.calls() == []


def test_an_edit_that_gits_file_monitor_has_missed_is_found(
    project: Project, tmp_path: Path
) -> None:
    monitor = tmp_path / "monitor"
    monitor.write_text("#!/bin/sh\nprintf 'token\\0'\n")
    monitor.chmod(0o755)
    project.git("config", "core.fsmonitor", str(monitor))
    project.git("update-index", "--fsmonitor")
    project.git("update-index", "--fsmonitor-valid", BROUGHT[0])
    project.write(BROUGHT[0], "# mine\n")
    assert project.git("status", "--porcelain") == ""
    assert f"{BROUGHT[0]} is not committed" in refused(project)


@pytest.mark.parametrize(
    "content", [b"# caf\xe9\n", "# a\n".encode("utf-16-le")], ids=["latin-1", "utf-16"]
)
def test_a_file_that_copier_would_mangle_is_refused(
    project: Project, does: StandIn, content: bytes
) -> None:
    (project.home / BROUGHT[0]).write_bytes(content)
    project.commit()
    assert "src/agent/lifecycle.py is not UTF-8 text" in refused(project)
    assert does.calls() == []


def test_an_unfinished_merge_is_refused(project: Project) -> None:
    project.write(".git/MERGE_HEAD", project.git("rev-parse", "HEAD"))
    assert "in the middle of a merge or the like (MERGE_HEAD): finish it" in refused(project)


def test_a_folder_without_a_repository_or_a_commit_is_refused(project: Project) -> None:
    project.git("update-ref", "-d", "HEAD")
    assert "is committed (fatal: ambiguous argument 'HEAD'" in refused(project)
    shutil.rmtree(project.home / ".git")
    said = refused(project)
    assert "is committed (fatal: not a git repository" in said
    assert "run `git init" in said


def test_a_link_to_a_repository_that_is_away_is_no_reason_to_begin_another(
    project: Project,
) -> None:
    (project.home / ".git").rename(project.home.parent / "away")
    project.write(".git", f"gitdir: {project.home.parent / 'there'}\n")
    said = refused(project)
    assert "git init" not in said
    assert f"put {project.home / '.git'} right" in said
    assert "git worktree repair" in said
    (project.home.parent / "away").rename(project.home.parent / "there")
    (project.home.parent / "there" / "refs/heads/main").write_text("")
    assert "git init" not in refused(project)


@pytest.mark.parametrize("name", [".copier-answers.yml", ".template.toml", BROUGHT[0]])
def test_a_conflict_that_was_committed_is_refused(project: Project, name: str) -> None:
    text = project.read(name)
    project.write(name, f"<<<<<<< HEAD\n{text}=======\n{text}>>>>>>> main\n")
    project.commit()
    assert f"{name} has conflict markers (<<<<<<<): finish that merge" in refused(project)


def test_the_answers_to_another_template_are_not_those_to_this_one(
    project: Project, does: StandIn
) -> None:
    ours = FILES[".copier-answers.yml"]
    project.write(".copier-answers.yml", "_commit: v7.0.0\n_src_path: gh:other/one\n")
    project.commit()
    assert "has the answers to another template" in refused(project)
    project.write(".copier-answers.agent.yml", ours)
    # another one may ask the same
    project.write(
        ".copier-answers.yml", "_commit: v7.0.0\n_src_path: gh:other/one\nagent_name: bob\n"
    )
    project.commit()
    does("copier", FIX.replace(".copier-answers.yml", ".copier-answers.agent.yml"))

    ended = project.update()

    assert "from v1.0.0 to v1.1.0" in ended.out
    arguments = does.calls()[0][1]
    assert arguments[arguments.index("--answers-file") + 1] == ".copier-answers.agent.yml"
    assert "v7.0.0" in project.read(".copier-answers.yml")


@pytest.mark.parametrize("table", ["", '[answers]\nagent_name = "desk"\nmemory = "sqlite"\n'])
def test_an_answer_that_was_changed_by_hand_is_refused(
    project: Project, does: StandIn, table: str
) -> None:
    ownership = project.read(".template.toml")
    project.write(".template.toml", f"{ownership}{table}")
    project.write(
        ".copier-answers.yml", f"{FILES['.copier-answers.yml']}".replace("sqlite", "redis")
    )
    project.commit()

    said = refused(project)

    assert "says memory: redis, but the project was made with sqlite" in said
    assert "`agent update -d memory=redis`" in said
    assert does.calls() == []


def test_what_a_project_was_made_with_is_known_of_every_release(template: Template) -> None:
    for version in [*released(), WORK_TREE]:
        name = f"{version}:template/.template.toml.jinja"
        source = quick.ENVIRONMENT.from_string(git(template.path, "show", name))
        for chosen in cases_of(configuration(template, version)):
            ownership = tomllib.loads(source.render(quick.settle(**chosen)))
            made = made_with({"template": ownership.get("ours", []), **ownership})
            assert {"knowledge", "memory"} <= made.keys()
            assert made == {key: chosen.get(key, "my-agent") for key in made}, version


@pytest.mark.parametrize(
    ("version", "newest", "brings"),
    [
        ("v1.0.0", "v1.0.0", False),
        ("v1.0.0-3-gabc1234", "v1.0.0", False),
        ("v1.0.0-3-gabc1234", "v1.0.1", True),
        ("v1.1.0rc1", "v1.0.0", False),
        ("v1.1.0-rc.1", "v1.1.0", True),
        ("v1.1.0rc1-2-gabc1234", "v1.1.0", True),
        ("abc1234", "v1.0.0", True),
    ],
)
def test_what_is_not_older_than_the_newest_release_has_nothing_to_update(
    project: Project, does: StandIn, tmp_path: Path, version: str, newest: str, brings: bool
) -> None:
    template = Project(tmp_path / "template")
    template.write("copier.yml", "")
    template.git("init", "--quiet")
    template.commit()
    template.git("tag", newest)
    project.write(
        ".copier-answers.yml",
        f"_commit: {version}\n_src_path: {template.home}\nagent_name: desk\nmemory: sqlite\n",
    )
    project.commit()

    ended = project.update("--preview")

    assert ended.code == 0, ended
    assert bool(does.calls()) == brings
    if not brings:
        assert f"Nothing to do: the project is at {version}" in ended.out
        project.update("-d", "memory=sqlite")
        assert ":current:" in does.calls()[0][1]


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
    assert ".copier-answers.yml is missing, or ignored by git" in refused(project)
    (project.home / ".copier-answers.yml").unlink()
    assert ".copier-answers.yml is missing" in refused(project)
    (project.home / ".template.toml").unlink()
    assert "is in no project of the template" in refused(project)


@pytest.mark.parametrize(
    "source", ["'gh:somebody/template'", "git@example.com:a/b.git", "/srv/template", "~/template"]
)
def test_an_address_or_a_whole_path_is_a_source(project: Project, source: str) -> None:
    project.write(
        ".copier-answers.yml", f"_commit: v1.0.0\n_src_path: {source}\nagent_name: desk\n"
    )
    project.commit()
    assert project.update("--preview").code == 0


@pytest.mark.parametrize("answer", ["memory", "=redis", "--trust"])
def test_an_answer_that_is_none_is_refused(project: Project, answer: str) -> None:
    assert f"-d {answer}: write a question and its answer" in refused(project, f"--data={answer}")


# ---------------------------------------------------------------------- with the real Copier

CONFIG = """\
_subdirectory: template
_exclude: ["{% if memory == 'none' %}/src/agent/memory{% endif %}"]
agent_name:
  type: str
  default: desk
memory:
  type: str
  choices: [sqlite, none]
  default: sqlite
"""
PODS = """\
spec:
  template:
    spec:
      fsGroup: 10001
      containers:
        - name: desk
          image: desk
"""
TEMPLATE = {
    "copier.yml": CONFIG,
    "template/{{ _copier_conf.answers_file }}.jinja": "{{ _copier_answers | to_nice_yaml -}}\n",
    "template/src/agent/lifecycle.py": "# one\n# two\n# three\n# four\n# slow\n",
    "template/src/agent/settings.py": "# 1\n# 2\n# 3\n# 4\n# 5\n# 6\n# 7\n# 8\n# 9\n",
    "template/src/agent/memory/sqlite.py": "# rows\n",
    "template/deploy/kubernetes.yaml": "kind: Deployment\n" + PODS,
}
# the name changed with v0.5.0
KEYS = {"v1.0.0": "ours", "v1.1.0": "template"}


def release(template: Project, version: str, moved: str = "") -> None:
    """Commit and tag a release of the small template."""
    root = template.home / "template"
    names = {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*.py")
    }
    brought = json.dumps([*names, ".copier-answers.yml", ".template.toml"])
    hashes = "".join(f'"{name}" = "{digest}"\n' for name, digest in names.items())
    text = f"{KEYS[version]} = {brought}\n[sha256]\n{hashes}\n[moved]\n{moved}"
    template.write("template/.template.toml", text)
    template.commit()
    template.git("tag", "--annotate", "--message", version, version)


@pytest.fixture(scope="module")
def small_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A template with two releases: the second fixes a line, moves a file and adds a Job.

    And with a stray tag.
    """
    home = tmp_path_factory.mktemp("small") / "template repository"
    home.mkdir()
    template = Project(home)
    template.git("init", "--quiet", "--initial-branch=main")
    for name, text in TEMPLATE.items():
        template.write(name, text)
    release(template, "v1.0.0")
    template.write(
        "template/src/agent/settings.py",
        TEMPLATE["template/src/agent/settings.py"].replace("# 5", "# five"),
    )
    (home / "template/src/agent/lifecycle.py").unlink()
    template.write(
        "template/src/agent/lifecycle/call.py", "# one\n# two\n# three\n# four\n# quick\n"
    )
    template.write(
        "template/deploy/kubernetes.yaml", f"kind: Job\n{PODS}---\nkind: Deployment\n{PODS}"
    )
    release(template, "v1.1.0", '"src/agent/lifecycle.py" = "src/agent/lifecycle/call.py"\n')
    template.write("copier.yml", "this is no template\n")
    template.commit()
    template.git("tag", "20261127")
    return home


@pytest.fixture
def rendered(
    small_template: Path, tmp_path: Path, project: Project, monkeypatch: pytest.MonkeyPatch
) -> Project:
    """A project of the first release, which the real Copier has made and will update."""
    monkeypatch.setattr("sys.executable", REAL_PYTHON)
    rendered = Project(tmp_path / "rendered", project.capsys)
    copier.run_copy(str(small_template), rendered.home, vcs_ref="v1.0.0", defaults=True, quiet=True)
    rendered.git("init", "--quiet", "--initial-branch=main")
    rendered.commit()
    return rendered


def test_the_newest_release_arrives_and_a_stray_tag_is_none(rendered: Project) -> None:
    rendered.write("src/agent/settings.py", rendered.read("src/agent/settings.py") + "# mine\n")
    rendered.write("notes.md", "<<<<<<< before updating\n")
    # the Job that comes looks like it, and stands above it
    mine = PODS.replace("10001\n", "10001\n      supplementalGroups: [2000]\n")
    rendered.write("deploy/kubernetes.yaml", f"kind: Deployment\n{mine}")
    rendered.commit()

    ended = rendered.update()

    assert ended.code == 0, ended
    assert "from v1.0.0 to v1.1.0" in ended.out
    assert "# five\n" in rendered.read("src/agent/settings.py")
    assert rendered.read("src/agent/settings.py").endswith("# mine\n")
    pods = f"kind: Job\n{PODS}---\nkind: Deployment\n{mine}"
    assert rendered.read("deploy/kubernetes.yaml") == pods
    assert rendered.read("src/agent/lifecycle/call.py").endswith("# quick\n")
    assert not (rendered.home / "src/agent/lifecycle.py").exists()
    rendered.commit()
    assert "Nothing to do: the project is at v1.1.0" in rendered.leaves_all(code=0).out


def test_a_changed_file_that_has_moved_stops_the_update_and_its_new_place_is_named(
    rendered: Project,
) -> None:
    rendered.write("src/agent/lifecycle.py", "# mine\n")
    rendered.commit()

    ended = rendered.leaves_all()

    assert (
        "\n  src/agent/lifecycle.py is now src/agent/lifecycle/call.py: put your change there\n"
        in ended.err
    )
    rendered.git("rm", "--quiet", "src/agent/lifecycle.py")
    rendered.commit()
    assert rendered.update().code == 0
    assert rendered.read("src/agent/lifecycle/call.py").endswith("# quick\n")
    assert rendered.git("show", "HEAD~1:src/agent/lifecycle.py") == "# mine"


def test_the_lines_that_both_have_changed_are_shown(rendered: Project) -> None:
    text = rendered.read("src/agent/settings.py")
    rendered.write("src/agent/settings.py", text.replace("# 5", "# mine"))
    rendered.write("src/agent/lifecycle.py", "# mine\n")
    rendered.commit()

    ended = rendered.leaves_all()

    assert "src/agent/settings.py was changed by you and by the template" in ended.err
    assert "     +# mine\n    ++=======\n    + # five\n" in ended.err
    assert "src/agent/lifecycle.py is now" in ended.err, "both problems are named at once"


def test_a_changed_file_of_an_option_that_is_switched_off_is_not_deleted(rendered: Project) -> None:
    rendered.write("src/agent/memory/sqlite.py", "# rows, and a fix of mine\n")
    rendered.commit()

    ended = rendered.leaves_all("--to", ":current:", "-d", "memory=none")

    assert "src/agent/memory/sqlite.py was changed by you, and would be deleted" in ended.err


def test_of_copiers_refusal_its_own_last_words_are_shown(rendered: Project) -> None:
    ended = rendered.leaves_all("-d", "memory=paper")

    assert "Copier cannot update, and the project is as it was:" in ended.err
    assert "Invalid choice" in ended.err
    assert "Traceback" not in ended.err
