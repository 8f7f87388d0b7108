"""The tools of an agent: each has a deadline, ends with its call, and answers in JSON.

Sets of tools connect in the background, and are left out until they have.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from livekit.agents import Agent, AgentTask, RunContext, StopResponse, function_tool
from livekit.agents.llm import (
    FunctionTool,
    RawFunctionTool,
    Tool,
    ToolContext,
    ToolError,
    ToolResult,
    Toolset,
)
from livekit.agents.llm.async_toolset import AsyncToolset
from pydantic import ConfigDict, TypeAdapter

from agent import one_line
from agent.lifecycle import Call, Step, timeouts
from agent.lifecycle.resource import OpenFailed
from agent.memory import Note

log = logging.getLogger("agent.call")

# of models, dataclasses and what they hold, too; bytes are text, or else base64
JSON = TypeAdapter[Any](Any), TypeAdapter[Any](Any, config=ConfigDict(ser_json_bytes="base64"))
# what a model is given of a result; more costs money and time, and hides what matters
MOST_RESULT_CHARACTERS = 20_000
# what a report keeps of it
MOST_REPORTED_CHARACTERS = 2_000


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
        must_have: frozenset[str] = frozenset(),
        *,
        agent: Agent | None = None,
        all_patient: bool = False,
        nested: bool = False,
    ) -> None:
        self._call, self._agent = call, agent
        self._patient, self._must_finish, self._must_have = patient, must_finish, must_have
        self._all_patient, self._nested = all_patient, nested
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
        if not isinstance(tool, Toolset):
            return tool
        # those inside another one connect with it
        must_have = tool.id in self._must_have
        connection = None
        if not self._nested:
            connection = Connection(self._call, self._agent, tool.id, must_have=must_have)
        # an MCPToolset is an AsyncToolset only by descent, and its tools have the deadline
        inner = ToolGuard(
            self._call,
            self._patient,
            self._must_finish,
            agent=self._agent,
            all_patient=isinstance(tool, AsyncToolset) and not _is_mcp(tool),
            nested=True,
        )
        if isinstance(tool, AsyncToolset):
            return _guard_in_place(tool, inner, connection)
        return _GuardedToolset(tool, inner, connection)

    def _guarded_call(
        self, tool: FunctionTool[Any, Any] | RawFunctionTool[Any, Any]
    ) -> Callable[..., Awaitable[Any]]:
        call, name, settings = self._call, tool.info.name, self._call.settings
        patient = self._all_patient or name in self._patient
        seconds = None if patient else settings.tool_seconds
        grace = 0.0 if patient else min(settings.tool_finish_seconds, settings.tool_seconds)
        if name in self._must_finish:
            grace = settings.tool_seconds
        threaded = not inspect.iscoroutinefunction(inspect.unwrap(tool))
        run = _in_a_thread(tool) if threaded else tool

        # nothing stops a thread
        fate = "left running in its thread" if threaded else "cut short"
        advice = "Tell the caller that this does not work at the moment."
        if threaded:
            advice = (
                "It goes on and cannot be stopped, so do not try it again."
                " Tell the caller that you do not know yet whether it has worked."
            )

        @functools.wraps(tool)
        async def within_deadline(*args: Any, **kwargs: Any) -> Any:
            with _reported(call, tool, name, args, kwargs) as use:
                return await answer(use, *args, **kwargs)

        async def answer(use: _Use, *args: Any, **kwargs: Any) -> Any:
            try:
                async with asyncio.timeout(seconds) as deadline:
                    with call.tools.running(deadline, grace, self._agent):
                        result = await run(*args, **kwargs)
                        if inspect.iscoroutine(result):  # an `await` was forgotten
                            result = await result
            except SystemExit as error:
                # as code does that was written for a command line; it would end the job's process
                raise RuntimeError(f"{name} tried to end the process ({error.code})") from error
            except TimeoutError as error:
                if not deadline.expired():
                    raise
                use.outcome = "unfinished"
                if call.reason is None:
                    raise ToolError(f"No answer within {seconds or 0:g} s. {advice}") from error
                sentence = "the tool %s was %s: its call has ended"
                log.warning(sentence, name, fate, extra=call.journal.fields(tool=name))
                raise StopResponse from error
            if call.reason is not None:
                # it is done, and nobody waits for a reply any more
                use.result = _shown(result)
                raise StopResponse
            if result is None and (self._all_patient or self._agent_is_done()):
                # it has reported by itself, or another agent speaks next
                return None
            for_model = self._for_model(name, result)
            use.result = _shown(for_model)
            return for_model

        return within_deadline

    def _agent_is_done(self) -> bool:
        session, agent = self._call.session, self._agent
        if agent is None or session is None:
            return False
        ended = isinstance(agent, AgentTask) and agent.done()
        return ended or session.current_agent is not agent

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
        text = result if isinstance(result, str) else as_json(result)
        # half a surrogate pair, which no provider takes
        text = text.encode(errors="replace").decode()
        if len(text) <= MOST_RESULT_CHARACTERS:
            return text
        sentence = "the result of the tool %s was cut to %d of its %d characters"
        extra = self._call.journal.fields(tool=name)
        log.warning(sentence, name, MOST_RESULT_CHARACTERS, len(text), extra=extra)
        return f"{text[:MOST_RESULT_CHARACTERS]} [cut; {len(text)} characters in all]"


@dataclass
class _Use:
    """What came of one use of a tool."""

    result: str = ""
    outcome: str = "ok"


@contextmanager
def _reported(
    call: Call, tool: Callable[..., Any], name: str, args: Any, kwargs: Any
) -> Iterator[_Use]:
    """While inside, a tool runs: what it was given, what came of it and how long it took."""
    use, began = _Use(), time.time()
    try:
        yield use
    except StopResponse:
        raise  # it is done
    except Exception as error:
        use.result = one_line(error)
        if use.outcome == "ok":
            use.outcome = "error"
        raise
    except BaseException:
        use.outcome = "unfinished"
        raise
    finally:
        ended = time.time()
        call.journal.waits.add("tools", began, ended)
        ms, given = round((ended - began) * 1000), _arguments(tool, args, kwargs)
        call.journal.draft.add_tool(name, given, use.result, use.outcome, began, ms)


def _arguments(tool: Callable[..., Any], args: Any, kwargs: Any) -> str:
    """What a model gave a tool, as JSON."""
    given = dict(inspect.signature(tool).bind(*args, **kwargs).arguments)
    given = {name: one for name, one in given.items() if not isinstance(one, RunContext)}
    # a tool of an MCP server takes all of them as one mapping
    return as_json(given.get("raw_arguments", given))


def _shown(result: Any) -> str:
    """A result in a report: an agent that takes over by its name."""
    if isinstance(result, Agent):
        return type(result).__name__
    text = result if isinstance(result, str) else as_json(result)
    return text[:MOST_REPORTED_CHARACTERS]


def as_json(result: Any) -> str:
    """A result as JSON: models, dataclasses, mappings and rows with their names.

    Bytes are text, or base64 where they are none; what is nothing of this, is what `str` makes of
    it. A result that cannot be read at all is said to be so: the tool has acted, and the model must
    not take it for failed.
    """
    for any_value in JSON:
        # an owner's `__str__`, too, may raise anything
        with suppress(Exception):
            return any_value.dump_json(result, fallback=_plain).decode()
    return "It is done, but its result cannot be read."


def _plain(value: Any) -> Any:
    """What of Python's, of a database's and of numpy's values is a mapping, a list or a number."""
    if callable(keys := getattr(value, "keys", None)):  # rows of databases, too
        return {str(name): value[name] for name in keys()}
    if isinstance(value, Iterable):
        return list(value)
    if callable(number := getattr(value, "item", None)):
        return number()
    return str(value)


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


