"""The worker: the load that it reports, and the processes that it prepares."""

from __future__ import annotations

import asyncio
import math
import signal
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from livekit.agents import JobExecutorType
from livekit.agents.worker import ServerEnvOption, _DefaultLoadCalc

from agent import entrypoint, persona
from agent.server import READY_SECONDS, SERVER_TARGET_LOAD, Server, prewarm
from agent.settings import Settings, load_settings


def server_with(**changes: object) -> Server:
    return Server(load_settings().model_copy(update=changes))


@pytest.mark.parametrize(
    ("max_load", "cpu", "takes_calls"),
    [(0.9, 0.85, True), (0.9, 0.95, False), (2, 1.0, True), (0.71, 0.72, False)],
)
def test_a_limit_above_the_servers_own_is_reached_where_it_says(
    monkeypatch: pytest.MonkeyPatch, max_load: float, cpu: float, takes_calls: bool
) -> None:
    monkeypatch.setattr(_DefaultLoadCalc, "get_load", lambda worker: cpu)
    server = server_with(max_load=max_load)
    # the server's limit, and the worker's: whichever is reached, the worker is full, and says so
    threshold = ServerEnvOption.getvalue(server._load_threshold, False)
    assert threshold == SERVER_TARGET_LOAD
    assert (server.reported_load() < threshold) is takes_calls


@pytest.mark.parametrize(("max_load", "threshold"), [(0.4, 0.4), (0.7, 0.7), (math.inf, math.inf)])
def test_another_limit_is_the_workers_own(max_load: float, threshold: float) -> None:
    server = server_with(max_load=max_load)
    assert ServerEnvOption.getvalue(server._load_threshold, False) == threshold


def test_a_process_has_the_time_that_the_owners_imports_take() -> None:
    server = server_with()
    assert server._initialize_process_timeout == READY_SECONDS
    server.allow_imports(30)
    # up to four processes import at the same time
    assert server._initialize_process_timeout == READY_SECONDS + 4 * 30


def test_processes_that_are_kept_ready_are_so_in_dev_too() -> None:
    assert ServerEnvOption.getvalue(server_with()._num_idle_processes, True) == 1
    assert ServerEnvOption.getvalue(server_with(idle_processes=3)._num_idle_processes, True) == 3


@pytest.mark.parametrize(("waited", "warns"), [(2.5, True), (0.1, False)])
def test_a_caller_who_waits_for_a_process_is_told_of(
    caplog: pytest.LogCaptureFixture, waited: float, warns: bool
) -> None:
    server = server_with(idle_processes=2)
    server._devmode = False
    job = SimpleNamespace(id="job", room=SimpleNamespace(name="room"))
    running = SimpleNamespace(job=job, assigned_at=100.0, launched_at=100.0 + waited)
    process: Any = SimpleNamespace(running_job=running)
    server._job_launched(process)
    assert ("AGENT_IDLE_PROCESSES" in caplog.text) is warns
    assert ("here more than 2" in caplog.text) is warns


# ---------------------------------------------------------------------- a job's process


def idle_process(executor: JobExecutorType = JobExecutorType.THREAD) -> Any:
    return SimpleNamespace(executor_type=executor, userdata={})


@pytest.mark.parametrize(
    ("url", "is_asked"),
    [("ws://127.0.0.1:7880", False), ("wss://a-project.livekit.cloud", True)],
)
def test_a_proxy_is_not_asked_for_a_server_on_this_machine_but_for_models(
    monkeypatch: pytest.MonkeyPatch, url: str, is_asked: bool
) -> None:
    proxy = "http://proxy.example.com:3128"
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    server, process = server_with(livekit_url=url), idle_process()
    assert server._http_proxy == (proxy if is_asked else None)
    assert server.setup_fnc is not None
    server.setup_fnc(process)
    assert process._http_proxy == proxy


def test_a_persona_loads_what_it_needs_once_in_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []

    class Loads(persona.Persona):
        @classmethod
        def prewarm(cls, settings: Settings) -> None:
            loaded.append(settings.models)

    monkeypatch.setattr(persona, "Persona", Loads)
    for _ in range(2):
        prewarm(load_settings(), idle_process())
        entrypoint.prewarm_persona(load_settings())
    assert loaded == ["scripted"]


def test_a_persona_that_cannot_load_is_reported_and_its_process_takes_the_call(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Fails(persona.Persona):
        @classmethod
        def prewarm(cls, settings: Settings) -> None:
            raise OSError("no such model")

    monkeypatch.setattr(persona, "Persona", Fails)
    process = idle_process()
    prewarm(load_settings(), process)
    assert process.userdata["settings"] is load_settings()
    assert "prewarm of the persona failed: OSError: no such model" in caplog.text


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="this system has no SIGUSR1")
async def test_a_job_that_is_about_to_be_killed_shows_where_it_is_stuck() -> None:
    code = """
import time
from types import SimpleNamespace
from livekit.agents import JobExecutorType
from agent.server import prewarm
from agent.settings import load_settings

def stuck():
    print("stuck", flush=True)
    time.sleep(3600)

process = SimpleNamespace(executor_type=JobExecutorType.PROCESS, userdata={})
prewarm(load_settings(), process)
stuck()
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        assert await process.stdout.readline() == b"stuck\n"
        # as the SDK does half a second before SIGKILL
        process.send_signal(signal.SIGUSR1)
        async for line in process.stderr:
            if b"in stuck" in line:
                break
        else:
            raise AssertionError("the stack was not shown")
    finally:
        process.kill()
        await process.wait()
