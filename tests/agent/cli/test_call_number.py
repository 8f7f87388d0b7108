"""`agent call NUMBER`, without a server: what it refuses, what it hears, and how it exits."""

from __future__ import annotations

import pytest
from livekit import rtc

from agent.__main__ import main
from agent.cli.call_number import EXIT_CODES, CallWatcher, end_of, exit_code_of
from agent.reasons import NOT_REACHED, Reason
from agent.settings import SettingsError, load_settings
from agent.transport.room import REASON
from tests.agent.telephony.phones import phone
from tests.agent.transport.test_room import person
from tests.support.room_service import Refusal, room_service

BERLIN = "+493023125000"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["0302333"], "no telephone number"),
        (["+4315551234"], "AGENT_CALLS_TO"),
        (["+49112"], "emergency"),
        ([BERLIN, "--metadata", "order 1042"], "no JSON object"),
        ([BERLIN, "--as", "ann"], "--as is for a call to the agent"),
    ],
)
def test_what_cannot_be_called_is_refused_before_anything_begins(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.setenv("AGENT_CALLS_TO", "+49")
    load_settings.cache_clear()
    with pytest.raises(SystemExit) as left:
        main(["call", *arguments])
    assert left.value.code == 2
    assert said in capsys.readouterr().err


def test_every_reason_of_a_call_that_was_not_answered_has_an_exit_code_of_its_own() -> None:
    assert EXIT_CODES.keys() == NOT_REACHED
    assert len({0, 1, *EXIT_CODES.values()}) == len(NOT_REACHED) + 2


@pytest.mark.parametrize(
    ("reason", "answered", "code"),
    [
        (Reason.CALLER_LEFT, True, 0),
        (Reason.AGENT_HUNG_UP, True, 0),
        (Reason.TRANSFERRED, True, 0),
        (Reason.BUSY, False, 3),
        (Reason.VOICEMAIL, True, 9),
        # nobody has answered, and somebody has stopped the agent
        (Reason.WORKER_STOPPED, False, 1),
        (Reason.ROOM_CLOSED, False, 1),
        (Reason.error(5, "start the session"), True, 1),
        (Reason.JOB_DIED, True, 1),
        ("", True, 1),
    ],
)
def test_it_exits_with_what_came_of_the_call(reason: str, answered: bool, code: int) -> None:
    assert exit_code_of(reason, answered=answered) == code


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        (Reason.BUSY, "The call is over: busy."),
        (
            Reason.NOT_ALLOWED,
            "The call is over: number not allowed: AGENT_CALLS_TO of the worker does not allow it.",
        ),
        (Reason.TRUNK_FAILED, "The call is over: trunk failed: the worker's log says why."),
        (Reason.error(6, "x"), "The call is over: error in step 6 (x): the worker's log says why."),
    ],
)
def test_it_says_where_to_look_for_what_only_the_worker_knows(reason: str, said: str) -> None:
    assert end_of(reason) == said


async def test_it_hears_from_the_agent_why_the_call_ended(
    capsys: pytest.CaptureFixture[str],
) -> None:
    watcher, room = CallWatcher(load_settings(), "{}"), rtc.Room()
    watcher._watch_room(room)
    room.emit("participant_attributes_changed", {"sip.callStatus": "ringing"}, person("sip_1"))
    room.emit("participant_attributes_changed", {REASON: Reason.BUSY}, person("agent"))
    assert (watcher.reason, watcher.answered) == (Reason.BUSY, False)
    assert capsys.readouterr().err == "Ringing ...\n"
    room.emit("participant_attributes_changed", {"sip.callStatus": "active"}, person("sip_1"))
    assert watcher.answered


async def test_a_phone_that_answers_before_it_is_seen_has_answered(
    capsys: pytest.CaptureFixture[str],
) -> None:
    watcher, room = CallWatcher(load_settings(), "{}"), rtc.Room()
    watcher._watch_room(room)
    room.emit("participant_connected", phone("active"))
    assert watcher.answered
    assert capsys.readouterr().err == "Answered.\n"


async def test_hanging_up_in_a_room_that_is_gone_is_no_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with room_service() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        load_settings.cache_clear()
        server.refusal = Refusal("not_found", 404, message="requested room does not exist")
        await CallWatcher(load_settings(), "{}").hang_up()
        server.refusal = Refusal("permission_denied", 403)
        with pytest.raises(SettingsError, match="LIVEKIT_API_KEY"):
            await CallWatcher(load_settings(), "{}").hang_up()
