"""`agent update`: a newer template is tried in a copy of the project; only what fits and passes reaches the project."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from agent.cli.terminal import busy
from agent.cli.terminal import report as tell
from agent.settings import find_home

COPIER = "copier>=9.15,<10"
ANSWERS = ".copier-answers.yml"
OWNERSHIP = ".template.toml"
UNMERGED = {"DD", "AU", "UD", "UA", "DU", "AA", "UU"}  # as `git status --porcelain` marks them
# What points git at another repository, and uv at another project: a hook or `uv run` sets them. The rest of GIT_*
# stays: certificates, ssh and credentials are needed to reach a template.
ELSEWHERE = {
    *(
        "GIT_DIR",
        "GIT_WORK_TREE",
        "GIT_INDEX_FILE",
        "GIT_OBJECT_DIRECTORY",
        "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    ),
    *("GIT_COMMON_DIR", "GIT_NAMESPACE", "GIT_PREFIX", "GIT_DIFF_OPTS"),
    *("VIRTUAL_ENV", "UV_PROJECT", "UV_WORKING_DIR", "PYTHONPATH", "AGENT_HOME"),
    # what would keep uv from locking, installing and testing the copy as the project has it
    *("UV_FROZEN", "UV_LOCKED", "UV_ENV_FILE", "UV_NO_DEV", "UV_NO_DEFAULT_GROUPS", "UV_NO_SYNC"),
}
# How git is in the copy, whatever its owner has set: Copier takes the owner's lines from git's diff and has git put
# them back, and notices nothing when a setting makes git leave some out. Hooks are for checkouts of the owner's.
IN_THE_COPY = {
    "apply.whitespace": "nowarn",
    "core.attributesFile": os.devnull,
    "core.excludesFile": os.devnull,
    "core.hooksPath": os.devnull,
    "core.fsmonitor": "false",
    "status.showUntrackedFiles": "all",
}
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PATIENCE = 10.0  # seconds that a command may take to end when this one has to
IN_PROGRESS = ("MERGE_HEAD", "CHERRY_PICK_HEAD", "REVERT_HEAD", "rebase-merge", "rebase-apply")
PLAIN = (
    "--no-renames",
    "--no-ext-diff",
    "--no-textconv",
    "--no-color",
    "--src-prefix=a/",
    "--dst-prefix=b/",
)
SHOWN_FILES = 40
SHOWN_LINES = 20
LAST_WORDS = 12
TEST_LINES = 40
DONE = {"A": "new", "D": "deleted"}
BY_HAND = "or run `uvx copier update` and resolve it by hand: docs/agent/ownership.md says how"
CURE = (
    "The project is as it was. Move your change to persona.py, resources.py, a file of your own or below a shared"
    f" file's mark,\nput the template's lines back, commit, and update again; {BY_HAND}."
)


class UpdateRefused(Exception):
    """Nothing was begun: something has to be put right first."""


class UpdateFailed(Exception):
    """It was tried and does not work; the message says what became of the project."""


@dataclass(frozen=True)
class Project:
    """A committed project: a repository, or a folder in one."""

    top: Path  # of the repository
    inside: Path  # the project in it; "." if it is the whole of it
    head: str
    answers: dict[str, str]
    ownership: dict[str, Any]

    @property
    def home(self) -> Path:
        """The project's folder."""
        return self.top / self.inside


@dataclass(frozen=True)
class Outcome:
    """What an update comes to: the changes by file, as one patch."""

    version: str
    files: dict[str, str]  # path in the project: A, M, T or D
    patch: bytes
    shipped: list[str]  # what the template brings and updates


def update(to: str | None, data: Sequence[str], *, preview: bool) -> int:
    """Update the project, or only say what that would change; 0, 1 if it does not fit, 2 if nothing was begun."""
    try:
        with orderly():
            run_update(to, data, preview=preview)
    except UpdateRefused as refusal:
        tell(f"agent: {masked(str(refusal))}")
        return 2
    except UpdateFailed as failure:
        tell(f"agent: {masked(str(failure))}")
        return 1
    return 0


