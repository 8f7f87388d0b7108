"""Who gets into which call, and what their token lets them do."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from livekit import api
from livekit.protocol import models

from agent.memory.identity import key_of
from agent.settings import load_settings
from agent.transport import Caller
from agent.web import Refused, Tokens, tokens
from agent.web.tokens import (
    AGENT_SECONDS,
    ASKS,
    NEW_CALLS,
    RateLimit,
    network_of,
    websocket_url,
)
from tests.support.room_service import KEY, SECRET, RoomService, room_service

HERE = "http://127.0.0.1:7890"
AGENT = models.ParticipantInfo(kind=models.ParticipantInfo.AGENT)


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RoomService]:
    async with room_service() as service:
        for name, value in service.environment.items():
            monkeypatch.setenv(name, value)
        load_settings.cache_clear()
        yield service


@pytest.fixture
def desk(server: RoomService) -> Tokens:
    return Tokens(load_settings(), origins={HERE})


async def ask(
    desk: Tokens,
    room: str | None = None,
    *,
    visitor: str = "a secret of ann's browser",
    origin: str | None = HERE,
    address: str = "192.0.2.1",
    caller: Caller | None = None,
    **more: Any,
) -> dict[str, str]:
    body = json.dumps({**more, **({"room": room} if room else {})}).encode()
    return await desk.answer(body, origin=origin, address=address, who=caller or visitor)


def claims(answer: dict[str, str]) -> Any:
    return api.TokenVerifier(KEY, SECRET).verify(answer["participant_token"])


async def test_a_guest_may_speak_listen_and_write_in_one_room_and_nothing_else(
    desk: Tokens,
) -> None:
    answer = await ask(desk)

    found = claims(answer)
    assert found.identity == answer["identity"]
    assert found.room_config is None
    assert {name: value for name, value in vars(found.video).items() if value is not None} == {
        "room_join": True,
        "room": answer["room"],
        "can_publish": True,
        "can_publish_sources": ["microphone"],
        "can_subscribe": True,
        "can_publish_data": True,
        "can_update_own_metadata": False,
    }


async def test_a_token_lives_for_minutes(server: RoomService) -> None:
    desk = Tokens(load_settings(), origins={HERE}, life=timedelta(minutes=-2))
    with pytest.raises(Exception, match="expired"):
        claims(await ask(desk))
    assert timedelta(0) < tokens.TOKEN_LIFE <= timedelta(minutes=10)


async def test_the_agent_is_sent_into_each_room_once_and_told_what_it_is_about(
    desk: Tokens, server: RoomService
) -> None:
    answer = await desk.answer(
        b"", origin=HERE, address="192.0.2.1", who="ann", metadata='{"order": 1042}'
    )

    (made,) = server.made
    assert (made.room, made.agent_name) == (answer["room"], load_settings().name)
    assert made.metadata == '{"order": 1042}'
    assert answer["server_url"] == f"ws://127.0.0.1:{server.port}"


async def test_no_guest_is_remembered_nor_taken_for_another(desk: Tokens) -> None:
    one, other = await ask(desk), await ask(desk)

    assert one["identity"] != other["identity"]
    assert one["room"] != other["room"]
    for answer in one, other:
        assert key_of(answer["identity"], "standard", {}, phones=True) is None


async def test_who_has_signed_in_is_who_the_session_says(desk: Tokens) -> None:
    ann = Caller("ann", name="Ann Lee", attributes={"plan": "full"})
    answer = await ask(desk, caller=ann)

    found = claims(answer)
    assert (found.identity, found.name, found.attributes) == ("ann", "Ann Lee", {"plan": "full"})


@pytest.mark.parametrize("caller", [None, Caller("ann")], ids=["guest", "ann"])
async def test_a_page_that_is_loaded_again_goes_on_with_its_call(
    desk: Tokens, server: RoomService, caller: Caller | None
) -> None:
    first = await ask(desk, caller=caller)
    server.present = [AGENT]
    # another process, such as one that was restarted
    again = await ask(Tokens(load_settings(), origins={HERE}), first["room"], caller=caller)

    assert (again["room"], again["identity"]) == (first["room"], first["identity"])
    assert len(server.made) == 1


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        ({"visitor": "ann"}, {"visitor": "bela"}),
        ({"caller": Caller("ann")}, {"caller": Caller("bela")}),
        ({"caller": Caller("ann"), "visitor": "x"}, {"visitor": "x"}),
        ({"visitor": "x"}, {"caller": Caller("ann"), "visitor": "x"}),
        ({"visitor": "ann"}, {"caller": Caller("ann")}),
    ],
    ids=["guests", "callers", "who has signed out", "who has signed in", "one name"],
)
async def test_nobody_gets_into_the_call_of_another(
    desk: Tokens, server: RoomService, mine: dict[str, Any], theirs: dict[str, Any]
) -> None:
    first = await ask(desk, **mine)
    server.present = [AGENT]
    other = await ask(desk, first["room"], **theirs)

    assert other["room"] != first["room"]
    assert other["identity"] != first["identity"]


@pytest.mark.parametrize("room", ["front-desk", "web", "web-", "web--", "web-a-b", "web-ä-ö", "-"])
async def test_no_room_is_asked_for_by_name(desk: Tokens, server: RoomService, room: str) -> None:
    server.present = [AGENT]
    assert (await ask(desk, room))["room"] != room


async def test_a_room_that_has_ended_is_not_gone_on_in(desk: Tokens) -> None:
    first = await ask(desk)
    assert (await ask(desk, first["room"]))["room"] != first["room"]


@pytest.mark.parametrize("age", [0, AGENT_SECONDS + 5])
async def test_an_agent_is_waited_for_but_not_for_ever(
    desk: Tokens, server: RoomService, age: float
) -> None:
    first = await ask(desk)
    server.rooms = [models.Room(name=first["room"], creation_time=int(time.time() - age))]
    again = await ask(desk, first["room"])

    assert (again["room"] == first["room"]) == (age == 0)
    assert len(server.made) == (1 if age == 0 else 2)


@pytest.mark.parametrize(
    "origin", [None, "null", "", "http://127.0.0.1", "https://127.0.0.1:7890", f"{HERE}.evil.com"]
)
async def test_another_page_gets_no_token(
    desk: Tokens, server: RoomService, origin: str | None
) -> None:
    with pytest.raises(Refused) as refused:
        await ask(desk, origin=origin)
    assert refused.value.status == 403
    assert server.made == []


@pytest.mark.parametrize(
    ("origin", "body", "asks", "status"),
    [
        ("https://evil.example", b"", 0, 403),
        (HERE, b"nonsense", 0, 400),
        (HERE, b"", ASKS, 429),
    ],
)
async def test_nobody_is_looked_up_for_a_request_that_is_refused_anyway(
    desk: Tokens, origin: str, body: bytes, asks: int, status: int
) -> None:
    async def who() -> str:
        looked_up.append("ann")
        return "a secret of ann's browser"

    looked_up = list[str]()
    first = await desk.answer(b"", origin=HERE, address="192.0.2.1", who=who)
    assert looked_up == ["ann"]
    for _ in range(asks):
        with suppress(Refused):
            await ask(desk, first["room"])
    with pytest.raises(Refused) as refused:
        await desk.answer(body, origin=origin, address="192.0.2.1", who=who)
    assert refused.value.status == status
    assert looked_up == ["ann"]


@pytest.mark.parametrize(
    "body",
    [
        *(b"room", b"[]", b'"room"', b"\xff", b'{"room": 7}', b'{"room": ["a"]}', b"[" * 4000),
        b'{"room": "' + b"a" * 5000 + b'"}',
        b'{"participant_identity": "ann"}',
        b'{"room_config": {"agents": [{"agentName": "other"}]}}',
        b'{"participant_attributes": {"plan": "full"}}',
    ],
    ids=lambda body: body[:30].decode(errors="replace"),
)
async def test_what_is_not_understood_or_not_a_visitors_to_choose_is_refused(
    desk: Tokens, server: RoomService, body: bytes
) -> None:
    with pytest.raises(Refused) as refused:
        await desk.answer(body, origin=HERE, address="192.0.2.1", who="ann")
    assert refused.value.status == 400
    assert server.made == []


async def test_clients_of_livekit_are_understood(desk: Tokens, server: RoomService) -> None:
    first = await ask(desk)
    server.present = [AGENT]
    # what TokenSource.endpoint sends, with the fields that nobody has set
    again = await ask(desk, room_name=first["room"], participant_identity="", room_config=None)
    assert again["room"] == first["room"]


async def test_who_starts_too_many_calls_waits_and_others_do_not(
    desk: Tokens, server: RoomService
) -> None:
    for _ in range(NEW_CALLS):
        await ask(desk, address="2001:db8::1")
    for address in "2001:db8::1", "2001:db8::abcd:1":
        with pytest.raises(Refused) as refused:
            await ask(desk, address=address)
        assert refused.value.status == 429
        seconds = int(refused.value.headers["Retry-After"])
        assert 0 < seconds <= 60
        assert f"wait for {seconds} s" in refused.value.json["error"]
    await ask(desk, address="2001:db8:1::1")
    await ask(desk, address="2001:db8::1", caller=Caller("ann"))
    assert len(server.made) == NEW_CALLS + 2


async def test_who_has_signed_in_waits_wherever_they_are(desk: Tokens, server: RoomService) -> None:
    for number in range(NEW_CALLS):
        await ask(desk, address=f"192.0.2.{number}", caller=Caller("ann"))
    with pytest.raises(Refused, match="Too many calls"):
        await ask(desk, address="192.0.2.99", caller=Caller("ann"))
    assert len(server.made) == NEW_CALLS


async def test_a_call_may_be_gone_on_with_when_no_new_one_may_be_started(
    desk: Tokens, server: RoomService
) -> None:
    *_, last = [await ask(desk) for _ in range(NEW_CALLS)]
    server.present = [AGENT]
    for _ in range(ASKS - NEW_CALLS):
        assert (await ask(desk, last["room"]))["room"] == last["room"]
    # which is not for ever either
    with pytest.raises(Refused, match="Too many calls"):
        await ask(desk, last["room"])
    assert len(server.made) == NEW_CALLS


async def test_an_application_says_how_many_calls_may_be_started(server: RoomService) -> None:
    desk = Tokens(load_settings(), origins={HERE}, new_calls=1)
    await ask(desk)
    with pytest.raises(Refused, match="Too many calls"):
        await ask(desk)


async def test_nobody_is_named_like_the_address_of_guests(desk: Tokens) -> None:
    for _ in range(NEW_CALLS):
        await ask(desk, caller=Caller("192.0.2.1"))
    await ask(desk, address="192.0.2.1")


def test_the_limit_counts_a_window_and_forgets_who_does_not_ask_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    limit = RateLimit(2, 10)
    waits = []

    def wait(who: str) -> int:
        try:
            limit.count(who)
        except Refused as refused:
            return int(refused.headers["Retry-After"])
        return 0

    for now, who in [  # noqa: B007 (the clock reads it)
        *((1000, "a"), (1004, "a"), (1005, "a"), (1009.5, "a")),
        *((1010, "a"), (1011, "b"), (1013, "a"), (1014, "a")),
    ]:
        waits.append(wait(who))
    assert waits == [0, 0, 5, 1, 0, 0, 1, 0]
    now = 1100
    wait("c")
    assert list(limit._asked) == ["c"]


async def test_a_server_that_is_away_or_refuses_the_keys_is_said_to_visitors_and_to_the_log(
    server: RoomService, caplog: pytest.LogCaptureFixture
) -> None:
    away = load_settings().model_copy(update={"livekit_url": "ws://127.0.0.1:1"})
    with pytest.raises(Refused) as refused:
        await ask(Tokens(away, origins={HERE}))
    assert refused.value.status == 503
    assert "try again" in refused.value.json["error"]
    assert "127.0.0.1" not in refused.value.json["error"]
    assert "ws://127.0.0.1:1" in caplog.text


async def test_a_guest_without_a_secret_is_a_mistake_of_the_application(desk: Tokens) -> None:
    with pytest.raises(ValueError, match="share a call"):
        await ask(desk, visitor="")


def test_browsers_get_the_address_of_the_websocket() -> None:
    assert websocket_url("https://a.livekit.cloud") == "wss://a.livekit.cloud"
    assert websocket_url("http://127.0.0.1:7880") == "ws://127.0.0.1:7880"
    assert websocket_url("wss://a.example") == "wss://a.example"


def test_an_address_of_ipv6_stands_for_its_network() -> None:
    assert network_of("2001:db8::1") == network_of("2001:db8::2") == "2001:db8::/64"
    assert network_of("192.0.2.1") == "192.0.2.1"
    assert network_of("unknown") == "unknown"
