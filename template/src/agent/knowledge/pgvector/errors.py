"""What PostgreSQL, the network and the client report, as one sentence without a password."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import parse_qs, unquote, urlsplit

import asyncpg

from agent.knowledge import KnowledgeUnavailable

# how long an ingest waits for another one
LOCK_SECONDS = 600.0

NO_INDEX = (
    asyncpg.UndefinedTableError,
    asyncpg.UndefinedColumnError,
    asyncpg.UndefinedObjectError,
)
# of a connection that is gone, or breaks just as it is used
LOST = (
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    ConnectionError,
)
UNREACHED = {"57P01", "57P02", "57P03", "57P05"}
NO_ADDRESS = (
    "AGENT_KNOWLEDGE_URL is no address of a PostgreSQL: write "
    "postgresql://user:password@host:5432/database, special characters of the password as %40 and "
    "the like"
)
MIXED_SESSIONS = "is behind a pooler that mixes sessions: have it pool by session"
# by SQLSTATE
REFUSALS = {
    "28P01": "refuses the user or password: correct them in AGENT_KNOWLEDGE_URL",
    "28000": "refuses this user from here: correct AGENT_KNOWLEDGE_URL (?sslmode=require?) or its "
    "pg_hba.conf",
    "3D000": "does not exist: create it, or correct AGENT_KNOWLEDGE_URL",
    "53300": "takes no more connections: raise its max_connections, or put a pooler before it",
    "53100": "has no space left on its disk: make room there",
    "25006": "may only be read: write the address of the primary into AGENT_KNOWLEDGE_URL",
    "42501": "refuses this user the schema {schema}: grant it (to ingest, CREATE on the database)",
    "55P03": "is being ingested into for {lock:g} s already: wait, or end that ingest",
    "22000": "has vectors of another model: run `agent ingest`",
    "26000": MIXED_SESSIONS,
    "42P05": MIXED_SESSIONS,
}


@contextmanager
def translate_errors(where: str, schema: str, seconds: float) -> Iterator[None]:
    """Raise KnowledgeUnavailable instead; what is done inside may take so many seconds."""
    unreached = f"no connection to {where}: start it, or correct AGENT_KNOWLEDGE_URL"
    try:
        yield
    except TimeoutError as error:
        raise KnowledgeUnavailable(f"no answer from {where} within {seconds:g} s") from error
    except asyncpg.PostgresError as error:
        state = str(error.sqlstate or "")
        if isinstance(error, NO_INDEX):
            sentence = no_index(where)
        elif state.startswith("08") or state in UNREACHED:
            sentence = unreached
        elif state == "57014":
            sentence = f"no answer from {where} within {seconds:g} s"
        else:
            other = f"answers with {type(error).__name__} ({state}): its own log says why"
            refusal = REFUSALS.get(state, other)
            sentence = f"{where} {refusal.format(schema=schema, lock=LOCK_SECONDS)}"
        raise KnowledgeUnavailable(sentence) from error
    except ssl.SSLError as error:
        raise KnowledgeUnavailable(
            f"no trusted connection to {where} ({error.reason or 'TLS'}): "
            "correct sslmode or sslrootcert in AGENT_KNOWLEDGE_URL"
        ) from error
    except OSError as error:
        if "SSL" in str(error):
            raise KnowledgeUnavailable(
                f"{where} speaks no TLS: switch it on there, or take sslmode out of "
                "AGENT_KNOWLEDGE_URL"
            ) from error
        raise KnowledgeUnavailable(unreached) from error
    except (asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        raise KnowledgeUnavailable(unreached) from error


def no_index(where: str) -> str:
    """What to do where there are no tables of this agent."""
    return f"there is no index of this agent in {where}: run `agent ingest`"


def location(url: str) -> str:
    """Hosts and database of an address; raises KnowledgeUnavailable if it is malformed."""
    try:
        parts = urlsplit(url)
        hosts = parts.netloc.rpartition("@")[2]
        host = r"([A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?"
        if "@" in f"{parts.path}{parts.query}{parts.fragment}" or parts.fragment:
            raise ValueError
        if parts.scheme not in {"postgresql", "postgres"}:
            raise ValueError
        if not re.fullmatch(rf"{host}(,{host})*", hosts):
            raise ValueError
        options = parse_qs(parts.query)
    except ValueError:
        raise KnowledgeUnavailable(NO_ADDRESS) from None
    hosts = hosts or ",".join(options.get("host", ["localhost"]))
    database = unquote(parts.path.lstrip("/")) or "of the user's name"
    named = hosts if ":" in hosts or hosts.startswith("/") else f"{hosts}:5432"
    return f"the database {database} of PostgreSQL at {named}"
