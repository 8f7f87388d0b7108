"""What is wrong with this project, its environment or its own code, and what to do about it."""

from __future__ import annotations

import ast
import asyncio
import difflib
import hashlib
import importlib.metadata
import json
import os
import platform
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from agent.cli.run import busy, check_connection, warn_connection, warn_models
from agent.cli.update import answer, masked
from agent.settings import Settings, SettingsError, find_home, load_settings

SDK = (
    (1, 8, 9),
    (1, 9),
)  # what this code is tested with: from, and up to; pyproject.toml says the same
MEMORY_SECONDS = 5.0
SKIPPED_FOLDERS = {"__pycache__", "node_modules", "venv", "build", "dist", "data", "site-packages"}
Level = Literal["ok", "warn", "fail"]
COLOURS = {"ok": "green", "warn": "yellow", "fail": "bold red"}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; a `cure` says what to do."""

    level: Level
    check: str
    what: str
    cure: str = ""


Check = Callable[[Settings], Iterator[Finding]]
Mistake = tuple[int, Level, str, str]  # line, level, what, cure


def finding(level: Level, check: str, sentence: str) -> Finding:
    """A finding from one of our own sentences, in which the cure follows the last colon."""
    what, colon, cure = sentence.rpartition(": ")
    return Finding(level, check, what, cure) if colon else Finding(level, check, sentence)


def doctor(*, as_json: bool) -> int:
    """Look at everything and print what was found; 1 if something fails, else 0."""
    findings = list(examine())
    failed = any(finding.level == "fail" for finding in findings)
    if as_json:
        print(
            json.dumps(
                {"ok": not failed, "findings": [asdict(finding) for finding in findings]}, indent=2
            )
        )
    else:
        show(findings)
    return 1 if failed else 0


def show(findings: list[Finding]) -> None:
    """One line each; in colour on a terminal."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    for finding in findings:
        line = Text.assemble(
            (f"{finding.level:<5}", COLOURS[finding.level]), f"{finding.check:<10}", finding.what
        )
        if finding.cure:
            line.append(f": {finding.cure}")
        console.print(line)


def examine() -> Iterator[Finding]:
    """Every finding, one check after another; without settings, those that need none."""
    yield from check_versions()
    home = find_home()
    try:
        settings = load_settings()
    except SettingsError as error:
        yield from (finding("fail", "settings", problem) for problem in error.problems)
    else:
        yield Finding("ok", "settings", f"read for {settings.name} in {settings.home}")
        yield from check_names()
        home = settings.home
        checks: list[Check] = [
            check_keys,
            check_server,
            check_models,
            check_data,
            check_documents,
            check_memory,
        ]
        for check in checks:
            yield from check(settings)
    ownership = read_ownership(home)
    yield from check_template(home)
    yield from check_drift(home, ownership)
    yield from check_own_code(home, ownership)


# ---------------------------------------------------------------------- the environment


def check_names() -> Iterator[Finding]:
    """Variables that look like settings and are none."""
    known = {
        field.alias or f"AGENT_{name.upper()}" for name, field in Settings.model_fields.items()
    }
    for name in sorted(os.environ):
        if name.startswith("AGENT_") and not name.startswith("AGENT_TEST_") and name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            cure = (
                f"{close[0]} is one" if close else "see .env.example, or leave it if it is your own"
            )
            yield Finding("warn", "settings", f"{name} is no setting of the template's", cure)


def check_versions() -> Iterator[Finding]:
    """Python, and the SDK this code is tested with."""
    python = platform.python_version()
    try:
        sdk = importlib.metadata.version("livekit-agents")
    except importlib.metadata.PackageNotFoundError:
        yield Finding("fail", "versions", "livekit-agents is not installed", "run `uv sync`")
        return
    numbers = tuple(int(part) for part in sdk.split(".")[:3] if part.isdigit())
    if SDK[0] <= numbers < SDK[1]:
        yield Finding("ok", "versions", f"Python {python}, livekit-agents {sdk}")
    else:
        oldest, newest = (".".join(map(str, version)) for version in SDK)
        cure = f"this project is tested with >={oldest},<{newest}: correct pyproject.toml and run `uv sync`"
        yield Finding("fail", "versions", f"livekit-agents {sdk}", cure)


