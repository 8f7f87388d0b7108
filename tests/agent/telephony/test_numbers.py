"""What is a telephone number, and which of them may be called."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.settings import Settings
from agent.telephony.numbers import NotANumber, NumberRefused, check_allowed, e164

BERLIN = "+493023125000"


@pytest.mark.parametrize(
    "text",
    [
        "+49 (0)30 23125-000",
        "tel:+493023125000",
        "+493023125000,,,123#",
        "\uff0b\uff14\uff19 30 23125000",
    ],
)
def test_a_number_is_one_however_it_is_written(text: str) -> None:
    assert e164(text) == BERLIN


@pytest.mark.parametrize(
    "text", ["", "030 23125000", "+1911", "sip:+493023125000@example.com", "the police"]
)
def test_what_is_no_international_number_is_refused_without_quoting_it(text: str) -> None:
    with pytest.raises(NotANumber) as refused:
        e164(text)
    assert not text or text not in str(refused.value)


def test_nothing_may_be_called_by_default() -> None:
    with pytest.raises(NumberRefused, match="AGENT_CALLS_TO"):
        check_allowed(BERLIN, Settings.model_fields["calls_to"].default)


@pytest.mark.parametrize("allowed", ["+", "+49", "+43, +4930", BERLIN])
def test_a_prefix_allows_what_begins_with_it(allowed: str) -> None:
    check_allowed(BERLIN, allowed)


@pytest.mark.parametrize("allowed", ["+43", "+4931", ",", "+493023125"])
def test_a_number_without_a_prefix_is_refused(allowed: str) -> None:
    with pytest.raises(NumberRefused):
        check_allowed("+4930999999", allowed)


@pytest.mark.parametrize(
    ("number", "kind"),
    [("+49112", "emergency"), ("+43122", "emergency"), ("+19005550123", "premium")],
)
def test_emergency_and_premium_numbers_are_called_only_if_they_are_named_whole(
    number: str, kind: str
) -> None:
    assert e164(number) == number
    with pytest.raises(NumberRefused, match=kind):
        check_allowed(number, "+")
    check_allowed(number, f"+49, {number}")


def test_a_number_that_only_begins_like_an_emergency_number_is_called() -> None:
    check_allowed(e164("+43 1 2212345"), "+43")


@given(st.text(), st.sampled_from(["", "+43", "+4930,+1"]))
def test_no_text_calls_what_is_not_on_the_list(text: str, allowed: str) -> None:
    try:
        number = e164(text)
        check_allowed(number, allowed)
    except NumberRefused:
        return
    assert any(number.startswith(entry) for entry in allowed.split(",") if entry)
