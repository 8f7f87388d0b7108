"""`agent call NUMBER`: the agent of a running worker calls somebody, and what came of it."""

from __future__ import annotations

import asyncio
import json
import logging
from importlib import import_module
from typing import TYPE_CHECKING, Annotated

import typer

from agent.cli import call as call_room
from agent.cli.call import RoomCaller
from agent.cli.chat import CallerName, Metadata
from agent.cli.checks import check_connection, require, server_api
from agent.cli.terminal import busy, report
from agent.reasons import Reason
from agent.settings import Settings, SettingsError, load_settings

if TYPE_CHECKING:
    from livekit import api, rtc

# what came of a call; 0 for one that somebody answered, 1 for any other end
EXIT_CODES = {
    Reason.NOT_ALLOWED: 2,
    Reason.BUSY: 3,
    Reason.NO_ANSWER: 4,
    Reason.DECLINED: 5,
    Reason.INVALID_NUMBER: 6,
    Reason.UNREACHABLE: 7,
    Reason.TRUNK_FAILED: 8,
    Reason.VOICEMAIL: 9,
}
# what the worker's end of the call knows more of than this one
CURES = {
    Reason.NOT_ALLOWED: "AGENT_CALLS_TO of the worker does not allow it",
    Reason.TRUNK_FAILED: "the worker's log says why",
}
STATUSES = {"ringing": "Ringing ...", "active": "Answered."}


def call(
    number: Annotated[
        str | None,
        typer.Argument(help="Whom the agent calls, such as +493023125000; without it you call it."),
    ] = None,
    caller: CallerName = None,
    metadata: Metadata = "",
) -> int:
    """Call the agent that a running worker answers, or have it call a telephone number.

    Without a number, in text from here, or by voice from a link. With one, the exit code says what
    came of it: 0 somebody answered, 3 busy, 4 no answer, 5 declined, 6 invalid number, 7
    unreachable, 8 trunk failed, 9 voicemail.
    """
    if number is None:
        return call_room.call(caller, metadata)
    if caller is not None:
        # who it is then is for the phone to say
        raise SettingsError(["--as is for a call to the agent: leave it out, or the number"])
    settings = load_settings()
    told = _with_number(settings, number, metadata)
    require(check_connection(settings))
    # what matters of the connection shows in how a call ends
    logging.getLogger("livekit").setLevel(logging.CRITICAL)
    with busy("loading LiveKit's SDK"):
        import_module("livekit.rtc")
    watcher = CallWatcher(settings, told)
    try:
        code = asyncio.run(watcher.watch())
    except typer.Exit as given_up:
        code = given_up.exit_code
    except KeyboardInterrupt:
        asyncio.run(watcher.hang_up())
        code = 130
    call_room.leave(code)


def _with_number(settings: Settings, number: str, metadata: str) -> str:
    """The metadata of a call to this number; raises SettingsError for what cannot be called."""
    from agent.telephony.numbers import NumberRefused, check_allowed, e164

    problems = []
    try:
        number = e164(number)
        check_allowed(number, settings.calls_to)
    except NumberRefused as error:
        problems.append(f"{number}: {error}")
    try:
        told = json.loads(metadata or "{}")
    except ValueError:
        told = None
    if not isinstance(told, dict):
        problems.append("--metadata is no JSON object: write one such as '{\"order\": 1042}'")
    if problems:
        raise SettingsError(problems)
    return json.dumps({**told, "call": number})


def exit_code_of(reason: str, *, answered: bool) -> int:
    """What a call that ended for this reason is to its caller; empty: nobody knows why."""
    failed = reason in ("", Reason.JOB_DIED, Reason.WORKER_DIED) or reason.startswith("error")
    return EXIT_CODES.get(reason, 0 if answered and not failed else 1)


def end_of(reason: str) -> str:
    """Why the call ended, in words, and where to look if that is not all there is to know."""
    cure = CURES.get(reason, CURES[Reason.TRUNK_FAILED] if reason.startswith("error") else "")
    return f"The call is over: {reason}{': ' if cure else ''}{cure}."


class CallWatcher(RoomCaller):
    """Sends the agent into a room of its own to call somebody, and watches: unseen and mute."""

    def __init__(self, settings: Settings, metadata: str) -> None:
        from agent.transport.room import WATCHER

        super().__init__(settings, WATCHER, metadata)
        self.reason, self.answered = "", False

    async def watch(self) -> int:
        """Have the call made, and wait for its end; what to exit with."""
        await self._make_empty_room()
        # before the agent, because a call may be over at once
        await self._join()
        await self.make_room()
        if not await self._agent_comes():
            await self._give_up()
        await self.ended.wait()
        problem = await self.close()
        if self.reason:
            report(end_of(self.reason))
        else:
            report(problem or "The call is over, and no reason is known: look at the worker's log.")
        return exit_code_of(self.reason, answered=self.answered)

    async def hang_up(self) -> None:
        """Delete the room, which ends the call."""
        from livekit import api

        async with server_api(self._settings) as server:
            try:
                await server.room.delete_room(api.DeleteRoomRequest(room=self.room))
            except api.TwirpError as error:
                # it is not there yet, or not any more
                if error.code != api.TwirpErrorCode.NOT_FOUND:
                    raise

    async def _make_empty_room(self) -> None:
        from livekit import api

        async with server_api(self._settings) as server:
            await server.room.create_room(api.CreateRoomRequest(name=self.room))

    def _grants(self) -> api.VideoGrants:
        grants = super()._grants()
        grants.hidden, grants.can_publish, grants.can_publish_data = True, False, False
        return grants

    def _watch_room(self, room: rtc.Room) -> None:
        from agent.transport.room import CALL_STATUS, REASON

        def look(attributes: dict[str, str]) -> None:
            self.reason = attributes.get(REASON, self.reason)
            status = attributes.get(CALL_STATUS, "")
            self.answered = self.answered or status == "active"
            if said := STATUSES.get(status):
                report(said)

        # a phone may be known only when it rings already, or when it has answered
        room.on("participant_connected", lambda phone: look(phone.attributes))
        room.on("participant_attributes_changed", lambda changes, _: look(changes))
