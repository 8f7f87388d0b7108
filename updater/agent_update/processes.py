"""Git and other commands: their environment, their last words, and an end that leaves nothing."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

# What points git at another repository, and uv at another project or its virtual environment: a
# hook or `uv run` sets them. The rest of GIT_* stays: certificates, ssh and credentials are needed.
ELSEWHERE = {
    *("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_NAMESPACE"),
    *("GIT_OBJECT_DIRECTORY", "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_PREFIX", "GIT_ATTR_SOURCE"),
    *("GIT_DIFF_OPTS", "GIT_EXTERNAL_DIFF"),
    *("VIRTUAL_ENV", "UV_PROJECT", "UV_PROJECT_ENVIRONMENT"),
    *("UV_WORKING_DIR", "UV_WORKING_DIRECTORY"),
    *("PYTHONPATH", "AGENT_HOME"),
    # what would keep uv from locking, installing and testing the copy as the project has it
    *("UV_FROZEN", "UV_LOCKED", "UV_ENV_FILE", "UV_NO_PROJECT", "UV_NO_SYNC"),
    *("UV_NO_DEV", "UV_NO_DEFAULT_GROUPS", "UV_NO_GROUP"),
    *("UV_NO_INSTALL_PROJECT", "UV_NO_INSTALL_WORKSPACE", "UV_NO_INSTALL_LOCAL"),
}
# Git's settings in the copies, whatever the owner has set: Copier takes the owner's lines from
# git's diff and has git put them back, and does not notice when a setting makes git leave some out.
# Hooks are for the owner's own checkouts.
COPY_SETTINGS = {
    "apply.ignoreWhitespace": "no",
    "apply.whitespace": "nowarn",
    "commit.gpgSign": "false",
    "core.attributesFile": os.devnull,
    "core.autocrlf": "false",
    "core.eol": "lf",
    "core.excludesFile": os.devnull,
    "core.fileMode": "true",
    "core.fsmonitor": "false",
    "core.hooksPath": os.devnull,
    "core.quotePath": "true",
    "core.safecrlf": "false",
    "core.symlinks": "true",
    "status.showUntrackedFiles": "all",
}
# And new repositories are as git makes them by default; Copier knows no other hash
NEW_REPOSITORY = {"GIT_DEFAULT_HASH": "sha1", "GIT_TEMPLATE_DIR": ""}
# Where Copier merges, git has its defaults; of what is set, only what fetches the template is kept
DEFAULTS = {
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_ATTR_NOSYSTEM": "1",
}
FETCHING = re.compile(r"(http|url|credential|protocol|ssh|safe)\..+|core\.(sshcommand|askpass)")
SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]
LAST_WORDS = 12
SILENT_SECONDS = 1.5  # after that it is said what is going on
END_SECONDS = 10.0  # for a command to end when this one has to
Handler = Callable[[int, FrameType | None], object] | signal.Handlers


class Refused(Exception):
    """Nothing was begun: something has to be put right first."""


class Failed(Exception):
    """It was tried and does not work; the message says what became of the project."""


def masked(text: str) -> str:
    """Without the passwords and tokens of addresses."""
    return re.sub(r"(?<=://)[^\s/]+@", "***@", text)


def say(line: str) -> None:
    """Say something to the person at the terminal."""
    print(masked(line), file=sys.stderr, flush=True)


def last_words(said: bytes, count: int = LAST_WORDS) -> str:
    """The last lines of what a command said; of a traceback, only the error."""
    text = said.decode(errors="replace")
    text = re.sub(r"Traceback \(most recent call last\):\n(?:[ \t].*\n)+", "", text)
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    return "\n".join(lines[-count:]) or "it said nothing"


# ---------------------------------------------------------------------- commands


def clean_environment() -> dict[str, str]:
    """This process's environment, without what would make git or uv work elsewhere."""
    return {name: value for name, value in os.environ.items() if name not in ELSEWHERE}


def copy_environment() -> dict[str, str]:
    """The same for git in the copies, with COPY_SETTINGS above all other settings."""
    environment = clean_environment() | NEW_REPOSITORY
    given = environment.get("GIT_CONFIG_PARAMETERS", "")  # of `git -c`, which is above the rest
    return environment | {"GIT_CONFIG_PARAMETERS": f"{given} {as_parameters()}".strip()}


def copier_environment(folder: Path) -> dict[str, str]:
    """The same for Copier, where git has its defaults: it fetches as it does in the folder."""
    listed = os.fsdecode(git_result(folder, "config", "--list", "-z").stdout).split("\0")[:-1]
    pairs = (entry.partition("\n") for entry in listed)
    kept = [(name, value) for name, _, value in pairs if FETCHING.fullmatch(name)]
    environment = copy_environment() | DEFAULTS | {"GIT_CONFIG_COUNT": str(len(kept))}
    for number, (name, value) in enumerate(kept):
        environment |= {f"GIT_CONFIG_KEY_{number}": name, f"GIT_CONFIG_VALUE_{number}": value}
    return environment | {"GIT_CONFIG_PARAMETERS": as_parameters()}


