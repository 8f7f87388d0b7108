"""Each family of models in a call: who is asked, and who answers; an owner's own, with the rest."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from livekit import rtc

from tests.call.scene import Scene, scene
from tests.support.openai_server import MODELS, OpenAIServer, openai_server
from tests.support.projects import PAIRS, Answers, Project, render
from tests.support.server import LiveKit
from tests.support.templates import ROOT, Template

pytestmark = pytest.mark.asyncio(loop_scope="session")

NAMES = ROOT / "tests" / "support" / "names"
KEYS = {
    "OPENAI_API_KEY": "sk-nobodys",
    "DEEPGRAM_API_KEY": "nobodys",
    "CARTESIA_API_KEY": "nobodys",
}
PROVIDERS = {"api.openai.com", "api.deepgram.com", "api.cartesia.ai"}
# a project's family, its models, whether there is a server of our own: who may be asked, and nobody
# else
ASKED = {
    ("livekit", "livekit", False): {"agent-gateway.livekit.cloud"},
    ("providers", "providers", False): PROVIDERS,
    ("selfhosted", "selfhosted", True): set(),
    ("realtime", "realtime", False): {"api.openai.com"},
    ("realtime", "realtime", True): set(),
    ("livekit", "scripted", False): set(),
    ("providers", "scripted", False): set(),
    ("realtime", "scripted", False): set(),
}


def of(models: str) -> Answers:
    """The cheapest project with these models: one without servers."""
    files = [one for one in PAIRS if one.models == models and one.knowledge != "pgvector"]
    return min(files, key=lambda one: one.memory == "redis")


def servers(server: OpenAIServer) -> dict[str, str]:
    """The settings of projects whose models are all on this server."""
    parts = {"LLM": "chat", "STT": "transcriptions", "TTS": "speech"}
    return {
        **{f"AGENT_{part}_URL": server.url for part in parts},
        **{f"AGENT_{part}_MODEL": MODELS[endpoint] for part, endpoint in parts.items()},  # type: ignore[index]
        "AGENT_REALTIME_URL": server.url,
    }


async def called(stage: Scene) -> None:
    """A call that is greeted, by words or tones, and hung up."""
    room = f"room-{uuid.uuid4().hex[:8]}"
    async with stage.caller(room) as caller:
        await caller.hear_sound()
    await stage.running.ended(room)


@pytest.mark.parametrize(
    ("family", "models", "own"),
    ASKED,
    ids=[f"{family}-{models}{'-own' if own else ''}" for family, models, own in ASKED],
)
async def test_nobody_is_asked_who_was_not_chosen(
    projects: dict[Answers, Project],
    livekit: LiveKit,
    tmp_path: Path,
    family: str,
    models: str,
    own: bool,
) -> None:
    project, log = projects[of(family)], tmp_path / "names.txt"
    log.touch()
    async with openai_server() as server:
        environment: dict[str, Any] = {
            **KEYS,
            **(servers(server) if own else {}),
            "AGENT_MODELS": models,
            "AGENT_MEMORY_URL": "none",
            "PYTHONPATH": str(NAMES),
            "NAMES_LOG": str(log),
        }
        async with scene(project, livekit, **environment) as stage:
            await called(stage)
    names = set(log.read_text(encoding="utf-8").split())

    assert names <= ASKED[family, models, own]
    # the record is one: who was chosen is asked
    assert names or not ASKED[family, models, own]
    assert bool(server.asked) == own
    # no key of a provider goes to a server of our own
    assert {one.key for one in server.asked} <= {"not-needed"}


async def test_own_servers_answer_a_call(
    projects: dict[Answers, Project], livekit: LiveKit, tmp_path: Path
) -> None:
    project = projects[of("selfhosted")]
    async with openai_server() as server:
        environment: dict[str, Any] = {
            "AGENT_MODELS": "selfhosted",
            "AGENT_MEMORY_URL": "none",
            "AGENT_DATA_DIR": str(tmp_path),
            **servers(server),
        }
        async with scene(project, livekit, **environment) as stage:
            room = f"room-{uuid.uuid4().hex[:8]}"
            async with stage.caller(room) as caller:
                await caller.hear_text()
                await caller.hear_sound()
                answer = await caller.ask("Thank you.", "welcome")
            assert (await stage.running.ended(room))["turns"] == 3
        spoken = [one.body["input"] for one in server.requests("speech")]

    assert answer in " ".join(spoken)


async def test_a_worker_whose_key_is_refused_does_not_start(
    projects: dict[Answers, Project], livekit: LiveKit, tmp_path: Path
) -> None:
    project = projects[of("selfhosted")]
    async with openai_server() as server:
        server.fault("speech", "401")
        environment: dict[str, Any] = {
            **livekit.environment,
            **servers(server),
            "AGENT_MODELS": "selfhosted",
            "AGENT_MEMORY_URL": "none",
            "AGENT_DATA_DIR": str(tmp_path),
            "AGENT_PORT": "0",
        }
        done = await asyncio.to_thread(
            project.run, *project.agent, "start", check=False, env=environment
        )

    assert done.returncode == 2
    assert "refuses the key (401): correct AGENT_TTS_KEY" in done.stderr


PERSONA = '''\
"""An owner who uses what LiveKit offers."""

import asyncio
import logging
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

from livekit import rtc
from livekit.agents import AudioConfig, BackgroundAudioPlayer, BuiltinAudioClip, room_io

from agent.conversation import CallAgent
from agent.models import models_of
from agent.models.scripted import ScriptedTTS

log = logging.getLogger("agent.owner")


class Counting(rtc.FrameProcessor):
    """Stands for a noise canceller."""

    frames = 0
    enabled = True

    def _process(self, frame):
        self.frames += 1
        return frame

    def _close(self):
        log.info("cancelled noise in frames: %s", self.frames > 0)


class Voice(ScriptedTTS):
    """A voice of the owner's."""


