"""Why calls end; imports nothing, so that every module may use it."""


class Reason:
    """Why a call ended. The first cause wins; an error names its step: see `Reason.error`."""

    CALLER_LEFT = "caller left"
    CALLER_DROPPED = "caller dropped"
    NO_SHOW = "no-show"
    AGENT_HUNG_UP = "agent hung up"
    TOO_LONG = "too long"
    TOO_SILENT = "too silent"
    TOO_EXPENSIVE = "too expensive"
    ROOM_CLOSED = "room closed"
    REMOVED = "removed"
    WORKER_STOPPED = "worker stopped"
    # the jobs of a killed worker notice it, close everything and end their rooms
    WORKER_DIED = "worker died"
    # the worker notices a killed job and ends its room: see agent.server
    JOB_DIED = "job died"

    @staticmethod
    def error(step: int, name: str) -> str:
        """The reason of a call that a step ended."""
        return f"error in step {step} ({name})"


REASONS = tuple(value for name, value in vars(Reason).items() if name.isupper())

NOBODY_LISTENS = frozenset(
    {
        Reason.CALLER_LEFT,
        Reason.CALLER_DROPPED,
        Reason.NO_SHOW,
        Reason.ROOM_CLOSED,
        Reason.REMOVED,
        # somebody does, but everything that could speak has been cancelled
        Reason.WORKER_DIED,
    }
)

# after these the caller is in the room only if they came back while the call was closing
CALLER_IS_GONE = frozenset({Reason.CALLER_LEFT, Reason.CALLER_DROPPED})

# how the reason of a call begins whose caller may resume it
BROKE_OFF = (Reason.CALLER_DROPPED, Reason.WORKER_DIED, Reason.JOB_DIED, "error")
