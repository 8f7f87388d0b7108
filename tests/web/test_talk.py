"""A person talks with the agent through the page, in a real Chromium, with real speech.

The agent's models are those of `AGENT_MODELS=local`, and what the page plays is recognised here
once more: a fact has gone from a document to a caller's ear.
"""

from __future__ import annotations

import asyncio
import base64
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import pytest
import pytest_asyncio

from agent.models import local
from tests.support.browser import Browser, Page, chromium
from tests.support.openai_server.audio import wav_of
from tests.support.projects import PAIRS, render
from tests.support.server import LiveKit
from tests.support.speech import RATE, Samples, need_speech, pause, plain, voice
from tests.support.templates import Template
from tests.support.worker import Worker, worker
from tests.web.served import Served, served
from tests.web.states import click, says, state

pytestmark = pytest.mark.asyncio(loop_scope="session")

AGENT = "front-desk"
# of an answer with pauses in it, and of what else is said
MOST_SENTENCES = 5
QUESTION = "How much does a puncture cost?"
# of "A puncture costs 14 euros and takes 20 minutes"; the rest is heard in many spellings
ANSWER = ("euros", "minutes")
HAS_SPOKEN = f"{state('listening')} && loud && quiet >= 0.5"

# keeps what the page plays, at the recogniser's rate; whether that is more than silence, and how
# long there has been silence
EARS = f"""
  window.heard = [];
  window.loud = false;
  window.quiet = 0;
  const ears = new AudioContext({{sampleRate: {local.HEARD_RATE}}});
  function hear(stream) {{
    const recorder = ears.createScriptProcessor(1024, 1, 1);
    recorder.onaudioprocess = ({{inputBuffer}}) => {{
      const samples = inputBuffer.getChannelData(0).slice();
      heard.push(samples);
      const isLoud = samples.some((x) => Math.abs(x) > 0.015);
      loud ||= isLoud;
      quiet = isLoud ? 0 : quiet + inputBuffer.duration;
    }};
    ears.createMediaStreamSource(stream).connect(recorder).connect(ears.destination);
  }}
  new MutationObserver((records) => records.forEach((record) => record.addedNodes.forEach(
    (node) => node.nodeName === "AUDIO" && hear(node.srcObject)
  ))).observe(document, {{childList: true, subtree: true}});
  window.taken = () => {{
    loud = false;
    const bytes = new Uint8Array(
      new Int16Array(heard.splice(0).flatMap((part) => [...part].map((x) => x * 32767))).buffer
    );
    let text = "";
    for (let at = 0; at < bytes.length; at += 9999)
      text += String.fromCharCode(...bytes.subarray(at, at + 9999));
    return btoa(text);
  }};
"""
# hears the microphone instead, before anybody else is to be heard
OWN_EARS = """
  const open = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
  navigator.mediaDevices.getUserMedia = async (constraints) => {
    const stream = await open(constraints);
    hear(stream.clone());
    return stream;
  };
"""
# a microphone into which the test speaks when it wants to
MICROPHONE = f"""
  const mouth = new AudioContext({{sampleRate: {RATE}}});
  const microphone = mouth.createMediaStreamDestination();
  navigator.mediaDevices.getUserMedia = async () => microphone.stream.clone();
  window.speak = (text) => new Promise((spoken) => {{
    const samples = new Int16Array(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
    const buffer = mouth.createBuffer(1, samples.length, {RATE});
    buffer.copyToChannel(Float32Array.from(samples, (x) => x / 32768), 0);
    const source = new AudioBufferSourceNode(mouth, {{buffer}});
    source.onended = spoken;
    source.connect(microphone);
    source.start();
  }});
"""


@dataclass
class Stage:
    """An agent at work, its page, and a browser."""

    running: Worker
    served: Served
    browser: Browser

    @asynccontextmanager
    async def talk(self, before: str = "", microphone: str = "granted") -> AsyncIterator[Page]:
        """A page on which somebody has clicked."""
        before = EARS + before
        async with self.browser.page(self.served.url, before=before, microphone=microphone) as page:
            await page.run(click("talk"))
            yield page
            assert page.errors == []


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def stage(
    template: Template, tmp_path_factory: pytest.TempPathFactory, livekit: LiveKit
) -> AsyncIterator[Stage]:
    need_speech()
    await asyncio.to_thread(local.load)
    folder = tmp_path_factory.mktemp("talk")
    project = render(template, folder / AGENT, PAIRS[0])
    project.install("--group", "speech")
    # as loud as a microphone is: Chromium makes it 15 dB louder at first, and cuts off what exceeds
    asked = (voice(QUESTION) * 0.15).astype(np.int16)
    said = np.concatenate([pause(0.5), asked, pause(60)])
    question = folder / "question.wav"
    question.write_bytes(wav_of(said.tobytes(), RATE))
    async with (
        chromium(
            "--use-fake-device-for-media-stream",
            f"--use-file-for-fake-audio-capture={question}%noloop",
        ) as browser,
        worker(
            project.path, project.agent, livekit, AGENT_MODELS="local", AGENT_NAME=AGENT
        ) as running,
        served(livekit, AGENT) as page,
    ):
        yield Stage(running, page, browser)


