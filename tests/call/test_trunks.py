"""What `agent doctor` says of the trunks and rules of a real server, a telephone beside it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import pytest_asyncio
from livekit import api
from livekit.api.sip_service import SipService
from pydantic import SecretStr

from agent.cli.checks import Finding
from agent.cli.trunks import check_trunks
from agent.settings import load_settings
from tests.support.server import LiveKit
from tests.support.sip import Network, telephone_network

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.slow,
    pytest.mark.xdist_group("trunks"),
]

AGENT, OTHER = "front-desk", "kitchen"
NUMBER = "+493023125999"
CARRIER = ["203.0.113.0/24"]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def network(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Network]:
    async with telephone_network(tmp_path_factory.mktemp("telephones")) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="session")
async def server(network: Network) -> AsyncIterator[SipService]:
    """The server's trunks and rules; there are none at the beginning."""
    async with network.livekit.api() as client:
        sip = client.sip
        for rule in (await sip.list_dispatch_rule(api.ListSIPDispatchRuleRequest())).items:
            asked = api.DeleteSIPDispatchRuleRequest(sip_dispatch_rule_id=rule.sip_dispatch_rule_id)
            await sip.delete_dispatch_rule(asked)
        inbound = (await sip.list_inbound_trunk(api.ListSIPInboundTrunkRequest())).items
        outbound = (await sip.list_outbound_trunk(api.ListSIPOutboundTrunkRequest())).items
        ids = [trunk.sip_trunk_id for trunk in inbound] + [one.sip_trunk_id for one in outbound]
        for trunk in ids:
            await sip.delete_trunk(api.DeleteSIPTrunkRequest(sip_trunk_id=trunk))
        yield sip


async def inbound(server: SipService, **told: Any) -> str:
    """Make an inbound trunk; its id."""
    trunk = api.SIPInboundTrunkInfo(**{"numbers": [NUMBER], "allowed_addresses": CARRIER, **told})
    made = await server.create_inbound_trunk(api.CreateSIPInboundTrunkRequest(trunk=trunk))
    return made.sip_trunk_id


async def rule(
    server: SipService, agent: str | None, *trunks: str, numbers: Sequence[str] = ()
) -> None:
    """Make a rule that sends this agent, or none, for calls of these trunks and numbers."""
    alone = api.SIPDispatchRuleCallee(room_prefix="call-", randomize=True)
    sent = [] if agent is None else [api.RoomAgentDispatch(agent_name=agent)]
    made = api.SIPDispatchRuleInfo(
        trunk_ids=trunks,
        numbers=numbers,
        rule=api.SIPDispatchRule(dispatch_rule_callee=alone),
        room_config=api.RoomConfiguration(agents=sent),
    )
    await server.create_dispatch_rule(api.CreateSIPDispatchRuleRequest(dispatch_rule=made))


async def outbound(server: SipService) -> str:
    """Make an outbound trunk; its id."""
    trunk = api.SIPOutboundTrunkInfo(address="sip.carrier.example", numbers=[NUMBER])
    made = await server.create_outbound_trunk(api.CreateSIPOutboundTrunkRequest(trunk=trunk))
    return made.sip_trunk_id


async def found(livekit: LiveKit, **changes: object) -> list[Finding]:
    """What `doctor` says of the telephone, for the agent AGENT."""
    theirs = {
        "name": AGENT,
        "livekit_url": livekit.url,
        "livekit_api_key": livekit.api_key,
        "livekit_api_secret": SecretStr(livekit.api_secret),
    }
    settings = load_settings().model_copy(update={**theirs, **changes})
    return await asyncio.to_thread(check_trunks, settings)


async def test_trunks_and_a_rule_that_reach_the_agent_are_right(
    network: Network, server: SipService
) -> None:
    await rule(server, AGENT, await inbound(server))
    trunk = await outbound(server)

    (finding,) = await found(network.livekit, sip_trunk=trunk, calls_to="+49")

    assert (finding.level, finding.what) == ("ok", "inbound numbers: 1, outbound trunks: 1")


async def no_trunk(server: SipService) -> None:
    await rule(server, AGENT)


async def no_rule(server: SipService) -> None:
    await inbound(server)


async def rule_of_another_trunk(server: SipService) -> None:
    await inbound(server)
    await rule(server, AGENT, await inbound(server, numbers=["+493023125998"]))


async def rule_of_another_number(server: SipService) -> None:
    await rule(server, AGENT, await inbound(server), numbers=["+493023125998"])


async def rule_without_an_agent(server: SipService) -> None:
    await rule(server, None, await inbound(server))


async def rule_of_another_agent(server: SipService) -> None:
    await rule(server, OTHER, await inbound(server))


async def number_without_its_country(server: SipService) -> None:
    await rule(server, AGENT, await inbound(server, numbers=["03023125999"]))


async def no_allowed_address(server: SipService) -> None:
    await rule(server, AGENT, await inbound(server, allowed_addresses=[]))


@pytest.mark.parametrize(
    ("mistake", "level", "said"),
    [
        (no_trunk, "warn", "nobody can call this agent"),
        (no_rule, "fail", f"{NUMBER} rings for ever: no dispatch rule is for it"),
        (rule_of_another_trunk, "fail", f"{NUMBER} rings for ever: no dispatch rule is for it"),
        (rule_of_another_number, "fail", f"{NUMBER} rings for ever: no dispatch rule is for it"),
        (rule_without_an_agent, "fail", f"{NUMBER} reaches no agent, and not {AGENT}"),
        (rule_of_another_agent, "warn", f"{NUMBER} reaches {OTHER}, and not {AGENT}"),
        (number_without_its_country, "warn", "03023125999 may never be reached"),
        (no_allowed_address, "warn", f"whoever finds the server can call {NUMBER}"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_a_mistake_in_the_trunks_or_rules_is_named(
    network: Network, server: SipService, mistake: Any, level: str, said: str
) -> None:
    await mistake(server)

    (finding,) = await found(network.livekit)

    assert (finding.level, said in finding.what) == (level, True), finding.what


async def test_an_outbound_trunk_that_is_not_there_is_named(
    network: Network, server: SipService
) -> None:
    await rule(server, AGENT, await inbound(server))
    trunk = await outbound(server)

    (finding,) = await found(network.livekit, sip_trunk="ST_gone", calls_to="+49")

    assert (finding.level, trunk in finding.cure) == ("fail", True)


async def test_a_server_without_a_telephone_is_no_failure(livekit: LiveKit) -> None:
    (finding,) = await found(livekit)

    assert (finding.level, "the server has no telephone" in finding.what) == ("warn", True)
