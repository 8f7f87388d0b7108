"""Recording a call, both sides in one file, by the SDK's own recorder; the caller is told first."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from livekit.agents.voice import SpeechHandle
from livekit.agents.voice.recorder_io import RecorderIO

from agent import one_line
from agent.conversation.speech import say_known
from agent.lifecycle.resource import OpenFailed
from agent.reports import recordings

if TYPE_CHECKING:
    from agent.conversation.agent import CallAgent

log = logging.getLogger("agent.call")

# for the notice, and for the caller's device to play it
NOTICE_SECONDS = 15.0


async def record(agent: CallAgent) -> None:
    """Tell the caller that the call is recorded, and record it from then on, if that is asked for.

    Nothing is recorded unless the whole notice has been said; the call goes on in any case.
    """
    call, session = agent.call, agent.session
    if call.settings.record != "audio" or not (session.input.audio and session.output.audio):
        return
    extra = call.journal.fields()
    notice = agent.recording_notice()
    said = say_known(session, notice, allow_interruptions=False)
    try:
        async with asyncio.timeout(NOTICE_SECONDS):
            await said.wait_for_playout()
    except TimeoutError:
        said.interrupt(force=True)
    if call.reason is not None or not _was_said(said, notice, agent):
        log.warning("the call is not recorded: its caller could not be told so", extra=extra)
        return
    try:
        file = recordings.prepare(call.settings, call.transport.call_id, call.caller_keys)
        recorder = RecorderIO(agent_session=session)
        session.input.audio = recorder.record_input(session.input.audio)
        session.output.audio = recorder.record_output(session.output.audio)
        await call.open("recording", _recording(recorder, file))
    except (OpenFailed, OSError) as error:
        log.warning("the call is not recorded: %s", one_line(error), extra=extra)
        return
    call.recording = recordings.address_of(call.settings, call.transport.call_id)


def _was_said(said: SpeechHandle, notice: str, agent: CallAgent) -> bool:
    """Whether it was said to its end, in these words, and by a voice: a failed one hums tones."""
    words = " ".join(item.text_content or "" for item in said.chat_items if item.type == "message")
    whole = not said.interrupted and notice.split() == words.split()
    return whole and not agent.has_failed("text-to-speech")


@asynccontextmanager
async def _recording(recorder: RecorderIO, file: Path) -> AsyncIterator[None]:
    await recorder.start(output_path=file)
    try:
        yield
    finally:
        await recorder.aclose()
        recordings.finish(file)
