"""The page and its endpoint, as a browser gets them."""

from __future__ import annotations

import gzip
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from agent.callers import caller_of
from agent.settings import load_settings
from agent.transport import Caller
from agent.web import Tokens
from agent.web.app import COOKIE, CallerOf, address_of, page_headers, web_app
from agent.web.tokens import NEW_CALLS
from tests.support.room_service import room_service

HERE = "https://talk.example.com"
ASKING = {"Origin": HERE}
Client = TestClient[web.Request, web.Application]


@pytest.fixture
def page(tmp_path: Path) -> Path:
    page = tmp_path / "page"
    page.mkdir()
    (page / "index.html").write_text("<!doctype html><title>Talk</title>\n", encoding="utf-8")
    (page / "talk.js").write_text('"use strict";\n' * 200, encoding="utf-8")
    (page / "talk.css").write_text("body { color: black; }\n", encoding="utf-8")
    (page / "LICENSES.txt").write_text("Apache-2.0\n", encoding="utf-8")
    return page


@pytest.fixture
async def client(page: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Client]:
    async with serving(page, monkeypatch, caller_of) as found:
        yield found


@asynccontextmanager
async def serving(
    page: Path,
    monkeypatch: pytest.MonkeyPatch,
    who: CallerOf,
    around: Callable[[web.Application], web.Application] = lambda app: app,
) -> AsyncIterator[Client]:
    async with room_service() as service:
        for name, value in service.environment.items():
            monkeypatch.setenv(name, value)
        load_settings.cache_clear()
        tokens = Tokens(load_settings(), origins={HERE})
        app = web_app(tokens, who, livekit_url="ws://127.0.0.1:7880", page=page)
        async with TestClient(TestServer(around(app))) as client:
            yield client


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "text/html"),
        ("/talk.js", "text/javascript"),
        ("/talk.css", "text/css"),
        ("/LICENSES.txt", "text/plain"),
    ],
)
async def test_the_files_of_the_page_are_served_and_asked_for_again_cheaply(
    client: Client, page: Path, path: str, kind: str
) -> None:
    first = await client.get(path)
    assert (first.status, first.content_type, first.charset) == (200, kind, "utf-8")
    assert first.headers["Cache-Control"] == "no-cache"
    assert await first.read() == (page / (path[1:] or "index.html")).read_bytes()

    again = await client.get(path, headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status, await again.read()) == (304, b"")


async def test_files_travel_compressed_to_those_who_understand_it(
    client: Client, page: Path
) -> None:
    asked = {"Accept-Encoding": "gzip, br"}
    async with client.session.get(
        client.make_url("/talk.js"), headers=asked, auto_decompress=False
    ) as answer:
        assert answer.headers["Content-Encoding"] == "gzip"
        assert answer.headers["Vary"] == "Accept-Encoding"
        assert gzip.decompress(await answer.read()) == (page / "talk.js").read_bytes()
    async with client.session.get(
        client.make_url("/talk.js"), headers={"Accept-Encoding": "identity"}
    ) as plain:
        assert "Content-Encoding" not in plain.headers


@pytest.mark.parametrize("path", ["/tokens.py", "/../app.py", "/..%2fapp.py", "/page", "/.env"])
async def test_nothing_else_is_served(client: Client, path: str) -> None:
    assert (await client.get(path)).status == 404


@pytest.mark.parametrize("path", ["/", "/talk.js", "/nothing"])
async def test_every_answer_keeps_the_browser_to_this_page_and_its_server(
    client: Client, path: str
) -> None:
    headers = (await client.get(path)).headers
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "connect-src 'self' ws://127.0.0.1:7880 http://127.0.0.1:7880;" in policy
    assert not re.search(r"unsafe|\*|https:", policy)
    assert "frame-ancestors 'none'" in policy
    assert headers["Permissions-Policy"].startswith("microphone=(self), camera=()")
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"


def test_on_livekit_cloud_the_regions_are_reached_too() -> None:
    policy = page_headers("wss://a-project.livekit.cloud")["Content-Security-Policy"]
    assert "wss://a-project.livekit.cloud https://a-project.livekit.cloud" in policy
    assert "wss://*.livekit.cloud" in policy
    assert "ws://" not in policy


async def test_a_visitor_gets_a_token_and_a_cookie_that_scripts_cannot_read(
    client: Client,
) -> None:
    answer = await client.post("/token", json={}, headers=ASKING)
    assert (answer.status, answer.headers["Cache-Control"]) == (200, "no-store")
    assert (await answer.json()).keys() == {"server_url", "participant_token", "room", "identity"}
    cookie = answer.cookies[COOKIE]
    assert (cookie["httponly"], cookie["samesite"], cookie["secure"]) == (True, "Strict", True)
    assert len(cookie.value) == 32


