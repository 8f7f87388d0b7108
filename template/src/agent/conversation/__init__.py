"""The agent's side of a conversation; `CallAgent` is the base of every persona."""

from agent.conversation.agent import CallAgent, CallTask
from agent.conversation.config import ConfigError, per_call
from agent.conversation.options import SessionOptions

__all__ = ["CallAgent", "CallTask", "ConfigError", "SessionOptions", "per_call"]
