"""What `doctor` says of a server's trunks and rules; a call that none takes rings for ever."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import Parse
from livekit import api

from agent.cli.checks import Finding
from agent.cli.trunks import check_trunks
from agent.settings import load_settings
from tests.support.room_service import Refusal, RoomService

NUMBER = "+493023125999"
DEPLOY = Path(__file__).parents[3] / "template" / "deploy" / "telephony"


def trunk(**changes: Any) -> api.SIPInboundTrunkInfo:
    told = {"numbers": [NUMBER], "allowed_addresses": ["203.0.113.0/24"], **changes}
    return api.SIPInboundTrunkInfo(sip_trunk_id="ST_in", **told)


def rule(agent: str | None, *trunks: str, **told: Any) -> api.SIPDispatchRuleInfo:
    sent = [] if agent is None else [api.RoomAgentDispatch(agent_name=agent)]
    config = api.RoomConfiguration(agents=sent)
    return api.SIPDispatchRuleInfo(trunk_ids=trunks, room_config=config, **told)


async def found(**changes: object) -> list[Finding]:
    settings = load_settings().model_copy(update={"name": "front-desk", **changes})
    return await asyncio.to_thread(check_trunks, settings)


@pytest.mark.parametrize("trunks", [(), ("ST_in",)])
async def test_a_number_that_reaches_the_agent_is_right(
    server: RoomService, trunks: tuple[str, ...]
) -> None:
    server.inbound, server.rules = [trunk()], [rule("front-desk", *trunks)]

    (finding,) = await found()

    assert (finding.level, finding.what) == ("ok", "inbound numbers: 1, outbound trunks: 0")


@pytest.mark.parametrize(
    ("inbound", "rules", "level", "said"),
    [
        ([], [], "warn", "nobody can call this agent"),
        ([trunk()], [], "fail", "no dispatch rule is for it"),
        ([trunk()], [rule("front-desk", "ST_other")], "fail", "no dispatch rule is for it"),
        ([trunk()], [rule(None)], "fail", "reaches no agent, and not front-desk"),
        ([trunk()], [rule("kitchen")], "warn", "reaches kitchen, and not front-desk"),
        (
            [trunk()],
            [rule("front-desk"), rule("kitchen", "ST_in")],
            "warn",
            "reaches kitchen, and not front-desk",
        ),
        (
            [trunk()],
            [rule("front-desk", numbers=["+493023125998"])],
            "fail",
            "no dispatch rule is for it",
        ),
        ([trunk(numbers=["03023125999"])], [rule("front-desk")], "warn", "compared as they are"),
        ([trunk(allowed_addresses=[])], [rule("front-desk")], "warn", "whoever finds the server"),
    ],
)
async def test_what_keeps_a_caller_from_the_agent_is_said(
    server: RoomService,
    inbound: list[api.SIPInboundTrunkInfo],
    rules: list[api.SIPDispatchRuleInfo],
    level: str,
    said: str,
) -> None:
    server.inbound, server.rules = inbound, rules

    (finding,) = await found()

    assert finding.level == level
    assert said in finding.what
    assert finding.cure


@pytest.mark.parametrize(
    ("settings", "level", "said"),
    [
        ({"sip_trunk": "ST_gone"}, "fail", "no outbound trunk ST_gone"),
        ({"calls_to": "+49"}, "warn", "AGENT_SIP_TRUNK is not set"),
    ],
)
async def test_what_keeps_the_agent_from_calling_is_said(
    server: RoomService, settings: dict[str, object], level: str, said: str
) -> None:
    server.inbound, server.rules = [trunk()], [rule("front-desk")]
    server.outbound = [api.SIPOutboundTrunkInfo(sip_trunk_id="ST_out")]

    (finding,) = await found(**settings)

    assert finding.level == level
    assert said in finding.what


async def test_a_server_without_a_telephone_is_no_failure(server: RoomService) -> None:
    server.refusal = Refusal("internal", 500, message="sip not connected (redis required)")

    (finding,) = await found()

    assert (finding.level, finding.check) == ("warn", "telephone")


@pytest.mark.parametrize(
    ("name", "request_"),
    [
        ("inbound-trunk.json", api.CreateSIPInboundTrunkRequest),
        ("dispatch-rule.json.jinja", api.CreateSIPDispatchRuleRequest),
        ("outbound-trunk.json", api.CreateSIPOutboundTrunkRequest),
    ],
)
def test_the_files_that_are_loaded_are_what_the_server_takes(name: str, request_: Any) -> None:
    Parse((DEPLOY / name).read_text(encoding="utf-8"), request_())
