"""The template's purpose: an update corrects calls that end wrongly, in a project with own code."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from tests.call.owned import GREETING, converse, make_it_theirs
from tests.support.caller import Caller
from tests.support.projects import Answers, Project
from tests.support.server import LiveKit
from tests.support.templates import WORK_TREE, Template
from tests.support.worker import worker

# a version that only this test has: this checkout with a widely copied mistake
FAULTY = "v998.0.0"

STAYS = """\
    async with call.step(Step.STAY):
        await call.wait_ended()
"""
DOES_NOT_STAY = """\
    async with call.step(Step.STAY):
        try:
            # there is no such method
            await call.session.wait_for_completion()
        except AttributeError:
            pass
"""


@pytest.mark.asyncio(loop_scope="session")
async def test_an_update_cures_a_call_that_ends_too_early_and_keeps_every_line_of_the_owners(
    own_template: Template, livekit: LiveKit, tmp_path: Path
) -> None:
    # A release has the fault: after the greeting, everything is closed during the call.
    entrypoint = own_template.source("src/agent/entrypoint.py")
    right = entrypoint.read_text(encoding="utf-8")
    entrypoint.write_text(right.replace(STAYS, DOES_NOT_STAY), encoding="utf-8")
    own_template.release(FAULTY)

    # An owner changes a project of it, and deploys it.
    project = Project(own_template.copy(tmp_path / "harbour", FAULTY).path, Answers())
    project.commit()
    theirs = make_it_theirs(project)
    project.install()

    # A caller is greeted, stays, and the agent hangs up.
    async with worker(project.path, project.agent, livekit, AGENT_NAME="harbour") as running:
        async with Caller(livekit, room := f"room-{uuid.uuid4().hex[:8]}", "harbour") as caller:
            assert await caller.hear_text() == GREETING
            ended = await running.ended(room)
        assert ended["reason"] == "agent hung up", "without being asked"
        assert ("almanac", "ok") in running.closed(room)

    # The owner updates.
    project.update(WORK_TREE)
    assert project.conflicts() == []
    project.commit()
    project.install()

    # The fault is gone: the call lasts until the caller leaves.
    async with worker(project.path, project.agent, livekit, AGENT_NAME="harbour") as running:
        async with Caller(livekit, room := f"room-{uuid.uuid4().hex[:8]}", "harbour") as caller:
            assert await caller.hear_text() == GREETING
            await converse(caller)
            assert not [record for record in running.of(room) if "reason" in record]
        ended = await running.ended(room)
        assert ended["reason"] == "caller left"
        assert running.complaints() == []

    # Every line of the owner is still there.
    assert project.read("src/agent/entrypoint.py") == right
    assert {name: project.read(name) for name in theirs} == theirs
