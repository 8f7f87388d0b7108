"""Settings: in-code < defaults.toml < .env.local < the environment; all problems are reported."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from agent import settings
from agent.settings import Settings, SettingsError, load_settings, settings_problems


def write_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    file = tmp_path / "defaults.toml"
    file.write_text(text, encoding="utf-8")
    monkeypatch.setattr(settings, "DEFAULTS", file)
    monkeypatch.setitem(Settings.model_config, "toml_file", file)


def test_defaults_hold_where_nothing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_defaults(tmp_path, monkeypatch, "")
    assert (Settings.model_validate({}).name, Settings.model_validate({}).knowledge) == (
        "my-agent",
        "sqlite",
    )


def test_what_was_answered_wins_over_the_code_and_the_environment_over_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_defaults(tmp_path, monkeypatch, 'name = "front-desk"\nknowledge = "none"\n')
    assert Settings.model_validate({}).name == "front-desk"
    monkeypatch.setenv("AGENT_NAME", "night-desk")
    assert (Settings.model_validate({}).name, Settings.model_validate({}).knowledge) == (
        "night-desk",
        "none",
    )


def test_an_env_file_fills_in_what_the_environment_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the real export_env_file
    monkeypatch.undo()
    monkeypatch.setenv("AGENT_HOME", str(tmp_path))
    monkeypatch.setenv("AGENT_NAME", "from-the-environment")
    monkeypatch.delenv("AGENT_PORT", raising=False)
    (tmp_path / ".env.local").write_text(
        "AGENT_NAME=from-the-file\nAGENT_PORT=9999\n", encoding="utf-8"
    )
    load_settings.cache_clear()
    try:
        assert (load_settings().name, load_settings().port) == ("from-the-environment", 9999)
    finally:
        os.environ.pop("AGENT_PORT", None)
        load_settings.cache_clear()


PASSWORD = "redis://:pa${x}s$s$(id)#@h"


@pytest.mark.parametrize("quotes", ["", "'", '"'])
def test_a_value_in_an_env_file_is_what_is_written_there(
    quotes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the real export_env_file
    monkeypatch.undo()
    monkeypatch.setenv("x", "X")
    line = f"AGENT_TEST_VALUE={quotes}{PASSWORD}{quotes}"
    (tmp_path / ".env.local").write_text(f"\ufeff{line}\n", encoding="utf-8")
    try:
        settings.export_env_file(tmp_path)
        assert os.environ["AGENT_TEST_VALUE"] == PASSWORD
    finally:
        os.environ.pop("AGENT_TEST_VALUE", None)


def test_an_env_file_that_is_no_text_is_one_clear_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("AGENT_HOME", str(tmp_path))
    (tmp_path / ".env.local").write_bytes(b"AGENT_NAME=\xff\xfe\n")
    load_settings.cache_clear()
    with pytest.raises(SettingsError, match=r"\.env\.local cannot be read"):
        load_settings()


def test_broken_defaults_are_one_clear_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_defaults(tmp_path, monkeypatch, "name = \n")
    with pytest.raises(SettingsError, match="is not TOML"):
        load_settings()


def test_every_problem_is_said_at_once_and_named_as_the_environment_names_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LIVEKIT_URL", "my server")
    monkeypatch.setenv("AGENT_PORT", "many")
    monkeypatch.setenv("AGENT_MEMORY_URL", "postgres://x")
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate({})
    problems = "\n".join(settings_problems(caught.value))
    assert {line.split(":")[0] for line in problems.splitlines()} == {
        "LIVEKIT_URL",
        "AGENT_PORT",
        "AGENT_MEMORY_URL",
    }


@pytest.mark.parametrize("name", ["AGENT_MEMORY_URL", "AGENT_KNOWLEDGE_URL"])
@pytest.mark.parametrize(
    "address",
    [
        "redis+tls://ann:very-secret-indeed@[store]/0",
        "postgres//ann:very-secret-indeed@[::1",
        "postgresql://ann:very-secret-indeed@st\u2100re:5432/name",
        "redis://ann:very-secret-indeed@st\u2100re:6379/0",
        "http://ann:very-secret-indeed@store",
        "ann:very-secret-indeed@store",
    ],
)
def test_a_password_in_an_address_that_is_none_is_not_repeated(
    monkeypatch: pytest.MonkeyPatch, name: str, address: str
) -> None:
    monkeypatch.setenv(name, address)
    with pytest.raises(SettingsError, match=f"^{name}: write ") as caught:
        load_settings()
    assert "very-secret" not in str(caught.value)


@pytest.mark.parametrize("part", ["LLM", "STT", "TTS", "REALTIME", "EMBEDDINGS"])
def test_a_key_is_taken_without_what_was_copied_with_it(
    monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    monkeypatch.setenv(f"AGENT_{part}_KEY", " very-secret-indeed\r\n")
    key = getattr(load_settings(), f"{part.lower()}_key").get_secret_value()
    assert key == "very-secret-indeed"


@pytest.mark.parametrize("key", ["very-secret indeed", "very-sécret", "very-\nsecret"])
def test_a_key_that_cannot_be_sent_is_refused_and_not_repeated(
    monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("AGENT_LLM_KEY", key)
    with pytest.raises(SettingsError, match="AGENT_LLM_KEY: it has characters") as caught:
        load_settings()
    assert "very" not in str(caught.value)


def test_a_providers_key_is_taken_without_what_was_copied_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the real export_env_file
    monkeypatch.undo()
    monkeypatch.setenv("DEEPGRAM_API_KEY", "very-secret-indeed \r")
    settings.export_env_file(tmp_path)
    assert os.environ["DEEPGRAM_API_KEY"] == "very-secret-indeed"


@pytest.mark.parametrize("address", [" redis://store", "REDIS://store", "rediss://store"])
def test_every_address_that_is_taken_for_a_redis_chooses_it(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("AGENT_MEMORY_URL", address)
    assert load_settings().memory == "redis"


def test_an_empty_home_is_none_and_a_tilde_is_a_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "project").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AGENT_HOME", "~/project")
    assert Settings.model_validate({}).home == tmp_path / "project"
    monkeypatch.setenv("AGENT_HOME", "")
    assert Settings.model_validate({}).home == settings.find_home()


def test_a_home_that_is_not_there_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENT_HOME", str(tmp_path / "nowhere"))
    with pytest.raises(SettingsError, match="AGENT_HOME: there is no folder"):
        load_settings()
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    ("command", "asked"),
    [("doctor", "its folder"), ("chat", "AGENT_HOME"), ("update", "its folder")],
)
def test_a_project_does_not_start_with_the_code_of_another(
    tmp_path: Path, command: str, asked: str
) -> None:
    """Two projects in one uv workspace: one package `agent` hides the other."""
    for name in ("desk", "night"):
        shutil.copytree(PACKAGE, tmp_path / name / "src" / "agent")
        (tmp_path / name / ".template.toml").touch()
    (tmp_path / "night" / "knowledge").mkdir()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("AGENT_")},
        **({"AGENT_HOME": str(tmp_path / "night")} if asked == "AGENT_HOME" else {}),
        "PYTHONPATH": str(tmp_path / "desk" / "src"),
    }

    done = subprocess.run(
        [sys.executable, "-m", "agent", command],
        cwd=tmp_path if asked == "AGENT_HOME" else tmp_path / "night" / "knowledge",
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 2, done
    said = f"agent: {tmp_path}/night would run the code of {tmp_path}/desk"
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == 1


def test_a_secret_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIVEKIT_API_SECRET", "very-secret-indeed")
    assert "very-secret" not in repr(Settings.model_validate({}))
    assert "very-secret" not in str(Settings.model_validate({}).model_dump())


# ---------------------------------------------------------------------- who reads the environment

PACKAGE = Path(settings.__file__).parent
PASSED_ON = {
    "cli/talk.py": "its server and its worker get this environment, and more",
    "cli/update.py": "uv says there where it is, and the updater gets this environment",
}


def readers_of_the_environment() -> Iterator[str]:
    """The modules that name os.environ, os.getenv or the like."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            names = []
            if isinstance(node, ast.Attribute):
                names = [node.attr]
            elif isinstance(node, ast.ImportFrom) and node.module == "os":
                names = [alias.name for alias in node.names]
            if {"environ", "environb", "getenv", "getenvb"} & {*names}:
                yield path.relative_to(PACKAGE).as_posix()


def test_no_module_but_settings_reads_the_environment() -> None:
    assert {*readers_of_the_environment()} == {"settings.py", *PASSED_ON}


def test_what_looks_like_a_setting_and_is_none_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENT_MAX_LAOD", "1")
    monkeypatch.setenv("AGENT_QQQQQQQQQQQQQQQ", "1")
    monkeypatch.setenv("AGENT_TEST_X", "1")

    unknown = settings.unknown_variables()

    assert (unknown["AGENT_MAX_LAOD"], unknown["AGENT_QQQQQQQQQQQQQQQ"]) == ("AGENT_MAX_LOAD", "")
    assert "AGENT_TEST_X" not in unknown
