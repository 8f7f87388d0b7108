"""Fixtures of the generation tests: the template's repository, rendered projects, a real server."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support.both_tools import BothTools
from tests.support.projects import CALLED, Answers, Project, render
from tests.support.server import LiveKit, livekit_server
from tests.support.templates import Template, isolated_environment, make_template

BOTH_TOOLS = "seconds of both tools"  # the property of the tests that compare them

pytest.register_assert_rewrite("tests.call.scene")

# a shell's background job is begun with SIGINT ignored, and so would be all that a test begins
signal.signal(signal.SIGINT, signal.default_int_handler)


# what takes longest begins first, so that no process is left alone with it at the end
LONGEST_FIRST = ("call", "web", "update", "build", "stores")


# files whose worker takes longer to make than its calls last; others make theirs in each process
ONE_WORKER = {"test_heard", "test_realtime"}


# before pytest-xdist's own, which reads the groups
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep tests of one project, worker or image in one process: these are expensive to make."""
    folders = dict.fromkeys([*LONGEST_FIRST, *(item.path.parent.name for item in items)])
    rank = {folder: number for number, folder in enumerate(folders)}
    items.sort(key=lambda item: rank[item.path.parent.name])
    for item in items:
        folder = item.path.parent.name
        if {"both_tools", "every_copy"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.xdist_group("combinations"))
        if folder in {"call", "build", "web"}:
            parameters = getattr(item, "callspec", None)
            chosen = (
                (parameters.params.get("project") or parameters.params.get("version"))
                if parameters
                else None
            )
            if chosen or item.path.stem in ONE_WORKER:
                item.add_marker(pytest.mark.xdist_group(str(chosen or item.path.stem)))


@pytest.fixture(scope="session", autouse=True)
def _isolated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Isolate the tests from the tester's configuration, and from a git hook that runs them."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("GIT_")]:
            patch.delenv(name)
        for name, value in isolated_environment(tmp_path_factory.mktemp("environment")).items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Template:
    """Every release and this checkout, as a git repository; to be read only."""
    return make_template(tmp_path_factory.mktemp("template") / "livekit-agent-template")


@pytest.fixture
def own_template(tmp_path: Path) -> Template:
    """The same, to be changed by one test."""
    return make_template(tmp_path / "livekit-agent-template")


@pytest.fixture(scope="session")
def both_tools(template: Template, tmp_path_factory: pytest.TempPathFactory) -> BothTools:
    """Every combination of answers, by either tool."""
    return BothTools(template, tmp_path_factory.mktemp("combinations"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many combinations both tools have rendered, and in which time."""
    passed = terminalreporter.stats.get("passed", [])
    seconds = [
        value for report in passed for name, value in report.user_properties if name == BOTH_TOOLS
    ]
    if seconds:
        terminalreporter.write_line(
            f"{len(seconds)} combinations by both tools in {sum(seconds):.0f} s"
        )


@pytest.fixture(scope="session")
def projects(
    template: Template, tmp_path_factory: pytest.TempPathFactory
) -> dict[Answers, Project]:
    """Every distinct project, rendered and installed when it is first asked for."""
    folder = tmp_path_factory.mktemp("projects")

    class Rendered(dict[Answers, Project]):
        def __missing__(self, answers: Answers) -> Project:
            project = self[answers] = render(template, folder / str(answers), answers)
            project.install()
            return project

    return Rendered()


@pytest.fixture
def default_project(projects: dict[Answers, Project]) -> Project:
    """The project that `copier copy --defaults` makes."""
    return projects[CALLED[0]]


@pytest.fixture
def mypy_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One cache for all projects, which have the same packages; one test at a time fills it."""
    base = tmp_path_factory.getbasetemp()
    cache = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "mypy"
    cache.mkdir(exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield cache


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def livekit(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LiveKit]:
    """A real livekit-server for the whole run."""
    async with livekit_server(tmp_path_factory.mktemp("livekit")) as server:
        yield server
