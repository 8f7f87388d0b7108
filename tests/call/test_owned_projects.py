"""Owners' code for any release works with today's template: its types, its tests, its calls."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from tests.call.owned import GREETING, converse, make_it_theirs
from tests.support.caller import Caller
from tests.support.projects import Answers, Project
from tests.support.server import LiveKit
from tests.support.templates import WORK_TREE, Template, released
from tests.support.worker import worker


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("version", released())
async def test_a_project_of_a_release_goes_on_with_its_own_code_after_an_update(
    template: Template,
    livekit: LiveKit,
    version: str,
    tmp_path: Path,
    mypy_cache: Path,
) -> None:
    project = Project(template.copy(tmp_path / "harbour", version).path, Answers())
    project.commit()
    theirs = make_it_theirs(project)
    came = {name: project.read(name) for name in project.files() if name.startswith("tests/yours/")}

    project.update(WORK_TREE)

    assert project.conflicts() == []
    merged = {"compose.yaml", "pyproject.toml", "uv.lock"}
    kept = {name: text for name, text in theirs.items() if name not in merged} | came
    assert {name: project.read(name) for name in kept} == kept
    assert project.read("compose.yaml").endswith("  chart:\n    image: nginx\n")
    assert '"humanize' in project.read("pyproject.toml")
    project.install()
    project.run("uv", "run", "mypy", env={"MYPY_CACHE_DIR": str(mypy_cache)})
    project.run("uv", "run", "pytest", *([] if version == released()[0] else ["tests/yours"]))
    async with worker(project.path, project.agent, livekit, AGENT_NAME="harbour") as running:
        async with Caller(livekit, room := f"room-{uuid.uuid4().hex[:8]}", "harbour") as caller:
            assert await caller.hear_text() == GREETING
            await converse(caller)
        assert (await running.ended(room))["reason"] == "caller left"
        assert running.complaints() == []
