"""The tools of an agent: each has a deadline, ends with its call, and answers in JSON."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from livekit.agents import Agent, RunContext, StopResponse, function_tool
from livekit.agents.llm import FunctionTool, RawFunctionTool, Tool, ToolError, ToolResult, Toolset
from livekit.agents.llm.async_toolset import AsyncToolset
from pydantic_core import to_json

from agent.lifecycle import Call
from agent.memory import Note

log = logging.getLogger("agent.call")

# what a model is given of a result; more costs money and time, and hides what matters
MOST_RESULT_CHARACTERS = 20_000


class ToolGuard:
    """Gives tools a deadline of `tool_seconds`, and `tool_finish_seconds` after the call's end.

    Tools named in `patient` have no deadline but the end of the call, nor have those of an
    AsyncToolset, which are meant to outlive a turn. Those named in `must_finish` have their whole
    deadline also after the end of the call.
    """

    def __init__(
        self,
        call: Call,
        patient: frozenset[str],
        must_finish: frozenset[str] = frozenset(),
        *,
        all_patient: bool = False,
    ) -> None:
        self._call, self._patient, self._must_finish = call, patient, must_finish
        self._all_patient = all_patient
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
            return type(tool)(self._guarded_call(tool), tool.info)  # type: ignore[arg-type]
        names = self._patient, self._must_finish
        if isinstance(tool, AsyncToolset):
            # an MCPToolset is one only by descent, and its tools have the deadline
            own = ToolGuard(self._call, *names, all_patient=not _is_mcp(tool))
            return _guard_in_place(tool, own)
        if isinstance(tool, Toolset):
            return _GuardedToolset(tool, ToolGuard(self._call, *names))
        return tool

    def _guarded_call(
        self, tool: FunctionTool[Any, Any] | RawFunctionTool[Any, Any]
    ) -> Callable[..., Awaitable[Any]]:
        call, name, settings = self._call, tool.info.name, self._call.settings
        patient = self._all_patient or name in self._patient
        seconds = None if patient else settings.tool_seconds
        grace = 0.0 if patient else min(settings.tool_finish_seconds, settings.tool_seconds)
        if name in self._must_finish:
            grace = settings.tool_seconds
        run = tool if inspect.iscoroutinefunction(inspect.unwrap(tool)) else _in_a_thread(tool)

        @functools.wraps(tool)
        async def within_deadline(*args: Any, **kwargs: Any) -> Any:
            try:
                async with asyncio.timeout(seconds) as deadline:
                    with call.tools.running(deadline, grace):
                        result = await run(*args, **kwargs)
            except TimeoutError as error:
                if not deadline.expired():
                    raise
                if call.reason is None:
                    raise ToolError(
                        f"No answer within {seconds or 0:g} s."
                        " Tell the caller that this does not work at the moment."
                    ) from error
                sentence = "the tool %s was cut short: its call has ended"
                log.warning(sentence, name, extra=call.journal.fields(tool=name))
                raise StopResponse from error
            if call.reason is not None:
                # it is done, and nobody waits for a reply any more
                raise StopResponse
            if result is None and self._all_patient:
                # it has reported by itself
                return None
            return self._for_model(name, result)

        return within_deadline

    def _for_model(self, name: str, result: Any) -> Any:
        """What a model can read: text as it is, anything else as JSON, and no more than fits."""
        if isinstance(result, Agent):
            return result
        if isinstance(result, tuple | list) and any(isinstance(one, Agent) for one in result):
            return [one if isinstance(one, Agent) else self._for_model(name, one) for one in result]
        if isinstance(result, ToolResult):
            return ToolResult(
                output=self._for_model(name, result.output), reply_required=result.reply_required
            )
        if result is None:
            # with nothing to read, the model would not go on
            return "Done."
        text = result if isinstance(result, str) else to_json(result, fallback=str).decode()
        if len(text) <= MOST_RESULT_CHARACTERS:
            return text
        sentence = "the result of the tool %s was cut to %d of its %d characters"
        extra = self._call.journal.fields(tool=name)
        log.warning(sentence, name, MOST_RESULT_CHARACTERS, len(text), extra=extra)
        return f"{text[:MOST_RESULT_CHARACTERS]} [cut; {len(text)} characters in all]"


def _in_a_thread(tool: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    """A plain function, which may block: not on the event loop, where the whole call would wait."""

    async def run(*args: Any, **kwargs: Any) -> Any:
        result = await asyncio.to_thread(tool, *args, **kwargs)
        # a callable that is not `async def` may still return a coroutine
        return await result if inspect.isawaitable(result) else result

    return run


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
        raise StopResponse

    return end_call
