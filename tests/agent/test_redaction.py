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


# numbers that processors of payments give out for tests, as they are printed and said
CARDS = [
    "4242 4242 4242 4242",
    "4242424242424242",
    "4242-4242-4242-4242",
    "4242, 4242, 4242, 4242",
    "4 2 4 2 4 2 4 2 4 2 4 2 4 2 4 2",
    "4242\u00a04242\u00a04242\u00a04242",
    "4222222222222",
    "5555 5555 5555 4444",
    "2223 0031 2200 3222",
    "3782 822463 10005",
    "3056 930902 5904",
    "6011 1111 1111 1117",
    "3566 0020 2036 0505",
    "6205500000000000004",
    "٤٢٤٢ ٤٢٤٢ ٤٢٤٢ ٤٢٤٢",
]


@pytest.mark.parametrize("card", CARDS)
def test_card_numbers_of_all_kinds_are_found(card: str) -> None:
    for what in ("cards", "numbers"):
        assert redacted(f"It is {card}.", what) == "It is [card]."


def test_a_card_number_is_found_beside_other_numbers() -> None:
    said = "In 2024 4242 4242 4242 4242 12/27 123, and 5555 5555 5555 4444"

    assert redacted(said, "cards") == "In 2024 [card] 12/27 123, and [card]"


# none is a card, though each has 13 to 19 digits and a right check digit, or looks like one
@pytest.mark.parametrize(
    "text",
    [
        "order 1000000000000008",
        "parcel 00340434161094042557",
        "at 1764409386123",
        "IBAN DE89 3704 0044 0532 0130 00",
        "ISBN 978-3-16-148410-0",
        "2019-2024, 2023/2024",
    ],
)
def test_other_long_numbers_are_no_cards(text: str) -> None:
    assert redacted(text, "cards") == text


@pytest.mark.parametrize(
    "text",
    [
        "in 1998 or 2024",
        "from 2019-2024, 2023/2024, 2021 2022 2023",
        "it costs 1250.00, or 12,500.00 a year, 9.99 a month",
        "rooms 101, 102, 103",
        "9.00-17.30, 8:30-17:45",
        "order 10427, page 12345",
        "postcode 10115, born in 1975",
    ],
)
def test_years_prices_hours_and_short_numbers_stay(text: str) -> None:
    assert redacted(text, "numbers") == text


@pytest.mark.parametrize(
    "number",
    ["+49 30 1234567", "030/1234567", "(555) 123-4567", "06.12.34.56.78", "12 34 56 78", "0049301"],
)
def test_telephone_numbers_are_numbers(number: str) -> None:
    assert redacted(f"Call {number} please", "numbers") in {
        "Call [number] please",
        "Call ([number] please",
    }


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
