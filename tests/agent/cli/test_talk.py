"""`agent talk` says what is missing before it starts anything."""

from __future__ import annotations

import os
import signal
import socket
import threading
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from agent.__main__ import main
from agent.cli import talk
from agent.settings import SettingsError, load_settings
from agent.web import app

SECRET = "a-secret-of-more-than-thirty-two-bytes"


class Ended(NamedTuple):
    code: int
    out: str
    err: str


Agent = Callable[..., Ended]


@pytest.fixture
def agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Agent:
    """Run `agent talk` in this process, in a project with a page and no server."""
    home, page = tmp_path / "home", tmp_path / "page"
    home.mkdir()
    page.mkdir()
    (page / "index.html").write_text("<!doctype html>\n", encoding="utf-8")
    monkeypatch.setattr(app, "PAGE", page)
    monkeypatch.setattr(talk, "BUILT", tmp_path / "nothing built")
    for name, value in {
        "AGENT_HOME": str(home),
        "AGENT_KNOWLEDGE": "none",
        "AGENT_MEMORY_URL": "none",
    }.items():
        monkeypatch.setenv(name, value)

    before = signal.getsignal(signal.SIGTERM)

    def run(*arguments: str, **environment: str) -> Ended:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        load_settings.cache_clear()
        with pytest.raises(SystemExit) as ended:
            main(["talk", "--no-open", "--port", "0", *arguments])
        signal.signal(signal.SIGTERM, before)
        if ended.value.code == 128 + signal.SIGTERM:
            # it was for the tests, and the command took it for its own
            signal.raise_signal(signal.SIGTERM)
        return Ended(int(ended.value.code or 0), *capsys.readouterr())

    return run


def keys(url: str) -> dict[str, str]:
    return {"LIVEKIT_URL": url, "LIVEKIT_API_KEY": "a-key", "LIVEKIT_API_SECRET": SECRET}


def said(ended: Ended) -> list[str]:
    """The problems, without what says that something takes long."""
    return [line for line in ended.err.splitlines() if not line.endswith(" ...")]


def test_a_port_in_use_is_named(agent: Agent) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = agent("--port", str(port))
    assert (ended.code, ended.out) == (2, "")
    (line,) = said(ended)
    assert f"port {port}" in line
    assert "--port" in line


@pytest.mark.parametrize(
    ("options", "host"),
    [
        ([], "127.0.0.1"),
        (["--public", "https://a.example"], "0.0.0.0"),
        (["--public", "https://a.example", "--host", "127.0.0.1"], "127.0.0.1"),
    ],
)
def test_the_page_is_served_where_it_has_to_be(
    agent: Agent, monkeypatch: pytest.MonkeyPatch, options: list[str], host: str
) -> None:
    def refused(address: tuple[str, int]) -> None:
        raise OSError(1, "not in this test")

    monkeypatch.setattr(socket, "create_server", refused)
    assert f"cannot be served on {host}, port 0" in agent(*options).err


def test_a_host_for_others_needs_their_address(agent: Agent) -> None:
    ended = agent("--host", "0.0.0.0")
    assert ended.code == 2
    assert "--public" in ended.err


