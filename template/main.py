"""Where LiveKit's own tools look for the agent: `lk agent` and `python -m livekit.agents start main.py`."""

from agent.server import server

__all__ = ["server"]
