"""What is wrong with this project, its environment or its own code, and what to do about it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import platform
import tempfile
import time
import tomllib
from collections.abc import Iterator
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from agent import memory
from agent.cli.checks import (
    Finding,
    check_connection,
    check_models,
    check_sdk,
    fail,
    server_api,
)
from agent.cli.code_checks import check_code
from agent.cli.terminal import busy, make_console
from agent.cli.update import ANSWERS, answer, answers_of, has_conflict, masked
from agent.knowledge import KnowledgeUnavailable, index_of
from agent.memory import MemoryUnavailable
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
        console.print(Text.assemble(level, f"{finding.check:<10}", finding.sentence))


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
        yield check_server(settings)
    models = check_models(settings)
    no_keys = ", no keys needed" if settings.models == "scripted" else ""
    if not models and (no_keys or not settings.keyless):  # missing keys have been reported
        models = [Finding("ok", "models", f"AGENT_MODELS={settings.models}{no_keys}")]
    yield from models
    yield from check_data(settings)
    yield from check_documents(settings)
    yield from check_memory(settings)


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
        elif name in hashes and hashlib.sha256(path.read_bytes()).hexdigest() != hashes[name]:
            what = f"{name} is the template's and was changed"
            cure = f"{move}, or expect a conflict from `agent update`"
            found.append(Finding("warn", "files", what, cure))
    what = "the template's files are there, and those without answers are as they came"
    return found or [Finding("ok", "files", what)]


def is_checkout(home: Path) -> bool:
    """Whether this is the whole project; an image has the package and the documents only."""
    return (home / "src").is_dir()
