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

    # of calls that the agent makes, and that nobody answered: see agent.telephony
    BUSY = "busy"
    NO_ANSWER = "no answer"
    DECLINED = "declined"
    INVALID_NUMBER = "invalid number"
    NOT_ALLOWED = "number not allowed"
    UNREACHABLE = "unreachable"
    TRUNK_FAILED = "trunk failed"
    VOICEMAIL = "voicemail"
    # the caller talks to somebody else now
    TRANSFERRED = "transferred"

    @staticmethod
    def error(step: int, name: str) -> str:
        """The reason of a call that a step ended."""
        return f"error in step {step} ({name})"


REASONS = tuple(value for name, value in vars(Reason).items() if name.isupper())

# nobody was spoken to; an answering machine is nobody
NOT_REACHED = frozenset(
    {
        Reason.BUSY,
        Reason.NO_ANSWER,
        Reason.DECLINED,
        Reason.INVALID_NUMBER,
        Reason.NOT_ALLOWED,
        Reason.UNREACHABLE,
        Reason.TRUNK_FAILED,
        Reason.VOICEMAIL,
    }
)

# only where there is a telephone
OF_TELEPHONES = NOT_REACHED | {Reason.TRANSFERRED}

NOBODY_LISTENS = NOT_REACHED | frozenset(
    {
        Reason.CALLER_LEFT,
        Reason.CALLER_DROPPED,
        Reason.NO_SHOW,
        Reason.ROOM_CLOSED,
        Reason.REMOVED,
        # somebody does, but everything that could speak has been cancelled
        Reason.WORKER_DIED,
        # or they talk to each other
        Reason.TRANSFERRED,
    }
)

# after these the caller is in the room only if they came back while the call was closing
CALLER_IS_GONE = frozenset({Reason.CALLER_LEFT, Reason.CALLER_DROPPED})

# how the reason of a call begins whose caller may resume it
BROKE_OFF = (Reason.CALLER_DROPPED, Reason.WORKER_DIED, Reason.JOB_DIED, "error")
