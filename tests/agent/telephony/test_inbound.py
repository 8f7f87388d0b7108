"""Calls that come by telephone: who has given up before the agent is there."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from google.protobuf.json_format import Parse
from livekit import api

from agent.lifecycle import Call, Reason
from agent.telephony.inbound import expect_caller
from tests.agent.telephony.phones import calling
from tests.support.room_service import Refusal, RoomService

PREFIX = "call-"
ROOM = f"{PREFIX}_+493023125999_a1B2c3D4e5F6"
RULE = Path(__file__).parents[3] / "template" / "deploy" / "telephony" / "dispatch-rule.json.jinja"
GAVE_UP = "who gives up early"


def deployed() -> api.SIPDispatchRuleInfo:
    """The rule that comes with a project."""
    request = Parse(RULE.read_text(encoding="utf-8"), api.CreateSIPDispatchRuleRequest())
    return request.dispatch_rule


def individual(prefix: str = PREFIX) -> api.SIPDispatchRuleInfo:
    """A rule that gives each call a room of its own, named after the caller."""
    alone = api.SIPDispatchRuleIndividual(room_prefix=prefix)
    return api.SIPDispatchRuleInfo(rule=api.SIPDispatchRule(dispatch_rule_individual=alone))


def shared(prefix: str = PREFIX) -> api.SIPDispatchRuleInfo:
    """A rule that gives all calls of a number the same room."""
    one = api.SIPDispatchRuleCallee(room_prefix=prefix)
    return api.SIPDispatchRuleInfo(rule=api.SIPDispatchRule(dispatch_rule_callee=one))


def direct(room: str) -> api.SIPDispatchRuleInfo:
    """A rule that sends each call into one room, to which others come too."""
    one = api.SIPDispatchRuleDirect(room_name=room)
    return api.SIPDispatchRuleInfo(rule=api.SIPDispatchRule(dispatch_rule_direct=one))


def looking() -> list[asyncio.Task[object]]:
    """The tasks that ask for the server's rules."""
    return [task for task in asyncio.all_tasks() if task.get_name() == GAVE_UP]


async def looked_at(call: Call) -> None:
    """`expect_caller` has come to its end."""
    expect_caller(call)
    await asyncio.gather(*looking())


@pytest.mark.parametrize("rule", [deployed(), individual()])
async def test_a_phone_that_has_gone_before_the_agent_came_has_left(
    server: RoomService, monkeypatch: pytest.MonkeyPatch, rule: api.SIPDispatchRuleInfo
) -> None:
    server.rules = [direct("lobby"), individual("other-"), rule]
    async with calling(server, monkeypatch, metadata="") as made:
        made.line.room_name = ROOM
        await looked_at(made.call)
        assert made.call.reason == Reason.CALLER_LEFT


@pytest.mark.parametrize(
    ("room", "rule"),
    [
        ("call-of-order-1042", deployed()),
        (f"{PREFIX}_order_1042", deployed()),
        (ROOM, shared()),
        (ROOM, individual("other-")),
        (ROOM, individual("")),
        (ROOM, direct(ROOM)),
    ],
)
async def test_whoever_may_still_come_is_waited_for(
    server: RoomService,
    monkeypatch: pytest.MonkeyPatch,
    room: str,
    rule: api.SIPDispatchRuleInfo,
) -> None:
    server.rules = [rule]
    async with calling(server, monkeypatch, metadata="") as made:
        made.line.room_name = room
        await looked_at(made.call)
        assert made.call.reason is None


async def test_a_phone_that_is_there_is_not_asked_about(
    server: RoomService, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.rules = [individual()]
    async with calling(server, monkeypatch, metadata="") as made:
        made.line.room_name = ROOM
        made.line.ring()
        expect_caller(made.call)
        assert not looking()


async def test_a_phone_that_comes_meanwhile_is_a_caller(
    server: RoomService, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.rules = [individual()]
    async with calling(server, monkeypatch, metadata="") as made:
        made.line.room_name = ROOM
        expect_caller(made.call)
        made.line.ring()
        await asyncio.gather(*looking())
        assert made.call.reason is None


async def test_nobody_gives_up_a_call_that_the_agent_makes(
    server: RoomService, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.rules = [individual()]
    async with calling(server, monkeypatch) as made:
        made.line.room_name, made.call.called = ROOM, "+493023125000"
        expect_caller(made.call)
        assert not looking()


async def test_a_server_without_telephones_keeps_nobody_from_being_waited_for(
    server: RoomService, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.refusal = Refusal("internal", 500, message="sip not connected (redis required)")
    async with calling(server, monkeypatch, metadata="") as made:
        made.line.room_name = ROOM
        await looked_at(made.call)
        assert made.call.reason is None
