"""What is wrong with this project, its environment or its own code, and what to do about it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import platform
import shutil
import subprocess
import tempfile
import time
import tomllib
from collections.abc import Iterator
from dataclasses import asdict, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from agent import memory
from agent.cli.checks import (
    Finding,
    check_connection,
    check_models,
    check_recordings,
    check_sdk,
    fail,
    server_api,
)
from agent.cli.code_checks import check_code
from agent.cli.terminal import busy, make_console
from agent.cli.update import ANSWERS, answer, answers_of, has_conflict, masked
from agent.knowledge import KnowledgeUnavailable, index_of
from agent.memory import MemoryUnavailable
from agent.reports import delivery
from agent.reports.cost import load_prices
from agent.settings import Settings, SettingsError, find_home, load_settings, unknown_variables

COLOURS = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Check what a call needs, and say how to cure what is wrong; exit 1 if something fails."""
    findings = list(check_everything())
    failed = any(finding.level == "fail" for finding in findings)
    if as_json:
        result = {"ok": not failed, "findings": [asdict(finding) for finding in findings]}
        print(json.dumps(result, indent=2))
    else:
        print_findings(findings)
    return 1 if failed else 0


def print_findings(findings: list[Finding]) -> None:
    """Print one line each; in colour on a terminal."""
    console = make_console()
    for finding in findings:
        level = f"{finding.level:<5}", COLOURS[finding.level]
        console.print(Text.assemble(level, f"{finding.check:<11}", finding.sentence))


def check_everything() -> Iterator[Finding]:
    """Every finding, one check after another; without settings, those that need none."""
    sdk = check_sdk()
    python = f"Python {platform.python_version()}, "
    yield replace(sdk, what=python + sdk.what) if sdk.level == "ok" else sdk
    home = find_home()
    try:
        settings = load_settings()
    except SettingsError as error:
        yield from (fail("settings", problem) for problem in error.problems)
    else:
        yield from check_settings(settings)
        home = settings.home
    ownership = read_ownership(home)
    yield from check_template(home, ownership)
    yield from check_files(home, ownership)
    yield from check_git(home, ownership)
    yield from check_code(home, None if ownership is None else set(ownership.get("template", [])))


def check_settings(settings: Settings) -> Iterator[Finding]:
    """Everything that the settings lead to."""
    yield Finding("ok", "settings", f"read for {settings.name} in {settings.home}")
    for name, similar in unknown_variables().items():
        cure = f"{similar} is one" if similar else "see .env.example, or leave it if it is your own"
        yield Finding("warn", "settings", f"{name} is not a setting of the template", cure)
    keys = "LIVEKIT_URL, LIVEKIT_API_KEY and LIVEKIT_API_SECRET are there"
    found = check_connection(settings)
    yield from found or [Finding("ok", "keys", keys)]
    if not any(finding.level == "fail" for finding in found):
        yield (server := check_server(settings))
        if server.level == "ok" and find_spec("agent.telephony") is not None:
            with busy("asking for trunks"):
                yield from import_module("agent.cli.trunks").check_trunks(settings)
    no_keys = ", no keys needed" if settings.models in {"scripted", "local"} else ", all answer"
    answer_ = Finding("ok", "models", f"AGENT_MODELS={settings.models}{no_keys}")
    yield from check_models(settings) or [answer_]
    yield from check_data(settings)
    yield from check_prices(settings)
    yield from check_recordings(settings, asking=True)
    yield from check_documents(settings)
    yield from check_memory(settings)
    yield from check_reports(settings)
    yield from check_resources(settings)


def check_server(settings: Settings) -> Finding:
    """Whether the server answers and takes the keys."""

    async def count_rooms() -> int:
        from livekit import api

        async with server_api(settings) as server:
            return len((await server.room.list_rooms(api.ListRoomsRequest())).rooms)

    began = time.monotonic()
    try:
        with busy(f"asking {settings.livekit_url}"):
            rooms = asyncio.run(count_rooms())
    except SettingsError as error:
        return fail("server", error.problems[0])
    milliseconds = (time.monotonic() - began) * 1000
    what = f"{settings.livekit_url} answers in {milliseconds:.0f} ms, rooms: {rooms}"
    return Finding("ok", "server", what)