def as_parameters() -> str:
    """COPY_SETTINGS as git hands settings to its own commands."""
    return " ".join(f"'{name}={value}'" for name, value in COPY_SETTINGS.items())


def run(
    doing: str,
    command: Sequence[str],
    folder: Path,
    environment: dict[str, str],
    problem: str,
    lines: int = LAST_WORDS,
) -> None:
    """Run a command in silence; raises Failed with `problem` and its last words if it fails."""
    done = result(doing, command, folder, environment)
    if done.returncode:
        raise Failed(f"{problem}\n\n{last_words(done.stdout + done.stderr, lines)}")


def result(
    doing: str,
    command: Sequence[str],
    folder: Path,
    environment: dict[str, str],
    given: bytes = b"",
) -> subprocess.CompletedProcess[bytes]:
    """Run a command, whatever comes of it; when it takes long, say what is being done."""
    pipe, process = subprocess.PIPE, None
    try:
        # a file, because communicate() loses its input when it is called again
        with tempfile.TemporaryFile() as stdin, deferring_signals():
            stdin.write(given)
            stdin.seek(0)
            process = subprocess.Popen(
                command, cwd=folder, env=environment, stdin=stdin, stdout=pipe, stderr=pipe
            )
        try:
            said = process.communicate(timeout=SILENT_SECONDS)
        except subprocess.TimeoutExpired:
            say(f"{doing} ...")
            said = process.communicate()
    except BaseException:
        if process:
            end(process)
        raise
    return subprocess.CompletedProcess(command, process.returncode, *said)


def end(process: subprocess.Popen[bytes]) -> None:
    """Have a process end, so that nothing of it is left when its folder is removed."""
    with ignoring_signals():
        process.terminate()
        try:
            process.communicate(timeout=END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def uv(*arguments: str) -> list[str]:
    """A command of uv, which says where it is when it runs a tool."""
    return [os.environ.get("UV", "uv"), *arguments]


def git_result(
    folder: Path, *arguments: str, copy: bool = False, given: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    """Run git, whatever comes of it, in words that do not depend on the owner's language."""
    environment = (copy_environment() if copy else clean_environment()) | {"LC_ALL": "C"}
    # to look writes nothing, not even what git remembers of its last look
    environment["GIT_OPTIONAL_LOCKS"] = "0"
    # a monitor that has missed an edit hides it from git
    fixed = (f"core.hooksPath={os.devnull}", "core.quotePath=off", "core.fsmonitor=false")
    command = ["git", *(part for setting in fixed for part in ("-c", setting)), *arguments]
    return result(f"git {arguments[0]}", command, folder, environment, given)


def git(folder: Path, *arguments: str, copy: bool = False) -> str:
    """What git prints; raises Failed with what it complains of."""
    done = git_result(folder, *arguments, copy=copy)
    if done.returncode:
        problem = f"`git {arguments[0]}` failed, and the project is as it was:"
        raise Failed(f"{problem}\n{last_words(done.stderr)}")
    return os.fsdecode(done.stdout)


def status(
    folder: Path, *options: str, copy: bool = False, paths: Sequence[str] = (".",)
) -> list[tuple[str, str]]:
    """Git's two letters and the path, from the repository's top, of all that is not committed."""
    asked = ("--porcelain", "-z", "--no-renames", "--untracked-files=all", *options, "--", *paths)
    entries = git(folder, "status", *asked, copy=copy).split("\0")
    return [(entry[:2], entry[3:]) for entry in entries if entry]


# ---------------------------------------------------------------------- signals


@contextlib.contextmanager
def handling_signals(handler: Handler) -> Iterator[None]:
    """Inside, `handler` gets the signals that end this process.

    One that is ignored stays ignored: a shell has a background job ignore SIGINT, nohup SIGHUP.
    """
    found = {number: signal.getsignal(number) for number in SIGNALS}
    before = {number: known for number, known in found.items() if known is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, known in before.items():
            signal.signal(number, known)


def ignoring_signals() -> contextlib.AbstractContextManager[None]:
    """Nothing interrupts what is done inside, nor the commands that are run there."""
    return handling_signals(signal.SIG_IGN)


def exiting_on_signals() -> contextlib.AbstractContextManager[None]:
    """A signal raises SystemExit(128 + n), so that what was begun is cleaned up; once is enough."""

    def stop(number: int, frame: FrameType | None) -> None:
        for other in SIGNALS:
            signal.signal(other, signal.SIG_IGN)
        raise SystemExit(128 + number)

    return handling_signals(stop)


@contextlib.contextmanager
def deferring_signals() -> Iterator[None]:
    """A signal that arrives inside takes effect when this is left."""
    arrived: list[int] = []
    with handling_signals(lambda number, frame: arrived.append(number)):
        yield
    for number in arrived:
        signal.raise_signal(number)
