"""Calls that come by telephone: nobody waits for a caller who has given up already."""

from __future__ import annotations

import asyncio
import re

import aiohttp
from livekit import api

from agent.lifecycle import Call, Reason

ASK_SECONDS = 5.0
# what a dispatch rule adds to its prefix: a number, and letters that no other call has
AFTER_PREFIX = re.compile(r"_.*_[0-9A-Za-z]{12}")


def expect_caller(call: Call) -> None:
    """End the call if it is a telephone's, and the telephone has gone.

    Its room is made by the telephone that comes into it, and the agent is sent for a moment later:
    whoever is not there then gave up while it rang. Otherwise an agent in an empty room waits.
    """
    if call.called is None and _is_alone(call):
        call.spawn(_end_if_given_up(call), name="who gives up early")


async def _end_if_given_up(call: Call) -> None:
    server = call.api
    assert server is not None
    try:
        async with asyncio.timeout(ASK_SECONDS):
            rules = await server.sip.list_dispatch_rule(api.ListSIPDispatchRuleRequest())
    except (api.ServerError, aiohttp.ClientError, TimeoutError):
        # most servers without telephones; and a caller is waited for as ever
        return
    if _is_alone(call) and any(_made(rule, call.transport.room_name) for rule in rules.items):
        call.end(Reason.CALLER_LEFT)


def _is_alone(call: Call) -> bool:
    return call.room is not None and not call.room.remote_participants


def _made(rule: api.SIPDispatchRuleInfo, room: str) -> bool:
    """Whether this rule has made the room: one with a prefix, and a room for each call."""
    callee = rule.rule.dispatch_rule_callee
    prefix = rule.rule.dispatch_rule_individual.room_prefix
    if callee.randomize:
        prefix = callee.room_prefix
    return room.startswith(prefix) and AFTER_PREFIX.fullmatch(room, len(prefix)) is not None
