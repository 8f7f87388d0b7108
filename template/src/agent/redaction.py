"""Cards and numbers that are said in a call, left out of what is kept of it.

Digits are found, however they are grouped; a number in words ("four two four two") is not.
"""

from __future__ import annotations

import re
from typing import Literal

Redact = Literal["none", "cards", "numbers"]

SHORTEST_NUMBER = 6
# digits, with at most one space, dash, dot, slash or bracket or two between them
_DIGITS = re.compile(r"\+?\d(?:[ .\-/()\u00a0\u2011]{0,2}\d)+")


def redacted(text: str, what: Redact) -> str:
    """The text with "[card]" for card numbers and, if asked for, "[number]" for any of six digits.

    A card number has 13 to 19 digits and the right check digit.
    """
    if what == "none":
        return text

    def stand_in(found: re.Match[str]) -> str:
        digits = [int(digit) for digit in found[0] if digit.isdecimal()]
        if 13 <= len(digits) <= 19 and _has_check_digit(digits):
            return "[card]"
        is_number = what == "numbers" and len(digits) >= SHORTEST_NUMBER
        return "[number]" if is_number else found[0]

    return _DIGITS.sub(stand_in, text)


def _has_check_digit(digits: list[int]) -> bool:
    """Luhn's, which all card numbers have."""
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0
