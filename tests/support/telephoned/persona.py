"""A persona whose calls do what the job's metadata says: tests of telephones use it."""

from __future__ import annotations

import json

from livekit.agents import function_tool

from agent.conversation import CallAgent
from agent.lifecycle import Call
from agent.memory import Profile
from agent.telephony.transfers import bring_in, transfer

GREETING = "Hello, this is the workshop. How can I help you?"


class Persona(CallAgent):
    """What it does after its greeting is `then` in the metadata, said by the caller."""

    def __init__(self, call: Call) -> None:
        super().__init__(call, instructions="Be brief.")
        self.told = json.loads(call.metadata or "{}")
        self.callee_speaks_first = "first" in self.told
        self.detects_voicemail = "detect" in self.told

    def greeting(self, profile: Profile | None) -> str:
        return GREETING if profile is None else "Hello."

    def is_voicemail(self, words: str) -> bool:
        return "leave a message" in words.lower()

    def on_voicemail(self) -> str | None:
        return "Your bicycle is ready. Please come by." if "message" in self.told else None

    async def welcome(self, profile: Profile | None) -> None:
        await super().welcome(profile)
        if then := self.told.get("then"):
            self.session.generate_reply(user_input=then)

    @function_tool
    async def connect_with(self, number: str) -> None:
        """Connect the caller with a number, by their carrier."""
        await transfer(self.call, number)

    @function_tool
    async def bring(self, number: str) -> None:
        """Bring somebody in."""
        await bring_in(self.call, number, introduction="Ann, here is a caller for you. Goodbye.")
