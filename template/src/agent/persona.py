"""YOURS: who your agent is. What it is told, what it says first and last, and its tools.

Updates of the template never touch this file.
"""

from __future__ import annotations

from datetime import datetime

from livekit.agents import function_tool

from agent.conversation import CallAgent
from agent.lifecycle import Call
from agent.memory import Profile

INSTRUCTIONS = """\
You are a friendly voice assistant. People hear what you write, so answer in one to three short
sentences, without lists, markup or emojis. Look things up before you answer a question about us,
and say so honestly when you do not know. When the caller has nothing more to ask, end the call.
"""


class Persona(CallAgent):
    """One conversation with one caller; `self.call` knows who it is."""

    def __init__(self, call: Call) -> None:
        super().__init__(call, instructions=INSTRUCTIONS)

    def greeting(self, profile: Profile | None) -> str:
        """The first sentence; `profile` is None for a caller who is not known."""
        if profile is None:
            return "Hello! How can I help you?"
        name = f", {profile.name}" if profile.name else ""
        return f"Welcome back{name}! How can I help you today?"

    @function_tool
    async def current_time(self) -> str:
        """Tell the date and the time of day where the agent runs."""
        return datetime.now().astimezone().strftime("%A, %d %B %Y, %H:%M")
