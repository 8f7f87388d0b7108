"""The room as an owner wants it, and what of it stays the call's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from livekit.agents import NOT_GIVEN, AgentSession, JobContext
from livekit.agents.types import TOPIC_CHAT
from livekit.agents.voice.room_io import AudioInputOptions, RoomOptions, TextInputOptions

from agent.transport import Caller
from agent.transport.preconnect import AUDIO, heard_as
from agent.transport.room import RoomTransport
from tests.agent.transport.test_room import Job


async def started(options: RoomOptions) -> tuple[RoomTransport, RoomOptions]:
    """The transport, and the options that the session was started with."""
    given: list[RoomOptions] = []

    async def start(agent: object, *, room: object, room_options: RoomOptions) -> None:
        given.append(room_options)

    session = SimpleNamespace(start=start, input=SimpleNamespace(audio=None))
    transport = RoomTransport(cast(JobContext, Job()))
    agent: Any = None
    await transport.start(cast(AgentSession[None], session), agent, Caller("ann"), options)
    (used,) = given
    return transport, used


async def test_without_a_choice_the_room_is_the_calls() -> None:
    _, used = await started(RoomOptions())

    assert used.participant_identity == "ann"
    assert used.audio_input is AUDIO
    # typed lines are read from before the session begins, and not by it
    assert used.text_input is False
    assert (used.close_on_disconnect, used.delete_room_on_close) == (False, False)
    assert used.get_video_input_options() is None


async def test_a_choice_is_kept_but_for_whom_the_session_is_with_and_when_it_closes() -> None:
    chosen = RoomOptions(
        video_input=True,
        audio_output=False,
        text_output=False,
        participant_identity="bob",
        close_on_disconnect=True,
        delete_room_on_close=True,
    )
    _, used = await started(chosen)

    assert used.get_video_input_options() is not None
    assert (used.audio_output, used.text_output) == (False, False)
    assert used.participant_identity == "ann"
    assert (used.close_on_disconnect, used.delete_room_on_close) == (False, False)
    # an owner may give the same options to every call
    assert chosen.participant_identity == "bob"


async def test_who_reads_what_is_typed_may_be_the_owners() -> None:
    mine = TextInputOptions()

    transport, used = await started(RoomOptions(text_input=mine))
    assert used.text_input is mine
    assert TOPIC_CHAT not in transport._room._text_stream_handlers


async def test_nobody_need_read_what_is_typed() -> None:
    transport, used = await started(RoomOptions(text_input=False))
    assert used.text_input is False
    # nor what was typed before
    transport._early = cast(Any, SimpleNamespace(texts=_early_texts))
    transport._caller = Caller("ann")
    assert await transport.early_texts() == []


async def _early_texts(caller: str) -> list[str]:
    return ["hello"]


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
