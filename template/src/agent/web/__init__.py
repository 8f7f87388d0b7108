"""A page on which people talk with the agent, and the tokens that let them into a call.

`agent talk` serves it. A web application of your own takes `Tokens`: docs/agent/web.md.
"""

from agent.web.tokens import NO_STORE, Refused, Tokens

__all__ = ["NO_STORE", "Refused", "Tokens"]
