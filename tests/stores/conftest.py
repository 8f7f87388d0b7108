"""The embedder's process imports the agent in place, like its tests."""

from tests.agent.conftest import processes_find_the_agent

__all__ = ["processes_find_the_agent"]
