"""Why nobody answered: by SIP's status, and never by the error's own code."""

from __future__ import annotations

import pytest
from livekit.api import ServerError, SipCallError

from agent.reasons import NOBODY_LISTENS, NOT_REACHED, Reason
from agent.telephony.sip import reason_of, sentence_of


def refused(status: int, phrase: str = "") -> SipCallError:
    # the code of a rate limit: busy and unavailable phones have it
    meta = {"sip_status_code": str(status), "sip_status": phrase}
    return SipCallError("resource_exhausted", "no", status=429, metadata=meta)


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (486, Reason.BUSY),
        (600, Reason.BUSY),
        (603, Reason.DECLINED),
        (404, Reason.INVALID_NUMBER),
        (484, Reason.INVALID_NUMBER),
        (480, Reason.UNREACHABLE),
        (408, Reason.NO_ANSWER),
        (401, Reason.TRUNK_FAILED),
        (403, Reason.TRUNK_FAILED),
        (500, Reason.TRUNK_FAILED),
        (503, Reason.TRUNK_FAILED),
        (699, Reason.TRUNK_FAILED),
    ],
)
def test_each_status_has_a_reason(status: int, reason: str) -> None:
    assert reason_of(refused(status), "ringing") == reason


@pytest.mark.parametrize(
    ("last", "reason"),
    [("ringing", Reason.NO_ANSWER), ("dialing", Reason.TRUNK_FAILED), ("", Reason.TRUNK_FAILED)],
)
def test_who_gives_up_ringing_had_a_phone_that_rang(last: str, reason: str) -> None:
    gave_up = ServerError("canceled", "sip request timed out", status=408)
    assert reason_of(gave_up, last) == reason
    assert reason_of(TimeoutError(), last) == reason


def test_a_server_that_refuses_while_it_rings_has_not_rung_in_vain() -> None:
    no_trunk = ServerError("not_found", "no such trunk", status=404)
    assert reason_of(no_trunk, "ringing") == Reason.TRUNK_FAILED


@pytest.mark.parametrize(
    ("why", "reason"),
    [("STR_REJECTED", Reason.DECLINED), ("STR_RINGING_TIMEOUT", Reason.NO_ANSWER)],
)
def test_a_transfer_says_more_than_its_status(why: str, reason: str) -> None:
    failed = SipCallError("canceled", "no", status=408, metadata={"sip_transfer_reason": why})
    assert reason_of(failed, "ringing") == reason


def test_what_was_said_is_one_line() -> None:
    assert sentence_of(refused(486, "Busy Here")) == "486 Busy Here"
    no_trunk = ServerError("not_found", "no such trunk", status=404)
    assert sentence_of(no_trunk) == "no such trunk"
    assert sentence_of(TimeoutError()) == "no answer from the server"


def test_what_was_said_does_not_say_the_number_again() -> None:
    phrase = "493023125000 is busy, not +493023125000"
    assert sentence_of(refused(486, phrase)) == "486 … is busy, not +…"
    unknown = ServerError("not_found", "no sip_+493023125000", status=404)
    assert sentence_of(unknown) == "no sip_+…"
    # nor another's, such as the caller's who is handed on
    assert sentence_of(refused(404, "sip_+4915112345678 has left")) == "404 sip_+… has left"


def test_nobody_is_said_goodbye_to_who_was_not_reached() -> None:
    assert NOT_REACHED < NOBODY_LISTENS
