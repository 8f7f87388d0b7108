"""`agent rehearse`: whole calls by a script, graded on what was done and written."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agent import one_line, telemetry
from agent.cli.chat import Chat, with_models
from agent.cli.checks import load_calls, prepare_documents
from agent.cli.scenarios import CRITERIA, Scenario, scenarios_in
from agent.knowledge import local_embedder
from agent.memory import Note
from agent.settings import Settings, SettingsError, load_settings

if TYPE_CHECKING:
    from livekit.agents import ConversationItemAddedEvent
    from livekit.agents.llm import LLM, ChatItem

DAY = 86400.0

CALLER = """\
You play a person who calls a company on the phone. You are not its assistant. Say what this person
would say next, in one or two short spoken sentences, and nothing else. When you have what you want,
or see that you will not get it, say goodbye and use the tool hang_up.

The person, and what they want: {goal}
"""


def rehearse(
    file: Annotated[Path, typer.Argument(help="TOML: each [[scenario]] is a call.")],
    only: Annotated[
        str, typer.Option("--only", metavar="TEXT", help="Those with this text in their name.")
    ] = "",
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show every conversation, and the calls' logs.")
    ] = False,
) -> int:
    """Play the calls of a file, each with a memory of its own, and grade what came of them.

    Exit code 1 if one went wrong, 2 if the file does. docs/agent/behaviour.md has all of it.
    """
    scenarios = [one for one in scenarios_in(file) if only in one.name]
    if not scenarios:
        raise SettingsError([f"{file} has no scenario with {only!r} in its name: see --only"])
    settings = load_settings()
    load_calls()
    settings = with_models(settings)
    prepare_documents(settings)
    telemetry.log_to(sys.stderr, level="INFO" if verbose else "WARNING")
    results = asyncio.run(_rehearse(settings, scenarios, verbose))
    counts = {level: sum(one.level == level for one in results) for level in ("ok", "fail", "skip")}
    print(f"{counts['ok']} right, {counts['fail']} wrong, {counts['skip']} not played")
    return 1 if counts["fail"] else 0


@dataclass
class Result:
    """How one scenario went."""

    name: str
    problems: list[str] = field(default_factory=list)
    not_played: str = ""
    not_judged: str = ""
    conversation: list[str] = field(default_factory=list)

    @property
    def level(self) -> str:
        return "skip" if self.not_played else "fail" if self.problems else "ok"

    def show(self, verbose: bool) -> None:
        """Print a line, and more of what went wrong."""
        print(f"{self.level:<5}{self.name}" + f": {self.not_played}" * bool(self.not_played))
        lines = [*self.problems, *([self.not_judged] if self.not_judged else [])]
        if self.problems or verbose:
            lines += [f"| {line}" for line in self.conversation]
        for line in lines:
            print(f"     {line}")
        sys.stdout.flush()


async def _rehearse(
    settings: Settings, scenarios: Sequence[Scenario], verbose: bool
) -> list[Result]:
    results = []
    async with local_embedder(settings, wait=True) as inside, _model_of(settings) as (model, why):
        for number, scenario in enumerate(scenarios):
            results.append(await _play(scenario, number, inside, model, why))
            results[-1].show(verbose)
    return results


@asynccontextmanager
async def _model_of(settings: Settings) -> AsyncIterator[tuple[LLM[Any] | None, str]]:
    """The agent's own language model, which plays callers and judges; or why there is none."""
    from livekit.agents.llm import LLM
    from livekit.agents.utils import http_context

    from agent.entrypoint import models_for
    from agent.models import KEYLESS

    if settings.models in KEYLESS:
        yield None, "a script answers, and it takes a language model"
        return
    async with http_context.open():
        model = models_for(settings).llm
        if not isinstance(model, LLM):
            yield None, "a realtime model answers, and it takes one that reads"
            return
        try:
            yield model, ""
        finally:
            await model.aclose()


async def _play(
    scenario: Scenario, number: int, settings: Settings, model: LLM[Any] | None, why: str
) -> Result:
    result = Result(scenario.name)
    if scenario.goal and model is None:
        result.not_played = f"its caller has a goal, but {why}"
        return result
    stage = Stage(scenario, number, settings)
    try:
        async with asyncio.timeout(settings.max_call_seconds) as deadline:
            await stage.play(model)
    except Exception as error:
        problem = f"it took longer than {settings.max_call_seconds:g} s"
        if not deadline.expired():
            problem = f"it could not be played to its end: {one_line(error)}"
        result.problems.append(problem)
    finally:
        await stage.close()
    result.conversation = stage.conversation()
    result.problems += stage.problems()
    if scenario.expect.judge and not result.problems:
        if model is None:
            result.not_judged = f"not judged: {why}"
        else:
            result.problems += await _judged(scenario.expect.judge, model, stage.items)
    return result


