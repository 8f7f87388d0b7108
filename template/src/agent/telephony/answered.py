"""Who has answered a call that the agent made: a person, or a machine that takes messages."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from livekit.agents import AMD, AMDCategory, ChatContext, ChatMessage, StopResponse
from livekit.agents.llm import LLM
from livekit.agents.voice.amd.detector import DetectionOptions

from agent.conversation import CallAgent
from agent.conversation.agent import say_within
from agent.conversation.session import CallSession
from agent.lifecycle import Call, Reason
from agent.lifecycle.journal import CallOver
from agent.models import KEYLESS
from agent.transport.room import RoomTransport

log = logging.getLogger("agent.call")

FIRST_WORDS_SECONDS = 5.0  # who says nothing for so long is greeted
# of the SDK's detection, unless somebody still speaks: a model that does not answer costs no call
DETECTION_SECONDS = 12.0
# for the end of a turn that has been classified already, or it would be answered in addition
TURN_END_SECONDS = 1.0
MACHINE_PAUSE_SECONDS = 1.5  # after which a machine has finished
MACHINE_SECONDS = 60.0  # of all that it says
MESSAGE_SECONDS = 60.0  # of a message that is left


async def hear_callee(call: Call, session: CallSession, persona: CallAgent) -> None:
    """Hear the callee's first words before the greeting, if the persona wants to.

    A machine gets the persona's message, or none; then the call ends and CallOver is raised. None
    of its words are remembered as somebody's.
    """
    wants_to = persona.callee_speaks_first or persona.detects_voicemail
    if not wants_to or not isinstance(call.transport, RoomTransport):
        return
    if session.realtime is not None:
        call.journal.record("a realtime model does not wait for the callee's first words")
        return
    call.identify(None)
    first = FirstTurn(persona)
    try:
        category = await _category(call, session, persona, first)
        if category is not AMDCategory.HUMAN:
            await _meet_machine(call, session, persona, category)
    finally:
        first.over()
        # also of who hangs up meanwhile, the call itself is remembered
        if call.caller is not None:
            call.identify(persona.remembered_as(call.caller))
    if first.messages:
        chat = persona.chat_ctx.copy()
        for message in first.messages:
            chat.items.append(message)
            session.history.items.append(message)
            call.add_turn(message.id, "user", message.text_content or "")
        await persona.update_chat_ctx(chat)


class FirstTurn:
    """What a callee says before the greeting: it is heard, and not answered by itself."""

    def __init__(self, persona: CallAgent) -> None:
        self.messages: list[ChatMessage] = []
        self.ended = asyncio.Event()
        self._persona = persona
        persona.on_user_turn_completed = self._completed  # type: ignore[method-assign]

    async def _completed(self, turn_ctx: ChatContext, new_message: ChatMessage) -> None:
        self.messages.append(new_message)
        self.ended.set()
        raise StopResponse

    @property
    def words(self) -> str:
        """All that was said."""
        return " ".join(message.text_content or "" for message in self.messages)

    def over(self) -> None:
        """From now on turns are the persona's again."""
        vars(self._persona).pop("on_user_turn_completed", None)


async def _category(
    call: Call, session: CallSession, persona: CallAgent, first: FirstTurn
) -> AMDCategory:
    """Who answered; whatever is not certain is a person, unless the persona's rule knows better."""
    category = AMDCategory.UNCERTAIN
    if persona.detects_voicemail and _can_detect(call, session):
        options = DetectionOptions(
            no_speech_threshold=FIRST_WORDS_SECONDS, timeout=DETECTION_SECONDS
        )
        detector = AMD(
            session,
            # the call's own models: others would be asked, and paid, without anybody having said so
            llm=None,
            stt=None,
            ivr_detection=False,
            suppress_compatibility_warning=True,
            detection_options=options,
        )
        async with detector:
            verdict = await detector.execute()
        category = verdict.category
        if category is AMDCategory.HUMAN or verdict.transcript:
            await _wait(first.ended, TURN_END_SECONDS)
    else:
        await _first_words(session, first)
    if category is not AMDCategory.UNCERTAIN:
        return category
    if not (persona.detects_voicemail and first.messages and persona.is_voicemail(first.words)):
        return AMDCategory.HUMAN
    await _silence(session, first)
    return AMDCategory.MACHINE_VM


def _can_detect(call: Call, session: CallSession) -> bool:
    """Whether the SDK's detection has what it needs: it listens for pauses, and asks a model."""
    # a script has no opinion of who speaks
    thinks = isinstance(session.llm, LLM) and call.settings.models not in KEYLESS
    return thinks and session.vad is not None and session.stt is not None


async def _first_words(session: CallSession, first: FirstTurn) -> None:
    """Wait for the end of the callee's first turn, as long as they speak; not long in silence."""
    while not await _wait(first.ended, FIRST_WORDS_SECONDS):
        if session.user_state != "speaking":
            return


async def _silence(session: CallSession, first: FirstTurn) -> None:
    """Wait until a machine has said all that it has to say: then it records."""
    with suppress(TimeoutError):
        async with asyncio.timeout(MACHINE_SECONDS):
            speaks = True
            while speaks:
                first.ended.clear()
                ended = await _wait(first.ended, MACHINE_PAUSE_SECONDS)
                speaks = ended or session.user_state == "speaking"


async def _wait(event: asyncio.Event, seconds: float) -> bool:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()


async def _meet_machine(
    call: Call, session: CallSession, persona: CallAgent, category: AMDCategory
) -> None:
    """Leave the persona's message where one can be left, and hang up."""
    call.journal.record("a machine has answered", kind=category.value)
    can_take_one = category is AMDCategory.MACHINE_VM
    if can_take_one and (message := persona.on_voicemail()):
        await say_within(session, message, MESSAGE_SECONDS)
    call.end(Reason.VOICEMAIL)
    raise CallOver(Reason.VOICEMAIL)
