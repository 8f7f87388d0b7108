"""The keys that a caller presses, together: up to `#`, or to a pause. They are never logged."""

from __future__ import annotations

import asyncio
import logging
import traceback

from livekit import rtc
from livekit.agents import StopResponse

from agent.conversation import CallAgent
from agent.lifecycle import Call

log = logging.getLogger("agent.call")


def listen_for_keys(call: Call, persona: CallAgent) -> None:
    """From now on `on_keys` of whichever agent speaks gets what the caller presses."""
    if call.room is not None:
        call.room.on("sip_dtmf_received", Keys(call, persona).press)


class Keys:
    """What was pressed since the last `#` or pause."""

    def __init__(self, call: Call, persona: CallAgent) -> None:
        self._call, self._persona = call, persona
        self._pressed = ""
        self._pause: asyncio.TimerHandle | None = None

    def press(self, key: rtc.SipDTMF) -> None:
        """Somebody in the room has pressed a key."""
        caller = self._call.caller
        if caller is None or key.participant is None or key.participant.identity != caller.identity:
            return
        if self._pause is not None:
            self._pause.cancel()
        if key.digit == "#":
            self._finish()
            return
        self._pressed += key.digit
        loop = asyncio.get_running_loop()
        self._pause = loop.call_later(self._call.settings.key_seconds, self._finish)

    def _finish(self) -> None:
        # alone, it is a key like the others
        keys, self._pressed, self._pause = self._pressed or "#", "", None
        if self._call.reason is None:
            session = self._call.session
            agent = self._persona if session is None else session.current_agent
            if isinstance(agent, CallAgent):
                self._call.spawn(self._hand_over(agent, keys), name="on_keys")

    async def _hand_over(self, agent: CallAgent, keys: str) -> None:
        try:
            await agent.on_keys(keys)
        except StopResponse:
            # how `transfer` and `bring_in` end when they have worked
            return
        except Exception as error:
            # its own words may be the keys, such as those of int("12*")
            places = "".join(traceback.format_tb(error.__traceback__))
            sentence, extra = "on_keys failed with %s at\n%s", self._call.journal.fields()
            log.error(sentence, type(error).__name__, places, extra=extra)