def check_keys(settings: Settings) -> Iterator[Finding]:
    """Whether the server's address and keys are there and well formed; never what they are."""
    problems, warnings = check_connection(settings), warn_connection(settings)
    yield from (finding("fail", "keys", line) for line in problems)
    yield from (finding("warn", "keys", line) for line in warnings)
    if not problems + warnings:
        yield Finding("ok", "keys", "LIVEKIT_URL, LIVEKIT_API_KEY and LIVEKIT_API_SECRET are there")


def check_server(settings: Settings) -> Iterator[Finding]:
    """Whether the server answers and takes the keys."""
    if check_connection(settings):
        return

    async def ask() -> int:
        from livekit import api

        from agent.cli.call import server_api

        async with server_api(settings) as server:
            return len((await server.room.list_rooms(api.ListRoomsRequest())).rooms)

    began = time.monotonic()
    try:
        with busy(f"asking {settings.livekit_url}"):
            rooms = asyncio.run(ask())
    except SettingsError as error:
        yield finding("fail", "server", error.problems[0])
    else:
        milliseconds = (time.monotonic() - began) * 1000
        yield Finding(
            "ok",
            "server",
            f"{settings.livekit_url} answers in {milliseconds:.0f} ms, rooms: {rooms}",
        )


def check_models(settings: Settings) -> Iterator[Finding]:
    """Whether the models can be had with these keys from this server."""
    warnings = warn_models(settings)
    yield from (finding("warn", "models", line) for line in warnings)
    if not warnings and not (
        settings.models == "livekit" and settings.keyless
    ):  # keys have been looked at
        yield Finding(
            "ok",
            "models",
            f"AGENT_MODELS={settings.models}"
            + (", no keys needed" * (settings.models == "scripted")),
        )


def check_data(settings: Settings) -> Iterator[Finding]:
    """Whether the agent may write where it has to."""
    try:
        settings.data.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=settings.data):
            pass
    except OSError as error:
        cure = "let this user write there, or set AGENT_DATA_DIR"
        yield Finding("fail", "data", f"{settings.data} cannot be written ({error.strerror})", cure)


def check_documents(settings: Settings) -> Iterator[Finding]:
    """What would be indexed, and whether the index is made from just that."""
    from agent.knowledge import KnowledgeUnavailable

    if settings.knowledge == "none":
        yield Finding("ok", "documents", "AGENT_KNOWLEDGE=none: nothing is looked up")
        return
    try:
        with busy("reading the documents"):
            yield from asyncio.run(look_at_documents(settings))
            yield from asyncio.run(look_at_index(settings))
    except KnowledgeUnavailable as error:
        yield finding("fail", "documents", str(error))


async def look_at_documents(settings: Settings) -> list[Finding]:
    """Every document is read; raises KnowledgeUnavailable if there is none."""
    from agent.knowledge import KnowledgeUnavailable, index_of
    from agent.knowledge.documents import KINDS, documents_in, roots_of

    index = index_of(settings)
    about = await index.about() if index else None
    try:
        roots = roots_of(settings, [Path(root) for root in about.roots] if about else ())
    except KnowledgeUnavailable as error:
        if about is None:
            raise
        return [
            finding("warn", "documents", f"{error}; the index has {len(about.digests)} documents")
        ]
    found: list[Finding] = []
    documents, passages = 0, 0
    for document in documents_in(roots):
        problem = document.problem
        try:
            passages += 0 if problem else len(document.passages())
        except KnowledgeUnavailable as error:
            problem = str(error)
        documents += not problem
        if problem:
            found.append(finding("warn", "documents", f"{document.source} {problem}"))
    if not documents:
        raise KnowledgeUnavailable(
            f"{settings.documents} has no document that can be read: put documents there ({KINDS})"
        )
    where = ", ".join(map(str, roots))
    return [*found, Finding("ok", "documents", f"{documents} in {where}, passages: {passages}")]