async def test_the_cookie_lets_a_visitor_go_on_and_nobody_without_it(client: Client) -> None:
    first = await (await client.post("/token", headers=ASKING)).json()
    # of this https address, which the test's client does not believe in
    (cookie,) = client.session.cookie_jar
    mine = {**ASKING, "Cookie": f"{COOKIE}={cookie.value}"}
    again = await client.post("/token", json={"room": first["room"]}, headers=mine)
    theirs = await client.post("/token", json={"room": first["room"]}, headers=ASKING)
    assert COOKIE not in again.cookies
    assert (await theirs.json())["room"] != first["room"]


async def test_a_cookie_that_has_been_emptied_is_given_anew(client: Client) -> None:
    answer = await client.post("/token", headers={**ASKING, "Cookie": f"{COOKIE}="})
    assert len(answer.cookies[COOKIE].value) == 32


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({}, b"{}", 403),
        ({"Origin": "https://evil.example"}, b"{}", 403),
        (ASKING, b"nonsense", 400),
        (ASKING, b'{"room": "' + b"a" * 10_000 + b'"}', 400),
    ],
)
async def test_a_refusal_is_a_sentence(
    client: Client, headers: dict[str, str], body: bytes, status: int
) -> None:
    answer = await client.post("/token", data=body, headers=headers)
    assert answer.status == status
    assert re.fullmatch(r"[A-Z].*\.", (await answer.json())["error"])


async def test_who_calls_too_often_is_told_for_how_long_to_wait(client: Client) -> None:
    answers = [await client.post("/token", headers=ASKING) for _ in range(NEW_CALLS + 1)]
    assert [answer.status for answer in answers] == [*[200] * NEW_CALLS, 429]
    assert int(answers[-1].headers["Retry-After"]) > 0


async def test_only_posts_get_tokens(client: Client) -> None:
    assert (await client.get("/token", headers=ASKING)).status == 405


async def test_the_owner_says_who_calls_or_refuses(
    page: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def by_header(request: web.Request) -> Caller | None:
        match request.headers.get("X-Test"):
            case "ann":
                return Caller("ann")
            case "refused":
                raise web.HTTPUnauthorized(text="Sign in to call.")
            case "broken":
                raise KeyError("session")
        return None

    async with serving(page, monkeypatch, by_header) as client:

        async def as_(name: str) -> tuple[int, dict[str, str]]:
            answer = await client.post("/token", headers={**ASKING, "X-Test": name})
            return answer.status, await answer.json()

        assert (await as_("ann"))[1]["identity"] == "ann"
        assert (await as_("nobody"))[1]["identity"].startswith("guest-")
        assert await as_("refused") == (401, {"error": "Sign in to call."})
        status, said = await as_("broken")
        assert (status, "session" in said["error"]) == (500, False)
        assert "KeyError: 'session'" in caplog.text


async def test_the_owner_is_not_asked_who_calls_from_another_page(
    page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def looked_up(request: web.Request) -> Caller | None:
        asked.append(request.headers["Origin"])
        return None

    asked = list[str]()
    async with serving(page, monkeypatch, looked_up) as client:
        for origin in "https://evil.example", HERE:
            await client.post("/token", headers={"Origin": origin})
    assert asked == [HERE]


async def test_nobody_is_known_by_default() -> None:
    asked: Callable[[web.Request], Awaitable[Caller | None]] = caller_of
    assert await asked(None) is None  # type: ignore[arg-type]


async def test_an_application_can_have_it_below_a_path(
    page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def below(app: web.Application) -> web.Application:
        site = web.Application()
        site.add_subapp("/talk/", app)
        return site

    async with serving(page, monkeypatch, caller_of, below) as client:
        assert (await client.get("/talk/")).status == 200
        assert (
            "default-src 'none'" in (await client.get("/talk/")).headers["Content-Security-Policy"]
        )
        assert (await client.post("/talk/token", headers=ASKING)).status == 200


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("192.88.99.1", None, "192.88.99.1"),
        ("192.88.99.1", "1.2.3.4", "192.88.99.1"),
        ("127.0.0.1", "9.9.9.9, 1.2.3.4", "1.2.3.4"),
        ("10.0.0.7", "1.2.3.4", "1.2.3.4"),
        ("127.0.0.1", None, "127.0.0.1"),
        (None, "1.2.3.4", "1.2.3.4"),
        (None, None, ""),
        ("10.0.0.9", "203.0.113.7:40122", "203.0.113.7"),
    ],
)
def test_a_proxy_beside_it_is_believed_and_a_visitor_is_not(
    peer: str | None, forwarded: str | None, address: str
) -> None:
    assert address_of(peer, forwarded) == address
