"""A call with a real room object and a server's API on loopback: a test plays the phones."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import pytest
from livekit import api, rtc
from livekit.agents import JobContext

from agent.conversation import CallAgent
from agent.lifecycle import Call
from agent.memory.identity import key_of
from agent.settings import load_settings
from agent.transport import Caller
from agent.transport.room import RoomTransport
from template.tests.test_contract import Remembered
from tests.agent.transport.test_room import Job, person
from tests.support.room_service import KEY, SECRET, RoomService

BERLIN = "+493023125000"
PHONE = f"sip_{BERLIN}"


class PhonesRemembered(Remembered):
    """A memory of phones alone."""

    def key_of(self, identity: str, kind: str, attributes: Mapping[str, str]) -> str | None:
        return key_of(identity, kind, attributes, phones=True)


class Telephone(RoomTransport):
    """A job's transport whose room is deleted by noting it."""

    def __init__(self, job: Job, server: api.LiveKitAPI, monkeypatch: pytest.MonkeyPatch) -> None:
        vars(job)["api"] = server
        monkeypatch.setattr(job.room, "isconnected", lambda: True)
        super().__init__(cast(JobContext, job))
        self.job = job
        self.rooms_ended = 0

    async def end_room(self, caller: Caller | None) -> None:
        self.rooms_ended += 1

    # the phone's side

    def ring(self, status: str = "ringing") -> None:
        """The phone is in the room, and rings."""
        somebody = phone(status)
        self.job.room._remote_participants[PHONE] = somebody
        self.job.room.emit("participant_connected", somebody)

    def leave(self, why: rtc.DisconnectReason.ValueType) -> None:
        """The phone has left the room."""
        self.job.leave(PHONE, why, phone=True)


def phone(status: str) -> rtc.RemoteParticipant:
    """A phone in a room."""
    somebody: Any = person(PHONE, phone=True)
    cast(SimpleNamespace, somebody).attributes = {"sip.callStatus": status}
    return cast(rtc.RemoteParticipant, somebody)


@dataclass
class Calling:
    """A call that is about to be made."""

    call: Call
    line: Telephone
    persona: CallAgent
    memory: Remembered
    server: RoomService


@asynccontextmanager
async def calling(
    server: RoomService,
    monkeypatch: pytest.MonkeyPatch,
    metadata: str = f'{{"call": "{BERLIN}"}}',
    **changes: object,
) -> AsyncIterator[Calling]:
    """A call with this metadata, before step 4; it ends with the test."""
    settings = load_settings().model_copy(
        update={"calls_to": "+49", "sip_trunk": "ST_1", "remember_phone_numbers": True, **changes}
    )
    job = Job()
    job.job.metadata = metadata
    vars(job.job).update(deployment="", attributes={})
    vars(job)["local_participant_identity"] = "agent"
    async with api.LiveKitAPI(server.environment["LIVEKIT_URL"], KEY, SECRET) as client:
        line = Telephone(job, client, monkeypatch)
        call = Call(line, settings)
        memory = PhonesRemembered()
        call.memory = memory
        persona = CallAgent(call, instructions="Be brief.")
        line.listen(call)
        yield Calling(call, line, persona, memory, server)
