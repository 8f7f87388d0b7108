"""A call leaves its report as a file, and a worker delivers it, at least once, whatever happens."""

from __future__ import annotations

import logging
import os
import stat
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from agent import entrypoint, reports
from agent.conversation import CallAgent
from agent.outbox import locked
from agent.reports import NewerReport, NotDelivered, delivery, kept
from agent.reports.delivery import DAY, KEPT, Waiting, deliver, waiting
from agent.settings import Settings, load_settings
from agent.transport import Caller
from template.tests.talk import talk
from tests.agent.reports.made import full_report, leave, newer_report, report


@pytest.fixture(autouse=True)
def plain_persona(monkeypatch: pytest.MonkeyPatch) -> None:
    build = lambda call: CallAgent(call, instructions="Be brief.")  # noqa: E731
    monkeypatch.setattr(entrypoint, "build_persona", build)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.model_validate({"home": tmp_path, "memory_url": "none"})


class EnoughLooks(Exception):
    """The end of a loop that has none."""


async def kept_calls(settings: Settings) -> list[str]:
    async with kept.open_kept(settings) as store:
        return [one.call for one in await store.newest(10)]


async def test_every_call_is_reported_a_strangers_too_and_with_memory_off() -> None:
    async with talk("guest-1", memory_url="none", keep_strangers_words=True) as call:
        await call.say("Hello")
    settings = load_settings()

    assert await deliver(settings, KEPT) == 1
    async with kept.open_kept(settings) as store:
        (made,) = await store.newest(1)
    assert (made.reason, made.caller, made.kind) == ("caller left", None, "standard")
    assert [said.text for said in made.said][1] == "Hello"
    # also what was closed last
    assert made.closes[-1].name == "room"
    assert waiting(settings, KEPT) == []


async def test_a_file_holds_no_name_of_a_stranger_and_is_readable_by_this_user_only() -> None:
    caller = Caller("sip_+15550001234", kind="sip", attributes={"sip.phoneNumber": "+15550001234"})
    async with talk(caller):
        pass
    (file,) = waiting(load_settings(), KEPT)

    assert "15550001234" not in file.read_text(encoding="ascii")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    # and yet it is found when they are to be forgotten
    assert delivery.forget(load_settings(), ["tel:+15550001234"]) == 1
    assert waiting(load_settings(), KEPT) == []


async def test_no_report_is_left_where_none_is_wanted() -> None:
    async with talk(calls_kept=0):
        pass

    assert not (load_settings().data / "reports").exists()


async def test_without_transcripts_a_report_has_no_word_that_was_said() -> None:
    async with talk(keep_transcripts=False) as call:
        await call.say("my secret is plum")
    (file,) = waiting(load_settings(), KEPT)

    assert "plum" not in file.read_text(encoding="ascii")
    assert (one := delivery.read(file)) is not None
    assert [said.role for said in one.report.said] == ["assistant", "user", "assistant"]


async def test_a_card_that_is_said_is_in_no_report_where_cards_are_left_out() -> None:
    async with talk("ann", redact="cards") as call:
        await call.say("It is 4242 4242 4242 4242, room 1042")
    (file,) = waiting(load_settings(), KEPT)

    text = file.read_text(encoding="ascii")
    assert "4242" not in text
    assert "It is [card], room 1042" in text