def check_data(settings: Settings) -> list[Finding]:
    """Whether the agent may write where it has to."""
    try:
        settings.data.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=settings.data):
            return []
    except OSError as error:
        what = f"{settings.data} cannot be written ({error.strerror})"
        return [Finding("fail", "data", what, "let this user write there, or set AGENT_DATA_DIR")]


def check_prices(settings: Settings) -> list[Finding]:
    """What is wrong with the owner's prices; nothing if they can be read, or there are none."""
    try:
        load_prices(settings.home)
    except SettingsError as error:
        return [fail("prices", problem) for problem in error.problems]
    return []


def check_documents(settings: Settings) -> list[Finding]:
    """What would be indexed, and whether the index is made from just that."""
    if settings.knowledge == "none":
        return [Finding("ok", "documents", "AGENT_KNOWLEDGE=none: nothing is looked up")]
    try:
        index_of(settings)
    except KnowledgeUnavailable as error:
        return [fail("documents", str(error))]
    with busy("reading the documents"):
        findings = import_module("agent.cli.documents").document_findings(settings)
        return list(asyncio.run(findings))


def check_memory(settings: Settings) -> list[Finding]:
    """Whether callers can be remembered, and whether calls wait for that."""
    if settings.memory == "none":
        return [Finding("ok", "memory", "nobody is remembered")]
    try:
        memory.load(settings)
    except MemoryUnavailable as error:
        return [fail("memory", str(error))]
    with busy("asking the memory"):
        return list(asyncio.run(import_module("agent.cli.forget").memory_findings(settings)))


def check_reports(settings: Settings) -> list[Finding]:
    """Whether reports of calls wait for what the owner has asked for."""
    cure = "a worker (`agent start`) delivers them, and its log says what keeps it from that"
    return [
        Finding("warn", "reports", f"{waiting} reports of calls wait for {place.name}", cure)
        for place in delivery.places(settings)
        # these any command delivers
        if place != delivery.KEPT and (waiting := len(delivery.waiting(settings, place)))
    ]


def check_resources(settings: Settings) -> list[Finding]:
    """Whether what resources.py opens for a call opens, and answers its ping."""
    with busy("opening the resources"):
        found = asyncio.run(import_module("agent.outside").check(settings))
    works = "opens, closes, and answers its ping if it has one"
    cure = "see open_resources in resources.py, and what it connects to"
    return [
        Finding("fail", "resources", f"{one.name}: {one.problem}", cure)
        if one.problem
        else Finding("ok", "resources", f"{one.name} {works}")
        for one in found
    ]


# ---------------------------------------------------------------------- the project's files


def check_template(home: Path, ownership: dict[str, Any] | None) -> Iterator[Finding]:
    """Which version of which template the project is at, and whether its answers are true."""
    version, source = answer(home, "_commit"), answer(home, "_src_path")
    file = answers_of(home)
    if file and has_conflict(file):
        yield fail("template", f"{file.name} has conflict markers: finish that merge, and commit")
    elif version and source:
        what = f"at {version} of {masked(source)}"
        yield Finding("ok", "template", what, "`agent update` looks for a newer one")
    elif is_checkout(home):
        cure = "restore .copier-answers.yml from version control if you did not mean to"
        yield Finding("ok", "template", "left: this project gets no updates", cure)
    for name, made in (ownership or {}).get("answers", {}).items():
        if file and (said := answer(home, name)) not in {"", made}:
            what = f"{file.name} says {name}: {said}, but the project was made with {made}"
            cure = f"write {name}: {made} again, commit, and run `agent update -d {name}={said}`"
            yield Finding("fail", "template", what, cure)


