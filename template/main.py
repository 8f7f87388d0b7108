"""Where LiveKit's tools find the agent: `lk agent`, `python -m livekit.agents start main.py`."""

from agent.server import server

__all__ = ["server"]
