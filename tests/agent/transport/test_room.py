"""The transport of a LiveKit job: the meaning of a real room object's events, without a network."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any, cast

import pytest
from livekit import rtc
from livekit.agents import JobContext

from agent.lifecycle import Call, Reason, Step
from agent.settings import load_settings
from agent.transport import Caller
from agent.transport.room import RoomTransport


def person(
    identity: str,
    why: rtc.DisconnectReason.ValueType | None = None,
    *,
    phone: bool = False,
    listens: bool = False,
) -> rtc.RemoteParticipant:
    """A participant who is in a room, or leaves it for a reason."""
    standard, sip = (
        rtc.ParticipantKind.PARTICIPANT_KIND_STANDARD,
        rtc.ParticipantKind.PARTICIPANT_KIND_SIP,
    )
    return cast(
        rtc.RemoteParticipant,
        SimpleNamespace(
            identity=identity,
            name=identity,
            sid=identity,
            kind=sip if phone else standard,
            state=rtc.ParticipantState.PARTICIPANT_STATE_ACTIVE,
            attributes={},
            track_publications={},
            disconnect_reason=why,
            permissions=SimpleNamespace(can_publish=not listens),
        ),
    )


class Job:
    """The parts of the SDK's JobContext that the transport uses, around an unconnected room."""

    def __init__(self) -> None:
        room = SimpleNamespace(name="room", sid="RM_1")
        self.job = SimpleNamespace(id="job", room=room, agent_name="front-desk", metadata="")
        self.room = rtc.Room()
        self.ended_with: list[str] = []
        self.callbacks: list[Callable[[], Coroutine[Any, Any, None]]] = []

    def is_fake_job(self) -> bool:
        return False

    def add_shutdown_callback(self, callback: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self.callbacks.append(callback)

    async def connect(self) -> None:
        return

    def shutdown(self, reason: str) -> None:
        self.ended_with.append(reason)

    def join(self, identity: str, *, phone: bool = False, listens: bool = False) -> None:
        somebody = person(identity, phone=phone, listens=listens)
        self.room._remote_participants[identity] = somebody
        self.room.emit("participant_connected", somebody)
        self.room.emit("participant_active", somebody)

    def leave(
        self, identity: str, why: rtc.DisconnectReason.ValueType, *, phone: bool = False
    ) -> None:
        self.room._remote_participants.pop(identity, None)
        self.room.emit("participant_disconnected", person(identity, why, phone=phone))


class Watched(RoomTransport):
    """A job's transport that notes whom it would remove."""

    def __init__(self, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(job.room, "isconnected", lambda: True)
        super().__init__(cast(JobContext, job))
        self.hung_up_on: list[Caller | None] = []

    async def end_room(self, caller: Caller | None) -> None:
        self.hung_up_on.append(caller)


async def talk(call: Call) -> None:
    async with call.step(Step.WAIT_FOR_CALLER):
        await call.wait_for_caller()
    async with call.step(Step.STAY):
        await call.wait_ended()


@pytest.fixture
async def job() -> Job:
    return Job()


async def begin(
    job: Job, monkeypatch: pytest.MonkeyPatch, **changes: object
) -> tuple[Call, Watched]:
    line = Watched(job, monkeypatch)
    call = Call(line, load_settings().model_copy(update=changes))
    await call.start(talk)
    return call, line


async def answers_the_phone(call: Call, job: Job) -> None:
    """The caller is the phone that has joined, which now hangs up."""
    assert await call.wait_greeted()
    assert call.caller is not None
    assert call.caller.identity == "sip_1"
    job.leave("sip_1", REASONS.CLIENT_INITIATED, phone=True)
    await ended(call)


async def ended(call: Call) -> str | None:
    async with asyncio.timeout(10):
        await call.wait_ended()
        await call.wait_closed()
    return call.reason


REASONS = rtc.DisconnectReason


@pytest.mark.parametrize(
    ("why", "reason"),
    [
        (REASONS.CLIENT_INITIATED, Reason.CALLER_LEFT),
        (REASONS.USER_REJECTED, Reason.CALLER_LEFT),
        (REASONS.PARTICIPANT_REMOVED, Reason.CALLER_LEFT),
        (REASONS.CONNECTION_TIMEOUT, Reason.CALLER_DROPPED),
        (REASONS.ROOM_DELETED, Reason.ROOM_CLOSED),
    ],
)
async def test_how_a_caller_left_is_why_the_call_ended(
    job: Job, monkeypatch: pytest.MonkeyPatch, why: REASONS.ValueType, reason: str
) -> None:
    call, _ = await begin(job, monkeypatch, rejoin_seconds=0.01)
    job.join("ann")
    assert await call.wait_greeted()
    job.leave("ann", why)
    assert await ended(call) == reason


@pytest.mark.parametrize(
    ("why", "reason", "hung_up"),
    [
        (REASONS.ROOM_DELETED, Reason.ROOM_CLOSED, 0),
        (REASONS.ROOM_CLOSED, Reason.ROOM_CLOSED, 0),
        (REASONS.PARTICIPANT_REMOVED, Reason.REMOVED, 1),
        (REASONS.CONNECTION_TIMEOUT, Reason.REMOVED, 1),
        (REASONS.SIGNAL_CLOSE, Reason.REMOVED, 1),
        (REASONS.UNKNOWN_REASON, Reason.REMOVED, 1),
    ],
)
async def test_an_agent_that_lost_a_room_which_lives_on_does_not_strand_its_caller(
    job: Job, monkeypatch: pytest.MonkeyPatch, why: REASONS.ValueType, reason: str, hung_up: int
) -> None:
    call, line = await begin(job, monkeypatch)
    job.join("ann")
    assert await call.wait_greeted()
    job.room.emit("disconnected", why)
    assert await ended(call) == reason
    assert len(line.hung_up_on) == hung_up


async def test_somebody_elses_leaving_ends_nothing(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, _ = await begin(job, monkeypatch)
    job.join("ann")
    assert await call.wait_greeted()
    job.join("supervisor")
    job.leave("supervisor", REASONS.CLIENT_INITIATED)
    await asyncio.sleep(0)
    assert call.reason is None
    job.leave("ann", REASONS.CLIENT_INITIATED)
    assert await ended(call) == Reason.CALLER_LEFT


async def test_who_only_listens_is_not_taken_for_the_caller(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, _ = await begin(job, monkeypatch)
    job.join("viewer", listens=True)
    await asyncio.sleep(0)
    assert call.caller is None
    job.join("sip_1", phone=True)
    await answers_the_phone(call, job)


async def test_a_phone_is_the_caller_before_somebody_who_came_first(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    job.join("colleague")
    job.join("sip_1", phone=True)
    call, _ = await begin(job, monkeypatch)
    await answers_the_phone(call, job)


async def test_who_is_the_caller_may_be_an_attribute_that_comes_later(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def patient(call: Call) -> None:
        async with call.step(Step.WAIT_FOR_CALLER):
            await call.wait_for_caller(lambda somebody: somebody.attributes.get("role") == "guest")
        async with call.step(Step.STAY):
            await call.wait_ended()

    call = Call(Watched(job, monkeypatch), load_settings())
    await call.start(patient)
    job.join("ann")
    await asyncio.sleep(0)
    assert call.caller is None
    job.room._remote_participants["ann"].attributes["role"] = "guest"
    job.room.emit("participant_attributes_changed", {}, job.room._remote_participants["ann"])
    assert await call.wait_greeted()
    job.leave("ann", REASONS.CLIENT_INITIATED)
    await ended(call)


async def test_an_error_of_the_owners_rule_ends_the_call(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Caller) -> bool:
        raise ValueError("no such attribute")

    async def asks(call: Call) -> None:
        async with call.step(Step.WAIT_FOR_CALLER):
            await call.wait_for_caller(broken)

    call = Call(Watched(job, monkeypatch), load_settings())
    await call.start(asks)
    await asyncio.sleep(0)
    job.join("ann")
    assert await ended(call) == "error in step 4 (wait for the caller)"


async def test_a_caller_who_joins_again_with_the_same_identity_stays_the_caller(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, _ = await begin(job, monkeypatch)
    job.join("ann")
    assert await call.wait_greeted()
    job.leave("ann", REASONS.DUPLICATE_IDENTITY)
    job.join("ann")
    await asyncio.sleep(0)
    assert call.reason is None
    job.leave("ann", REASONS.CLIENT_INITIATED)
    await ended(call)


async def test_a_caller_who_leaves_in_the_moment_of_joining_is_noticed(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, _ = await begin(job, monkeypatch)
    # the call waits for its caller
    await asyncio.sleep(0.01)
    job.join("ann")
    job.leave("ann", REASONS.CLIENT_INITIATED)
    assert await ended(call) == Reason.CALLER_LEFT


async def opens_for_ever(call: Call) -> None:
    async with call.step(Step.OPEN_INFRASTRUCTURE):
        await asyncio.Event().wait()


async def test_a_phone_that_hangs_up_before_anybody_answers_is_not_waited_for(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = Call(Watched(job, monkeypatch), load_settings())
    await call.start(opens_for_ever)
    job.join("sip_1", phone=True)
    job.leave("sip_1", REASONS.CLIENT_INITIATED, phone=True)
    assert await ended(call) == Reason.CALLER_LEFT


async def test_a_browser_that_reloads_before_anybody_answers_is_waited_for(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    line, ready = Watched(job, monkeypatch), asyncio.Event()
    call = Call(line, load_settings())

    async def slow(call: Call) -> None:
        await ready.wait()
        await talk(call)

    await call.start(slow)
    job.join("ann")
    job.leave("ann", REASONS.CLIENT_INITIATED)
    job.join("ann")
    ready.set()
    assert await call.wait_greeted()
    job.leave("ann", REASONS.CLIENT_INITIATED)
    assert await ended(call) == Reason.CALLER_LEFT
