"""The life of one call: what it opens, why it ends, and how everything is closed."""

from agent.lifecycle.call import Call
from agent.lifecycle.timeouts import Step
from agent.reasons import Reason

__all__ = ["Call", "Reason", "Step"]
