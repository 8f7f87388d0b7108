"""The embedder's process finds the agent in place, as its tests do."""

from tests.agent.conftest import processes_find_the_agent

__all__ = ["processes_find_the_agent"]