def test_a_machine_without_a_server_is_told_how_to_get_one(
    agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    ended = agent()
    (line,) = said(ended)
    assert (ended.code, ended.out) == (2, "")
    assert "no livekit-server" in line
    assert "install" in line
    assert "LIVEKIT_URL" in line


def test_a_server_that_was_built_before_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(talk, "BUILT", tmp_path)
    (tmp_path / "bin").mkdir()
    for at, version in enumerate(["v1.9.9", "v1.13.5"]):
        binary = tmp_path / "bin" / f"livekit-server-{version}"
        binary.touch(mode=0o755)
        os.utime(binary, (at, at))
    assert talk.Server.found().binary.endswith("livekit-server-v1.13.5")


@pytest.mark.parametrize("url", ["wss://a-project.livekit.cloud", "ws://192.0.2.7:7880"])
def test_keys_of_a_server_elsewhere_are_not_given_to_whoever_opens_the_page(
    agent: Agent, url: str
) -> None:
    ended = agent(**keys(url))
    (line,) = said(ended)
    assert (ended.code, ended.out) == (2, "")
    assert "--public" in line
    assert SECRET not in ended.err


@pytest.mark.parametrize(
    "url", ["talk.example.com", "ftp://a.example", "https://a.example/talk", "https://a.example:b"]
)
def test_where_others_open_it_is_an_address(agent: Agent, url: str) -> None:
    ended = agent("--public", url)
    assert ended.code == 2
    assert "is not an address" in ended.err


@pytest.mark.parametrize(
    ("given", "origin"),
    [
        ("https://Talk.Example.com/", "https://talk.example.com"),
        ("HTTPS://talk.example.com:443", "https://talk.example.com"),
        ("http://talk.example.com:80", "http://talk.example.com"),
        ("https://talk.example.com:8443", "https://talk.example.com:8443"),
        ("https://Bücher.example", "https://xn--bcher-kva.example"),
    ],
)
def test_where_others_open_it_is_compared_as_browsers_write_it(given: str, origin: str) -> None:
    assert talk._address(given) == origin


@pytest.mark.parametrize("options", [("--public", "https://a.example"), ("--no-worker",)])
def test_a_page_for_others_or_for_other_workers_needs_a_server(
    agent: Agent, options: tuple[str, ...]
) -> None:
    ended = agent(*options)
    assert ended.code == 2
    assert "LIVEKIT_URL is missing" in ended.err


def test_a_dead_server_is_a_sentence(agent: Agent) -> None:
    ended = agent(**keys("ws://127.0.0.1:1"))
    assert (ended.code, ended.out) == (2, "")
    (line,) = said(ended)
    assert "ws://127.0.0.1:1 cannot be reached: start that server" in line


def test_a_page_that_is_not_there_is_a_sentence(
    agent: Agent, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(app, "PAGE", tmp_path / "gone")
    ended = agent()
    assert ended.code == 2
    assert "restore it" in ended.err


def test_an_error_in_the_owners_file_names_the_line(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(name: str) -> Any:
        if name == "agent.callers":
            raise NameError("name 'session' is not defined")
        return app

    monkeypatch.setattr(talk, "import_module", broken)
    ended = agent()
    assert ended.code == 2
    assert "NameError: name 'session' is not defined (test_talk.py, line" in ended.err


def test_an_owners_function_that_is_not_async_is_refused_at_the_start(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody(request: object) -> None: ...

    monkeypatch.setattr("agent.callers.caller_of", nobody)
    ended = agent()
    assert ended.code == 2
    assert "write `async def caller_of(request: web.Request) -> Caller | None:`" in ended.err


@pytest.mark.parametrize(("installed", "models"), [(True, "local"), (False, "scripted")])
def test_without_keys_models_of_this_machine_answer(
    agent: Agent,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    installed: bool,
    models: str,
) -> None:
    monkeypatch.setattr(talk, "find_spec", lambda name: object() if installed else None)
    settings = load_settings().model_copy(update={"models": "livekit"})
    assert talk.with_a_voice(settings, keyless=True, public=False).models == models
    err = capsys.readouterr().err
    assert f"(AGENT_MODELS={models})" in err
    assert ("uv sync --group speech" in err) == (not installed)


def test_others_are_never_answered_by_a_script_that_nobody_chose() -> None:
    settings = load_settings().model_copy(update={"models": "livekit"})
    with pytest.raises(SettingsError):
        talk.with_a_voice(settings, keyless=True, public=True)
    scripted = load_settings()
    assert talk.with_a_voice(scripted, keyless=True, public=True) is scripted


@pytest.mark.parametrize(
    ("in_text", "chosen", "opens"), [(True, "", False), (True, "wslview", True), (False, "", True)]
)
def test_a_browser_in_text_does_not_take_the_terminal_unless_it_is_chosen(
    monkeypatch: pytest.MonkeyPatch, in_text: bool, chosen: str, opens: bool
) -> None:
    monkeypatch.setenv("BROWSER", chosen)
    opened = list[str]()
    kind = webbrowser.GenericBrowser if in_text else webbrowser.BackgroundBrowser

    class Thread:
        def __init__(self, target: object, args: list[str], daemon: bool) -> None:
            opened.extend(args)

        def start(self) -> None:
            return

    monkeypatch.setattr(webbrowser, "get", lambda: kind("true"))
    monkeypatch.setattr(threading, "Thread", Thread)
    talk.open_browser("http://127.0.0.1:7890/")
    assert opened == (["http://127.0.0.1:7890/"] if opens else [])
