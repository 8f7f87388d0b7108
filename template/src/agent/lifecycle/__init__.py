"""The life of one call: what it opens, why it ends, how everything is closed."""

from agent.lifecycle.call import Call
from agent.reasons import Reason

__all__ = ["Call", "Reason"]
