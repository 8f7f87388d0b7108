"""`.env.example` shows every setting, its description and its default, and nothing else."""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path

import pytest
from pydantic import SecretStr

from agent.settings import Settings, variables
from tests.support import quick
from tests.support.templates import CHOICES

FAMILIES = CHOICES["models"]
DESCRIPTIONS = {
    variable: Settings.model_fields[name].description for name, variable in variables().items()
}
# what the plugins of the default providers read
PROVIDERS = ["OPENAI_API_KEY", "DEEPGRAM_API_KEY", "CARTESIA_API_KEY"]
KEYS = {"providers": PROVIDERS, "realtime": ["OPENAI_API_KEY"]}


@cache
def example(models: str) -> str:
    """The file, in a project with these models."""
    rendered = quick.render(".env.example", project_name="My Agent", models=models, telephony="yes")
    return rendered[".env.example"]


def shown(models: str) -> dict[str, tuple[str, str]]:
    """Every setting's description and value in the file."""
    lines = re.findall(r"^# (.+)\n(?:# )?([A-Z_]+)=(.*)$", example(models), re.MULTILINE)
    return {name: (text, value) for text, name, value in lines if name not in PROVIDERS}


def written(value: object) -> str:
    """A value in the syntax of the environment."""
    match value:
        case SecretStr():
            return value.get_secret_value()
        case bool():
            return str(value).lower()
        case float():
            return f"{value:g}"
    return str(value)


def test_every_setting_is_shown_with_its_description() -> None:
    told = {name: text for models in FAMILIES for name, (text, _) in shown(models).items()}
    assert told == DESCRIPTIONS


def test_a_setting_is_shown_where_it_has_an_effect() -> None:
    # a realtime model hears, takes turns, thinks and speaks by itself
    three = {
        *("AGENT_LLM_MODEL", "AGENT_STT_MODEL", "AGENT_STT_LANGUAGE"),
        *("AGENT_TTS_MODEL", "AGENT_TTS_VOICE", "AGENT_TURN_DETECTION", "AGENT_INTERRUPTIONS"),
        *("AGENT_MIN_ENDPOINTING_SECONDS", "AGENT_MAX_ENDPOINTING_SECONDS"),
        "AGENT_KNOWLEDGE_LOOKUP",
    }
    only = {
        "livekit": three,
        "providers": three | {"AGENT_LLM_FALLBACK", "AGENT_STT_FALLBACK", "AGENT_TTS_FALLBACK"},
        "selfhosted": three
        | {"AGENT_LLM_URL", "AGENT_LLM_KEY", "AGENT_STT_URL"}
        | {"AGENT_STT_KEY", "AGENT_TTS_URL", "AGENT_TTS_KEY"},
        "realtime": {
            *("AGENT_REALTIME_MODEL", "AGENT_REALTIME_VOICE"),
            *("AGENT_REALTIME_URL", "AGENT_REALTIME_KEY"),
        },
    }
    everywhere = set.intersection(*(set(shown(models)) for models in FAMILIES))
    assert {models: set(shown(models)) - everywhere for models in FAMILIES} == only


@pytest.mark.parametrize("models", FAMILIES)
def test_the_order_is_that_of_the_settings(models: str) -> None:
    assert [*shown(models)] == [name for name in DESCRIPTIONS if name in shown(models)]


def test_expert_settings_are_the_last_of_their_group() -> None:
    groups = [
        re.findall(r"^# (.+)\n(?:# )?[A-Z_]+=", group, re.M)
        for group in example("livekit").split("\n\n")
    ]
    expert = [[line.startswith("Expert: ") for line in group] for group in groups]

    assert sum(map(sum, expert)) == 4
    assert all(group == sorted(group) for group in expert)


@pytest.mark.parametrize("models", FAMILIES)
def test_the_values_shown_are_the_defaults(
    models: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in os.environ:
        if name.startswith(("AGENT_", "LIVEKIT_")):
            monkeypatch.delenv(name)
    toml = "src/agent/defaults.toml"
    file = tmp_path / "defaults.toml"
    file.write_text(quick.render(toml, project_name="My Agent", models=models)[toml])
    monkeypatch.setitem(Settings.model_config, "toml_file", file)
    settings = Settings.model_validate({})
    # not the same everywhere
    found = {name for name, field in Settings.model_fields.items() if field.default_factory}
    defaults = {
        variable: "" if name in found else written(getattr(settings, name))
        for name, variable in variables().items()
    }

    values = {name: value for name, (_, value) in shown(models).items()}
    assert values == {name: defaults[name] for name in values}


@pytest.mark.parametrize("models", FAMILIES)
def test_keys_come_first_and_are_the_only_lines_to_fill_in(models: str) -> None:
    keys = ["LIVEKIT_URL", "LIVEKIT_API_KEY", "LIVEKIT_API_SECRET"]
    assert re.findall(r"^[A-Z].*$", example(models), re.MULTILINE) == [
        f"{key}=" for key in [*keys, *KEYS.get(models, [])]
    ]
    assert [*shown(models)][:3] == keys
