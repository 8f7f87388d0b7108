"""The reports of the last calls are kept, for a while, and forgotten on request."""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from agent.reports import NotDelivered, kept
from agent.reports.delivery import DAY, Waiting, key_digest
from agent.reports.kept import KeptCalls, open_kept
from agent.settings import Settings
from tests.agent.reports.made import full_report, newer_report, report
from tests.support.redis import RedisServer


def settings_for(folder: Path, memory_url: str = "sqlite") -> Settings:
    given = {"home": folder, "data_dir": folder / "data", "memory_url": memory_url}
    return Settings.model_validate({**given, "name": f"test-{secrets.token_hex(4)}"})


class KeptContract:
    """What every store of reports promises."""

    @pytest.fixture
    def settings(self, tmp_path: Path) -> Settings:
        raise NotImplementedError

    @pytest.fixture
    async def store(self, settings: Settings) -> AsyncIterator[KeptCalls]:
        async with open_kept(settings.model_copy(update={"calls_kept": 3})) as opened:
            yield opened

    async def test_the_newest_reports_are_kept_whole(self, store: KeptCalls) -> None:
        for number in range(5):
            await store.add(Waiting(full_report(f"AJ_{number}", ago=100 - number), []))

        assert [one.call for one in await store.newest(10)] == ["AJ_4", "AJ_3", "AJ_2"]
        (newest,) = await store.newest(1)
        assert newest == full_report("AJ_4", began=newest.began)

    async def test_the_same_call_again_replaces_its_report(self, store: KeptCalls) -> None:
        for reason in ("caller left", "too long"):
            await store.add(Waiting(report("AJ_1", reason=reason), []))

        assert [one.reason for one in await store.newest(10)] == ["too long"]

    async def test_a_call_is_found_by_its_id_its_beginning_and_its_room(
        self, store: KeptCalls
    ) -> None:
        for call in ("AJ_abc", "AJ_xyz"):
            await store.add(Waiting(report(call), []))

        for name in ("AJ_abc", "AJ_a", "room of AJ_abc"):
            assert [one.call for one in await store.find(name)] == ["AJ_abc"]
        assert await store.find("room") == []

    async def test_what_is_older_than_memory_days_is_gone(
        self, store: KeptCalls, settings: Settings
    ) -> None:
        await store.add(Waiting(report("old", ago=settings.memory_days * DAY + 60), []))
        await store.add(Waiting(report("young"), []))

        assert [one.call for one in await store.newest(10)] == ["young"]

    async def test_what_is_too_old_or_too_much_goes_also_while_nobody_calls(
        self, store: KeptCalls, settings: Settings
    ) -> None:
        for number in range(3):
            await store.add(Waiting(report(f"AJ_{number}", ago=DAY - number), []))

        async with open_kept(settings.model_copy(update={"calls_kept": 1})) as fewer:
            await fewer.tidy()
        assert [one.call for one in await store.newest(10)] == ["AJ_2"]
        async with open_kept(settings.model_copy(update={"memory_days": 0.5})) as shorter:
            await shorter.tidy()
        assert await store.newest(10) == []

    async def test_a_report_that_does_not_fit_hides_no_other(self, store: KeptCalls) -> None:
        await store.add(Waiting(report("AJ_1"), []))
        await store.add(Waiting(newer_report("AJ_2", ago=3), []))
        await store.add(Waiting(newer_report("AJ_3", ago=2, version=1), []))

        assert [one.call for one in await store.newest(10)] == ["AJ_1"]
        assert store.unread == ["AJ_3", "AJ_2"]
        assert [one.call for one in await store.find("AJ")] == ["AJ_1"]
        assert store.unread == ["AJ_3", "AJ_2"]

    async def test_a_caller_who_is_forgotten_takes_their_reports_along(
        self, store: KeptCalls, settings: Settings
    ) -> None:
        ann, bob = (key_digest(settings, key) for key in ("tel:+15550001", "bob"))
        await store.add(Waiting(report("AJ_1"), [ann, "other"]))
        await store.add(Waiting(report("AJ_2"), [bob]))

        assert await kept.forget(settings, ["+15550001", "tel:+15550001"]) == 1
        assert [one.call for one in await store.newest(10)] == ["AJ_2"]
        assert await kept.forget(settings, ["tel:+15550001"]) == 0


class TestFile(KeptContract):
    """In a SQLite file, also with a memory of another kind, or none."""

    @pytest.fixture(params=["sqlite", "none", "scratch:test"])
    def settings(self, tmp_path: Path, request: pytest.FixtureRequest) -> Settings:
        return settings_for(tmp_path, request.param)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server that the tests share."""
    with closing(RedisServer("valkey", keeps=False)) as running:
        yield running.url


class TestRedis(KeptContract):
    """In the Redis that memory has."""

    @pytest.fixture
    def settings(self, tmp_path: Path, url: str) -> Settings:
        return settings_for(tmp_path, url)

    async def test_no_key_names_a_caller_and_all_expire(
        self, store: KeptCalls, settings: Settings
    ) -> None:
        from redis.asyncio import Redis

        await store.add(Waiting(full_report(), [key_digest(settings, "ann")]))

        async with Redis.from_url(settings.memory_url, decode_responses=True) as raw:
            keys = [key async for key in raw.scan_iter(f"{settings.name}:*")]
            assert sorted(keys) == [
                f"{settings.name}:v1:{{calls}}:{n}" for n in ("order", "reports")
            ]
            assert all([await raw.ttl(key) > 0 for key in keys])


async def test_a_server_that_is_away_is_a_sentence_with_a_cure(tmp_path: Path) -> None:
    async with open_kept(settings_for(tmp_path, "redis://127.0.0.1:1/0")) as store:
        with pytest.raises(NotDelivered, match=r"127\.0\.0\.1:1"):
            await store.newest(1)


async def test_nobody_else_may_read_the_file(tmp_path: Path) -> None:
    async with open_kept(settings_for(tmp_path)) as store:
        await store.add(Waiting(report("AJ_1"), []))
    assert (tmp_path / "data" / "calls.db").stat().st_mode & 0o777 == 0o600


async def test_a_damaged_file_is_a_sentence_with_a_cure(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    settings.data.mkdir()
    (settings.data / "calls.db").write_bytes(b"no database at all" * 100)

    async with open_kept(settings) as store:
        with pytest.raises(NotDelivered, match=r"is damaged .*move it away"):
            await store.newest(1)


async def test_a_file_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    settings.data.mkdir()
    with closing(sqlite3.connect(settings.data / "calls.db")) as db:
        db.execute("PRAGMA user_version = 99")

    async with open_kept(settings) as store:
        with pytest.raises(NotDelivered, match="newer version"):
            await store.add(Waiting(report(), []))
