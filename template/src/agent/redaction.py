"""Cards and numbers that are said in a call, left out of what is kept of it.

Digits are found, however they are grouped; a number in words ("four two four two") is not.
"""

from __future__ import annotations

import re
from typing import Literal

Redact = Literal["none", "cards", "numbers"]

SHORTEST_NUMBER = 6
# how long card numbers are, by how they begin; years begin in other ways
_CARD = re.compile(
    r"(?:2(?:2\d|[3-6]\d|7[0-2])\d{13}|3\d{13,15}|4\d{12}(?:\d{3}){0,2}|[56]\d{15,18})"
)
# as groups of a card number are said, or a card number before its date and code
_GROUPS = re.compile(r"\d+(?:[\s.,\-/()\u2011\u2013]{1,2}\d+)*")
# digits, with at most one space, dash, dot, slash or bracket or two between them
_DIGITS = re.compile(r"\+?\d(?:[ .\-/()\u00a0\u2011]{0,2}\d)+")
_YEAR, _HOUR = r"(?:19|20)\d\d", r"(?:[01]?\d|2[0-3])\.[0-5]\d"
# what has six digits and is told to anybody: years, a price, opening hours
_PUBLIC = re.compile(rf"{_YEAR}(?:[ /\-]{_YEAR})+|\d{{1,5}}\.\d\d|{_HOUR}-{_HOUR}")


def redacted(text: str, what: Redact) -> str:
    """The text with "[card]" for card numbers and, if asked for, "[number]" for any of six digits.

    A card number has 13 to 19 digits, such a beginning as cards have, and the right check digit.
    """
    if what == "none":
        return text
    text = _GROUPS.sub(lambda found: _without_cards(found[0]), text)
    return _DIGITS.sub(_stand_in, text) if what == "numbers" else text


def _stand_in(found: re.Match[str]) -> str:
    is_number = sum(map(str.isdecimal, found[0])) >= SHORTEST_NUMBER
    return "[number]" if is_number and not _PUBLIC.fullmatch(found[0]) else found[0]


def _without_cards(run: str) -> str:
    """The groups of digits without those that are a card number together, the longest first."""
    groups = list(re.finditer(r"\d+", run))
    for first, begin in enumerate(groups):
        for last in range(len(groups), first, -1):
            digits = "".join(str(int(digit)) for group in groups[first:last] for digit in group[0])
            if _is_card(digits):
                rest = run[groups[last - 1].end() :]
                return f"{run[: begin.start()]}[card]{_without_cards(rest)}"
    return run


def _is_card(digits: str) -> bool:
    if not _CARD.fullmatch(digits):
        return False
    values = [int(digit) for digit in digits]
    # Luhn's check digit, which all card numbers have
    doubled = [sum(divmod(2 * value, 10)) for value in values[-2::-2]]
    return (sum(values[-1::-2]) + sum(doubled)) % 10 == 0
