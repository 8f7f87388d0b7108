"""The owner's resources are tried without a call, for `/ready` and for `agent doctor`."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from livekit.agents.utils.http_server import HttpServer

from agent import outside, resources
from agent.cli.doctor import check_resources
from agent.lifecycle import Call
from agent.server import Server
from agent.settings import load_settings


class Pool:
    """A resource that can fail, and knows whether it is open."""

    def __init__(self) -> None:
        self.opens, self.open, self.works = 0, False, True

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Pool]:
        self.opens += 1
        self.open = True
        yield self
        self.open = False

    async def ping(self) -> None:
        assert self.open
        if not self.works:
            raise ConnectionError("password=secret is wrong")


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Pool:
    pool = Pool()

    async def open_resources(call: Call) -> Any:
        return await call.open("pool", pool.connect(), ping=Pool.ping)

    monkeypatch.setattr(resources, "open_resources", open_resources)
    return pool


async def test_a_resource_is_opened_asked_and_closed(pool: Pool) -> None:
    assert await outside.check(load_settings()) == [outside.Checked("pool")]
    assert (pool.opens, pool.open) == (1, False)
    pool.works = False
    (checked,) = await outside.check(load_settings())
    assert "ConnectionError" in checked.problem
    assert not pool.open


async def test_a_ping_that_hangs_is_cut(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    async def hangs(self: Pool) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Pool, "ping", hangs)
    monkeypatch.setattr(outside, "PING_SECONDS", 0.01)
    (checked,) = await outside.check(load_settings())
    assert checked.problem == "no answer within 0.01 s"
    assert not pool.open


async def test_resources_that_do_not_open_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    async def open_resources(call: Call) -> None:
        raise OSError("no such host")

    monkeypatch.setattr(resources, "open_resources", open_resources)
    (checked,) = await outside.check(load_settings())
    assert checked == outside.Checked("resources.py", "OSError: no such host")


async def test_what_is_tried_leaves_no_record_of_a_call(
    pool: Pool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        await outside.check(load_settings())
    assert caplog.records == []


async def test_a_worker_is_ready_when_its_resources_work(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(outside, "FRESH_SECONDS", 0)
    server: Any = Server(load_settings())
    # as the SDK makes it
    server._http_server = HttpServer("127.0.0.1", 0)

    async def ready() -> tuple[int, Any]:
        answer = await server._ready(None)
        return answer.status, json.loads(answer.text)["checks"]

    assert await ready() == (503, {"livekit": False, "pool": True})
    server._registered()
    assert await ready() == (200, {"livekit": True, "pool": True})
    pool.works = False
    assert await ready() == (503, {"livekit": True, "pool": False})
    assert "ConnectionError" in caplog.text


async def test_who_asks_often_opens_nothing_often(pool: Pool) -> None:
    readiness = outside.Readiness(load_settings)
    assert await asyncio.gather(*(readiness.check() for _ in range(5))) == [{"pool": True}] * 5
    assert pool.opens == 1


def test_doctor_names_a_resource_that_does_not_answer(pool: Pool) -> None:
    pool.works = False
    (finding,) = check_resources(load_settings())
    assert (finding.level, finding.check) == ("fail", "resources")
    assert finding.what.startswith("pool: ConnectionError")
