"""`.env.example` shows every setting with its description and the value that holds without it, and nothing else."""

from __future__ import annotations

import os
import re

import pytest
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from agent.settings import Settings
from tests.support import quick

EXAMPLE = quick.render(".env.example", project_name="My Agent")[".env.example"]


def shown() -> dict[str, tuple[str, str]]:
    """Every variable's description and value, as the file has them."""
    variables = re.findall(r"^# (.+)\n(?:# )?([A-Z_]+)=(.*)$", EXAMPLE, re.MULTILINE)
    return {name: (description, value) for description, name, value in variables}


def variable(name: str, field: FieldInfo) -> str:
    return field.alias or f"AGENT_{name.upper()}"


def written(value: object) -> str:
    """A value as one writes it in the environment."""
    match value:
        case SecretStr():
            return value.get_secret_value()
        case bool():
            return str(value).lower()
        case float():
            return f"{value:g}"
    return str(value)


def test_every_setting_is_shown_with_its_description() -> None:
    settings = {
        variable(name, field): field.description for name, field in Settings.model_fields.items()
    }

    assert {name: description for name, (description, _) in shown().items()} == settings


def test_the_values_shown_are_those_that_hold_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(("AGENT_", "LIVEKIT_")):
            monkeypatch.delenv(name)
    settings = Settings.model_validate({})
    found = {
        name for name, field in Settings.model_fields.items() if field.default_factory
    }  # not the same everywhere
    values = {
        variable(name, field): "" if name in found else written(getattr(settings, name))
        for name, field in Settings.model_fields.items()
    }

    assert {name: value for name, (_, value) in shown().items()} == values


def test_keys_come_first_and_are_the_only_lines_to_fill_in() -> None:
    lines = EXAMPLE.splitlines()

    assert [line for line in lines if re.match("[A-Z]", line)] == [
        "LIVEKIT_URL=",
        "LIVEKIT_API_KEY=",
        "LIVEKIT_API_SECRET=",
    ]
    assert list(shown())[:3] == ["LIVEKIT_URL", "LIVEKIT_API_KEY", "LIVEKIT_API_SECRET"]
