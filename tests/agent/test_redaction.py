"""Cards and numbers are left out of what is kept, however their digits are grouped."""

from __future__ import annotations

import pytest

from agent.memory import Note, Turn
from agent.memory.call_memory import StoredCallMemory
from agent.redaction import Redact, redacted
from agent.settings import Settings


@pytest.mark.parametrize(
    ("text", "cards", "numbers"),
    [
        ("My card is 4242 4242 4242 4242.", "My card is [card].", "My card is [card]."),
        ("4242424242424242", "[card]", "[card]"),
        ("3782-822463-10005", "[card]", "[card]"),
        # a wrong check digit: no card
        ("4242 4242 4242 4243", "4242 4242 4242 4243", "[number]"),
        ("Call +49 (30) 1234-567", "Call +49 (30) 1234-567", "Call [number]"),
        ("account 123456", "account 123456", "account [number]"),
        # what is short means something else
        ("room 1042 at 9.30, 12345", "room 1042 at 9.30, 12345", "room 1042 at 9.30, 12345"),
        ("١٢٣٤٥٦", "١٢٣٤٥٦", "[number]"),
        ("no digits", "no digits", "no digits"),
    ],
)
def test_digits_are_found_however_they_are_grouped(text: str, cards: str, numbers: str) -> None:
    asked: dict[Redact, str] = {"none": text, "cards": cards, "numbers": numbers}

    assert {what: redacted(text, what) for what in asked} == asked


class Queue:
    """What is given to be written."""

    def __init__(self) -> None:
        self.items: list[object] = []

    def put(self, caller: str, item: object) -> bool:
        self.items.append(item)
        return True


def test_memory_keeps_no_card_of_a_turn_or_a_fact() -> None:
    settings = Settings.model_validate({"redact": "cards"})
    queue = Queue()
    memory = StoredCallMemory(None, queue, settings)  # type: ignore[arg-type]
    memory.identify("ann")

    memory.add_turn(Turn("call", "1", "user", "it is 4242424242424242", 1.0))
    memory.add_note(Note("call", 1.0, name="Ann", fact="pays with 4242 4242 4242 4242"))

    assert queue.items == [
        Turn("call", "1", "user", "it is [card]", 1.0),
        Note("call", 1.0, name="Ann", fact="pays with [card]"),
    ]