async def test_a_report_that_cannot_be_left_is_a_warning_and_the_call_ends_well(
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = load_settings()
    settings.data.mkdir(parents=True)
    (settings.data / "reports").write_text("a file, no folder", encoding="utf-8")
    async with talk() as call:
        pass

    assert call.reason == "caller left"
    assert "the report of the call is lost, because" in caplog.text


async def test_what_a_place_does_not_take_waits_and_is_one_warning(
    settings: Settings, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(settings, report("AJ_1"))
    # no database can be made where there is a folder of this name
    (settings.data / "calls.db").mkdir()
    looks = 0

    async def after_a_look(seconds: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 2:
            assert len(waiting(settings, KEPT)) == 1
            (settings.data / "calls.db").rmdir()
        if looks == 3:
            raise EnoughLooks

    monkeypatch.setattr("agent.reports.delivery.asyncio.sleep", after_a_look)
    monkeypatch.setattr(delivery, "PLACES", [KEPT])
    monkeypatch.setattr(delivery, "PLACE_SECONDS", (0.0, 0.0))
    with pytest.raises(ExceptionGroup):
        await delivery.keep_delivering(settings)

    assert waiting(settings, KEPT) == []
    assert await kept_calls(settings) == ["AJ_1"]
    warned = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warned) == 1


async def test_a_report_whose_worker_died_before_deleting_it_is_delivered_again_and_kept_once(
    settings: Settings,
) -> None:
    for _ in range(2):
        leave(settings, report("AJ_1"))
        await deliver(settings, KEPT)

    assert await kept_calls(settings) == ["AJ_1"]


async def test_what_another_worker_is_delivering_is_left_to_it(settings: Settings) -> None:
    leave(settings, report("AJ_1"))
    with locked(KEPT.folder(settings) / ".lock", 0):
        assert await deliver(settings, KEPT) == 0

    assert await deliver(settings, KEPT) == 1


async def test_a_damaged_file_does_not_hold_up_the_others(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    leave(settings, report("AJ_1"))
    (file,) = waiting(settings, KEPT)
    (file.parent / "bad.json").write_text('{"report": "plum"', encoding="utf-8")
    os.utime(file.parent / "bad.json", (time.time() - 60, time.time() - 60))

    assert await deliver(settings, KEPT) == 1
    assert waiting(settings, KEPT) == []
    assert "bad.json is damaged" in caplog.text
    assert "plum" not in caplog.text


async def test_a_report_of_a_newer_version_waits_for_a_worker_that_can_read_it(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(settings, newer_report("AJ_newer", steps=[]), ["ann"])
    leave(settings, report("AJ_1"))

    with pytest.raises(NewerReport):
        await deliver(settings, KEPT)
    assert await kept_calls(settings) == ["AJ_1"]
    assert delivery.unread(settings, KEPT) == ["AJ_newer"]
    monkeypatch.setattr(reports, "VERSION", reports.VERSION + 1)
    assert await deliver(settings, KEPT) == 1
    assert waiting(settings, KEPT) == []


async def test_a_report_of_a_newer_version_is_forgotten_with_its_caller(
    settings: Settings,
) -> None:
    leave(settings, newer_report(), ["ann"])

    assert delivery.forget(settings, ["bob"]) == 0
    assert delivery.forget(settings, ["ann"]) == 1
    assert waiting(settings, KEPT) == []


async def test_what_nobody_delivered_for_memory_days_is_gone_and_named(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    leave(settings, report("AJ_1"))
    (file,) = waiting(settings, KEPT)
    old = time.time() - settings.memory_days * DAY - 60
    os.utime(file, (old, old))

    assert waiting(settings, KEPT) == []
    assert not file.exists()
    assert "AJ_1 was not delivered (kept) within 30 days, and is gone" in caplog.text


async def test_a_store_that_the_project_was_made_without_is_named(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(name: str) -> None:
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(kept, "import_module", without)
    with pytest.raises(NotDelivered, match="was made without it"):
        kept.open_kept(settings.model_copy(update={"memory_url": "redis://store"}))


@pytest.mark.parametrize(
    ("caller", "given", "words"),
    [
        ("ann", {}, True),
        ("guest-1", {}, False),
        ("guest-1", {"keep_strangers_words": True}, True),
        # a memory that is off remembers nobody
        ("ann", {"memory_url": "none"}, False),
        ("ann", {"keep_transcripts": False, "keep_strangers_words": True}, False),
    ],
)
async def test_the_words_of_a_stranger_are_kept_only_if_asked_for(
    caller: str, given: dict[str, Any], words: bool
) -> None:
    async with talk(caller, **given) as call:
        await call.say("my secret is plum")
    (file,) = waiting(load_settings(), KEPT)

    assert ("plum" in file.read_text(encoding="ascii")) is words
    assert (one := delivery.read(file)) is not None
    assert [said.role for said in one.report.said] == ["assistant", "user", "assistant"]


async def test_the_owners_own_system_is_told_a_strangers_words(settings: Settings) -> None:
    wanted = {"webhook_url": SecretStr("http://127.0.0.1:1/"), "webhook_secret": SecretStr("")}
    settings = settings.model_copy(update=wanted)
    leave(settings, full_report("AJ_1", caller=None))

    texts = {
        place.name: [said.text for said in one.report.said]
        for place in delivery.places(settings)
        for file in waiting(settings, place)
        if (one := delivery.read(file)) is not None
    }
    assert texts == {
        "kept": ["", "", "", ""],
        "webhook": ["Hello!", "When do you <b>open</b>?", "At nine.", "And on Sunday"],
    }


async def test_a_place_that_takes_none_more_costs_the_others_nothing(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings.model_copy(update={"webhook_url": SecretStr("http://127.0.0.1:1/")})
    (settings.data / "reports").mkdir(parents=True)
    KEPT.folder(settings).touch()

    with pytest.raises(OSError, match="kept"):
        leave(settings, report("AJ_1"))
    (webhook,) = (place for place in delivery.PLACES if place.name == "webhook")
    assert len(waiting(settings, webhook)) == 1


async def test_a_report_at_which_a_place_always_fails_holds_up_no_other_for_long(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        leave(settings, report(f"AJ_{number}"))
    taken, pauses = list[str](), delivery.Pauses()

    @asynccontextmanager
    async def opened(_: Settings) -> AsyncIterator[delivery.Deliver]:
        async def take(report: Waiting) -> None:
            if report.report.call == "AJ_0":
                raise NotDelivered("it does not answer")
            taken.append(report.report.call)

        yield take

    monkeypatch.setattr(kept, "open_deliverer", opened)
    for _ in range(2):
        with pytest.raises(NotDelivered):
            await deliver(settings, KEPT, pauses)

    assert taken == ["AJ_1", "AJ_2"]
    assert len(waiting(settings, KEPT)) == 1


async def test_what_nobody_wants_any_more_is_not_delivered(settings: Settings) -> None:
    leave(settings, report("AJ_1"))

    assert await deliver(settings.model_copy(update={"calls_kept": 0}), KEPT) == 0
    assert len(waiting(settings, KEPT)) == 1
