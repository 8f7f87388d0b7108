"""What a caller presses, as a persona gets it."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any, cast

import pytest
from livekit import rtc
from livekit.agents import StopResponse

from agent.telephony.keys import listen_for_keys
from agent.transport import Caller
from tests.agent.telephony.phones import PHONE, Calling, calling, phone
from tests.agent.transport.test_room import person
from tests.support.room_service import RoomService

SHORT, LONG = 0.05, 60.0


class Hears:
    """A call in which a test presses keys."""

    def __init__(self, here: Calling) -> None:
        self.room = here.line.job.room
        self.heard: asyncio.Queue[str] = asyncio.Queue()

        async def on_keys(keys: str) -> None:
            self.heard.put_nowait(keys)

        vars(here.persona)["on_keys"] = on_keys
        here.call.caller = Caller(PHONE, kind="sip")
        listen_for_keys(here.call, here.persona)

    def press(self, keys: str, somebody: Any = None) -> None:
        for key in keys:
            who = cast(rtc.RemoteParticipant, somebody or phone("active"))
            self.room.emit("sip_dtmf_received", rtc.SipDTMF(0, key, who))


async def test_keys_come_together_at_the_end_of_their_number(
    server: RoomService, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with calling(server, monkeypatch, key_seconds=LONG) as here:
        hears = Hears(here)
        hears.press("12*3#")
        assert await hears.heard.get() == "12*3"
        # it does not begin with what was pressed before
        hears.press("4#")
        assert await hears.heard.get() == "4"
        hears.press("#")
        assert await hears.heard.get() == "#"


async def test_keys_come_together_when_no_more_follow(
    server: RoomService, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with calling(server, monkeypatch, key_seconds=SHORT) as here:
        hears = Hears(here)
        hears.press("12")
        assert await hears.heard.get() == "12"
        # nothing follows the end of a number, and a pause after that is none
        hears.press("3#")
        assert await hears.heard.get() == "3"
        await asyncio.sleep(2 * SHORT)
        assert hears.heard.empty()


async def test_somebody_elses_keys_are_not_the_callers(
    server: RoomService, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with calling(server, monkeypatch, key_seconds=LONG) as here:
        hears = Hears(here)
        hears.press("9", person("supervisor"))
        hears.press("1#")
        assert await hears.heard.get() == "1"


async def test_no_key_is_in_a_log(
    server: RoomService, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with calling(server, monkeypatch, key_seconds=LONG) as here:
        hears = Hears(here)
        hears.press("482913#")
        assert await hears.heard.get() == "482913"
    said = [(record.getMessage(), getattr(record, "fields", None)) for record in caplog.records]
    assert "482913" not in str(said)


async def test_no_key_is_in_a_log_when_a_persona_fails_at_them(
    server: RoomService, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with calling(server, monkeypatch, key_seconds=LONG) as here:
        hears = Hears(here)

        async def on_keys(keys: str) -> None:
            hears.heard.put_nowait(keys)
            int(keys)

        vars(here.persona)["on_keys"] = on_keys
        hears.press("4829*13#")
        assert await hears.heard.get() == "4829*13"
        await here.call.background.settle(time.monotonic() + 5)
    assert "on_keys failed with ValueError" in caplog.text
    assert "int(keys)" in caplog.text
    assert "4829" not in caplog.text


async def test_a_key_by_which_somebody_is_put_through_is_no_failure(
    server: RoomService, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with calling(server, monkeypatch, key_seconds=LONG) as here:
        hears = Hears(here)

        async def on_keys(keys: str) -> None:
            hears.heard.put_nowait(keys)
            raise StopResponse  # as `transfer` does when it has worked

        vars(here.persona)["on_keys"] = on_keys
        hears.press("0#")
        assert await hears.heard.get() == "0"
        await here.call.background.settle(time.monotonic() + 5)
    assert "on_keys failed" not in caplog.text


async def test_a_key_after_the_end_of_the_call_is_nothing(
    server: RoomService, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with calling(server, monkeypatch, key_seconds=LONG) as here:
        hears = Hears(here)
        here.call.end("caller left")
        hears.press("1#")
        assert hears.heard.empty()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
