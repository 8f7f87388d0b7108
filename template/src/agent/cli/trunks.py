"""What a caller's carrier needs of the server; where it is missing a phone rings for ever.

The server logs nothing of such a call, so `doctor` reads its trunks and rules.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from livekit import api

from agent.cli.checks import Finding, server_api
from agent.settings import Settings, SettingsError

DOCS = "see docs/agent/telephone.md"


def check_trunks(settings: Settings) -> list[Finding]:
    """What keeps people from calling the agent, or the agent from calling people."""
    try:
        inbound, rules, outbound = asyncio.run(_ask(settings))
    except SettingsError:
        what = "the server has no telephone: its trunks cannot be read"
        cure = f"connect it with a livekit-sip, which needs Redis; {DOCS}"
        return [Finding("warn", "telephone", what, cure)]
    found = [*_inbound(settings, inbound, rules), *_outbound(settings, outbound)]
    numbers = sum(len(trunk.numbers) for trunk in inbound)
    what = f"inbound numbers: {numbers}, outbound trunks: {len(outbound)}"
    return found or [Finding("ok", "telephone", what)]


async def _ask(
    settings: Settings,
) -> tuple[list[api.SIPInboundTrunkInfo], list[api.SIPDispatchRuleInfo], list[str]]:
    """The inbound trunks, the dispatch rules, and the ids of the outbound trunks."""
    async with server_api(settings) as server:
        inbound = await server.sip.list_inbound_trunk(api.ListSIPInboundTrunkRequest())
        rules = await server.sip.list_dispatch_rule(api.ListSIPDispatchRuleRequest())
        outbound = await server.sip.list_outbound_trunk(api.ListSIPOutboundTrunkRequest())
    return [*inbound.items], [*rules.items], [trunk.sip_trunk_id for trunk in outbound.items]


def _inbound(
    settings: Settings,
    trunks: list[api.SIPInboundTrunkInfo],
    rules: list[api.SIPDispatchRuleInfo],
) -> Iterator[Finding]:
    if not trunks:
        what = "nobody can call this agent: the server has no inbound trunk"
        yield Finding("warn", "telephone", what, f"`lk sip inbound create`; {DOCS}")
    for trunk in trunks:
        every = f"every number of {trunk.sip_trunk_id}"
        numbers = ", ".join(trunk.numbers) or every
        # by what they reach: nothing, or these agents
        reached: dict[tuple[str, ...] | None, list[str]] = {}
        for number in trunk.numbers or [""]:
            taking = _rules_for(trunk.sip_trunk_id, number, rules)
            sent = sorted(
                {agent.agent_name for rule in taking for agent in rule.room_config.agents}
            )
            reached.setdefault(tuple(sent) if taking else None, []).append(number or every)
        for agents, theirs in reached.items():
            if agents is None:
                what = f"{', '.join(theirs)} rings for ever: no dispatch rule is for it"
                yield Finding("fail", "telephone", what, f"`lk sip dispatch create`; {DOCS}")
            elif settings.name not in agents:
                others = ", ".join(agents) or "no agent"
                what = f"{', '.join(theirs)} reaches {others}, and not {settings.name}"
                cure = (
                    f"name {settings.name} in the dispatch rule's agents, if it is to answer there"
                )
                yield Finding("warn" if agents else "fail", "telephone", what, cure)
        if wrong := [number for number in trunk.numbers if not number.startswith("+")]:
            what = (
                f"{', '.join(wrong)} may never be reached: numbers are compared as they are written"
            )
            cure = "write it as your carrier sends it, mostly with + and the country"
            yield Finding("warn", "telephone", what, cure)
        if not (trunk.allowed_addresses or trunk.auth_username):
            what = f"whoever finds the server can call {numbers}"
            cure = "give the trunk your carrier's allowed_addresses, or a user name and a password"
            yield Finding("warn", "telephone", what, cure)


def _rules_for(
    trunk: str, number: str, rules: list[api.SIPDispatchRuleInfo]
) -> list[api.SIPDispatchRuleInfo]:
    """The rules that may take a call of this trunk: its own before those that name no trunk."""
    taking = [rule for rule in rules if not (number and rule.numbers) or number in rule.numbers]
    own = [rule for rule in taking if trunk in rule.trunk_ids]
    return own or [rule for rule in taking if not rule.trunk_ids]


def _outbound(settings: Settings, trunks: list[str]) -> Iterator[Finding]:
    if settings.sip_trunk and settings.sip_trunk not in trunks:
        what = f"the server has no outbound trunk {settings.sip_trunk}, so nobody can be called"
        cure = (
            f"set AGENT_SIP_TRUNK to one of {', '.join(trunks)}" if trunks else f"make one; {DOCS}"
        )
        yield Finding("fail", "telephone", what, cure)
    if settings.calls_to and not settings.sip_trunk:
        what = "AGENT_CALLS_TO allows calls, and AGENT_SIP_TRUNK is not set"
        yield Finding("warn", "telephone", what, "set it to the id of an outbound trunk, ST_…")