def run_update(to: str | None, data: Sequence[str], *, preview: bool) -> None:
    """Try it, then do it; raises UpdateRefused and UpdateFailed."""
    uv = find_tools(data)
    project = examine(find_home())
    before = project.answers["_commit"]
    with preview_of(project) as folder:
        with busy("rendering the update in a copy of the project"):
            outcome = render(uv, project, folder, to, data)
        if not outcome.files:
            print(f"Nothing to do: the project is at {before}, and nothing newer is asked for.")
            return
        with busy("installing the updated copy"):
            run(
                [uv, "sync"],
                folder,
                "Its dependencies cannot be installed, and the project is as it was.",
            )
        with busy(
            "running the project's tests in the updated copy; this takes as long as `uv run pytest`"
        ):
            run([uv, "run", "pytest"], folder, failed_tests(outcome.version), lines=TEST_LINES)
    way = f"from {before} to {outcome.version}" if outcome.version != before else f"at {before}"
    if preview:
        print(f"The update {way} fits and passes the project's tests. It would bring:")
        print(listing(outcome.files))
        print("Nothing was changed. `agent update` without --preview does it.")
        return
    with busy("updating the project"):
        put_into(project, outcome)
    print(f"Updated {way}, not committed yet:")
    print(listing(outcome.files))
    if changelog := changelog_of(project.answers["_src_path"], outcome.version):
        print(f"What is new: {masked(changelog)}")
    if unreached := [name for name in outcome.shipped if not is_plain(project.home / name)]:
        print(f"Not updated, because you deleted or moved them: {', '.join(unreached)}")
    if ignored := [
        name
        for name, kind in outcome.files.items()
        if kind == "A" and is_ignored(project.home, name)
    ]:
        print(
            f"Your .gitignore hides what is new, so add it by force: git add --force {shlex.join(ignored)}"
        )
    print(
        "Review it:  git add --all -- . && git diff --cached\nKeep it:    git commit -m 'Update the template'"
    )
    print("Undo it:    git stash --include-untracked -- .")
    if (project.home / os.environ.get("UV_PROJECT_ENVIRONMENT", ".venv")).is_dir():
        with busy(
            "installing the updated project"
        ):  # inexact: groups that the owner installed beside it stay
            problem = "The update is in the project, but its dependencies could not be installed: run `uv sync`."
            run([uv, "sync", "--inexact"], project.home, problem, environment=clean_environment())


# ---------------------------------------------------------------------- what has to be right before


def find_tools(data: Sequence[str]) -> str:
    """Where uv is; refuses without it or git, or if an answer is none."""
    for answer in data:
        if not re.fullmatch(r"[A-Za-z]\w*=.*", answer):
            raise UpdateRefused(
                f"-d {answer}: write a question and its answer, such as -d memory=redis"
            )
    if not shutil.which("git"):
        raise UpdateRefused(
            "there is no git here: update in a checkout of the project, where git is installed"
        )
    uv = shutil.which("uv") or os.environ.get("UV")  # `uv run` says where it is
    if not uv:
        raise UpdateRefused(
            "there is no uv here, which installs and runs Copier: see https://docs.astral.sh/uv"
        )
    return uv


