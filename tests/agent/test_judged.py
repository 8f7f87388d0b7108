"""The owner's judged tests run by a language model when they are asked for, and only then."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from livekit.agents import llm

from tests.support.openai_server import MODELS, OpenAIServer, in_background
from tests.support.openai_server.script import scripted
from tests.support.templates import ROOT

TEMPLATE = ROOT / "template"
FILE = "tests/yours/test_behaviour.py"


def pytest_of(folder: Path, *options: str, **environment: str) -> tuple[int, str]:
    """Run the owner's tests of behaviour as a project does; their exit code, and what was said."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LIVEKIT_")}
    clean.pop("AGENT_MODELS", None)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider", *options, FILE],
        cwd=TEMPLATE,
        env={
            **clean,
            "PYTHONPATH": f"{TEMPLATE / 'src'}{os.pathsep}{TEMPLATE}",
            "AGENT_HOME": str(folder),
            **environment,
        },
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


def counts(said: str) -> dict[str, int]:
    return {
        what: int(number) for number, what in re.findall(r"(\d+) (passed|failed|skipped)", said)
    }


def test_they_are_skipped_with_a_reason_until_they_are_asked_for(tmp_path: Path) -> None:
    code, said = pytest_of(tmp_path)
    assert (code, counts(said)) == (0, {"passed": 4, "skipped": 3}), said
    assert "with your keys: `uv run pytest -m judged`" in said


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({}, "set the keys of a LiveKit Cloud project"),
        ({"AGENT_MODELS": "scripted"}, "is a script, which judges nothing"),
        (
            {"AGENT_MODELS": "realtime", "AGENT_REALTIME_KEY": "sk-own"},
            "a realtime model reads nothing: override `judge`",
        ),
    ],
)
def test_without_a_key_they_are_skipped_with_a_reason(
    tmp_path: Path, environment: dict[str, str], reason: str
) -> None:
    code, said = pytest_of(tmp_path, "-m", "judged", **environment)
    assert (code, counts(said)) == (0, {"skipped": 3}), said
    assert reason in said


def call_of(name: str, **arguments: object) -> llm.FunctionToolCall:
    return llm.FunctionToolCall(name=name, arguments=json.dumps(arguments), call_id="call_1")


@pytest.mark.parametrize(
    ("models", "fulfils"), [("selfhosted", True), ("selfhosted", False), ("providers", True)]
)
def test_with_one_the_model_answers_and_the_sdks_judge_grades(
    tmp_path: Path, models: str, fulfils: bool
) -> None:
    intents: list[str] = []

    def script(chat: llm.ChatContext, tools: set[str]) -> str | llm.FunctionToolCall:
        last = chat.items[-1]
        if "check_intent" in tools:
            intents.append(chat.messages()[-1].text_content or "")
            return call_of("check_intent", success=fulfils, reason="That is so.")
        if "current_time" in tools and "What time" in (chat.messages()[-1].text_content or ""):
            return "It is noon." if last.type == "function_call_output" else call_of("current_time")
        return scripted(chat, tools)

    with in_background() as server:
        server.script = script
        code, said = pytest_of(tmp_path, "-m", "judged", **environment_of(server, models))
    expected = {"passed": 3} if fulfils else {"passed": 1, "failed": 2}
    assert (code, counts(said)) == (0 if fulfils else 1, expected), said
    assert ("That is so." in said) != fulfils
    assert any("names no price" in intent for intent in intents)
    # its keys, and nothing else of the owner's
    assert {asked.key for asked in server.requests("chat")} == {"sk-own"}
    assert not (tmp_path / "data").exists()


def environment_of(server: OpenAIServer, models: str) -> dict[str, str]:
    if models == "selfhosted":
        urls = {f"AGENT_{part}_URL": server.url for part in ("LLM", "STT", "TTS")}
        own = {**urls, "AGENT_LLM_MODEL": MODELS["chat"], "AGENT_LLM_KEY": "sk-own"}
    else:
        # as in the job `judged` of a project's CI: nothing is heard or spoken
        unused = {"DEEPGRAM_API_KEY": "not-used", "CARTESIA_API_KEY": "not-used"}
        own = {**unused, "OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": "sk-own"}
        server.models.add("gpt-6-luna")
    return {**own, "AGENT_MODELS": models}
