"""Mistakes that end calls badly, found in the owner's own Python files."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator, Set
from pathlib import Path

from agent.cli.checks import Finding, Level

SKIPPED_FOLDERS = {"__pycache__", "node_modules", "venv", "build", "dist", "data", "site-packages"}

Mistake = tuple[int, Level, str, str]  # line, level, what, cure


def check_code(home: Path, template: Set[str] | None) -> list[Finding]:
    """The known mistakes; `template` are the template's files, None if nobody knows."""
    found = [
        Finding(level, "code", f"{path.relative_to(home).as_posix()}:{line} {what}", cure)
        for path in own_python(home, template)
        for line, level, what, cure in mistakes_in(path)
    ]
    return found or [Finding("ok", "code", "no known mistakes in your own files")]


def own_python(home: Path, template: Set[str] | None) -> Iterator[Path]:
    """The project's Python files that are not the template's."""
    package = home / "src" / "agent"
    for folder, folders, files in os.walk(home):
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and name not in SKIPPED_FOLDERS
        )
        for path in (Path(folder, name) for name in sorted(files) if name.endswith(".py")):
            if template is not None:
                own = path.relative_to(home).as_posix() not in template
            else:
                own = path.name in {"persona.py", "resources.py"} or package not in path.parents
            if own:
                yield path


def mistakes_in(path: Path) -> list[Mistake]:
    """The known mistakes of a file, top to bottom; that it cannot be read is one."""
    try:
        tree = ast.parse(path.read_bytes())
        return sorted([*_mistakes(tree), *_agents_without_call(tree)])
    except (SyntaxError, ValueError, RecursionError, OSError) as error:
        line = getattr(error, "lineno", None) or 1
        return [(line, "fail", f"cannot be read ({error})", "correct it")]


def _agents_without_call(tree: ast.AST) -> Iterator[Mistake]:
    """Agents and tasks that are the SDK's, and so lack what a call has."""
    nodes = list(ast.walk(tree))
    of_sdk = {
        alias.asname or alias.name: alias.name
        for node in nodes
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("livekit.agents")
        for alias in node.names
    }
    for node in (node for node in nodes if isinstance(node, ast.ClassDef)):
        for base in node.bases:
            name = ast.unparse(base).partition("[")[0]
            kind = of_sdk.get(name, name.removeprefix("agents.") if "agents." in name else "")
            if better := {"Agent": "CallAgent", "AgentTask": "CallTask"}.get(kind):
                what = (
                    f"{node.name} lacks the caller, what was said before it, and the tools of all"
                )
                cure = f"derive it from {better}, and make it with `self.call`"
                yield node.lineno, "warn", what, cure


def _mistakes(tree: ast.AST, *, in_async: bool = False) -> Iterator[Mistake]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Call) and (mistake := _mistake(node, in_async=in_async)):
            yield node.lineno, *mistake
        elif isinstance(node, ast.Expr) and _called(node.value).endswith("delete_room"):
            what = "delete_room() is not awaited, so the job's end cancels it"
            cure = "use `await self.call.hang_up()`, which lets the goodbye be heard first"
            yield node.lineno, "fail", what, cure
        is_sync = isinstance(node, ast.FunctionDef | ast.Lambda)
        inside = isinstance(node, ast.AsyncFunctionDef) or (in_async and not is_sync)
        yield from _mistakes(node, in_async=inside)


def _mistake(node: ast.Call, *, in_async: bool) -> tuple[Level, str, str] | None:
    name = _called(node)
    if name.endswith("wait_for_completion"):
        cure = "delete it: the call stays for the whole conversation by itself"
        return "fail", "AgentSession has no wait_for_completion()", cure
    if name.endswith("add_shutdown_callback"):
        what = "a shutdown callback that raises or hangs breaks the end of the call"
        closes = "which closes it in order and within a deadline"
        return "warn", what, f"open it with `call.open` in resources.py, {closes}"
    if f".{name}".endswith(".session.aclose"):
        what = "session.aclose() bypasses the end of the call"
        return "warn", what, "use `await self.call.hang_up()`"
    if in_async and name == "time.sleep":
        what = "time.sleep() stops the whole call, its sound too"
        return "warn", what, "use `await asyncio.sleep(...)`"
    return None


def _called(node: ast.AST) -> str:
    """What is called, as it is written: `self.session.aclose`; empty if it is not a call."""
    return ast.unparse(node.func) if isinstance(node, ast.Call) else ""
