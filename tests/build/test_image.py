"""The default project's Dockerfile makes an image that runs as in production, and takes a call."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.support.caller import Caller
from tests.support.image import Container, Engine, NoEngine, build_image, find_engine, run_image
from tests.support.projects import Answers, Project, render
from tests.support.server import LiveKit, free_port
from tests.support.templates import Template

QUESTION, ANSWER = "What does a puncture cost?", "14 euros"  # knowledge/repairs.md


@pytest.fixture(scope="module")
def engine() -> Engine:
    """What builds images. Without one the tests are skipped with the reason; under CI they fail."""
    try:
        return find_engine()
    except NoEngine as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def project(template: Template, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The default project as it is rendered: without a lock, without keys."""
    return render(template, tmp_path_factory.mktemp("image") / "project", Answers())


@pytest.fixture(scope="module")
def image(engine: Engine, project: Project) -> str:
    """The name of its image."""
    return build_image(project.path)


@pytest.fixture(scope="module")
def container(image: str, livekit: LiveKit) -> Iterator[Container]:
    """A worker that is not called, to look into."""
    with run_worker(image, livekit) as container:
        container.wait_for("registered worker")
        yield container


def run_worker(image: str, livekit: LiveKit) -> AbstractContextManager[Container]:
    """A keyless worker of the image, which takes calls however busy this machine is."""
    settings = {"AGENT_MODELS": "scripted", "AGENT_PORT": str(free_port()), "AGENT_MAX_LOAD": "inf"}
    return run_image(image, {**livekit.environment, **settings})


def test_the_image_runs_as_nobody_and_can_write_only_its_data(container: Container) -> None:
    assert container.execute("id", "-u") == "10001\n"
    for folder, writable in {"/data": True, "/tmp": True, "/app": False, "/": False}.items():
        assert (
            container.execute("python", "-c", f"import os; print(os.access({folder!r}, os.W_OK))")
            == f"{writable}\n"
        )


def test_the_image_holds_the_agent_and_its_documents_and_nothing_else_of_the_project(
    container: Container,
) -> None:
    assert container.execute("ls", "-A", "/app").split() == [
        ".template.toml",
        ".venv",
        "knowledge",
        "models",
    ]
    assert "pytest" not in container.execute("ls", "/app/.venv/bin").split()


def test_the_owners_prices_are_in_the_image_where_there_are_any(
    engine: Engine, project: Project, tmp_path: Path
) -> None:
    priced = Project(shutil.copytree(project.path, tmp_path / "priced"), project.chosen)
    priced.write("prices.toml", 'date = "2026-11-29"\ncurrency = "CHF"\n')

    image = build_image(priced.path, "rendered-agent-priced")

    used = "from agent.reports.cost import load_prices; from agent.settings import load_settings"
    asked = f"{used}; print(load_prices(load_settings().home).currency)"
    assert engine("run", "--rm", "--entrypoint=python", image, "-c", asked) == "CHF\n"


def test_the_image_says_that_it_is_healthy(container: Container) -> None:
    container.check_health()


async def test_the_image_answers_a_call_and_ends_when_it_is_told_to(
    image: str, livekit: LiveKit
) -> None:
    with run_worker(image, livekit) as container:
        await asyncio.to_thread(container.wait_for, "registered worker")
        async with Caller(livekit, "image", "front-desk") as caller:
            await caller.hear_text()
            await caller.hear_sound()
            await caller.ask(QUESTION, expecting=ANSWER)
        await asyncio.to_thread(container.wait_for, '"turns"')  # the call's last record
        exit_code = await asyncio.to_thread(container.stop)

        assert exit_code == 0, container.logs()


def test_a_committed_lock_is_installed_and_no_key_is_sent_to_the_build(
    engine: Engine, project: Project, tmp_path: Path
) -> None:
    locked = Project(shutil.copytree(project.path, tmp_path / "locked"), project.chosen)
    locked.run(
        "uv", "lock", "--quiet", "--upgrade-package", "rich==14.0.0"
    )  # older than any that would be resolved
    locked.write(".env.local", "LIVEKIT_API_SECRET=never\n")

    image = build_image(locked.path, "rendered-agent-locked", stage="build")

    inside = engine(
        "run", "--rm", image, "ls", "-A", "/build", "/app/.venv/lib/python3.11/site-packages"
    ).split()
    assert "rich-14.0.0.dist-info" in inside
    assert "uv.lock" in inside
    assert ".env.local" not in inside