class Connection:
    """A set of tools connects in the background, so that no caller waits for one that is down.

    One that fails is reported once, and the call goes on without its tools. A call that must
    have them waits for them, and ends if they do not come.
    """

    def __init__(self, call: Call, agent: Agent | None, name: str, *, must_have: bool) -> None:
        self._call, self._agent, self._name, self._must_have = call, agent, name, must_have
        self.is_open, self.has_failed = False, False
        self._task: asyncio.Task[None] | None = None

    @property
    def offers(self) -> bool:
        """Whether its tools can be used; a set that nobody connects has them at once."""
        return self.is_open or self._task is None

    async def open(self, setup: Callable[[], Awaitable[object]]) -> None:
        """Begin; without need only an agent that takes over waits, and not for long."""
        if self._task is not None:
            return
        self._task = asyncio.create_task(self._run(setup), name=f"connect {self._name}")
        self._call.tools.connecting.add(self._task)
        self._task.add_done_callback(self._call.tools.connecting.discard)
        taking_over = self._call.steps.current is Step.STAY
        wait = timeouts.TOOLSET_WAIT_SECONDS if taking_over else 0
        await asyncio.wait([self._task], timeout=None if self._must_have else wait)

    async def _run(self, setup: Callable[[], Awaitable[object]]) -> None:
        try:
            async with asyncio.timeout(timeouts.TOOLSET_SECONDS) as deadline:
                await setup()
            self.is_open = True
            await self._fit_in()
        except Exception as error:
            self.is_open, self.has_failed = False, True
            late = f"nothing for {timeouts.TOOLSET_SECONDS:g} s" if deadline.expired() else ""
            sentence = f"the tools of {self._name} did not open: {late or one_line(_cause(error))}"
            if self._call.reason is not None:
                return
            if self._must_have:
                self._call.fail(OpenFailed(sentence))
            else:
                part = f"tools of {self._name}"
                self._call.journal.warn_once(part, log, f"this call goes on, but {sentence}")

    async def _fit_in(self) -> None:
        """Offer the tools; raises ValueError if one has a name that is taken."""
        if (agent := self._agent) is None:
            return
        # which would fail in every reply
        tools = ToolContext(agent.tools).flatten()
        with suppress(RuntimeError):  # there is no realtime model: others are told in each request
            await agent.realtime_llm_session.update_tools(tools)

    async def close(self) -> None:
        """Give up, if it still connects."""
        task, self._task, self.is_open = self._task, None, False
        if task is not None and not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=timeouts.LAST_CHANCE_SECONDS)


