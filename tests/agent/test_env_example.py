"""`.env.example` shows every setting, its description and its default, and nothing else."""

from __future__ import annotations

import os
import re

import pytest
from pydantic import SecretStr

from agent.settings import Settings, variables
from tests.support import quick

EXAMPLE = quick.render(".env.example", project_name="My Agent")[".env.example"]
DESCRIPTIONS = {
    variable: Settings.model_fields[name].description for name, variable in variables().items()
}


def shown() -> dict[str, tuple[str, str]]:
    """Every variable's description and value in the file."""
    lines = re.findall(r"^# (.+)\n(?:# )?([A-Z_]+)=(.*)$", EXAMPLE, re.MULTILINE)
    return {name: (description, value) for description, name, value in lines}


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
    assert {name: description for name, (description, _) in shown().items()} == DESCRIPTIONS


def test_the_order_is_that_of_the_settings() -> None:
    assert [*shown()] == [*DESCRIPTIONS]


def test_expert_settings_are_the_last_of_their_group() -> None:
    groups = [
        re.findall(r"^# (.+)\n(?:# )?[A-Z_]+=", group, re.M) for group in EXAMPLE.split("\n\n")
    ]
    expert = [[line.startswith("Expert: ") for line in group] for group in groups]

    assert sum(map(sum, expert)) == 4
    assert all(group == sorted(group) for group in expert)


def test_the_values_shown_are_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(("AGENT_", "LIVEKIT_")):
            monkeypatch.delenv(name)
    settings = Settings.model_validate({})
    # not the same everywhere
    found = {name for name, field in Settings.model_fields.items() if field.default_factory}
    defaults = {
        variable: "" if name in found else written(getattr(settings, name))
        for name, variable in variables().items()
    }

    assert {name: value for name, (_, value) in shown().items()} == defaults


def test_keys_come_first_and_are_the_only_lines_to_fill_in() -> None:
    keys = ["LIVEKIT_URL", "LIVEKIT_API_KEY", "LIVEKIT_API_SECRET"]

    assert re.findall(r"^[A-Z].*$", EXAMPLE, re.MULTILINE) == [f"{key}=" for key in keys]
    assert [*shown()][:3] == keys
