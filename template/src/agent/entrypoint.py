"""What happens in every call: the eight steps, top to bottom."""

from __future__ import annotations

import asyncio
import importlib
import logging
import warnings
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

from agent import telemetry
from agent.conversation import CallAgent
from agent.conversation.agent import Greeting
from agent.conversation.config import read_all
from agent.conversation.session import CallSession, build_session, conversation
from agent.knowledge import open_knowledge
from agent.lifecycle import Call, Step
from agent.lifecycle.resource import OpenFailed
from agent.memory import Profile, open_memory
from agent.models import KEYLESS, Models, models_of
from agent.settings import Settings
from agent.transport import Caller

log = logging.getLogger("agent.call")
T = TypeVar("T")
_prewarmed = set[type[CallAgent]]()


async def run_call(call: Call) -> None:
    """The eight steps of a call; whatever ends it, everything that was opened is closed."""
    async with call.step(Step.OPEN_INFRASTRUCTURE):  # while the room connects
        await open_infrastructure(call)
    async with call.step(Step.CONNECT):
        await call.wait_connected()
    async with call.step(Step.BUILD):
        persona = build_persona(call)
        greeting = Greeting(persona)
        session = build_session(call, models_for(call.settings), persona)
    async with call.step(Step.WAIT_FOR_CALLER):
        caller = await find_caller(call, persona)
        call.identify(persona.remembered_as(caller))
    async with call.step(Step.START_SESSION):  # while the caller's data loads
        profile = call.spawn(recall(call), name="recall")
        await call.open_session(conversation(call, session, persona, caller))
    async with call.step(Step.GREET):
        read_all(persona, call)
        if (keys := optional_module("agent.telephony.keys")) is not None:
            keys.listen_for_keys(call, persona)
        await hear_callee(call, session, persona)
        await greeting.say(await profile)
    async with call.step(Step.STAY):
        await call.wait_ended()
    # step 8, clean up and exit, is lifecycle/closing.py: it runs however the call ends


async def open_infrastructure(call: Call) -> None:
    """Open memory and knowledge, which a call can do without, and the owner's resources."""
    call.memory, call.knowledge, call.resources = await asyncio.gather(
        open_optional(call, "memory", open_memory(call.settings, call.journal)),
        open_optional(call, "knowledge", open_knowledge(call.settings, call.journal)),
        open_resources(call),
    )


async def open_optional(
    call: Call, name: str, part: AbstractAsyncContextManager[T] | None
) -> T | None:
    """Open a part that makes a call better but may never cost one; None if it is not chosen."""
    if part is None:
        return None
    try:
        return await call.open(name, part)
    except OpenFailed as error:
        log.warning("this call goes on without %s: %s", name, error)
        return None


async def open_resources(call: Call) -> Any:
    """What the owner's resources.py opens for a call; None if there is no such file."""
    module = optional_module("agent.resources")
    return await module.open_resources(call) if module else None


async def find_caller(call: Call, persona: CallAgent) -> Caller:
    """Whoever comes; or who is called, where the call's metadata has a number."""
    is_caller = persona.is_caller
    if (outbound := optional_module("agent.telephony.outbound")) is not None:
        is_caller = await outbound.place_call(call, persona) or is_caller
    if (inbound := optional_module("agent.telephony.inbound")) is not None:
        inbound.expect_caller(call)
    return await call.wait_for_caller(is_caller)


async def hear_callee(call: Call, session: CallSession, persona: CallAgent) -> None:
    """Hear who has answered a call that the agent made, where the persona wants to know first."""
    answered = optional_module("agent.telephony.answered")
    if call.called is not None and answered is not None:
        await answered.hear_callee(call, session, persona)


def build_persona(call: Call) -> CallAgent:
    """The owner's persona; a plain one if there is no persona.py."""
    if module := optional_module("agent.persona"):
        persona: CallAgent = module.Persona(call)
        return persona
    return CallAgent(call, instructions="You are a friendly voice assistant. Be brief.")


def persona_class() -> type[CallAgent]:
    """The owner's persona; a plain one if there is no persona.py."""
    persona: type[CallAgent] = getattr(optional_module("agent.persona"), "Persona", CallAgent)
    return persona


def models_for(settings: Settings) -> Models:
    """What a call listens, thinks and speaks with: the persona's, or the keyless ones if chosen.

    Raises ModelsUnavailable, and what the owner's code raises.
    """
    if settings.models in KEYLESS:
        return models_of(settings)
    return persona_class().models(settings)


def prewarm_persona(settings: Settings) -> None:
    """Let the owner's persona load what it needs, once in a process; raises what it raises."""
    persona = persona_class()
    if persona not in _prewarmed:
        _prewarmed.add(persona)
        persona.prewarm(settings)


def optional_module(name: str) -> Any | None:
    """A module of the owner's, or of an option; an error inside it is not its absence."""
    try:
        with telemetry.protected_logging():
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and f"{name}.".startswith(f"{error.name}."):
            return None
        raise


async def recall(call: Call) -> Profile | None:
    """What is known of the caller, in time for the greeting; None for a stranger."""
    # never raises, and never takes longer than memory_seconds
    return await call.memory.recall() if call.memory is not None else None


def __getattr__(name: str) -> Any:
    if name == "server":
        warnings.warn(
            "agent.entrypoint.server is now agent.server.server", DeprecationWarning, stacklevel=2
        )
        return importlib.import_module("agent.server").server
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
