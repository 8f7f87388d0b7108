"""The generation test: a rendered project installs, lints, types, tests, builds, takes a call."""

from __future__ import annotations

import os
import re
import tomllib
import uuid
import zipfile
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from tests.support.caller import Caller
from tests.support.engines import stores_for
from tests.support.projects import CALLED, SDK, Answers, Project
from tests.support.server import LiveKit
from tests.support.templates import CONFIG, ROOT
from tests.support.worker import SDK_WARNINGS, Worker, worker

FACT_QUESTION, FACT = "Where can I park my bicycle?", "bicycle"

# Together with the default project, which test_owned_projects.py tests after an update, these have
# every choice. `make test-all` runs the same tests in the other projects.
DIAGONAL = {"pgvector-redis-providers", "none-none-selfhosted", "sqlite-sqlite-realtime"}
TESTED = [
    pytest.param(answers, marks=() if chosen in DIAGONAL else pytest.mark.slow)
    for answers in CALLED
    for chosen in [f"{answers.knowledge}-{answers.memory}-{answers.models}"]
]


@pytest.fixture(params=CALLED, ids=str)
def project(request: pytest.FixtureRequest, projects: dict[Answers, Project]) -> Project:
    """Each distinct rendered project, installed."""
    return projects[request.param]


def test_its_format_and_lint_are_clean(project: Project) -> None:
    project.run("uv", "run", "ruff", "format", "--check", ".")
    project.run("uv", "run", "ruff", "check", ".")


def test_its_types_are_strict_and_right(project: Project, mypy_cache: Path) -> None:
    project.run("uv", "run", "mypy", env={"MYPY_CACHE_DIR": str(mypy_cache)})


@pytest.mark.parametrize("project", TESTED, ids=str, indirect=True)
def test_its_own_tests_pass_without_keys_or_network(project: Project) -> None:
    done = project.run("uv", "run", "pytest", env=stores_for(project))
    assert " passed" in done.stdout
    assert "failed" not in done.stdout


def test_nothing_that_it_installs_is_a_name_for_a_project(project: Project) -> None:
    locked = {package["name"] for package in tomllib.loads(project.read("uv.lock"))["package"]}
    taken = CONFIG["taken_names"]["default"].split()
    assert locked - {project.answers()["project_slug"], *taken} == set(), (
        "copier.yml's taken_names lacks these"
    )


def test_its_sdk_is_as_calls_rely_on_it(default_project: Project) -> None:
    """The canary runs it with other versions of livekit-agents."""
    alone = ("--noconftest", "-c", os.devnull, "-o", "asyncio_mode=auto", "-p", "no:cacheprovider")
    facts = ROOT / "tests" / "agent" / "test_sdk.py"
    default_project.run("uv", "run", "pytest", "-q", *alone, str(facts))


def test_it_builds_a_wheel_and_an_sdist_that_hold_the_agent(
    project: Project, tmp_path: Path
) -> None:
    project.run("uv", "build", "--quiet", "--out-dir", str(tmp_path))
    (wheel,) = tmp_path.glob("*.whl")
    assert list(tmp_path.glob("*.tar.gz"))
    names = zipfile.ZipFile(wheel).namelist()
    assert {"agent/entrypoint.py", "agent/persona.py", "agent/defaults.toml"} <= set(names)


def test_the_readme_shows_what_the_first_question_prints(
    default_project: Project, tmp_path: Path
) -> None:
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    fences = [token for token in MarkdownIt().parse(page) if token.type == "fence"]
    (shown,) = (fence.content for fence in fences if not fence.info)
    typed = re.search(r"^printf '(.+)\\n' \| (uv run agent chat)$", fences[0].content, re.M)
    assert typed

    done = default_project.run(
        *typed[2].split(), stdin=f"{typed[1]}\n", env={"AGENT_DATA_DIR": str(tmp_path)}
    )

    # "reading the documents ..." is for those who wait
    said = [line for line in done.stderr.splitlines() if not line.endswith(" ...")]
    assert [*said, *done.stdout.splitlines()] == shown.splitlines()


@pytest.mark.asyncio(loop_scope="session")
async def test_it_takes_a_call_and_knows_the_caller_the_second_time(
    project: Project, livekit: LiveKit
) -> None:
    if project.chosen.knowledge == "pgvector":
        project.run(
            *project.agent, "ingest", env={"AGENT_NAME": "front-desk", **stores_for(project)}
        )
    async with worker(
        project.path, project.agent, livekit, AGENT_NAME="front-desk", **stores_for(project)
    ) as running:
        assert SDK in {
            None,
            await running.sdk(),
        }  # the canary's calls are taken by the version that it asked for
        first, second = await call(running, livekit, project), await call(running, livekit, project)
        remembered = project.chosen.memory != "none"
        assert "welcome back" not in first.lower()
        assert ("welcome back" in second.lower()) == remembered
        assert await running.stop() == 0
    assert [
        record
        for record in running.records
        if any(said in str(record.get("message")) for said in SDK_WARNINGS)
    ] == []
    assert running.complaints() == []


async def call(running: Worker, livekit: LiveKit, project: Project) -> str:
    """One call from joining to the free slot, with the checks of every call; the greeting."""
    room = f"room-{uuid.uuid4().hex[:8]}"
    async with Caller(livekit, room, "front-desk", identity="ann-lee") as caller:
        greeting = await caller.hear_text()
        await caller.hear_sound()
        if project.chosen.knowledge != "none":
            await caller.ask(FACT_QUESTION, FACT)
        else:
            await caller.ask("Do you hear me?", "documents")
    end = await running.ended(room)
    assert end["reason"] == "caller left"
    assert end["turns"] == 3  # the greeting, the question, the answer
    assert running.steps(room) == [1, 2, 3, 4, 5, 6, 7, 8]
    chosen = {"memory": project.chosen.memory, "knowledge": project.chosen.knowledge}
    stores = [store for store, choice in chosen.items() if choice != "none"]
    opened = ["room", *stores, "http", "session"]
    assert running.closed(room) == [(name, "ok") for name in reversed(opened)]
    await running.free()
    return greeting