class Persona(CallAgent):
    def __init__(self, call):
        super().__init__(call, instructions="You are a test.")

    @classmethod
    def models(cls, settings):
        return replace(models_of(settings.model_copy(update={"models": "scripted"})), tts=Voice())

    def session_options(self):
        return {"max_tool_steps": 7}

    def room_options(self):
        heard = room_io.AudioInputOptions(noise_cancellation=Counting())
        return room_io.RoomOptions(audio_input=heard, video_input=True)

    @asynccontextmanager
    async def office(self, session):
        player = BackgroundAudioPlayer(ambient_sound=AudioConfig(BuiltinAudioClip.OFFICE_AMBIENCE))
        await player.start(room=self.call.room, agent_session=session)
        try:
            yield
        finally:
            # the SDK may wait for ever until its track is gone, which goes with the room
            with suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await player.aclose()

    async def before_start(self, session):
        await self.call.open("office", self.office(session))

    async def welcome(self, profile):
        session, seen = self.session, self.session.input.video is not None
        found = type(session.tts).__name__, session.options.max_tool_steps, seen
        log.info("found %s", found)
        await super().welcome(profile)
'''


async def speak(room: rtc.Room) -> None:
    """Publish a microphone, and hum into it until cancelled."""
    source = rtc.AudioSource(24_000, 1)
    track = rtc.LocalAudioTrack.create_audio_track("microphone", source)
    options = rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_MICROPHONE)
    await room.local_participant.publish_track(track, options)
    with suppress(asyncio.CancelledError):
        while True:
            await source.capture_frame(rtc.AudioFrame(bytes(4_800), 24_000, 1, 2_400))


async def test_what_livekit_offers_is_reached_from_the_persona(
    template: Template, livekit: LiveKit, tmp_path: Path
) -> None:
    project = render(template, tmp_path / "front-desk", Answers("none", "none"))
    project.write("src/agent/persona.py", PERSONA)
    project.install()
    async with scene(project, livekit, AGENT_MODELS="livekit") as stage:
        room = f"room-{uuid.uuid4().hex[:8]}"
        async with stage.caller(room) as caller:
            caller.keep(speak(caller.room))
            found = await stage.said(room, "found")
            await caller.ask("Thank you.", "welcome")
        assert (await stage.running.ended(room))["reason"] == "caller left"
        closed = stage.running.closed(room)
        await stage.running.wait_for(lambda one: "cancelled noise" in str(one.get("message")))
        noise = [one for one in stage.running.records if "noise" in str(one.get("message"))]

    assert found["message"] == "found ('Voice', 7, True)"
    assert ("office", "ok") in closed
    assert [one["message"] for one in noise] == ["cancelled noise in frames: True"]
