"""Ears and a voice on this machine; tests/call/test_heard.py has them in a call."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from agent import server
from agent.cli.checks import check_models
from agent.conversation.sounds import voice_of
from agent.models import ModelsUnavailable, local, models_of
from agent.settings import load_settings
from tests.support.speech import cough, need_speech, pause, plain, street

LOCAL = load_settings().model_copy(update={"models": "local"})


async def test_its_ears_understand_its_voice() -> None:
    need_speech()
    models = models_of(LOCAL)
    assert models.stt is not None
    assert models.tts is not None
    words = "The workshop is in the yard behind the bakery."
    frames = [part.frame async for part in models.tts.synthesize(words)]
    heard = await models.stt.recognize(frames)
    assert plain(heard.alternatives[0].text) == plain(words)


async def test_what_cannot_be_spoken_is_a_short_silence_and_no_failure() -> None:
    need_speech()
    frames = [part.frame async for part in local.LocalTTS().synthesize("🚲")]
    assert not any(any(frame.data) for frame in frames)
    assert frames


async def test_a_long_utterance_is_understood_to_its_end() -> None:
    need_speech()
    # longer than what is left of Whisper's padding
    said = "Bus twenty three stops at the bridge. " * 7 + "The entrance is the blue gate."
    frames = [part.frame async for part in local.LocalTTS().synthesize(said)]
    assert sum(frame.duration for frame in frames) > local.FRAMES / 100
    heard = await local.LocalSTT().recognize(frames)
    assert plain(heard.alternatives[0].text)[-6:] == [
        "the",
        "entrance",
        "is",
        "the",
        "blue",
        "gate",
    ]


def test_a_turn_does_not_end_before_its_words_are_known() -> None:
    need_speech()
    assert models_of(LOCAL).turn_handling["endpointing"]["min_delay"] == local.ENDPOINTING_SECONDS
    owners = LOCAL.model_copy(update={"min_endpointing_seconds": 0.4})
    assert models_of(owners).turn_handling["endpointing"]["min_delay"] == 0.4


async def test_its_voice_can_be_kept() -> None:
    assert voice_of(local.LocalTTS()) is not None


@pytest.mark.parametrize(
    "noise", [cough(), street(2.0), pause(2.0)], ids=["cough", "street", "silence"]
)
async def test_noise_is_no_words(noise: Any) -> None:
    need_speech()
    assert local.transcribe(noise) == ""


def test_a_process_has_loaded_them_before_its_call(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    monkeypatch.setattr(local, "build", lambda settings: None)
    monkeypatch.setattr(local, "load", lambda: loaded.append("ears and voice"))
    process: Any = type("Process", (), {"executor_type": None, "userdata": {}})()
    server.prewarm(LOCAL, process)
    assert loaded == ["ears and voice"]


def test_without_the_group_one_sentence_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(
        local, "find_spec", lambda name: None if name in local.GROUP else there(name)
    )
    sentence = r"`speech`, and faster_whisper is not installed; run `uv sync --group speech`"
    with pytest.raises(ModelsUnavailable, match=sentence):
        models_of(LOCAL)
    (found,) = check_models(LOCAL)
    assert found.level == "fail"
    assert found.cure == "run `uv sync --group speech`"
