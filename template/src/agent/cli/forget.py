"""The command that makes the agent forget a caller, and whether it can remember any."""

from __future__ import annotations

import asyncio
from importlib import import_module
from typing import Annotated

import typer

from agent.cli.checks import Finding, fail
from agent.cli.terminal import busy, report
from agent.memory import MemoryUnavailable, forget_waiting, open_store
from agent.memory.identity import keys_of
from agent.reports import NotDelivered, delivery, kept, recordings
from agent.reports.going import report_deaths
from agent.settings import Settings, SettingsError, load_settings

MEMORY_SECONDS = 5.0


def forget(
    caller: Annotated[
        str, typer.Argument(help="An identity, or a phone number however it is written.")
    ],
) -> int:
    """Delete everything that is kept of a caller, reports of their calls too."""
    settings = load_settings()
    with busy("asking the memory"):
        items, calls, recorded = asyncio.run(_forget(settings, caller))
    if items:
        report(f"{items} turns, calls and facts of {caller} deleted")
    if calls:
        report(f"{calls} reports of calls of {caller} deleted")
    if recorded:
        report(f"{recorded} recordings of calls of {caller} deleted")
    if items or calls or recorded:
        return 0
    if settings.memory == "none" and not settings.calls_kept:
        both = "AGENT_MEMORY_URL=none and AGENT_CALLS_KEPT=0"
        raise SettingsError([f"{both}: this agent keeps nothing of anybody"])
    report(f"nothing is kept of {caller}")
    return 0


async def _forget(settings: Settings, caller: str) -> tuple[int, int, int]:
    """How many items of memory, reports and recordings were deleted."""
    keys = keys_of(caller)
    try:
        # first, or a worker would deliver it afterwards; of calls that have died, too
        report_deaths(settings)
        items, calls = forget_waiting(settings, keys), delivery.forget(settings, keys)
        recorded = await recordings.forget(settings, keys)
    except OSError as error:
        raise MemoryUnavailable(
            f"what is kept in {settings.data} cannot be deleted "
            f"({error.strerror}): try again as the user who runs the agent"
        ) from error
    except NotDelivered as error:
        raise MemoryUnavailable(str(error)) from error
    try:
        calls += await kept.forget(settings, keys)
    except NotDelivered as error:
        raise MemoryUnavailable(str(error)) from error
    async with open_store(settings) as memory:
        items += sum([await memory.forget(key) for key in keys]) if memory else 0
    return items, calls, recorded


async def memory_findings(settings: Settings) -> list[Finding]:
    """Whether callers can be remembered, and whether something waits for that."""
    spool = import_module("agent.memory.spool")  # a project without a memory has none
    findings = [await _store(settings)]
    if files := spool.waiting(settings):
        what = f"{len(files)} calls wait in {spool.folder_of(settings)} for the store"
        cure = "a worker (`agent start`) delivers them as soon as the store answers"
        findings.append(Finding("warn", "memory", what, cure))
    return findings


async def _store(settings: Settings) -> Finding:
    try:
        async with asyncio.timeout(MEMORY_SECONDS), open_store(settings) as memory:
            assert memory is not None
            await memory.check()
    except MemoryUnavailable as error:
        return fail("memory", str(error))
    except TimeoutError:
        what = f"no answer within {MEMORY_SECONDS:g} s"
        return Finding("fail", "memory", what, "check AGENT_MEMORY_URL")
    what = f"{settings.memory} answers"
    if settings.memory == "sqlite":
        what += f"; other machines do not see {settings.data}, and it has to outlive an update"
    return Finding("ok", "memory", what)
