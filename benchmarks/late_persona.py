"""The template's persona with a scripted model whose first word comes late, as with real models.

benchmarks/turns.py replaces persona.py, the owner's file, with this one in a copy of the agent's
sources, and changes nothing else. BENCH_FIRST_WORD is the seconds before every reply of the model.
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
    """The scripted model, delayed."""

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
    """Says the same as the template's persona."""

    def __init__(self, call: Call) -> None:
        super().__init__(call, instructions="Answer from the documents.", llm=LateLLM())
