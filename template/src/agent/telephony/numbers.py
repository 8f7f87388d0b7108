"""Telephone numbers, and which of them may be called.

Whatever asks for a call, the owner's code, a dispatch or a model that a caller has talked into it,
ends here: a number that AGENT_CALLS_TO does not name is not called.
"""

from __future__ import annotations

import phonenumbers
from phonenumbers import NumberParseException, PhoneNumber, PhoneNumberType


class NumberRefused(Exception):
    """A number that is not called: why, and what to do about it; never the number itself."""


class NotANumber(NumberRefused):
    """It is no telephone number at all."""


def e164(text: str) -> str:
    """The number in its international form, such as +493023125000, however it is written.

    Raises NotANumber.
    """
    return phonenumbers.format_number(_parsed(text), phonenumbers.PhoneNumberFormat.E164)


def check_allowed(number: str, allowed: str) -> None:
    """Raise NumberRefused unless `number`, of `e164`, may be called.

    `allowed` is AGENT_CALLS_TO: prefixes, with commas between. Emergency and premium numbers are
    allowed only by an entry that is the whole number.
    """
    entries = prefixes(allowed)
    if number in entries:
        return
    if not any(number.startswith(entry) for entry in entries):
        raise NumberRefused(
            "no prefix in AGENT_CALLS_TO allows this number: add one, such as +49, if it is to be"
            " called"
        )
    kinds = {"an emergency": _is_emergency, "a premium": _is_premium}
    for kind, is_one in kinds.items():
        if is_one(_parsed(number)):
            raise NumberRefused(
                f"this is {kind} number: write it whole into AGENT_CALLS_TO if it is to be called"
            )


def prefixes(allowed: str) -> list[str]:
    """The entries of AGENT_CALLS_TO."""
    return [entry for part in allowed.split(",") if (entry := part.strip())]


def _parsed(text: str) -> PhoneNumber:
    try:
        number = phonenumbers.parse(text)
    except NumberParseException:
        number = None
    # by its length: new ranges of numbers are not known here for a while
    if number is None or not phonenumbers.is_possible_number(number):
        raise NotANumber(
            "this is no telephone number in international form: write one such as +493023125000"
        )
    return number


def _is_emergency(number: PhoneNumber) -> bool:
    """Whether somebody who dials it there, without the country, gets help that others need."""
    national = phonenumbers.national_significant_number(number)
    regions = phonenumbers.region_codes_for_country_code(number.country_code or 0)
    return any(phonenumbers.is_emergency_number(national, region) for region in regions)


def _is_premium(number: PhoneNumber) -> bool:
    return phonenumbers.number_type(number) == PhoneNumberType.PREMIUM_RATE
