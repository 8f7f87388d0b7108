"""What a caller tells an agent in confidence, and a search for it in all that the agent leaves."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

NAME, WORD = "Quillfeather", "heliotrope"
PHONE, CARD = "+491715550042", "4242 4242 4242 4242"
SAID = f"I am {NAME}, I like {WORD}, my number is {PHONE} and my card {CARD}."
DIGITS = "491715550042", CARD.replace(" ", "")
# as LiveKit's telephone service calls the room of a phone
ROOM = f"call-_{PHONE}_a1B2c3D4e5F6"


def found_in(text: str) -> set[str]:
    """Which of the secrets a text has, however a number is written."""
    digits = re.sub(r"(?<=\d)[ .\-/()]{1,2}(?=\d)", "", text)
    words = {word for word in (NAME, WORD) if word.lower() in text.lower()}
    return words | {number for number in DIGITS if number in digits}


def files_with_secrets(folder: Path, but: Iterable[str] = ()) -> dict[str, set[str]]:
    """Which files below a folder have which of them, but those below the named ones."""
    left_out = [folder / one for one in but]
    return {
        str(file.relative_to(folder)): found
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not any(file.is_relative_to(one) for one in left_out)
        if (found := found_in(file.read_bytes().decode("latin-1")))
    }
