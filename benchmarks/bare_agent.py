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
from typing import Any

from livekit import rtc
from livekit.agents import Agent, AgentServer, AgentSession, JobContext
from livekit.agents.voice.room_io import RoomOptions

# A rendered agent greets a known caller with these words.
GREETING = "Welcome back! How can I help you today?"
OPTIONS = RoomOptions(delete_room_on_close=os.environ["BENCH_DELETE_ROOM"] == "yes")

scripted: Any = importlib.import_module("agent.models.scripted")
# "module:class" of another voice than the scripted one
VOICE = os.environ.get("BENCH_VOICE", "agent.models.scripted:ScriptedTTS").split(":")
log = logging.getLogger("bench")
server = AgentServer(port=int(os.environ["AGENT_PORT"]), load_threshold=math.inf)


@server.rtc_session(agent_name=os.environ["BENCH_AGENT_NAME"])
async def bare(ctx: JobContext) -> None:
    """Start, connect, greet; the SDK does the rest."""

    def left(caller: rtc.RemoteParticipant) -> None:
        log.info("caller left", extra={"room": ctx.room.name, "known_at": time.time()})

    # only to log when the agent could know of the hang-up
    ctx.room.on("participant_disconnected", left)
    models = scripted.build(None)
    voice = getattr(importlib.import_module(VOICE[0]), VOICE[1])()
    session = AgentSession[None](llm=models.llm, tts=voice, turn_handling=models.turn_handling)
    await session.start(
        Agent(instructions="You are friendly."), room=ctx.room, room_options=OPTIONS
    )
    await ctx.connect()
    session.say(GREETING)
