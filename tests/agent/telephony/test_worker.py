"""People whom a job leaves to each other: the worker hangs up on who is alone."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest
from livekit.protocol import models

from agent.lifecycle import Reason
from agent.server import Server
from agent.settings import load_settings
from agent.telemetry import CallLogHandler
from agent.telephony import transfers
from tests.agent.transport.test_end_room import person
from tests.support.room_service import RoomService

CALLER = person("sip_1", models.ParticipantInfo.SIP)
JOINED = person("joined_1", models.ParticipantInfo.SIP)
ROOM = models.Room(name="room", sid="RM_1")


def worker_after(reason: str | None, *, exitcode: int = 0) -> Server:
    """A worker whose job has just ended, for this reason if it could still say one."""
    worker = Server(load_settings())
    worker._ending_rooms = set()
    worker._call_log = CallLogHandler()
    if reason is not None:
        worker._call_log.ended["job"] = reason
    running = SimpleNamespace(
        job=SimpleNamespace(id="job", room=ROOM),
        accept_arguments=SimpleNamespace(identity="agent"),
        launched_at=time.time(),
    )
    process: Any = SimpleNamespace(running_job=running, exitcode=exitcode)
    worker._job_closed(process)
    return worker


async def test_who_is_alone_after_a_transfer_is_hung_up_by_the_worker(server: RoomService) -> None:
    server.rooms, server.present = [ROOM], [CALLER]
    await asyncio.gather(*worker_after(Reason.TRANSFERRED)._ending_rooms)
    assert server.deleted == ["room"]


async def test_a_room_of_a_call_that_ended_otherwise_is_left_as_it_is(server: RoomService) -> None:
    server.rooms, server.present = [ROOM], [CALLER]
    assert not worker_after(Reason.AGENT_HUNG_UP)._ending_rooms


async def test_two_people_whom_a_killed_job_leaves_may_talk_until_one_hangs_up(
    server: RoomService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfers, "ALONE_POLL_SECONDS", 0.01)
    server.rooms, server.present = [ROOM], [CALLER, JOINED]
    (looking,) = worker_after(None, exitcode=-9)._ending_rooms
    # once by the end of the room, and again and again by who looks after them
    async with asyncio.timeout(20):
        for _ in range(4):
            while await server.asked.get() != "ListParticipants":
                pass
    assert not looking.done()
    assert server.deleted == []
    server.present.remove(JOINED)
    await looking
    assert server.deleted == ["room"]
