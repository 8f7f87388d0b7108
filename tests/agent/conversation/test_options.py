"""What a persona may choose of LiveKit's: models, options of the session, what comes before it."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType

import pytest
from livekit.agents import AgentSession
from livekit.agents.voice.room_io import RoomOptions

from agent.conversation import CallAgent, SessionOptions
from agent.entrypoint import models_for
from agent.lifecycle import Call
from agent.models import Models, models_of
from agent.models.scripted import ScriptedTTS
from agent.settings import Settings, load_settings
from template.tests.talk import FakeTransport, talk

# of the SDK's session, those that are set otherwise
OTHERWISE = {
    *("self", "loop", "userdata"),
    *("llm", "stt", "tts", "vad", "turn_handling"),  # Models
    "user_away_timeout",  # AGENT_MAX_SILENCE_SECONDS
    "tools",  # the agent's
}

Cast = Callable[[type[CallAgent]], None]


class Voice(ScriptedTTS):
    """A voice of the owner's."""


class Persona(CallAgent):
    """A persona that notes what it is asked for."""

    asked: list[str]

    def __init__(self, call: Call) -> None:
        super().__init__(call, instructions="You are a test.")

    @classmethod
    def models(cls, settings: Settings) -> Models:
        cls.asked.append("models")
        scripted = settings.model_copy(update={"models": "scripted"})
        return replace(models_of(scripted), tts=Voice())


@pytest.fixture
def cast(monkeypatch: pytest.MonkeyPatch) -> Cast:
    """Let a persona of the test answer."""

    def play(persona: type[CallAgent]) -> None:
        module = ModuleType("agent.persona")
        module.__dict__["Persona"] = persona
        monkeypatch.setitem(sys.modules, "agent.persona", module)

    Persona.asked = []
    return play


async def test_the_personas_models_are_used_and_no_others_are_built(
    cast: Cast, monkeypatch: pytest.MonkeyPatch
) -> None:
    cast(Persona)
    # no other can be built
    monkeypatch.setitem(sys.modules, "agent.models.livekit", None)

    async with talk(models="livekit") as call:
        assert call.call.session is not None
        assert isinstance(call.call.session.tts, Voice)
    assert Persona.asked == ["models"]


@pytest.mark.parametrize("models", ["scripted"])
async def test_keyless_models_win(cast: Cast, models: str) -> None:
    cast(Persona)

    async with talk(models=models) as call:
        assert call.call.session is not None
        assert not isinstance(call.call.session.tts, Voice)
    assert Persona.asked == []


def test_without_a_choice_the_settings_models_are_those_of_the_persona(cast: Cast) -> None:
    cast(CallAgent)
    settings = load_settings().model_copy(update={"models": "livekit", "livekit_api_key": "key"})

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIVEKIT_API_KEY", "key")
        patch.setenv("LIVEKIT_API_SECRET", "a secret of at least thirty-two bytes")
        assert models_for(settings).llm.model == settings.llm_model


def test_every_option_of_a_session_is_the_personas_or_set_otherwise() -> None:
    parameters = inspect.signature(AgentSession.__init__).parameters
    text = inspect.getsource(AgentSession.__init__).split("# deprecated\n")[1]
    deprecated = {name for name in parameters if f"        {name}: NotGiven" in text}

    assert set(parameters) - deprecated - OTHERWISE == set(SessionOptions.__annotations__)


async def test_options_of_the_session_reach_it(cast: Cast) -> None:
    class Thorough(CallAgent):
        def __init__(self, call: Call) -> None:
            super().__init__(call, instructions="You are a test.")

        def session_options(self) -> SessionOptions:
            return {"max_tool_steps": 7}

    cast(Thorough)

    async with talk() as call:
        assert call.call.session is not None
        assert call.call.session.options.max_tool_steps == 7


async def test_before_the_session_starts_the_caller_is_known_and_what_is_opened_is_closed(
    cast: Cast, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted: list[object] = []

    class Early(CallAgent):
        def __init__(self, call: Call) -> None:
            super().__init__(call, instructions="You are a test.")

        async def before_start(self, session: AgentSession[None]) -> None:
            assert self.call.caller is not None
            noted.append((self.call.caller.identity, session.current_speech, session.tts))

        def room_options(self) -> RoomOptions:
            assert self.call.caller is not None
            return RoomOptions(video_input=True)

    start = FakeTransport.start

    async def starts(self: FakeTransport, *arguments: object) -> None:
        noted.append(arguments[-1])
        await start(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(FakeTransport, "start", starts)
    cast(Early)

    async with talk("bela") as call:
        session = call.call.session
    assert session is not None
    assert noted == [("bela", None, session.tts), RoomOptions(video_input=True)]


async def test_an_error_before_the_session_starts_is_one_of_step_5(cast: Cast) -> None:
    class Faulty(CallAgent):
        def __init__(self, call: Call) -> None:
            super().__init__(call, instructions="You are a test.")

        async def before_start(self, session: AgentSession[None]) -> None:
            raise RuntimeError("the avatar is away")

    cast(Faulty)

    with pytest.raises(AssertionError, match=r"error in step 5"):
        async with talk():
            pass
