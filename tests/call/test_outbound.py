"""Calls that the agent makes, by a real livekit-sip to a real phone."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from livekit import api

from agent.reasons import Reason
from tests.call.scene import Scene, scene
from tests.support.phone import Phone
from tests.support.projects import Answers, Project, render
from tests.support.server import free_port
from tests.support.sip import Network, telephone_network
from tests.support.templates import ROOT, Template

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.slow]

NUMBER = "+4930555001"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def network(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Network]:
    async with telephone_network(tmp_path_factory.mktemp("telephones")) as running:
        yield running


@pytest.fixture(scope="module")
def project(template: Template, tmp_path_factory: pytest.TempPathFactory) -> Project:
    folder = tmp_path_factory.mktemp("telephoned")
    made = render(template, folder / "front-desk", Answers(telephony="yes"))
    persona = ROOT / "tests" / "support" / "telephoned" / "persona.py"
    (made.path / "src" / "agent" / "persona.py").write_bytes(persona.read_bytes())
    made.install()
    return made


@pytest.fixture(scope="module")
def phone_port() -> int:
    return free_port(socket.SOCK_DGRAM)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def stage(network: Network, project: Project, phone_port: int) -> AsyncIterator[Scene]:
    """A worker whose trunk leads to `phone_port`."""
    settings = {
        "AGENT_SIP_TRUNK": await network.outbound(phone_port),
        "AGENT_CALLS_TO": "+4930",
        "AGENT_RING_SECONDS": "4",
        "AGENT_REMEMBER_PHONE_NUMBERS": "true",
    }
    async with scene(project, network.livekit, **settings) as started:
        yield started


async def send(stage: Scene, room: str, number: str = NUMBER, **told: object) -> None:
    """Have the agent call a number."""
    metadata = json.dumps({"call": number, **told})
    asked = api.CreateAgentDispatchRequest(agent_name=stage.agent, room=room, metadata=metadata)
    async with stage.livekit.api() as server:
        await server.agent_dispatch.create_dispatch(asked)


async def test_the_first_word_is_heard_whole(
    network: Network, stage: Scene, phone_port: int
) -> None:
    async with Phone(network, port=phone_port, rings=0.5) as phone:
        await send(stage, "out-answered")
        await phone.wait(phone.answered)
        await phone.wait(phone.sound.sound)
        print("first sound", phone.sound.first_sound_at - phone.answered_at)
        await stage.step("out-answered", 6)
        print("heard", phone.sound.loud_seconds)
        phone.hang_up()
        record = await stage.running.ended("out-answered")
        assert record["reason"] == Reason.CALLER_LEFT
        await stage.running.free()
    for r in stage.running.of("out-answered"):
        print({k: v for k, v in r.items() if k not in ("time", "logger", "call", "room")})


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (486, Reason.BUSY),
        (603, Reason.DECLINED),
        (404, Reason.INVALID_NUMBER),
        (480, Reason.UNREACHABLE),
        (403, Reason.TRUNK_FAILED),
        (503, Reason.TRUNK_FAILED),
        (None, Reason.NO_ANSWER),
    ],
)
async def test_refused(network: Network, stage: Scene, phone_port: int, status, reason) -> None:
    room = f"out-{status}"
    async with Phone(network, port=phone_port, answer=status) as phone:
        began = time.monotonic()
        await send(stage, room)
        await phone.wait(phone.over)
        record = await stage.running.ended(room)
        print(reason, phone.how, time.monotonic() - phone.over_at, phone.over_at - began, record)
        assert record["reason"] == reason
        await stage.running.free()
    for r in stage.running.of(room):
        print({k: v for k, v in r.items() if k not in ("time", "logger", "call", "room")})