def examine(home: Path) -> Project:
    """The project, of which everything is committed; refuses otherwise."""
    asked = git_says(home, "rev-parse", "--show-toplevel")
    if asked.returncode:
        complaint = last_words(asked.stderr, 1)
        if "not a git repository" in complaint:
            cure = "run `git init && git add --all && git commit -m start` there, so that an update can be undone"
            raise UpdateRefused(f"{home} is in no git repository: {cure}")
        raise UpdateRefused(f"git refuses {home}: {complaint}")
    top = Path(os.fsdecode(asked.stdout).removesuffix("\n")).resolve()
    answers = read_answers(home)
    if not answers.get("_commit") or not answers.get("_src_path"):
        cure = (
            "restore it from version control; a project that has left its template has no updates"
        )
        raise UpdateRefused(
            f"{home / ANSWERS} is missing, or does not say which version of which template: {cure}"
        )
    source = answers["_src_path"]
    if not re.match(r"[^/]+:|/|~", source):  # an address, or a path that means the same everywhere
        cure = "write an address or a whole path there, such as gh:OWNER/REPO, and commit it"
        raise UpdateRefused(f"{home / ANSWERS} has the relative _src_path {source}: {cure}")
    ownership = read_ownership(home)
    if ownership is None:
        raise UpdateRefused(f"{home / OWNERSHIP} cannot be read: restore it from version control")
    head = git_says(home, "rev-parse", "--verify", "--quiet", "HEAD")
    if head.returncode:
        raise UpdateRefused(
            f"nothing is committed in {top}: run `git add --all && git commit -m start` first"
        )
    for name in IN_PROGRESS:
        if (
            home / os.fsdecode(git(home, "rev-parse", "--git-path", name)).removesuffix("\n")
        ).exists():
            raise UpdateRefused(
                f"{top} is in the middle of a merge or the like ({name}): finish it, then update"
            )
    if dirty := status(home):
        others = f" and {len(dirty) - 1} more are" if len(dirty) > 1 else " is"
        raise UpdateRefused(
            f"{dirty[0][1]}{others} not committed: commit or stash your work, then update"
        )
    for name in (ANSWERS, OWNERSHIP):
        if git_says(home, "ls-files", "--error-unmatch", "--", name).returncode:
            raise UpdateRefused(
                f"{home / name} is ignored by git: run `git add --force {name}` and commit it"
            )
    for name in (*ownership.get("ours", []), *ownership.get("shared", [])):
        if not is_text(home / name):
            cure = "save it as UTF-8 and commit it"
            raise UpdateRefused(
                f"{home / name} holds bytes that are no UTF-8 text, which Copier would drop: {cure}"
            )
    return Project(
        top, home.resolve().relative_to(top), head.stdout.decode().strip(), answers, ownership
    )


def is_text(path: Path) -> bool:
    """Whether a file can be merged as text; what is not there can."""
    try:
        return not path.is_file() or "\0" not in path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return False


def is_plain(path: Path) -> bool:
    """Whether there is a file of its own; Copier leaves out what is deleted, and what lies behind a link."""
    return path.is_file() and not path.is_symlink()


def is_ignored(home: Path, name: str) -> bool:
    """Whether `git add` would leave a file out."""
    return git_says(home, "check-ignore", "--quiet", "--no-index", "--", name).returncode == 0


def read_answers(home: Path) -> dict[str, str]:
    """The scalars of the answers file, as Copier writes them; empty if it cannot be read."""
    try:
        text = (home / ANSWERS).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return {}
    answers = {}
    for name, value in re.findall(r"^(\w+):[ \n]*(.*(?:\n +.*)*)$", text, re.MULTILINE):
        line = " ".join(part.strip() for part in value.splitlines())
        if line.startswith("'"):
            line = line[1:-1].replace("''", "'")
        answers[name] = line[1:-1] if line.startswith('"') else line
    return answers


