"""A file of scenarios for `agent rehearse`: what the caller does, and what must come of it."""

from __future__ import annotations

import json
import tomllib
from datetime import date, time
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from agent.reasons import Reason
from agent.settings import SettingsError
from agent.transport import Caller

REASONS = [value for name, value in vars(Reason).items() if name.isupper()]
# the SDK's own criteria of a conversation, by name; anything else is a sentence to judge by
CRITERIA = (
    *("task_completion", "accuracy", "tool_use", "handoff"),
    *("safety", "relevancy", "coherence", "conciseness"),
)


# a blank one would be said, and answered
Words = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CallerIs(_Part):
    """Who calls, as the token says."""

    identity: str = "rehearsed-caller"
    name: str = ""
    kind: Literal["standard", "sip", "connector"] = "standard"
    attributes: dict[str, str] = {}

    @property
    def caller(self) -> Caller:
        return Caller(self.identity, self.name, self.kind, self.attributes)


class Memo(_Part):
    """What is known of a caller, or has to be afterwards."""

    name: str | None = None
    facts: list[str] = []


class ToolUse(_Part):
    """A tool that is called, with at least these arguments."""

    name: str
    arguments: dict[str, Any] = {}


def _by_name(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _as_text(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else value


class Expected(_Part):
    """What must come of a call, and what must not."""

    reason: str | None = None
    tools: list[Annotated[ToolUse, BeforeValidator(_by_name)]] = []
    never_tools: list[str] = []
    remembers: Memo = Memo()
    said: list[str] = []
    never_said: list[str] = []
    judge: list[str] = []

    @model_validator(mode="after")
    def _is_a_reason(self) -> Expected:
        if self.reason and self.reason not in REASONS and not self.reason.startswith("error"):
            raise ValueError(f"no call ends by {self.reason!r}: choose from {', '.join(REASONS)}")
        return self


class Scenario(_Part):
    """One call; its caller says lines, or pursues a goal."""

    name: Words
    says: list[Words] = []
    goal: Words = ""
    most_turns: int = Field(10, gt=0)
    caller: CallerIs = CallerIs()
    metadata: Annotated[str, BeforeValidator(_as_text)] = ""
    known: Memo | None = None
    tools: dict[str, Any] = {}
    expect: Expected

    @model_validator(mode="after")
    def _is_played_somehow(self) -> Scenario:
        if bool(self.says) == bool(self.goal):
            raise ValueError("write either `says`, the caller's lines, or `goal`, what they want")
        return self


class _File(_Part):
    scenario: list[Scenario] = Field(min_length=1)


def scenarios_in(path: Path) -> list[Scenario]:
    """The scenarios of a file; raises SettingsError with the place of each mistake."""
    try:
        # utf-8-sig: an editor on Windows may have begun the file with a byte order mark
        read = _plain(tomllib.loads(path.read_text(encoding="utf-8-sig")))
    except OSError as error:
        raise SettingsError([f"{path} cannot be read ({error.strerror}): name a file"]) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError([f"{path} is no TOML: {error}"]) from error
    try:
        scenarios = _File.model_validate(read).scenario
    except ValidationError as error:
        problems = [_problem(path, read, dict(one)) for one in error.errors()]
        raise SettingsError(problems) from error
    names = [scenario.name for scenario in scenarios]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise SettingsError([f"{path}: two scenarios are called {twice[0]!r}: rename one"])
    return scenarios


def _plain(value: Any) -> Any:
    """What JSON has too: dates and times become texts, as a model writes them."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return value.isoformat() if isinstance(value, date | time) else value


def _problem(path: Path, read: dict[str, Any], error: dict[str, Any]) -> str:
    place, *within = error["loc"] or ("",)
    what = str(error["msg"]).removeprefix("Value error, ")
    if place != "scenario":
        return f"{path}: {place}: {what}: a scenario begins with [[scenario]]"
    if not within:
        return f"{path}: there is no scenario: begin one with [[scenario]]"
    number, *keys = within
    given = read["scenario"][number] if isinstance(read["scenario"], list) else {}
    name = f" ({given['name']})" if isinstance(given, dict) and "name" in given else ""
    key = f", {'.'.join(map(str, keys))}" if keys else ""
    if error["type"] == "extra_forbidden":
        what = "there is no such key: docs/agent/behaviour.md has those that there are"
    return f"{path}: scenario {int(number) + 1}{name}{key}: {what}"