def _cause(error: Exception) -> Exception:
    """What went wrong: an MCP client packs it into groups, one in the other."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


def _guard_in_place(
    toolset: AsyncToolset, guard: ToolGuard, connection: Connection | None
) -> AsyncToolset:
    """The same object, its tools guarded: the SDK knows it by its class and its running tools."""
    kind: Any = type(toolset)

    class Guarded(kind):  # type: ignore[misc]
        @property
        def tools(self) -> list[Tool | Toolset]:
            failed = connection is not None and connection.has_failed
            return [] if failed else guard.guard(super().tools)

        async def setup(self, **options: Any) -> Any:
            if connection is None or connection.is_open:  # then its tools are loaded anew
                return await super().setup(**options)
            await connection.open(super().setup)
            return self

        async def aclose(self) -> None:
            if connection is not None:
                await connection.close()
            await super().aclose()

    toolset.__class__ = Guarded
    return toolset


def toolsets_of(servers: Iterable[Any]) -> list[Toolset]:
    """MCP servers that an agent was given by the SDK's older option, as tool sets."""
    if not (servers := list(servers)):
        return []
    from livekit.agents.llm.mcp import MCPToolset

    return [MCPToolset(id=f"mcp_{n}", mcp_server=server) for n, server in enumerate(servers, 1)]


class _GuardedToolset(Toolset):
    """A toolset whose tools have deadlines; opened and closed as the one it stands for."""

    def __init__(self, inner: Toolset, guard: ToolGuard, connection: Connection | None) -> None:
        super().__init__(id=inner.id)
        self._inner, self._guard, self._connection = inner, guard, connection

    @property
    def tools(self) -> Sequence[Tool | Toolset]:
        offers = self._connection is None or self._connection.offers
        return self._guard.guard(self._inner.tools) if offers else []

    async def setup(self) -> _GuardedToolset:
        if self._connection is None:
            await self._inner.setup()
        else:
            await self._connection.open(self._inner.setup)
        return self

    async def aclose(self) -> None:
        if self._connection is not None:
            await self._connection.close()
        await self._inner.aclose()


# ---------------------------------------------------------------------- what every agent can do


def tools_of(call: Call) -> list[FunctionTool[Any, Any]]:
    """The tools that the template gives an agent: to look up, to remember, to end the call."""
    search = search_tool(call) if call.settings.knowledge_lookup == "tool" else None
    return [*([search] if search else []), *_memory_tools(call), _end_call(call)]


def search_tool(call: Call) -> FunctionTool[Any, Any] | None:
    """The tool that looks something up; None if there are no documents."""
    if (knowledge := call.knowledge) is None:
        return None

    @function_tool
    async def search_knowledge(question: str) -> str:
        """Look something up in our documents.

        Use it before answering any question about us, our services or our rules.

        Args:
            question: What the caller wants to know, in their own words.
        """
        return await knowledge.look_up(question)

    return search_knowledge


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