def read_ownership(home: Path) -> dict[str, Any] | None:
    """What `.template.toml` says about whose each file is; None if it cannot be read."""
    try:
        return tomllib.loads((home / OWNERSHIP).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        return None


# ---------------------------------------------------------------------- the preview


@contextlib.contextmanager
def preview_of(project: Project) -> Iterator[Path]:
    """The project in a worktree of its own, which is gone afterwards, however it ends."""
    folder = Path(tempfile.mkdtemp(prefix="agent-update-")).resolve()
    tree = folder / project.top.name
    try:
        with busy("copying the project"):
            git_says(project.top, "worktree", "prune")  # of an update that was killed
            git(
                project.top,
                "worktree",
                "add",
                "--quiet",
                "--detach",
                str(tree),
                project.head,
                copy=True,
            )
        yield tree / project.inside
    finally:
        with ignoring(*SIGNALS):
            removed = git_says(project.top, "worktree", "remove", "--force", "--force", str(tree))
            shutil.rmtree(folder, ignore_errors=True)
            if removed.returncode:
                git_says(project.top, "worktree", "prune")


def render(uv: str, project: Project, folder: Path, to: str | None, data: Sequence[str]) -> Outcome:
    """Have Copier update the copy; raises UpdateFailed for all that the owner has to decide."""
    command = [
        uv,
        "tool",
        "run",
        "--from",
        COPIER,
        "copier",
        "update",
        "--defaults",
        "--conflict",
        "inline",
    ]
    if to:
        command += ["--vcs-ref", f"v{to}" if re.fullmatch(r"\d+(\.\d+)+", to) else to]
    for answer in data:
        command += ["--data", answer]
    problem = "Copier cannot update, and the project is as it was:"
    run(command, folder, problem, environment=environment_of_the_copy())

    answers = read_answers(folder)
    version = answers.get("_commit", "")
    for name in (answer.partition("=")[0] for answer in data):
        if name not in answers:
            questions = ", ".join(known for known in answers if not known.startswith("_"))
            raise UpdateFailed(f"the template {version} has no question {name}, only {questions}")
    if problems := conflicts(folder):
        raise UpdateFailed(
            f"the update to {version} does not fit:\n\n" + "\n\n".join(problems) + f"\n\n{CURE}"
        )
    git(
        folder, "add", "--all", "--force", "--", ".", copy=True
    )  # Copier made it all: nothing else has run
    files = changes(folder)
    if lost := deletions(project, [name for name, kind in files.items() if kind == "D"]):
        said = "\n".join(lost)
        cure = "Save what is yours elsewhere, `git rm` the file, commit, and update again."
        raise UpdateFailed(
            f"the update to {version} deletes what is not the template's alone:\n{said}\n{cure}"
        )
    if files and git(folder, "ls-files", "--", "uv.lock", ":/uv.lock", copy=True):
        run(
            [uv, "lock"],
            folder,
            "Its dependencies cannot be resolved, and the project is as it was.",
        )
        git(folder, "add", "--update", "--", ":/", copy=True)
    patch = git(
        folder,
        "diff-index",
        "--cached",
        "--patch",
        "--binary",
        "--full-index",
        *PLAIN,
        "HEAD",
        copy=True,
    )
    shipped = read_ownership(folder) or {}
    return Outcome(
        version, changes(folder), patch, [*shipped.get("shared", []), *shipped.get("ours", [])]
    )


def changes(folder: Path) -> dict[str, str]:
    """What is in the index and not in HEAD, with git's letter for it."""
    listed = git(
        folder,
        "diff-index",
        "--cached",
        "--name-status",
        "-z",
        "--relative",
        "--no-renames",
        "HEAD",
        copy=True,
    )
    parts = os.fsdecode(listed).split("\0")
    return dict(sorted(zip(parts[1::2], parts[0::2], strict=False)))


def conflicts(folder: Path) -> list[str]:
    """Every file that could not be merged, with the lines; Copier's exit status says nothing of them."""
    problems = []
    for code, name in status(folder, "--ignored", copy=True):
        path = folder / name
        if name.endswith(".rej") and code in {"??", "!!"}:
            lines = text_of(path).splitlines()
            problems.append(
                f"{name.removesuffix('.rej')}: this change of yours fits nowhere in the new version:"
            )
            problems[-1] += excerpt(lines)
        elif code in UNMERGED or has_new_markers(folder, name):
            blocks = "\n".join(
                f"{name}:{number} was changed, and so it was in the template:{excerpt(lines)}"
                for number, lines in marked_blocks(text_of(path))
            )
            problems.append(
                blocks or f"{name} was changed here and deleted or replaced by the update"
            )
    return problems


def has_new_markers(folder: Path, name: str) -> bool:
    """Whether a file has a conflict marker that it did not have before."""
    if not (found := markers(text_of(folder / name))):
        return False
    before = git_says(folder, "show", f"HEAD:./{name}")
    return not found <= markers(before.stdout.decode(errors="replace"))


def markers(text: str) -> set[str]:
    """The lines that begin or end a conflict."""
    return set(re.findall(r"^(?:<{7}|>{7}) .*$", text, re.MULTILINE))


def marked_blocks(text: str) -> Iterator[tuple[int, list[str]]]:
    """The conflicts in a file: the number of the first line, and the lines."""
    lines = text.splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith("<<<<<<< ")]
    for start in starts:
        ends = (
            number for number in range(start, len(lines)) if lines[number].startswith(">>>>>>> ")
        )
        yield start + 1, lines[start : next(ends, len(lines)) + 1]


