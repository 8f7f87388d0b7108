"""Which rooms are deleted at the end of a call, and for whom an agent is sent again."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from livekit import api
from livekit.protocol import models

from agent.transport.room import end_room
from tests.support.room_service import RoomService, room_service

AGAIN = api.CreateAgentDispatchRequest(room="room", agent_name="front-desk", metadata="order 1042")


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RoomService]:
    async with room_service() as running:
        for name, value in running.environment.items():
            monkeypatch.setenv(name, value)
        running.rooms = [models.Room(name="room", sid="RM_1")]
        running.present = [person("agent", models.ParticipantInfo.AGENT)]
        yield running


def person(
    identity: str,
    kind: models.ParticipantInfo.Kind = models.ParticipantInfo.STANDARD,
    *,
    listens: bool = False,
) -> models.ParticipantInfo:
    permission = models.ParticipantPermission(can_publish=not listens)
    return models.ParticipantInfo(identity=identity, kind=kind, permission=permission)


async def test_a_room_that_the_caller_has_left_is_deleted(server: RoomService) -> None:
    assert not await end_room("room", "RM_1", "agent", "ann", AGAIN)
    assert (server.deleted, server.made) == (["room"], [])


async def test_who_only_listens_keeps_no_room(server: RoomService) -> None:
    server.present.append(person("viewer", listens=True))
    await end_room("room", "RM_1", "agent", "ann", AGAIN)
    assert server.deleted == ["room"]


async def test_somebody_else_keeps_the_room_and_gets_no_agent(server: RoomService) -> None:
    server.present.append(person("supervisor"))
    assert not await end_room("room", "RM_1", "agent", "ann", AGAIN)
    assert (server.deleted, server.made) == ([], [])


async def test_a_caller_who_is_back_keeps_the_room_and_gets_an_agent_for_the_same_work(
    server: RoomService,
) -> None:
    server.present.append(person("ann"))
    assert await end_room("room", "RM_1", "agent", "ann", AGAIN)
    assert (server.deleted, server.made) == ([], [AGAIN])


async def test_a_caller_on_whom_the_agent_hangs_up_does_not_keep_the_room(
    server: RoomService,
) -> None:
    server.present.append(person("ann"))
    await end_room("room", "RM_1", "agent", "ann")
    assert (server.deleted, server.made) == (["room"], [])


@pytest.mark.parametrize("again", [None, AGAIN])
async def test_a_newer_room_of_the_same_name_is_another_calls(
    server: RoomService, again: api.CreateAgentDispatchRequest | None
) -> None:
    server.rooms = [models.Room(name="room", sid="RM_2")]
    server.present = [person("ann")]
    assert not await end_room("room", "RM_1", "agent", "ann", again)
    assert (server.deleted, server.made) == ([], [])


async def test_a_room_that_the_server_does_not_list_yet_is_deleted(server: RoomService) -> None:
    server.rooms = []
    await end_room("room", "RM_1", "agent", "ann")
    assert server.deleted == ["room"]


async def test_a_room_that_the_agent_is_in_is_deleted_whatever_sid_the_sdk_gives(
    server: RoomService,
) -> None:
    server.rooms = [models.Room(name="room", sid="RM_2")]
    await end_room("room", "RM_1", "agent", "ann", AGAIN)
    assert server.deleted == ["room"]


async def test_a_phone_that_still_rings_keeps_no_room(server: RoomService) -> None:
    called_in = person("joined_+493023125000", models.ParticipantInfo.SIP)
    called_in.attributes["sip.callStatus"] = "ringing"
    server.present += [person("ann"), called_in]
    await end_room("room", "RM_1", "agent", None)
    assert server.deleted == ["room"]


async def test_a_caller_who_rings_again_keeps_the_room(server: RoomService) -> None:
    back = person("ann", models.ParticipantInfo.SIP)
    back.attributes["sip.callStatus"] = "ringing"
    server.present.append(back)
    assert await end_room("room", "RM_1", "agent", "ann", AGAIN)
    assert (server.deleted, server.made) == ([], [AGAIN])
