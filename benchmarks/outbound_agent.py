"""The rival of benchmarks/outbound.py: an agent that calls somebody, as LiveKit's own example does.

The shape is that of livekit-examples/outbound-caller-python: session and call begin together, a
call that fails is logged with SIP's status and ends the job, and hanging up deletes the room. It
runs in a rendered project's environment, with its keyless models; what the callee would say is
`then` in the metadata, because nobody listens.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
from typing import Any

from livekit import api
from livekit.agents import (
    Agent,
    AgentServer,
    AgentSession,
    JobContext,
    RunContext,
    function_tool,
    get_job_context,
)
from livekit.agents.cli.log import JsonFormatter
from livekit.agents.types import NOT_GIVEN

from agent.models import scripted
from agent.settings import load_settings

log = logging.getLogger("bench")


class Server(AgentServer):
    """The SDK's server, with JSON records also in dev."""

    async def run(self, *, devmode: bool = False, unregistered: bool = False) -> None:
        for handler in logging.getLogger().handlers:
            handler.setFormatter(JsonFormatter())
        await super().run(devmode=devmode, unregistered=unregistered)


server = Server(port=int(os.environ["AGENT_PORT"]), load_fnc=lambda: 0.0, load_threshold=math.inf)


async def hang_up() -> None:
    """Delete the room."""
    job = get_job_context()
    await job.api.room.delete_room(api.DeleteRoomRequest(room=job.room.name))


class Calling(Agent):
    """An agent that can transfer whom it has called, and hang up."""

    def __init__(self, told: dict[str, Any]) -> None:
        super().__init__(instructions="You confirm appointments.")
        self._told = told

    @function_tool
    async def transfer(self, ctx: RunContext[None]) -> None:
        """Transfer the callee."""
        job = get_job_context()
        about = {"room": job.room.name}
        await ctx.session.generate_reply(instructions="Say that you are transferring them.")
        try:
            await job.api.sip.transfer_sip_participant(
                api.TransferSIPParticipantRequest(
                    room_name=job.room.name,
                    participant_identity=self._told["call"],
                    transfer_to=f"tel:{self._told['transfer_to']}",
                )
            )
            log.info("transferred", extra=about)
        except Exception as error:
            log.error(f"the transfer failed: {error}", extra=about)
            await ctx.session.generate_reply(instructions="Say that it failed.")
            await hang_up()

    @function_tool
    async def end_call(self, ctx: RunContext[None]) -> None:
        """End the call."""
        if speech := ctx.session.current_speech:
            await speech.wait_for_playout()
        await hang_up()


@server.rtc_session(agent_name=os.environ["AGENT_NAME"])
async def entrypoint(ctx: JobContext) -> None:
    """Join, call, and go on when somebody answers."""
    about = {"room": ctx.room.name}
    log.info("begun", extra=about)
    await ctx.connect()
    told = json.loads(ctx.job.metadata)
    models = scripted.build(load_settings())
    session = AgentSession[None](
        llm=models.llm, tts=models.tts or NOT_GIVEN, turn_handling=models.turn_handling
    )
    starting = asyncio.create_task(session.start(Calling(told), room=ctx.room))
    try:
        await ctx.api.sip.create_sip_participant(
            api.CreateSIPParticipantRequest(
                room_name=ctx.room.name,
                sip_trunk_id=told.get("trunk") or os.environ["AGENT_SIP_TRUNK"],
                sip_call_to=told["call"],
                participant_identity=told["call"],
                wait_until_answered=True,
            )
        )
        await starting
        await ctx.wait_for_participant(identity=told["call"])
    except api.TwirpError as error:
        status, phrase = (error.metadata.get(f"sip_status{part}") for part in ("_code", ""))
        log.error(f"the call failed: {error.message}, SIP status {status} {phrase}", extra=about)
        ctx.shutdown()
        return
    log.info("answered", extra=about)
    if then := told.get("then"):
        session.generate_reply(user_input=then)
