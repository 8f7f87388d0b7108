"""`after_call` of the owner's persona runs in a process of its own: once, bounded, and again."""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
from pathlib import Path

import pytest

from agent import after_call
from agent.reports import Report, Said, delivery
from agent.settings import Settings, load_settings
from tests.agent.reports.made import leave
from tests.support.templates import ROOT

PERSONA = """
import os, subprocess, sys, threading, time
from pathlib import Path
from agent.conversation import CallAgent

class Persona(CallAgent):
    def __init__(self, call):
        super().__init__(call, instructions="")

    async def after_call(self, report):
        done = Path(os.environ["AGENT_DATA_DIR"]) / "done"
        assert not self.call.resources.http.closed
        with done.open("a") as file:
            file.write(f"{report.call} {report.said[0].text}\\n")
        what = (done.parent / "what").read_text() if (done.parent / "what").exists() else ""
        if what == "raises":
            raise ValueError(report.said[0].text)
        if what == "hangs":
            time.sleep(3600)
        if what == "dies":
            os.kill(os.getpid(), 9)
        if what == "prints and exits":
            print(report.said[0].text)
            sys.exit(3)
        if what == "leaves a process":
            subprocess.Popen(["sleep", "3600"])
        if what == "leaves a thread":
            threading.Thread(target=time.sleep, args=[3600]).start()
"""


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A project, as far as a process sees it, whose persona does something after a call."""
    shutil.copytree(ROOT / "template" / "src", tmp_path / "src")
    (tmp_path / "src" / "agent" / "persona.py").write_text(PERSONA, encoding="utf-8")
    (tmp_path / ".template.toml").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "src"))
    monkeypatch.setenv("AGENT_HOME", str(tmp_path))
    monkeypatch.setenv("AGENT_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(after_call, "is_wanted", lambda: True)
    given = load_settings().model_copy(
        update={"home": tmp_path, "data_dir": tmp_path / "data", "calls_kept": 0}
    )
    for name, seconds in (("DELIVERY_SECONDS", 0.01), ("REPORT_SECONDS", (0.02, 0.1))):
        monkeypatch.setattr(delivery, name, seconds)
    said = [Said(1.0, "user", "My card is 4111")]
    leave(given, Report("call-1", "r", "a", 1e9, 7.5, "caller left", said=said), ["ann"])
    return given


def left(settings: Settings) -> int:
    return len(list(settings.data.glob("reports/after_call/*.json")))


def runs(settings: Settings) -> list[str]:
    file = settings.data / "done"
    return file.read_text(encoding="utf-8").splitlines() if file.exists() else []


async def ran(settings: Settings, times: int) -> None:
    """Wait until it has run so often: files tell nobody."""
    async with asyncio.timeout(60):
        while len(runs(settings)) < times:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def delivered(settings: Settings) -> None:
    async with asyncio.timeout(60):
        while left(settings):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("what", ["", "leaves a thread", "leaves a process"])
async def test_it_runs_once_with_the_whole_report(what: str, settings: Settings) -> None:
    (settings.data / "what").write_text(what)
    worker = asyncio.create_task(delivery.keep_delivering(settings))
    await delivered(settings)
    assert runs(settings) == ["call-1 My card is 4111"]
    worker.cancel()


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("raises", "ValueError in persona.py, line 17"),
        ("hangs", "it took longer than AGENT_AFTER_CALL_SECONDS="),
        ("dies", "its process ended with -9"),
        ("prints and exits", "its process ended with 3"),
    ],
)
async def test_what_fails_or_hangs_is_kept_and_run_again(
    what: str, said: str, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    (settings.data / "what").write_text(what)
    short = settings.model_copy(update={"after_call_seconds": 8.0 if what == "hangs" else 30.0})
    worker = asyncio.create_task(delivery.keep_delivering(short))
    await ran(settings, 2)
    (settings.data / "what").write_text("")
    await delivered(settings)
    worker.cancel()
    assert said in caplog.text
    assert "4111" not in caplog.text


async def test_a_worker_that_stops_ends_it_and_leaves_it_to_the_next(settings: Settings) -> None:
    (settings.data / "what").write_text("hangs")
    worker = asyncio.create_task(delivery.keep_delivering(settings))
    await ran(settings, 1)
    worker.cancel()
    await asyncio.wait([worker], timeout=20)
    assert (worker.done(), left(settings)) == (True, 1)
    (settings.data / "what").write_text("")
    await delivery.deliver(settings, delivery.PLACES[-1])
    assert len(runs(settings)) == 2


async def test_it_is_bounded_also_without_its_worker(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENT_AFTER_CALL_SECONDS", "1")
    (settings.data / "what").write_text("hangs")
    report = Report("call-1", "r", "a", 1e9, 7.5, "caller left", said=[Said(1.0, "user", "Hello")])
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "agent.after_call"), stdin=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(60):
        await process.communicate(report.to_json())

    assert process.returncode == -signal.SIGALRM


def test_the_line_that_is_told_is_the_owners_and_not_a_librarys(tmp_path: Path) -> None:
    library = tmp_path / ".venv" / "lib" / "python3.13" / "site-packages" / "library.py"
    known: dict[str, object] = {}
    exec(compile("def fail():\n    raise OSError", library, "exec"), known)
    with pytest.raises(OSError) as raised:  # noqa: PT011
        exec(compile("\n\nfail()", tmp_path / "own.py", "exec"), known)
    assert after_call.place_of(raised.value, tmp_path) == "own.py, line 3"


def test_a_persona_that_cannot_be_read_does_nothing_after_a_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken() -> None:
        raise SyntaxError("invalid syntax")

    monkeypatch.setattr(after_call, "persona_class", broken)
    assert not after_call.is_wanted()


def test_a_persona_that_does_nothing_after_a_call_costs_nothing() -> None:
    assert not after_call.is_wanted()
    assert [place.name for place in delivery.places(load_settings())] == ["kept"]
