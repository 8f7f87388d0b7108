"""What Redis, its client and TLS report, as one sentence with a cure.

The client's own messages quote commands, and with them what a caller said: none is passed on.
"""

from __future__ import annotations

import ssl

from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

BY_MESSAGE = {
    "max number of clients": "has as many clients as it takes: raise its maxclients, or find who "
    "holds them",
    # as a server does that expects TLS; which of the two it looks like depends on the moment
    **dict.fromkeys(
        ("onnection closed by server", "onnection reset by peer"),
        "hangs up: if it expects TLS, write rediss:// in AGENT_MEMORY_URL",
    ),
    "MISCONF": "cannot save to its disk and refuses to write: make room there, its own log says "
    "more",
    "DB index": "has no such database: correct the number at the end of AGENT_MEMORY_URL",
}
BY_KIND: dict[type, str] = {
    BusyLoadingError: "is still loading its data: wait until it has, nothing else is needed",
    AuthenticationError: "refuses the user or password: correct them in AGENT_MEMORY_URL",
    NoPermissionError: "refuses the user or password: correct them in AGENT_MEMORY_URL, or let "
    "this user read and write the keys {agent}:*",
    OutOfMemoryError: "is full and takes nothing more (OutOfMemoryError): raise its maxmemory, or "
    "set its maxmemory-policy to volatile-ttl",
    ReadOnlyError: "is a read-only replica: write the address of its primary into AGENT_MEMORY_URL",
    MasterDownError: "is a replica that has lost its primary: start that, or correct "
    "AGENT_MEMORY_URL",
    ClusterDownError: "belongs to a cluster that is down: its own log says why",
    # MovedError is one, too
    AskError: "is one node of a cluster and sends us to another: write the address of a proxy or "
    "of a single server into AGENT_MEMORY_URL",
}


def sentence_of(
    error: RedisError | OSError, where: str, *, agent: str, tls: bool, seconds: float
) -> str:
    """What is wrong with the server at `where`, and what to do.

    `tls` is whether TLS was asked for, `seconds` how long an answer was waited for.
    """
    server = f"Redis at {where}"
    if isinstance(error, RedisTimeoutError):
        # a server without TLS waits for the rest of what it takes for a command
        if tls and "connecting" in str(error):
            return f"no TLS with {server} within {seconds:g} s: {_tls_cure(error)}"
        return f"no answer from {server} within {seconds:g} s"
    if (handshake := _tls_error(error)) is not None:
        return f"no TLS with {server} ({_tls_reason(handshake)}): {_tls_cure(handshake)}"
    if isinstance(error.__context__, FileNotFoundError):
        return (
            f"{server} is asked with a certificate that is not there: correct its path in "
            "AGENT_MEMORY_URL"
        )
    known = [sentence for part, sentence in BY_MESSAGE.items() if part in str(error)]
    known += [BY_KIND[kind] for kind in type(error).__mro__ if kind in BY_KIND]
    if known:
        return f"{server} {known[0].format(agent=agent)}"
    if isinstance(error, RedisConnectionError | OSError):
        return f"no connection to {server}: start it, or correct AGENT_MEMORY_URL"
    return f"{server} answers with {type(error).__name__}: its own log says why"


def _tls_error(error: BaseException | None) -> ssl.SSLError | None:
    """The error of the handshake that the client has wrapped, if that is what happened."""
    while error is not None and not isinstance(error, ssl.SSLError):
        error = error.__cause__ or error.__context__
    return error


def _tls_reason(error: ssl.SSLError) -> str:
    # of a certificate
    verify = getattr(error, "verify_message", "")
    return verify or (error.reason or type(error).__name__).replace("_", " ").lower()


def _tls_cure(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            "let AGENT_MEMORY_URL name the host of its certificate, and end in "
            "?ssl_ca_certs=/path/to/ca.pem if you have issued it yourself"
        )
    return "write redis:// in AGENT_MEMORY_URL if that port has no TLS"