async def look_at_index(settings: Settings) -> list[Finding]:
    """Whether it is up to date, and can be searched by meaning as well."""
    from agent.knowledge import KnowledgeUnavailable
    from agent.knowledge.embedder_process import local_embedder
    from agent.knowledge.embeddings import SHARE, embedder_of
    from agent.knowledge.ingest import stale

    found = []
    if await stale(settings):
        cure = "run `agent ingest`" + (
            "" if settings.knowledge == "pgvector" else "; `start` and `chat` do it too"
        )
        found.append(
            Finding("warn", "index", "the index is missing or older than the documents", cure)
        )
    else:
        found.append(Finding("ok", "index", "up to date"))
    if settings.embeddings == "none":
        cost = (
            "documents are found by their words alone: a model finds about one answer in ten more"
        )
        cure = "set AGENT_EMBEDDINGS=local or to a server's address (docs/agent/knowledge.md), or leave it"
        return [*found, Finding("ok", "embedder", cost, cure)]
    try:
        async with local_embedder(settings, wait=True), embedder_of(settings) as embedder:
            assert embedder is not None
            dimension = (await embedder.embed(["Are you there?"])).shape[1]
            began = time.monotonic()
            await embedder.embed(["How long do you take?"])
            took = time.monotonic() - began
    except KnowledgeUnavailable as error:
        return [*found, finding("fail", "embedder", str(error))]
    said = f"{embedder.model} answers with {dimension} numbers in {took * 1000:.0f} ms"
    if took < settings.knowledge_seconds * SHARE:
        return [*found, Finding("ok", "embedder", said)]
    said += f", and a call waits {settings.knowledge_seconds * SHARE * 1000:.0f} ms for it"
    return [
        *found,
        Finding(
            "warn", "embedder", said, "raise AGENT_KNOWLEDGE_SECONDS, or take one that is nearer"
        ),
    ]


def check_memory(settings: Settings) -> Iterator[Finding]:
    """Whether callers can be remembered, and whether some wait for it."""
    from agent.memory import MemoryUnavailable, open_memory_of, spool

    async def ask() -> None:
        async with asyncio.timeout(MEMORY_SECONDS), open_memory_of(settings) as memory:
            if memory is not None:
                await memory.check()

    try:
        with busy("asking the memory"):
            asyncio.run(ask())
    except MemoryUnavailable as error:
        yield finding("fail", "memory", str(error))
    except TimeoutError:
        yield Finding(
            "fail", "memory", f"no answer within {MEMORY_SECONDS:g} s", "check AGENT_MEMORY_URL"
        )
    else:
        answers = {
            "none": "nobody is remembered",
            "sqlite": f"sqlite answers; other machines do not see {settings.data}, and it has to outlive an update",
        }
        yield Finding("ok", "memory", answers.get(settings.memory, f"{settings.memory} answers"))
    if settings.memory != "none" and (files := spool.waiting(settings)):
        cure = "a worker (`agent start`) delivers them as soon as the store answers"
        yield Finding(
            "warn",
            "memory",
            f"{len(files)} calls wait in {spool.folder_of(settings)} for the store",
            cure,
        )


# ---------------------------------------------------------------------- the project's files


def check_template(home: Path) -> Iterator[Finding]:
    """Which version of which template the project is at."""
    version, source = answer(home, "_commit"), answer(home, "_src_path")
    if version and source:
        cure = "`agent update` looks for a newer one"
        yield Finding("ok", "template", f"at {version} of {masked(source)}", cure)
    elif (home / "src").is_dir():  # an image has none
        cure = "restore .copier-answers.yml from version control if you did not mean to"
        yield Finding("ok", "template", "left: this project gets no updates", cure)


