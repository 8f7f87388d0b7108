"""The tools of an agent: every tool has a deadline and ends with its call."""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from livekit.agents import RunContext, StopResponse, function_tool
from livekit.agents.llm import FunctionTool, RawFunctionTool, Tool, ToolError, Toolset
from livekit.agents.llm.async_toolset import AsyncToolset

from agent.lifecycle import Call
from agent.memory import Note


class ToolGuard:
    """Gives tools a deadline of `tool_seconds`, and ends them at once when the call ends.

    Tools named in `patient` have no deadline but the end of the call, nor have those of an
    AsyncToolset, which are meant to outlive a turn.
    """

    def __init__(self, call: Call, patient: frozenset[str], *, all_patient: bool = False) -> None:
        self._call, self._patient, self._all_patient = call, patient, all_patient
        # with the original, so that its id stays its own
        self._guarded: dict[int, tuple[Tool | Toolset, Tool | Toolset]] = {}

    def guard(self, tools: Iterable[Tool | Toolset]) -> list[Tool | Toolset]:
        """The tools, each guarded: the same object for the same tool every time."""
        for tool in (tools := list(tools)):
            if id(tool) not in self._guarded:
                self._guarded[id(tool)] = (tool, self._guard(tool))
        return [self._guarded[id(tool)][1] for tool in tools]

    def _guard(self, tool: Tool | Toolset) -> Tool | Toolset:
        if isinstance(tool, FunctionTool | RawFunctionTool):
            patient = self._all_patient or tool.info.name in self._patient
            seconds = None if patient else self._call.settings.tool_seconds
            guarded = self._with_deadline(tool, seconds)
            return type(tool)(guarded, tool.info)  # type: ignore[arg-type]
        if isinstance(tool, AsyncToolset):
            # an MCPToolset is one only by descent, and its tools have the deadline
            own = ToolGuard(self._call, self._patient, all_patient=not _is_mcp(tool))
            return _guard_in_place(tool, own)
        if isinstance(tool, Toolset):
            return _GuardedToolset(tool, ToolGuard(self._call, self._patient))
        return tool

    def _with_deadline(
        self, tool: Callable[..., Awaitable[Any]], seconds: float | None
    ) -> Callable[..., Awaitable[Any]]:
        call = self._call

        @functools.wraps(tool)
        async def within_deadline(*args: Any, **kwargs: Any) -> Any:
            try:
                async with asyncio.timeout(seconds) as deadline:
                    with call.tool_scope(deadline):
                        return await tool(*args, **kwargs)
            except TimeoutError as error:
                if not deadline.expired():
                    raise
                if call.reason is not None:
                    raise StopResponse from error
                raise ToolError(
                    f"No answer within {seconds or 0:g} s."
                    " Tell the caller that this does not work at the moment."
                ) from error

        return within_deadline


def _is_mcp(toolset: AsyncToolset) -> bool:
    # importing the module needs the package mcp, which only those have who use it
    module = sys.modules.get("livekit.agents.llm.mcp")
    return module is not None and isinstance(toolset, module.MCPToolset)


def _guard_in_place(toolset: AsyncToolset, guard: ToolGuard) -> AsyncToolset:
    """The same object, its tools guarded: the SDK knows it by its class and its running tools."""
    kind: Any = type(toolset)

    class Guarded(kind):  # type: ignore[misc]
        @property
        def tools(self) -> list[Tool | Toolset]:
            return guard.guard(super().tools)

    toolset.__class__ = Guarded
    return toolset


class _GuardedToolset(Toolset):
    """A toolset whose tools have deadlines; opened and closed as the one it stands for."""

    def __init__(self, inner: Toolset, guard: ToolGuard) -> None:
        super().__init__(id=inner.id)
        self._inner, self._guard = inner, guard

    @property
    def tools(self) -> Sequence[Tool | Toolset]:
        return self._guard.guard(self._inner.tools)

    async def setup(self) -> _GuardedToolset:
        await self._inner.setup()
        return self

    async def aclose(self) -> None:
        await self._inner.aclose()


# ---------------------------------------------------------------------- what every agent can do


def tools_of(call: Call) -> list[FunctionTool[Any, Any]]:
    """The tools that the template gives an agent: to look up, to remember, to end the call."""
    return [*_knowledge_tools(call), *_memory_tools(call), _end_call(call)]


def _knowledge_tools(call: Call) -> list[FunctionTool[Any, Any]]:
    knowledge = call.knowledge
    if knowledge is None or call.settings.knowledge_lookup != "tool":
        return []

    @function_tool
    async def search_knowledge(question: str) -> str:
        """Look something up in our documents.

        Use it before answering any question about us, our services or our rules.

        Args:
            question: What the caller wants to know, in their own words.
        """
        return await knowledge.look_up(question)

    return [search_knowledge]


def _memory_tools(call: Call) -> list[FunctionTool[Any, Any]]:
    memory = call.memory
    if memory is None or call.settings.memory == "none":
        return []

    @function_tool
    async def remember_caller(name: str | None = None, fact: str | None = None) -> str:
        """Keep the caller's name, or one thing about them, for their next calls.

        Use it when they say their name, or something that they will expect you to know when they
        call again. Never keep passwords, payment details or anything about their health.

        Args:
            name: What the caller wants to be called.
            fact: One short sentence about the caller.
        """
        note = Note.of(call.transport.call_id, name, fact)
        if note is None:
            raise ToolError("Nothing was kept: give a name or a fact.")
        if not memory.add_note(note):
            return (
                "This caller cannot be recognised, so nothing was kept:"
                " do not promise to remember it."
            )
        # written in the background, and kept if the store is down
        return "Noted for the next calls."

    return [remember_caller]


def _end_call(call: Call) -> FunctionTool[Any, Any]:
    @function_tool
    async def end_call(context: RunContext[None]) -> None:
        """End the call, once the caller has said goodbye or wants nothing more.

        You need not say goodbye yourself.
        """
        await context.wait_for_playout()  # what was said before the tool
        await call.hang_up()
        # the end of the call cancels this tool, and with it the reply
        await asyncio.Event().wait()

    return end_call
