"""The code of docs/agent/models.md works, for every family of models."""

from __future__ import annotations

import re
import sys
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, Mock

import pytest
from livekit.agents import AgentSession, llm, room_io
from livekit.plugins import cartesia, deepgram

from agent import persona
from agent.conversation import CallAgent
from agent.entrypoint import models_for
from agent.settings import Settings, variables
from agent.transport import Caller
from template.tests.talk import talk
from tests.agent.test_how_to import blocks, run
from tests.support import quick
from tests.support.templates import CHOICES

PAGE = "docs/agent/models.md"
SECTION = "Your persona's own choice"


def shown(monkeypatch: pytest.MonkeyPatch, number: int) -> Any:
    """The persona of that example, which answers calls from now on."""
    noise = ModuleType("livekit.plugins.noise_cancellation")
    noise.__dict__["BVC"] = SimpleNamespace
    monkeypatch.setitem(sys.modules, noise.__name__, noise)
    monkeypatch.setattr("livekit.plugins.noise_cancellation", noise, raising=False)
    examples = [code for code in blocks(PAGE, SECTION, "python") if "class Persona" in code]
    module = run(examples[number], CallAgent=persona.Persona)
    monkeypatch.setattr(persona, "Persona", module["Persona"])
    return module["Persona"]


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "DEEPGRAM_API_KEY", "CARTESIA_API_KEY", "LIVEKIT_API_KEY"):
        monkeypatch.setenv(name, "key")
    monkeypatch.setenv("LIVEKIT_API_SECRET", "a secret of at least thirty-two bytes")


def test_one_model_is_replaced(monkeypatch: pytest.MonkeyPatch, keys: None) -> None:
    shown(monkeypatch, 0)

    models = models_for(Settings(models="livekit"))
    assert isinstance(models.tts, deepgram.TTS)
    assert models.llm.model == Settings().llm_model


def test_all_models_are_replaced(monkeypatch: pytest.MonkeyPatch, keys: None) -> None:
    shown(monkeypatch, 1)
    # nothing of the settings' is built
    monkeypatch.setitem(sys.modules, "agent.models.livekit", None)

    assert isinstance(models_for(Settings(models="livekit")).llm, llm.FallbackAdapter)


@pytest.mark.parametrize(
    ("attributes", "voice", "language"),
    [
        ({}, Settings.model_fields["tts_voice"].default, "en"),
        ({"language": "de"}, "the id of a German voice", "de"),
        ({"language": "fr"}, "theirs", "en"),
    ],
)
async def test_every_caller_has_a_voice(
    monkeypatch: pytest.MonkeyPatch,
    keys: None,
    attributes: dict[str, str],
    voice: str,
    language: str,
) -> None:
    kind: type[CallAgent] = shown(monkeypatch, 2)
    tts = cartesia.TTS(voice="theirs")
    caller = Caller("ann", attributes=attributes)
    async with talk(caller) as call:  # by a script, whose voice has no name
        agent = kind.__new__(kind)
        agent.call = call.call
        session: Any = SimpleNamespace(tts=tts)
        await agent.before_start(session)

    assert (tts._opts.voice, tts._opts.language) == (voice, language)


async def test_the_room_is_seen_and_heard_without_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    shown(monkeypatch, 3)

    async with talk() as call:
        options = call.call.persona.room_options()
    assert options.get_video_input_options() is not None
    assert isinstance(options.audio_input, room_io.AudioInputOptions)
    assert options.audio_input.noise_cancellation is not None


async def test_the_session_has_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    shown(monkeypatch, 4)

    async with talk() as call:
        session = call.call.session
        assert isinstance(session, AgentSession)
        assert session.options.max_tool_steps == 6


async def test_where_there_is_no_room_there_is_no_office(monkeypatch: pytest.MonkeyPatch) -> None:
    shown(monkeypatch, 5)

    async with talk() as call:
        assert "office" not in dict(call.call.closed)
        await call.say("goodbye")


async def test_the_office_is_heard_in_the_room(monkeypatch: pytest.MonkeyPatch) -> None:
    player, room = AsyncMock(), Mock()
    monkeypatch.setattr("livekit.agents.BackgroundAudioPlayer", Mock(return_value=player))
    shown(monkeypatch, 5)

    async with talk(room=room) as call:
        player.start.assert_awaited_once_with(room=room, agent_session=call.call.session)
    player.aclose.assert_awaited_once_with()


@pytest.mark.parametrize("models", CHOICES["models"])
def test_the_page_is_about_the_chosen_models_and_every_setting_on_it_is_one(models: str) -> None:
    text = quick.render(PAGE, models=models)[PAGE]
    named = set(re.findall(r"AGENT_[A-Z_]+[A-Z]", text))

    assert named <= set(variables().values())
    assert ("AGENT_LLM_URL" in named) == (models == "selfhosted")
    assert ("AGENT_LLM_FALLBACK" in named) == (models == "providers")
    assert ("AGENT_REALTIME_URL" in named) == (models == "realtime")
    assert ("AGENT_LLM_MODEL" in named) == (models != "realtime")
    assert not re.search(r"# %|\{%|\{\{", text)
