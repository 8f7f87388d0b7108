"""The room as an owner wants it heard, in the form that early words are in."""

from __future__ import annotations

from typing import Any

import pytest
from livekit.agents import NOT_GIVEN
from livekit.agents.voice.room_io import AudioInputOptions

from agent.transport.preconnect import AUDIO, heard_as


@pytest.mark.parametrize("given", [NOT_GIVEN, True])
def test_without_a_choice_the_room_is_heard_as_early_words_are(given: Any) -> None:
    assert heard_as(given) is AUDIO


def test_a_room_need_not_be_heard() -> None:
    assert heard_as(False) is False


def test_a_choice_keeps_the_form_of_early_words() -> None:
    canceller: Any = object()
    heard = heard_as(
        AudioInputOptions(sample_rate=16_000, num_channels=2, noise_cancellation=canceller)
    )

    assert isinstance(heard, AudioInputOptions)
    assert heard.noise_cancellation is canceller
    assert (heard.sample_rate, heard.num_channels) == (AUDIO.sample_rate, AUDIO.num_channels)
    assert not heard.pre_connect_audio
