"""The template's persona with a scripted model that keeps the caller waiting for its first word, as real ones do.

benchmarks/turns.py puts this in the place of persona.py in a copy of the agent's sources: that file is the owner's, and
nothing else of the agent is touched. BENCH_FIRST_WORD is how many seconds every pass of the model takes to begin.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

from livekit.agents import llm
from livekit.agents.types import DEFAULT_API_CONNECT_OPTIONS, APIConnectOptions

from agent.conversation import CallAgent
from agent.lifecycle import Call
from agent.models.scripted import ScriptedLLM, _ScriptedStream


class LateLLM(ScriptedLLM):
    """The scripted model, later."""

    def chat(
        self,
        *,
        chat_ctx: llm.ChatContext,
        tools: list[llm.Tool] | None = None,
        conn_options: APIConnectOptions = DEFAULT_API_CONNECT_OPTIONS,
        **options: Any,
    ) -> llm.LLMStream:
        usable = [] if options.get("tool_choice") == "none" else tools or []
        return _LateStream(self, chat_ctx=chat_ctx, tools=usable, conn_options=conn_options)


class _LateStream(_ScriptedStream):
    async def _run(self) -> None:
        await asyncio.sleep(float(os.environ["BENCH_FIRST_WORD"]))
        await super()._run()


class Persona(CallAgent):
    """Says what the template's persona says."""

    def __init__(self, call: Call) -> None:
        super().__init__(call, instructions="Answer from the documents.", llm=LateLLM())
