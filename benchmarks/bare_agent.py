"""The rival: an AgentSession as in LiveKit's own starter, with a rendered project's keyless models.

It runs in that project's environment, so both sides have the same SDK, models and greeting. It
loads no data.
"""

from __future__ import annotations

import importlib
import logging
import math
import os
import time
from dataclasses import replace
from typing import Any

from livekit import rtc
from livekit.agents import Agent, AgentServer, AgentSession, JobContext, JobProcess
from livekit.agents.types import NOT_GIVEN
from livekit.agents.voice.room_io import RoomOptions

from agent.models import models_of
from agent.settings import load_settings

# A rendered agent greets a known caller with these words.
GREETING = "Welcome back! How can I help you today?"
OPTIONS = RoomOptions(delete_room_on_close=os.environ["BENCH_DELETE_ROOM"] == "yes")

SETTINGS = load_settings()
# "module:class" of another language model or voice than the project's
PARTS = {"llm": os.environ.get("BENCH_LLM"), "tts": os.environ.get("BENCH_VOICE")}
log = logging.getLogger("bench")


def prewarm(process: JobProcess) -> None:
    """Load what is in this process, as ours does."""
    if SETTINGS.models == "local":
        importlib.import_module("agent.models.local").load()


server = AgentServer(port=int(os.environ["AGENT_PORT"]), load_threshold=math.inf, setup_fnc=prewarm)


def made(name: str) -> Any:
    """What this "module:class" makes without arguments."""
    module, _, kind = name.partition(":")
    return getattr(importlib.import_module(module), kind)()


@server.rtc_session(agent_name=os.environ["BENCH_AGENT_NAME"])
async def bare(ctx: JobContext) -> None:
    """Start, connect, greet; the SDK does the rest."""

    def left(caller: rtc.RemoteParticipant) -> None:
        log.info("caller left", extra={"room": ctx.room.name, "known_at": time.time()})

    # only to log when the agent could know of the hang-up
    ctx.room.on("participant_disconnected", left)
    models = replace(models_of(SETTINGS), **{part: made(of) for part, of in PARTS.items() if of})
    session = AgentSession[None](
        llm=models.llm,
        stt=models.stt or NOT_GIVEN,
        tts=models.tts or NOT_GIVEN,
        vad=models.vad,
        turn_handling=models.turn_handling,
    )
    await session.start(
        Agent(instructions="You are friendly."), room=ctx.room, room_options=OPTIONS
    )
    await ctx.connect()
    session.say(GREETING)
