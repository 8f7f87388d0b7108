"""The code on the page about the page works; FastAPI's and Django's are compiled only."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from markdown_it import MarkdownIt

from agent.settings import load_settings
from agent.web import Tokens, app, tokens
from agent.web.app import web_app
from tests.support.room_service import room_service
from tests.support.templates import ROOT

Node = TypeVar("Node", bound=ast.AST)
PAGE = (ROOT / "template" / "docs" / "agent" / "web.md").read_text(encoding="utf-8")


def blocks(section: str, language: str = "python") -> list[str]:
    """The code of a section, of any depth, in that language."""
    text = PAGE.split(f"# {section}\n")[1].split("\n#")[0]
    fences = [token for token in MarkdownIt().parse(text) if token.type == "fence"]
    return [token.content for token in fences if token.info == language]


def found(code: str, kind: type[Node], wanted: Callable[[Node], bool]) -> list[Node]:
    """The parts of this code that are of a kind, and wanted."""
    return [node for node in ast.walk(ast.parse(code)) if isinstance(node, kind) and wanted(node)]


async def test_an_aiohttp_application_is_what_is_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "index.html").write_text("<!doctype html>\n", encoding="utf-8")
    assert web_app.__kwdefaults__ is not None
    monkeypatch.setitem(web_app.__kwdefaults__, "page", tmp_path)
    ran = list[web.Application]()
    monkeypatch.setattr(web, "run_app", lambda site, port: ran.append(site))
    (code,) = blocks("aiohttp")
    async with room_service() as service:
        for name, value in service.environment.items():
            monkeypatch.setenv(name, value)
        load_settings.cache_clear()
        exec(compile(code, "web.md", "exec"), {})
        async with TestClient(TestServer(ran[0])) as client:
            assert (await client.get("/talk/")).status == 200
            asking = {"Origin": "https://example.com"}
            assert (await client.post("/talk/token", headers=asking)).status == 200


@pytest.mark.parametrize("section", ["FastAPI", "Django"])
def test_the_other_applications_look_nobody_up_before_the_endpoint_asks(section: str) -> None:
    (code,) = blocks(section)
    (endpoint,) = found(code, ast.AsyncFunctionDef, lambda node: node.name == "token")
    (asked,) = found(code, ast.Call, lambda node: ast.unparse(node.func) == "tokens.answer")
    names = {word.arg or "": ast.unparse(word.value) for word in asked.keywords}
    inspect.signature(Tokens.answer).bind("self", *asked.args, **names)
    assert names["who"] == "who"
    endpoint.body = [part for part in endpoint.body if not isinstance(part, ast.AsyncFunctionDef)]
    assert not re.search(r"session|user", ast.unparse(endpoint))


@pytest.mark.parametrize("section", ["FastAPI", "Django"])
def test_no_answer_of_the_other_applications_is_kept(section: str) -> None:
    (code,) = blocks(section)
    answers = found(code, ast.Call, lambda node: ast.unparse(node.func).lower() == "jsonresponse")
    assert len(answers) == 2
    for answer in answers:
        assert re.search(r"NO_STORE|refused\.headers", ast.unparse(answer))


@pytest.mark.parametrize("section", ["Who calls", "FastAPI", "Django", "Next.js"])
def test_the_other_code_is_python_and_imports_what_is_there(section: str) -> None:
    (code,) = blocks(section)
    compile(code, "web.md", "exec")
    ours = [line for line in code.splitlines() if line.startswith("from agent")]
    assert ours
    exec("\n".join(ours), dict[str, Any]())


def test_the_numbers_on_the_page_are_those_of_the_endpoint() -> None:
    assert f"more than {tokens.NEW_CALLS} new calls in a minute" in PAGE
    assert f"more than {tokens.ASKS} requests in a minute" in PAGE
    assert tokens.ASK_SECONDS == 60
    assert "good for five minutes" in PAGE
    assert tokens.TOKEN_LIFE.total_seconds() == 300
    for name in app.guest.__module__, app.web_app.__name__, app.page_headers.__name__:
        assert name in PAGE
