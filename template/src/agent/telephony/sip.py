"""What a call that was not answered came to, by the status of SIP.

Never by the error's own code: 480 and 486 share that of a rate limit.
"""

from __future__ import annotations

import re

from livekit.api import ServerError, SipCallError

from agent import one_line
from agent.reasons import Reason

# the last that was heard of a phone while it is called: see livekit-sip's attribute sip.callStatus
RINGING = "ringing"

REASONS = {
    Reason.BUSY: {486, 600},
    Reason.DECLINED: {603, 607, 608},
    Reason.INVALID_NUMBER: {404, 410, 414, 416, 484, 485, 604},
    Reason.UNREACHABLE: {480, 606},
    # a phone or a carrier that gives up ringing by itself
    Reason.NO_ANSWER: {408, 487},
}

# whose number it is, the caller's or the other's, does not matter
NUMBER = re.compile(r"\d{5,}")
GAVE_UP = {"canceled", "deadline_exceeded"}
# of a transfer, where livekit-sip says more than the status does
TRANSFERS = {
    "STR_REJECTED": Reason.DECLINED,
    "STR_RINGING_TIMEOUT": Reason.NO_ANSWER,
}


def reason_of(error: Exception, last_status: str) -> str:
    """Why nobody answered; `last_status` is the last of the phone's `sip.callStatus`.

    What is nobody's doing at the other end is the trunk's: its carrier refuses the account or the
    country (401, 403), fails (5xx), does not answer, or there is no such trunk.
    """
    status = status_of(error)
    if status is None and isinstance(error, SipCallError):
        return TRANSFERS.get(error.sip_transfer_reason or "", Reason.TRUNK_FAILED)
    if status is None:
        # livekit-sip gives up in the same words whether it rang or nobody was there
        gave_up = isinstance(error, TimeoutError) or getattr(error, "code", "") in GAVE_UP
        return Reason.NO_ANSWER if gave_up and last_status == RINGING else Reason.TRUNK_FAILED
    found = (reason for reason, statuses in REASONS.items() if status in statuses)
    return next(found, Reason.TRUNK_FAILED)


def status_of(error: Exception) -> int | None:
    """The status that the other end, or the carrier, answered with; None if nobody did."""
    return error.sip_status_code if isinstance(error, SipCallError) else None


def sentence_of(error: Exception) -> str:
    """What the other end said, for a log: the status and its phrase, or why there is none.

    Some say a number again, which no log has.
    """
    if isinstance(error, SipCallError) and error.sip_status_code is not None:
        said = f"{error.sip_status_code} {error.sip_status or ''}".strip()
    elif isinstance(error, ServerError):
        said = error.message
    else:
        said = "no answer from the server" if isinstance(error, TimeoutError) else one_line(error)
    return NUMBER.sub("…", said)