class Stage(Chat):
    """A call whose tools may have stand-ins, and whose memory is its own."""

    def __init__(self, scenario: Scenario, number: int, settings: Settings) -> None:
        self._scenario = scenario
        self._memory: Any = None
        if settings.memory != "none":
            settings = settings.model_copy(
                update={"memory_url": f"scratch:{time.time_ns()}-{number}"}
            )
            self._memory = import_module("agent.memory.scratch").store_of(settings)
        super().__init__(settings, scenario.caller.caller, scenario.metadata)
        # nobody has called, so nobody is told of it: see lifecycle/closing.py
        self._transport.call_id = ""
        self.on_aside = lambda text: None
        self._unsaid: list[str] = []
        self._offered = set[str]()  # the tools of the agents that were there

    async def play(self, model: LLM[Any] | None) -> None:
        """Let the caller speak until they have nothing more to say, or the call is over."""
        if (known := self._scenario.known) is not None and self._memory is not None:
            for name, fact in [(known.name, None), *((None, fact) for fact in known.facts)]:
                if note := Note.of("earlier", name, fact):
                    # for nobody: under which key the caller is remembered, the persona decides
                    await self._memory.write("", replace(note, at=note.at - DAY))
        heard = await self.start()
        if self._scenario.says:
            self._unsaid = list(self._scenario.says)
            while self._unsaid and not self.ended.is_set():
                await self.say(self._unsaid.pop(0))
            return
        assert model is not None
        caller = PlayedCaller(model, self._scenario.goal)
        for _ in range(self._scenario.most_turns):
            if self.ended.is_set():
                return
            words, hangs_up = await caller.answer(heard)
            heard = await self.say(words) if words else ""
            if hangs_up:
                return

    def _item_added(self, event: ConversationItemAddedEvent) -> None:
        if event.item.type == "agent_handoff":
            self._stand_in()
        super()._item_added(event)

    def _stand_in(self) -> None:
        """Let the agent that has just taken over use the stand-ins of its tools."""
        from livekit.agents import mock_tools
        from livekit.agents.llm import ToolContext

        assert self.call is not None
        assert self.call.session is not None
        session = self.call.session
        agent = session.current_agent
        self._offered |= set(ToolContext(agent.tools).function_tools)
        mocks = {name: _returning(value) for name, value in self._scenario.tools.items()}
        mock_tools(type(agent), mocks, session=session)

    # ------------------------------------------------------------------ what came of it

    @property
    def items(self) -> list[ChatItem]:
        """What was said and done."""
        session = self.call.session if self.call is not None else None
        return list(session.history.items) if session is not None else []

    def conversation(self) -> list[str]:
        """What was said and done, line by line."""
        lines = []
        for item in self.items:
            if item.type == "message" and item.role in ("user", "assistant"):
                who = "caller" if item.role == "user" else "agent "
                lines.append(f"{who}  {' '.join((item.text_content or '').split())}")
            elif item.type == "function_call":
                lines.append(f"tool    {item.name} {item.arguments}")
        return lines

    def problems(self) -> list[str]:
        """What is not as the scenario expects it."""
        call, scenario = self.call, self._scenario
        if call is None:
            return []
        found = [
            f"there is no tool {name} to stand in for"
            for name in sorted(scenario.tools.keys() - self._offered)
        ]
        if scenario.known is not None and call.profile is None:
            found.append("the caller is a stranger to the agent, so nothing was known of them")
        if self._unsaid:
            found.append(f"the call was over before the caller said {self._unsaid[0]!r}")
        expected, reason = scenario.expect.reason, call.reason or ""
        failed = expected is None and reason.startswith("error")
        if failed or not reason.startswith(expected or ""):
            meant = f", and not: {expected}" if expected else ""
            found.append(f"the call ended: {reason}{meant}")
        return [*found, *self._misused(), *self._misspoken(), *self._forgotten()]

    def _misused(self) -> Iterator[str]:
        """Tools that were not called, or were."""
        expect = self._scenario.expect
        used = [
            (item.name, _arguments(item.arguments))
            for item in self.items
            if item.type == "function_call"
        ]
        for tool in expect.tools:
            given = [arguments for name, arguments in used if name == tool.name]
            if not any(tool.arguments.items() <= arguments.items() for arguments in given):
                wanted = f" with {_shown(tool.arguments)}" if tool.arguments else ""
                was = f"; it was with {', '.join(map(_shown, given))}" if given else ""
                yield f"the tool {tool.name} was not called{wanted}{was}"
        for name in expect.never_tools:
            if name in dict(used):
                yield f"the tool {name} was called"

    def _misspoken(self) -> Iterator[str]:
        """Words that the agent did not say, or did."""
        expect = self._scenario.expect
        messages = [item for item in self.items if item.type == "message"]
        said = [one.text_content or "" for one in messages if one.role == "assistant"]
        words = "\n".join(said).casefold()
        yield from (
            f"{text!r} was not said" for text in expect.said if text.casefold() not in words
        )
        yield from (f"{text!r} was said" for text in expect.never_said if text.casefold() in words)

    def _forgotten(self) -> Iterator[str]:
        """What had to be written of the caller in this call, and was not."""
        expected = self._scenario.expect.remembers
        if self._memory is None:
            if expected.name or expected.facts:
                yield "nothing was kept of the caller: this project remembers nobody"
            return
        kept = self._memory.callers
        callers = [caller for key, caller in kept.items() if key]
        names = [caller.name[1] for caller in callers if caller.name]
        facts = [fact for caller in callers for fact in caller.facts]
        if expected.name and expected.name not in names:
            yield f"the name {expected.name!r} was not kept, but {_list(names)}"
        for fact in expected.facts:
            if not any(fact.casefold() in one.casefold() for one in facts):
                yield f"no fact with {fact!r} was kept, but {_list(facts)}"


