"""Every combination of answers declares what it imports, and installs nothing else for the agent.

Not deptry's rule: to it any part of a namespace (`livekit`, `opentelemetry`) declares all of it.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.templates import Project, identify

# read by uv, for types only
STUBS = {"asyncpg-stubs"}
OWN = {"agent", "tests"}
# the plugins of the default providers, which settings name
NAMED = {"livekit-plugins-openai", "livekit-plugins-deepgram", "livekit-plugins-cartesia"}
QUESTIONS = ("models", "knowledge", "memory")


@cache
def owners() -> dict[str, str]:
    """The distribution of every file of a package, such as `livekit/rtc/__init__.py`."""
    found: dict[str, str] = {}
    for distribution in distributions():
        for file in distribution.files or []:
            if file.suffix in {".py", ".so"}:
                found[str(file)] = canonicalize_name(distribution.metadata["Name"])
    return found


def owner_of(module: str) -> str | None:
    """The distribution of a module; of its nearest package, if it is a name in one."""
    parts = module.split(".")
    for depth in range(len(parts), 0, -1):
        path = "/".join(parts[:depth])
        for file in (f"{path}/__init__.py", f"{path}.py"):
            if file in owners():
                return owners()[file]
    return None


def imported(source: Path) -> Iterator[str]:
    """Every module that a file imports, also inside functions and only for types."""
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imports_of(folder: Path) -> dict[str, str]:
    """The distributions that the files below import, each with one such file."""
    found: dict[str, str] = {}
    for source in sorted(folder.rglob("*.py")):
        for module in imported(source):
            if module.split(".")[0] not in sys.stdlib_module_names | OWN:
                found[owner_of(module) or f"nothing has {module}"] = source.name
    return found


def declared(project: Project, *groups: str) -> set[str]:
    metadata = tomllib.loads(project.read("pyproject.toml"))
    lists = [metadata["project"]["dependencies"]]
    lists += [metadata["dependency-groups"][group] for group in groups]
    return {canonicalize_name(Requirement(one).name) for some in lists for one in some}


def test_every_combination_declares_what_it_imports_and_no_more(every_copy: list[Project]) -> None:
    for project in every_copy:
        case = identify({name: project.answers()[name] for name in QUESTIONS})
        agent, tests = imports_of(project.path / "src"), imports_of(project.path / "tests")
        lacking = agent.keys() - declared(project)
        assert {name: agent[name] for name in lacking} == {}, f"{case} does not declare these"
        lacking = tests.keys() - declared(project, "dev")
        assert {name: tests[name] for name in lacking} == {}, f"{case} does not declare these"
        named = NAMED if project.answers()["models"] == "providers" else set()
        assert declared(project) - agent.keys() == named, f"{case} declares these for nothing"


def test_every_combination_imports_only_modules_that_it_has(every_copy: list[Project]) -> None:
    for project in every_copy:
        case = identify({name: project.answers()[name] for name in QUESTIONS})
        folders = project.path / "src", project.path
        missing = {
            module: source.name
            for source in sorted(project.path.rglob("*.py"))
            for module in imported(source)
            if module.split(".")[0] in OWN and not any(has(folder, module) for folder in folders)
        }
        assert missing == {}, f"{case} imports what it was made without"


def has(folder: Path, module: str) -> bool:
    """Whether the module is there, or the one that it is a name in."""
    path = folder.joinpath(*module.split("."))
    above = path.parent
    return any(
        place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()
        for place in (path, above)
        if place != folder
    )