def deletions(project: Project, names: list[str]) -> list[str]:
    """Those of the deleted files that hold, or may hold, something of the owner's."""
    ours, hashes = project.ownership.get("ours", []), project.ownership.get("sha256", {})
    problems = []
    for name in names:
        content = git(project.home, "show", f"{project.head}:./{name}")
        if name not in ours:
            problems.append(f"  {name} is not one of the template's files")
        elif name not in hashes:
            problems.append(
                f"  {name} holds your answers, so whether you changed it cannot be told"
            )
        elif hashlib.sha256(content).hexdigest() != hashes[name]:
            problems.append(f"  {name} was changed by you")
    return problems


# ---------------------------------------------------------------------- the project


def put_into(project: Project, outcome: Outcome) -> None:
    """Change the project's files, all of them or none."""
    unchanged = git(
        project.home, "rev-parse", "HEAD"
    ).decode().strip() == project.head and not status(project.home)
    if not unchanged:
        raise UpdateFailed(
            "the project was changed while the update was tried, and was left alone: commit, try again"
        )
    there = {name for name in outcome.files if os.path.lexists(project.home / name)}
    with ignoring(*SIGNALS):  # git too: it would stop in the middle of the files
        applied = git_says(project.top, "apply", "--whitespace=nowarn", "-", given=outcome.patch)
        if applied.returncode == 0:
            return
        restored = put_back(project, outcome, there)
    said = last_words(applied.stderr, LAST_WORDS)
    if not restored:
        cure = "`git status` tells what is changed: put what is in the way aside, then `git restore .` undoes it."
        raise UpdateFailed(
            f"the update stopped half-way, and not all of it could be undone:\n{said}\n{cure}"
        )
    cure = "A file that git ignores is in its way? Move that file, and update again."
    raise UpdateFailed(
        f"the update cannot be put into the project, which is as it was:\n{said}\n{cure}"
    )


def put_back(project: Project, outcome: Outcome, there: set[str]) -> bool:
    """Undo what git did before it stopped, which looks first, but not at all that may be in the way; whether all is."""
    for name in outcome.files.keys() - there:
        with contextlib.suppress(OSError):
            (project.home / name).unlink()
    if changed := [name for name, kind in outcome.files.items() if kind != "A"]:
        git_says(project.home, "checkout", "--quiet", "HEAD", "--", *changed)
    return not status(project.home)


def listing(files: dict[str, str]) -> str:
    """One line for each file, and how many there are."""
    lines = [f"  {DONE.get(kind, 'changed'):<8} {name}" for name, kind in files.items()]
    if len(lines) > SHOWN_FILES:
        lines[SHOWN_FILES - 1 :] = [f"  and {len(lines) - SHOWN_FILES + 1} more"]
    return "\n".join([*lines, f"  files: {len(files)}"])


def changelog_of(source: str, version: str) -> str | None:
    """Where the template tells what is new, if its address says so."""
    tag = version if re.fullmatch(r"v?\d[\w.]*", version) else "HEAD"
    found = re.fullmatch(
        r"(?:git\+)?(?:gh:|https://github\.com/|git@github\.com:)([\w.-]+/[\w.-]+?)(?:\.git)?/?",
        source,
    )
    if found:
        return f"https://github.com/{found[1]}/blob/{tag}/CHANGELOG.md"
    found = re.fullmatch(
        r"(?:git\+)?(?:gl:|https://gitlab\.com/|git@gitlab\.com:)([\w./-]+?)(?:\.git)?/?", source
    )
    if found:
        return f"https://gitlab.com/{found[1]}/-/blob/{tag}/CHANGELOG.md"
    local = Path(source.removeprefix("git+").removeprefix("file://")).expanduser() / "CHANGELOG.md"
    return str(local) if local.is_absolute() and local.is_file() else None


def failed_tests(version: str) -> str:
    """What to say above the last lines of pytest."""
    return (
        f"the project's tests fail with {version}, so the project was left as it is. Do they pass without the update"
        f" (`uv run pytest`)?\nCorrect what they find wrong in your own code, {BY_HAND}:"
    )


# ---------------------------------------------------------------------- processes


def clean_environment(*without: str) -> dict[str, str]:
    """This process's, without what would make git or uv work elsewhere."""
    return {
        name: value
        for name, value in os.environ.items()
        if name not in ELSEWHERE and name not in without
    }