def _returning(value: Any) -> Callable[[], str]:
    """A stand-in of a tool; what it returns reaches the model as from a real one."""
    return lambda: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _arguments(text: str) -> dict[str, Any]:
    try:
        read = json.loads(text or "{}")
    except ValueError:
        return {}
    return read if isinstance(read, dict) else {}


def _shown(arguments: dict[str, Any]) -> str:
    return json.dumps(arguments, ensure_ascii=False)


def _list(kept: Sequence[str]) -> str:
    return ", ".join(map(repr, kept)) or "nothing"


class PlayedCaller:
    """A caller whom a language model plays."""

    def __init__(self, model: LLM[Any], goal: str) -> None:
        from livekit.agents.llm import ChatContext, function_tool

        @function_tool
        async def hang_up() -> None:
            """End the call."""

        self._model, self._hang_up = model, hang_up
        self._chat = ChatContext.empty()
        self._chat.add_message(role="system", content=CALLER.format(goal=goal))

    async def answer(self, heard: str) -> tuple[str, bool]:
        """What the caller says to that, and whether they hang up then."""
        # the roles are the other way round: to this model, the agent is the user
        self._chat.add_message(role="user", content=heard or "(silence)")
        reply = await self._model.chat(chat_ctx=self._chat, tools=[self._hang_up]).collect()
        words = " ".join(reply.text.split())
        if words:
            self._chat.add_message(role="assistant", content=words)
        return words, bool(reply.tool_calls) or not words


async def _judged(criteria: Sequence[str], model: LLM[Any], items: list[ChatItem]) -> list[str]:
    """The criteria by which the SDK's judge lets the conversation fail, each with its reason."""
    from livekit.agents import evals
    from livekit.agents.evals.judge import _LLMJudge
    from livekit.agents.llm import ChatContext

    conversation = ChatContext(items)
    found = []
    for criterion in criteria:
        if criterion in CRITERIA:
            judge = getattr(evals, f"{criterion}_judge")(model)
        else:
            judge = _LLMJudge(llm=model, instructions=criterion, name="criterion")
        try:
            verdict = await judge.evaluate(chat_ctx=conversation)
        except Exception as error:
            found.append(f"it could not be judged ({criterion}): {one_line(error)}")
            continue
        if not verdict.passed:
            reasons = " ".join(verdict.reasoning.split())
            found.append(f"judged {verdict.verdict} ({criterion}): {reasons}")
    return found