def parts(played: Samples) -> list[Samples]:
    """What was said, cut at silences: of a recording with long ones the recogniser hears half."""
    if not len(played):
        return []
    size = local.HEARD_RATE // 10
    tenths = [played[start : start + size] for start in range(0, len(played), size)]
    # a voice, its short pauses, and some silence around it
    near = np.convolve([np.abs(tenth).max() > 500 for tenth in tenths], [1] * 5, "same") > 0
    groups = groupby(zip(near, tenths, strict=True), key=lambda pair: bool(pair[0]))
    return [np.concatenate([tenth for _, tenth in group]) for said, group in groups if said]


async def hear(page: Page, *words: str) -> list[str]:
    """Listen until the agent has said all these words aloud, and listens itself; all its words."""
    heard: list[str] = []
    for _ in range(MOST_SENTENCES):
        await page.until(f"{HAS_SPOKEN} || {state('ended')}")
        played = np.frombuffer(base64.b64decode(await page.run("taken()")), np.int16)
        for part in parts(played):
            heard += plain(await asyncio.to_thread(local.transcribe, part))
        if {*words} <= {*heard}:
            return heard
        if await page.run(state("ended")):
            break
    shown = await page.run("document.body.innerText")
    raise AssertionError(f"{words} was never to be heard, but {heard}; on the page: {shown}")


async def speak(page: Page, words: str) -> None:
    """Say this into the microphone of the page; returns when it has been said."""
    await page.run(f"speak('{base64.b64encode(voice(words).tobytes()).decode()}')")


async def type_(page: Page, words: str) -> None:
    """Write this instead."""
    await page.run("text.focus()")
    await page.press(*words, "Enter")


async def test_a_question_that_is_asked_before_the_agent_comes_is_answered_aloud(
    stage: Stage,
) -> None:
    # over the agent's voice the browser's echo canceller takes away half of what is said
    with stage.served.no_agent():
        async with stage.talk(OWN_EARS) as page:
            await page.until("loud && quiet >= 0.5")
            await page.run("taken()")

            await stage.served.livekit.dispatch(AGENT, stage.served.rooms[-1])

            await hear(page, *ANSWER)

            # what was understood of the caller is to be seen as well
            assert await page.run("/puncture/i.test(document.querySelector('.you').innerText)")


async def test_the_agent_stops_when_it_is_interrupted_and_answers_that(stage: Stage) -> None:
    async with stage.talk(MICROPHONE) as page:
        await hear(page, "help")
        await speak(page, "When do you close for the summer?")
        await page.until(f"{state('speaking')} && loud && quiet === 0")

        await speak(page, "Can I borrow a bicycle during a repair?")

        # of the first answer, its end was not to be heard
        assert "mondays" not in await hear(page, "cargo")


async def test_without_a_microphone_what_is_typed_is_answered_aloud(stage: Stage) -> None:
    async with stage.talk(microphone="denied") as page:
        await page.until(says("may not use the microphone"))

        await type_(page, QUESTION)

        await hear(page, *ANSWER)


async def test_a_page_that_is_reloaded_goes_on_in_the_same_call(stage: Stage) -> None:
    async with stage.talk(microphone="denied") as page:
        await hear(page, "help")

        await page.reload()

        await page.until(state("listening"))
        await type_(page, QUESTION)
        await hear(page, *ANSWER)
        # of one call, with one greeting
        assert await page.run("document.querySelectorAll('.agent').length") == 2
        room = stage.served.rooms[-1]
        assert stage.served.rooms.count(room) == 2
        assert stage.running.steps(room).count(1) == 1


async def test_hanging_up_ends_the_call(stage: Stage) -> None:
    async with stage.talk(MICROPHONE) as page:
        await hear(page, "help")

        await page.run(click("hang-up"))

        end = await stage.running.ended(stage.served.rooms[-1])
        assert end["reason"] == "caller left"


async def test_a_killed_agent_ends_the_conversation_in_a_sentence(stage: Stage) -> None:
    async with stage.talk(MICROPHONE) as page:
        await hear(page, "help")
        room = stage.served.rooms[-1]
        step = await stage.running.wait_for(
            lambda record: record.get("room") == room and record.get("step") == 6
        )

        os.kill(step["pid"], signal.SIGKILL)

        await page.until(says("The agent has ended the conversation."))
