"""What carries a call: a LiveKit room, a terminal, or a test."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from livekit import api, rtc
    from livekit.agents import Agent, AgentSession
    from livekit.agents.voice.room_io import RoomOptions


@dataclass(frozen=True)
class Caller:
    """Somebody in the room; `identity` is the token's, `kind` standard, sip or connector.

    Who cannot publish only listens, as a viewer or a recorder does.
    """

    identity: str
    name: str = ""
    kind: str = "standard"
    attributes: Mapping[str, str] = field(default_factory=dict)
    can_publish: bool = True


def can_publish(caller: Caller) -> bool:
    """Who is taken for the caller, unless the persona says otherwise."""
    return caller.can_publish


class CallEvents(Protocol):
    """What a transport reports, at the moment it knows: see `agent.lifecycle.Call`."""

    reason: str | None  # why the call ended; None while it goes on

    def caller_gone(self, *, on_purpose: bool) -> None: ...
    def caller_back(self) -> None: ...
    def room_gone(self, *, removed: bool) -> None: ...
    def shut_down(self) -> None: ...
    async def answer(self, text: str) -> None: ...
    async def on_job_ending(self) -> None: ...


class Transport(Protocol):
    """What a call needs of the thing that carries it."""

    call_id: str  # the job's id
    room_name: str
    began: float  # time.monotonic() when the job began
    limited: bool  # whether length and silence have limits here
    metadata: str  # the job's: what its dispatch said

    # None where no LiveKit room carries the call

    @property
    def livekit_room(self) -> rtc.Room | None: ...
    @property
    def livekit_api(self) -> api.LiveKitAPI | None: ...

    def listen(self, events: CallEvents) -> None:
        """Report to `events` from now on; called before anything connects."""
        ...

    def room(self) -> AbstractAsyncContextManager[None]:
        """Connect on entering, leave on exit."""
        ...

    async def wait_for_caller(self, is_caller: Callable[[Caller], bool]) -> Caller:
        """The first who is one, a phone before others; raises what `is_caller` raises."""
        ...

    async def start(
        self, session: AgentSession[None], agent: Agent, caller: Caller, options: RoomOptions
    ) -> None:
        """Start the session with the caller linked; what they said before is not lost."""
        ...

    async def early_texts(self) -> list[str]:
        """What the caller wrote before the session listened, to be answered after the greeting."""
        ...

    async def end_room(self, caller: Caller | None) -> None:
        """Delete the room, unless somebody other than the caller is in it."""
        ...

    def finish(self, reason: str) -> None:
        """End the job: the call is over."""
        ...

    def guard_exit(self, seconds: float) -> None:
        """The job is done: end its process if it still lives after `seconds`."""
        ...
