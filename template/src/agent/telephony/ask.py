"""A question for a number: answered by keys or by voice, read back, and confirmed."""

from __future__ import annotations

from contextlib import suppress

from livekit.agents import ToolError, function_tool

from agent.conversation import CallTask
from agent.lifecycle import Call

INSTRUCTIONS = """\
Find out {what}, a number of {length} digits. As soon as the caller has said it, use `heard`. When
they have said whether what was read back is right, use `confirm`. Answer nothing else.
"""
YES, AGAIN = "1", "2"


class AskNumber(CallTask[str]):
    """Ask the caller for a number; its digits.

    `await AskNumber(self.call, "your customer number", least=6, most=8)` in a tool or `welcome`.
    """

    def __init__(self, call: Call, what: str, *, least: int = 1, most: int = 20) -> None:
        length = str(most) if least == most else f"{least} to {most}"
        super().__init__(call, instructions=INSTRUCTIONS.format(what=what, length=length))
        self._what, self._least, self._most, self._length = what, least, most, length
        self._number = ""

    def asking(self) -> str:
        """The question."""
        return f"Please tell me {self._what}, or key it in and press hash."

    def reading_back(self, digits: str) -> str:
        """The number, to be confirmed: `digits` are apart from each other."""
        return f"I have {digits}. If that is right, say yes or press 1. To try again, press 2."

    def refusing(self) -> str:
        """What is said of a number that has too few digits, or too many."""
        return f"That was no number of {self._length} digits."

    async def on_enter(self) -> None:
        await self.session.say(self.asking())

    async def on_keys(self, keys: str) -> None:
        # whoever keys has heard enough
        with suppress(RuntimeError):
            await self.session.interrupt()
        if self._number and keys == YES:
            self.complete(self._number)
        elif self._number and keys == AGAIN:
            await self._ask_again()
        elif self._takes(keys):
            await self.session.say(self._read_back())
        else:
            await self.session.say(f"{self.refusing()} {self.asking()}")

    @function_tool
    async def heard(self, number: str) -> str:
        """Use it as soon as the caller has said the number.

        Args:
            number: Its digits, without anything between them.
        """
        if not self._takes(number):
            raise ToolError(f"{self.refusing()} Ask for it again.")
        return f"Say: {self._read_back()}"

    @function_tool
    async def confirm(self, is_right: bool) -> None:
        """Use it when the caller has said whether the number that was read back is right.

        Args:
            is_right: Whether it is.
        """
        if not self._number:
            raise ToolError("There is no number yet: ask for it.")
        if is_right:
            self.complete(self._number)
        else:
            await self._ask_again()

    def _takes(self, number: str) -> bool:
        is_one = number.isdecimal() and self._least <= len(number) <= self._most
        self._number = number if is_one else ""
        return is_one

    def _read_back(self) -> str:
        return self.reading_back(", ".join(self._number))

    async def _ask_again(self) -> None:
        self._number = ""
        await self.session.say(self.asking())