def read_ownership(home: Path) -> dict[str, Any] | None:
    """What `.template.toml` says of the template's files; None if it cannot be read."""
    try:
        return tomllib.loads((home / ".template.toml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        return None


def check_files(home: Path, ownership: dict[str, Any] | None) -> list[Finding]:
    """Files that updates bring: whether they are as they came."""
    if ownership is None:
        what = f"{home / '.template.toml'} cannot be read"
        return [Finding("warn", "files", what, "restore it from version control")]
    if is_checkout(home) and not answer(home, "_commit"):
        what = "all of them are yours, because the project has left its template"
        return [Finding("ok", "files", what)]
    hashes: dict[str, str] = ownership.get("sha256", {})
    move = "move your change to persona.py or resources.py"
    found = []
    for name in [*ownership.get("template", []), *ownership.get("shared", [])]:
        if (home / name).is_file() and has_conflict(home / name):
            found.append(fail("files", f"{name} has conflict markers: finish that merge"))
    for name in ownership.get("template", []):
        path = answers_of(home) or home / name if name == ANSWERS else home / name
        if not path.is_file():
            if is_checkout(home):
                cure = f"restore it: `git checkout -- {name}`"
                found.append(Finding("fail", "files", f"{name} is missing", cure))
        elif name in hashes and digest(path) != hashes[name]:
            what = f"{name} is the template's and was changed"
            cure = f"{move}, or expect a conflict from `agent update`"
            if name.startswith(".github/"):
                cure = "fine if a bot has raised a version there, otherwise expect a conflict"
            found.append(Finding("warn", "files", what, cure))
    what = "the template's files are there, and those without answers are as they came"
    return found or [Finding("ok", "files", what)]


def digest(path: Path) -> str:
    """The hash of a file, whatever line ends git has given it here."""
    return hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n")).hexdigest()


def is_checkout(home: Path) -> bool:
    """Whether this is the whole project; an image has the package and the documents only."""
    return (home / "src").is_dir()


# ---------------------------------------------------------------------- git


def check_git(home: Path, ownership: dict[str, Any] | None) -> Iterator[Finding]:
    """What makes `copier update` by hand lose lines of the owner's, if it is set here."""
    if ownership is None or not answer(home, "_commit") or not is_checkout(home):
        return
    pairs = (entry.partition("\n") for entry in ask_git(home, "config", "--list"))
    settings = {name: value for name, _, value in pairs}
    files = ask_git(home, "ls-files", "-v")
    merged = "\0".join([*ownership.get("shared", []), *ownership.get("template", [])])
    if (given := settings.get("apply.whitespace", "")) in {"error", "error-all", "fix", "strip"}:
        yield by_hand(f"apply.whitespace={given}", "drops lines of yours")
    if settings.get("status.showuntrackedfiles") == "no":
        yield by_hand("status.showUntrackedFiles=no", "hides its conflicts")
    if settings.get("core.quotepath") in {"false", "no", "off", "0"}:
        named = next((entry[2:] for entry in files if not entry.isascii()), None)
        if named:
            yield by_hand(f"core.quotePath=false and {named}", "stops half-way")
    unset = ask_git(home, "check-attr", "--stdin", "diff", given=merged)
    if names := [
        name for name, value in zip(unset[0::3], unset[2::3], strict=False) if value == "unset"
    ]:
        yield by_hand(f"the attribute -diff of {names[0]}", "drops lines of yours")
    rules = ask_git(home, "check-ignore", "--no-index", "--verbose", "--stdin", given=merged)
    for source, pattern, name in zip(rules[0::4], rules[2::4], rules[3::4], strict=False):
        if Path(source).is_absolute() and not pattern.startswith("!"):
            yield by_hand(f"{pattern} in {source}, which ignores {name},", "drops lines of yours")
            break
    for letter, name in ((entry[0], entry[2:]) for entry in files):
        # in a sparse checkout git marks all that is not there
        if letter.islower() or (letter == "S" and (home / name).is_file()):
            mark = "assume-unchanged" if letter.islower() else "skip-worktree"
            what = f"{name} is marked as {mark}, so that git sees no change of it"
            yield Finding("warn", "git", what, f"`git update-index --no-{mark} {name}`")


def by_hand(setting: str, effect: str) -> Finding:
    """A setting with which an update by hand goes wrong, without a word and with exit code 0."""
    what = f"with {setting} `copier update` by hand {effect}"
    return Finding("warn", "git", what, "use `agent update`, which does not")


def ask_git(home: Path, *arguments: str, given: str = "") -> list[str]:
    """What git lists, each part ended by a zero byte; nothing if it cannot."""
    if not shutil.which("git"):
        return []
    command, *options = arguments
    done = subprocess.run(
        ["git", command, "-z", *options],
        cwd=home,
        input=os.fsencode(given),
        capture_output=True,
    )
    return os.fsdecode(done.stdout).split("\0")[:-1]