def read_ownership(home: Path) -> dict[str, Any] | None:
    """What `.template.toml` says of the template's files; None if it cannot be read."""
    try:
        return tomllib.loads((home / ".template.toml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        return None


def check_drift(home: Path, ownership: dict[str, Any] | None) -> Iterator[Finding]:
    """Files that updates bring: whether they are as they came."""
    if ownership is None:
        yield Finding(
            "warn",
            "files",
            f"{home / '.template.toml'} cannot be read",
            "restore it from version control",
        )
        return
    if (home / "src").is_dir() and not answer(home, "_commit"):
        yield Finding(
            "ok", "files", "all of them are yours, because the project has left its template"
        )
        return
    hashes: dict[str, str] = ownership.get("sha256", {})
    drifted = False
    for name in ownership.get("template", []):
        path = home / name
        if not path.is_file():
            if (
                home / "src"
            ).is_dir():  # an image holds the package and the documents, no tests and no docs
                drifted = True
                yield Finding(
                    "fail", "files", f"{name} is missing", f"restore it: `git checkout -- {name}`"
                )
        elif name in hashes and hashlib.sha256(path.read_bytes()).hexdigest() != hashes[name]:
            drifted = True
            cure = "move your change to persona.py or resources.py, or expect a conflict from `agent update`"
            yield Finding("warn", "files", f"{name} is the template's and was changed", cure)
    if not drifted:
        yield Finding(
            "ok",
            "files",
            "the template's files are there, and those without answers are as they came",
        )


def check_own_code(home: Path, ownership: dict[str, Any] | None) -> Iterator[Finding]:
    """Mistakes that end calls badly, in the owner's Python files."""
    found = False
    for path in own_python(home, ownership):
        name = path.relative_to(home).as_posix()
        try:
            known = list(mistakes(ast.parse(path.read_bytes())))
        except (SyntaxError, ValueError, RecursionError, OSError) as error:
            known = [
                (
                    getattr(error, "lineno", None) or 1,
                    "fail",
                    f"cannot be read ({error})",
                    "correct it",
                )
            ]
        for line, level, what, cure in known:
            found = True
            yield Finding(level, "code", f"{name}:{line} {what}", cure)
    if not found:
        yield Finding("ok", "code", "no known mistakes in your own files")


def own_python(home: Path, ownership: dict[str, Any] | None) -> Iterator[Path]:
    """The project's Python files that are not the template's."""
    package = home / "src" / "agent"
    brought = set((ownership or {}).get("template", []))
    for folder, folders, files in os.walk(home):
        folders[:] = sorted(
            f for f in folders if not f.startswith(".") and f not in SKIPPED_FOLDERS
        )
        for name in sorted(files):
            path = Path(folder, name)
            if path.suffix != ".py" or path.relative_to(home).as_posix() in brought:
                continue
            if (
                ownership is None
                and path.is_relative_to(package)
                and name not in {"persona.py", "resources.py"}
            ):
                continue
            yield path


def mistakes(tree: ast.AST, *, in_async: bool = False) -> Iterator[Mistake]:
    """The known mistakes below `tree`, top to bottom."""
    for node in ast.iter_child_nodes(tree):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Call)
            and called(node.value).endswith("delete_room")
        ):
            cure = "use `await self.call.hang_up()`, which lets the goodbye be heard first"
            yield (
                node.lineno,
                "fail",
                "delete_room() is not awaited, so the job's end cancels it",
                cure,
            )
        if isinstance(node, ast.Call):
            yield from mistake_of(node, in_async=in_async)
        in_sync = isinstance(node, ast.FunctionDef | ast.Lambda)
        yield from mistakes(
            node, in_async=isinstance(node, ast.AsyncFunctionDef) or (in_async and not in_sync)
        )


def mistake_of(node: ast.Call, *, in_async: bool) -> Iterator[Mistake]:
    """What is wrong with calling this, if something is."""
    name = called(node)
    if name.endswith("wait_for_completion"):
        cure = "delete it: the call stays for the whole conversation by itself"
        yield node.lineno, "fail", "AgentSession has no wait_for_completion()", cure
    elif name.endswith("add_shutdown_callback"):
        cure = "open it with `call.open` in resources.py, which closes it in order and within a deadline"
        yield (
            node.lineno,
            "warn",
            "a shutdown callback that raises or hangs breaks the end of the call",
            cure,
        )
    elif name == "session.aclose" or name.endswith(".session.aclose"):
        yield (
            node.lineno,
            "warn",
            "session.aclose() passes the call's door by",
            "use `await self.call.hang_up()`",
        )
    elif in_async and name == "time.sleep":
        yield (
            node.lineno,
            "warn",
            "time.sleep() stops the whole call, its sound too",
            "use `await asyncio.sleep(...)`",
        )


def called(node: ast.Call) -> str:
    """What is called, as it is written: `self.session.aclose`."""
    return ast.unparse(node.func)