def environment_of_the_copy() -> dict[str, str]:
    """The same for git and Copier in the copy, with git's settings of IN_THE_COPY, whoever has set others where."""
    environment = clean_environment()
    given = environment.get("GIT_CONFIG_COUNT", "")
    first = int(given) if given.isdigit() else 0
    for number, (name, value) in enumerate(IN_THE_COPY.items(), start=first):
        environment |= {f"GIT_CONFIG_KEY_{number}": name, f"GIT_CONFIG_VALUE_{number}": value}
    return environment | {"GIT_CONFIG_COUNT": str(first + len(IN_THE_COPY))}


def run(
    command: Sequence[str],
    folder: Path,
    problem: str,
    *,
    lines: int = LAST_WORDS,
    environment: dict[str, str] | None = None,
) -> None:
    """Run a command in silence, by default in the copy; if it fails, UpdateFailed has `problem` and its last words."""
    with subprocess.Popen(
        command,
        cwd=folder,
        env=environment
        or clean_environment(
            "UV_PROJECT_ENVIRONMENT"
        ),  # the project's own must not become the copy's
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        try:
            said, _ = process.communicate()
        except BaseException:  # a signal: what it started ends before the copy is removed
            with ignoring(*SIGNALS):
                process.terminate()
                try:
                    process.wait(PATIENCE)
                except subprocess.TimeoutExpired:
                    process.kill()
            raise
    if process.returncode:
        raise UpdateFailed(f"{problem}\n\n{last_words(said, lines)}")


def git(folder: Path, *arguments: str, copy: bool = False) -> bytes:
    """What git prints; raises UpdateFailed with what it complains of."""
    done = git_says(folder, *arguments, copy=copy)
    if done.returncode:
        complaint = last_words(done.stderr, LAST_WORDS)
        raise UpdateFailed(
            f"`git {arguments[0]}` failed, and the project is as it was:\n{complaint}"
        )
    return done.stdout


def git_says(
    folder: Path, *arguments: str, copy: bool = False, given: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    """Run git, whatever comes of it, in words that do not depend on the owner's language."""
    environment = (environment_of_the_copy() if copy else clean_environment()) | {"LC_ALL": "C"}
    command = ["git", "-c", f"core.hooksPath={os.devnull}", "-c", "core.quotePath=off", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, input=given, capture_output=True)


def status(folder: Path, *options: str, copy: bool = False) -> list[tuple[str, str]]:
    """The two letters and the path in `folder` of whatever git sees there that is not committed."""
    asked = (
        "status",
        "--porcelain",
        "-z",
        "--no-renames",
        "--untracked-files=all",
        *options,
        "--",
        ".",
    )
    listed = git(folder, *asked, copy=copy)
    prefix = git(folder, "rev-parse", "--show-prefix").removesuffix(b"\n")
    entries = [entry for entry in listed.split(b"\0") if entry]
    return [(entry[:2].decode(), os.fsdecode(entry[3:].removeprefix(prefix))) for entry in entries]


@contextlib.contextmanager
def orderly() -> Iterator[None]:
    """A signal that ends this process lets it clean up first, as Ctrl-C does."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def ignoring(*signals: signal.Signals) -> Iterator[None]:
    """Nothing interrupts what is done inside."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ---------------------------------------------------------------------- words


def last_words(said: bytes, count: int) -> str:
    """The last lines of what a command said; of a traceback, what it was about."""
    text = re.sub(
        r"Traceback \(most recent call last\):\n(?:[ \t].*\n)+", "", said.decode(errors="replace")
    )
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    return "\n".join(lines[-count:]) or "it said nothing"


def excerpt(lines: list[str]) -> str:
    """Lines of a file below a sentence."""
    shown = lines[:SHOWN_LINES] + ["…"] * (len(lines) > SHOWN_LINES)
    return "".join(f"\n    {line}" for line in shown)


def text_of(path: Path) -> str:
    """A file's text; empty if there is no such file."""
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def masked(text: str) -> str:
    """Without the passwords and tokens of addresses."""
    return re.sub(r"(?<=://)[^\s/]+@", "***@", text)
