"""Under which key a caller is remembered, if at all.

Two people must never share a key: it is better to forget somebody than to tell one caller about
another. An owner who knows better overrides `CallAgent.remembered_as`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise

# in front of numbers, so that no identity in a token can name a phone caller
_PHONE = "tel:"
_NUMBER = re.compile(r"\+?[0-9]{7,15}")
# "anonymous", "restricted" and the like, typed on a keypad: what carriers send for withheld numbers
_WITHHELD = {"266696687", "7378742883", "2562533", "8656696", "86282452253"}

# what front ends, playgrounds and this template call everybody or nobody, whatever follows
_NOBODY = re.compile(
    r"(?:anon\w*|guest\w*|identity|playground|voice_assistant_user\w*|unknown|undefined|null|none"
    r"|nobody|withheld|private|restricted|unavailable|blocked|sip_.*|tel:.*)(?![^\W_])",
    re.IGNORECASE | re.DOTALL,
)
# what they call somebody: only a name after it tells who
_SOMEBODY = re.compile(
    r"(?:user|participant|client|visitor|caller|session|browser|web)[\W_]*(.*)", re.I | re.DOTALL
)


def key_of(identity: str, kind: str, attributes: Mapping[str, str], *, phones: bool) -> str | None:
    """The key of a participant, None for one who must not be remembered.

    Callers of kind "standard" are known by the identity in their token, callers of kind "sip" by
    their number, and only with `phones`; other kinds are not. Withheld numbers, and identities that
    are shared or look random, belong to nobody.
    """
    if kind == "sip":
        return _number_key(identity, attributes) if phones else None
    if kind != "standard" or not identity.strip() or len(identity) > 256:
        return None
    if _NOBODY.match(identity) or (identity[0] == "+" and _number(identity)):
        return None
    if (somebody := _SOMEBODY.fullmatch(identity)) and not _is_name(somebody[1]):
        return None
    return None if _looks_random(identity) else identity


def keys_of(caller: str) -> list[str]:
    """Every key that a person may mean by an identity, or by a phone number in any spelling."""
    keys = [caller]
    if number := _number(caller.removeprefix(_PHONE).removeprefix("sip_")):
        keys += [
            f"{_PHONE}{number}",
            f"{_PHONE}+{number}" if number[0] != "+" else f"{_PHONE}{number[1:]}",
        ]
    return list(dict.fromkeys(keys))


def _number_key(identity: str, attributes: Mapping[str, str]) -> str | None:
    number = _number(attributes.get("sip.phoneNumber", identity.removeprefix("sip_")))
    digits = number.lstrip("+")
    return None if digits in _WITHHELD or len(set(digits)) < 2 else f"{_PHONE}{number}"


def _number(text: str) -> str:
    """The number without its punctuation; empty if the text is not a number."""
    number = re.sub(r"[\s().-]", "", text)
    return number if _NUMBER.fullmatch(number) else ""


def _is_name(text: str) -> bool:
    """Whether a person may have chosen it; front ends append what nobody can pronounce."""
    return not re.search(r"\d", text) and bool(
        re.search(r"[aeiouy]|[^\W\d_a-zA-Z]", text, re.IGNORECASE)
    )


def _looks_random(identity: str) -> bool:
    parts = [part for part in re.split(r"[\W_]+", identity) if part]
    return any(len(part) >= 24 for part in parts) or any(
        _is_random(part) for part in [*parts, "".join(parts)]
    )


def _is_random(part: str) -> bool:
    """Whether it is as long as a clock's number, or changes between digits and cases as no word."""
    if part.isdigit():
        return len(part) >= 13
    turns = sum(a.isdigit() != b.isdigit() for a, b in pairwise(part))
    shifts = sum(_kind(a) != _kind(b) for a, b in pairwise(part))
    return (
        turns >= 3
        or (turns >= 2 and len(part) >= 8 and bool(re.fullmatch(r"[0-9a-f]+", part, re.IGNORECASE)))
        or (shifts >= 3 and shifts * 2 > len(part))
        or (len(part) >= 12 and shifts * 3 > len(part))
    )


def _kind(letter: str) -> int:
    return 0 if letter.isdigit() else 1 if letter.isupper() else 2
