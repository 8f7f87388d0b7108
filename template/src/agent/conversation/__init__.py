"""The agent's side of a conversation; `CallAgent` is the base of every persona."""

from agent.conversation.agent import CallAgent

__all__ = ["CallAgent"]
