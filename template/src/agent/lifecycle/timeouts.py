"""Every deadline of a call, in seconds: the SDK's, and the template's below them."""

from __future__ import annotations

from enum import Enum

# The SDK's own (livekit-agents 1.8, ipc/job_proc_lazy_main.py and worker.py); the template's
# canary compares them with the installed SDK.
SDK_CONNECT_WARNING_SECONDS = 10.0  # "The room connection was not established within 10 seconds"
SDK_ENTRYPOINT_SECONDS = 15.0  # a running entrypoint is cancelled after this
SDK_ACLOSE_SECONDS = 60.0  # session.aclose()
SDK_SESSION_END_SECONDS = 300.0  # on_session_end
SDK_KILL_SECONDS = 10.0  # from ShuttingDown until the worker kills the job

OPEN_SECONDS = 5.0  # one resource, unless it says otherwise
CLOSE_SECONDS = 2.0  # one resource, unless it says otherwise
SESSION_OPEN_SECONDS = 14.0
SESSION_CLOSE_SECONDS = 3.0  # without the goodbye, which has its own time
TYPED_SECONDS = 5.0  # that a typed line waits for the tools of the answer before it
TOOLSET_SECONDS = 10.0  # a tool set may connect for so long, in the background
TOOLSET_WAIT_SECONDS = 2.0  # for those of an agent that takes over: its first reply may need them
ROOM_EVENT_SECONDS = 0.25  # how far the room's event may come behind what it leads to
END_ROOM_SECONDS = 2.0  # deleting the room
UNWIND_SECONDS = 1.0  # steps that were cancelled
LAST_CHANCE_SECONDS = 0.1  # what a resource gets when the budget is spent
REPORT_SECONDS = 2.0  # for the files of the report, when all else is closed
EXIT_SECONDS = 8.0  # from the SDK's last callback until the process must be gone


class Step(Enum):
    """The eight steps of a call, in order: number, name, and deadline if there is one."""

    OPEN_INFRASTRUCTURE = (1, "open infrastructure", 8.0)
    CONNECT = (2, "connect", 8.5)
    BUILD = (3, "build agent and session", 5.0)
    # has the setting AGENT_CALLER_WAIT_SECONDS
    WAIT_FOR_CALLER = (4, "wait for the caller", None)
    START_SESSION = (5, "start the session", 15.0)
    GREET = (6, "load the caller's data and greet", 20.0)
    STAY = (7, "stay for the conversation", None)
    # has the setting AGENT_CLOSE_SECONDS
    CLEAN_UP = (8, "clean up and exit", None)

    def __init__(self, number: int, title: str, seconds: float | None) -> None:
        self.number, self.title, self.seconds = number, title, seconds
