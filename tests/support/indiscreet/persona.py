"""An owner's persona whose errors say what the caller said: in a tool, and after the call."""

from __future__ import annotations

from livekit.agents import function_tool

from agent.conversation import CallAgent
from agent.lifecycle import Call
from agent.reports import Report

CUSTOMERS = {"Ann": "a customer"}


class Persona(CallAgent):
    """Finds customers, or does not."""

    def __init__(self, call: Call) -> None:
        super().__init__(call, instructions="Be a clerk.")

    @function_tool
    async def find(self, name: str) -> str:
        """Find a customer."""
        return f"{name} is a customer."

    @function_tool
    async def miss(self, name: str) -> str:
        """Find a customer who is not there."""
        return CUSTOMERS[name]

    async def after_call(self, report: Report) -> None:
        """Fail with the caller's words."""
        raise ValueError(" ".join(said.text for said in report.said))
