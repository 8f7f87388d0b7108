"""Reports reach a receiver that checks them by the rules of standardwebhooks.com, at least once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from standardwebhooks import Webhook

from agent.reports import Report, Said, delivery, webhook
from agent.settings import Settings, SettingsError, load_settings
from tests.agent.reports import made
from tests.support.processes import process
from tests.support.server import free_port

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


class Receiver:
    """An owner's own system: it takes a message once, and answers as `behaviour` says."""

    def __init__(self, port: int) -> None:
        self.port, self.behaviour = port, "works"
        self.taken: dict[str, Any] = {}
        self.arrived: asyncio.Queue[str] = asyncio.Queue()
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application()
        app.router.add_post("/calls", self._take)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _take(self, request: web.Request) -> web.StreamResponse:
        body = await request.text()
        message = Webhook(SECRET).verify(body, dict(request.headers))
        call = message["data"]["call"]
        self.arrived.put_nowait(call)
        if self.behaviour == "is slow":
            await asyncio.Event().wait()
        if self.behaviour == "fails" or (self.behaviour == "fails one" and call == "call-0"):
            return web.Response(status=500)
        if self.behaviour == "is busy":
            return web.Response(status=503)
        self.taken[request.headers["webhook-id"]] = message
        if self.behaviour == "dies in the middle":
            assert request.transport is not None
            request.transport.abort()  # it has taken the message, and its answer is lost
        return web.Response(status=204)

    async def hear(self, times: int = 1) -> list[str]:
        """The calls of so many requests."""
        async with asyncio.timeout(30):
            return [await self.arrived.get() for _ in range(times)]


@pytest_asyncio.fixture
async def receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver(free_port())
    await receiver.start()
    yield receiver
    await receiver.stop()


@pytest.fixture
def settings(receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("AGENT_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("AGENT_CALLS_KEPT", "0")
    monkeypatch.setenv("AGENT_WEBHOOK_URL", f"http://127.0.0.1:{receiver.port}/calls")
    monkeypatch.setenv("AGENT_WEBHOOK_SECRET", SECRET)
    load_settings.cache_clear()
    for name, seconds in (
        ("DELIVERY_SECONDS", 0.01),
        ("PLACE_SECONDS", (0.02, 0.1)),
        ("REPORT_SECONDS", (0.02, 0.1)),
    ):
        monkeypatch.setattr(delivery, name, seconds)
    return load_settings()


def leave(settings: Settings, number: int = 0) -> Report:
    said = [Said(1.0, "user", "Do you know Ärger?"), Said(2.0, "assistant", "No.")]
    report = Report(f"call-{number}", "room", "agent", 1e9, 7.5, "caller left", "ann", said=said)
    made.leave(settings, report, ["ann"])
    return report


def left(settings: Settings) -> int:
    return len(list(settings.data.glob("reports/webhook/*.json")))


async def delivered(settings: Settings) -> None:
    """Wait until nothing waits any more: files tell nobody."""
    async with asyncio.timeout(30):
        while left(settings):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest_asyncio.fixture
async def worker(settings: Settings) -> AsyncIterator[None]:
    task = asyncio.create_task(delivery.keep_delivering(settings))
    yield
    task.cancel()


@pytest.mark.usefixtures("worker")
async def test_a_report_arrives_signed_and_whole(settings: Settings, receiver: Receiver) -> None:
    report = leave(settings)
    await delivered(settings)
    ((message, event),) = receiver.taken.items()
    assert message == "call_call-0"
    assert (event["type"], event["timestamp"]) == ("call.ended", "2001-09-09T01:46:47.500000+00:00")
    assert event["data"] == report.to_dict()


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("trouble", ["fails", "is busy", "dies in the middle"])
async def test_what_a_receiver_does_not_take_is_sent_again(
    trouble: str, settings: Settings, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.behaviour = trouble
    leave(settings)
    assert await receiver.hear(3) == ["call-0"] * 3
    assert left(settings) == 1
    receiver.behaviour = "works"
    await delivered(settings)
    # whatever it was sent, it knows one message
    assert list(receiver.taken) == ["call_call-0"]
    warned = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warned) == 1
    assert "Ärger" not in caplog.text


@pytest.mark.usefixtures("worker")
async def test_a_receiver_that_is_down_gets_its_reports_when_it_is_back(
    settings: Settings, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    await receiver.stop()
    for number in range(3):
        leave(settings, number)
    async with asyncio.timeout(10):
        while "does not answer" not in caplog.text:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await receiver.start()
    await delivered(settings)
    assert set(receiver.taken) == {"call_call-0", "call_call-1", "call_call-2"}


async def test_a_receiver_that_is_slow_is_not_waited_for(
    settings: Settings, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook, "SECONDS", 0.2)
    receiver.behaviour = "is slow"
    leave(settings)
    worker = asyncio.create_task(delivery.keep_delivering(settings))
    await receiver.hear(2)
    receiver.behaviour = "works"
    await delivered(settings)
    worker.cancel()


@pytest.mark.usefixtures("worker")
async def test_a_report_that_is_refused_holds_up_no_other(
    settings: Settings, receiver: Receiver
) -> None:
    receiver.behaviour = "fails one"
    for number in range(3):
        leave(settings, number)
    async with asyncio.timeout(30):
        while left(settings) > 1:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert set(receiver.taken) == {"call_call-1", "call_call-2"}


def deliver_for_ever() -> None:
    asyncio.run(delivery.keep_delivering(load_settings()))


async def test_a_report_outlives_a_worker_that_is_killed_while_it_sends(
    settings: Settings, receiver: Receiver
) -> None:
    receiver.behaviour = "is slow"
    leave(settings)
    with process(deliver_for_ever) as worker:
        assert await receiver.hear() == ["call-0"]
        worker.kill()
        await asyncio.to_thread(worker.join)
    assert left(settings) == 1
    receiver.behaviour = "works"
    with process(deliver_for_ever):
        await delivered(settings)
    assert list(receiver.taken) == ["call_call-0"]


def test_what_waits_of_a_caller_is_forgotten(settings: Settings) -> None:
    leave(settings)
    assert delivery.forget(settings, ["ann"]) == 1
    assert left(settings) == 0


@pytest.mark.parametrize("secret", ["", "whsec_short", "no base64!"])
def test_reports_are_not_sent_unsigned(
    secret: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENT_WEBHOOK_SECRET", secret)
    load_settings.cache_clear()
    with pytest.raises(SettingsError, match=r"AGENT_WEBHOOK_SECRET: .*openssl rand") as e:
        load_settings()
    assert not secret or secret not in str(e.value)
