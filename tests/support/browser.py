"""A real Chromium, headless, driven over its DevTools protocol: what a caller's browser does."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest

from tests.support import debian

PATIENCE = 120.0
NAMES = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    "--headless=new",
    "--no-sandbox",  # which a container does not have
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--autoplay-policy=no-user-gesture-required",
    "--force-prefers-no-reduced-motion",
    "--remote-debugging-port=0",
)


def find_chromium() -> str | None:
    """The path of a Chromium, if there is one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def require_chromium() -> str:
    """Its path; without it the test is skipped, and fails under CI."""
    if found := find_chromium():
        return found
    reason = "no chromium on PATH: `apt-get install chromium`"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@dataclass(frozen=True)
class Looks:
    """How a page is shown."""

    scheme: str = "light"
    width: int = 720
    height: int = 720


LOOKS = Looks()


@dataclass
class Browser:
    """A running browser; every page of it is a stranger to the others, unless it is a `tab`."""

    socket: aiohttp.ClientWebSocketResponse
    _ids: itertools.count[int] = field(default_factory=itertools.count)
    _answers: dict[int, asyncio.Future[Any]] = field(default_factory=dict)
    _errors: dict[str, list[str]] = field(default_factory=dict)

    async def read(self) -> None:
        """Take in what the browser says until it ends."""
        async for message in self.socket:
            said = json.loads(message.data)
            if answer := self._answers.pop(said.get("id", -1), None):
                if answer.cancelled():
                    continue
                if "error" in said:
                    answer.set_exception(RuntimeError(said["error"]["message"]))
                else:
                    answer.set_result(said["result"])
            elif said.get("method") == "Runtime.exceptionThrown":
                details = said["params"]["exceptionDetails"]
                text = details.get("exception", {}).get("description") or details["text"]
                self._errors.setdefault(said["sessionId"], []).append(text)
            elif said.get("method") == "Log.entryAdded":
                entry = said["params"]["entry"]
                if entry["source"] == "security":
                    self._errors.setdefault(said["sessionId"], []).append(entry["text"])

    async def ask(self, method: str, session: str | None = None, **parameters: Any) -> Any:
        """Call a method of the protocol."""
        number = next(self._ids)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        message = {"id": number, "method": method, "params": parameters}
        await self.socket.send_json(message | ({"sessionId": session} if session else {}))
        async with asyncio.timeout(PATIENCE):
            return await answer

    @asynccontextmanager
    async def page(
        self, url: str, *, microphone: str = "granted", before: str = "", looks: Looks = LOOKS
    ) -> AsyncIterator[Page]:
        """A page of a caller who is new here; see `tab`."""
        context = (await self.ask("Target.createBrowserContext"))["browserContextId"]
        page = Page(self, context, url)
        try:
            await page.allow(microphone)
            await page.open(before, looks)
            yield page
        finally:
            await self.ask("Target.disposeBrowserContext", browserContextId=context)


@dataclass
class Page:
    """One tab."""

    browser: Browser
    context: str
    url: str
    session: str = ""

    async def open(self, before: str = "", looks: Looks = LOOKS) -> None:
        """Load the page; the script `before` runs before those of the page."""
        ask = self.browser.ask
        target = await ask("Target.createTarget", url="about:blank", browserContextId=self.context)
        attached = await ask("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            await self.ask(f"{domain}.enable")
        await self.show(looks)
        if before:
            await self.ask("Page.addScriptToEvaluateOnNewDocument", source=before)
        await self.ask("Page.navigate", url=self.url)
        await self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    async def tab(self) -> Page:
        """Another tab of the same caller."""
        page = Page(self.browser, self.context, self.url)
        await page.open()
        return page

    async def ask(self, method: str, **parameters: Any) -> Any:
        """Call a method of the protocol, for this page."""
        return await self.browser.ask(method, self.session, **parameters)

    async def show(self, looks: Looks) -> None:
        """Show it like this."""
        features = [{"name": "prefers-color-scheme", "value": looks.scheme}]
        await self.ask("Emulation.setEmulatedMedia", features=features)
        await self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=looks.width,
            height=looks.height,
            deviceScaleFactor=1,
            mobile=looks.width < 500,
        )

    async def allow(self, setting: str) -> None:
        """Set the permission of the microphone: granted, denied or prompt."""
        await self.browser.ask(
            "Browser.setPermission",
            permission={"name": "microphone"},
            setting=setting,
            browserContextId=self.context,
        )

    async def run(self, script: str) -> Any:
        """The value of an expression in the page; promises are awaited."""
        done = await self.ask(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in done:
            details = done["exceptionDetails"]
            raise AssertionError(details.get("exception", {}).get("description", details["text"]))
        return done["result"].get("value")

    async def until(self, script: str) -> Any:
        """Wait until an expression in the page is true; its value."""
        try:
            async with asyncio.timeout(PATIENCE):
                # another process: there is no event to await
                while not (value := await self._try(script)):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
                return value
        except TimeoutError:
            text = await self._try("document.body.innerText")
            raise AssertionError(f"never in the page: {script}\n{text}\n{self.errors}") from None

    async def _try(self, script: str) -> Any:
        try:
            return await self.run(script)
        except RuntimeError:  # between two documents
            return None

    async def press(self, *keys: str) -> None:
        """Press these keys, or type these characters, one after another."""
        codes = {"Tab": 9, "Enter": 13, " ": 32, "Escape": 27}
        for key in keys:
            text = "\r" if key == "Enter" else key if len(key) == 1 else ""
            pressed = {"key": key, "windowsVirtualKeyCode": codes.get(key, 0)}
            await self.ask("Input.dispatchKeyEvent", type="keyDown", text=text, **pressed)
            await self.ask("Input.dispatchKeyEvent", type="keyUp", **pressed)

    async def reload(self) -> None:
        """As a person reloads a page."""
        await self.run("window.old = true")
        await self.ask("Page.reload")
        await self.until("!window.old && document.readyState === 'complete'")

    async def picture(self) -> bytes:
        """What is to be seen, as a PNG file."""
        shot = await self.ask("Page.captureScreenshot", format="png")
        return base64.b64decode(shot["data"])

    @property
    def errors(self) -> list[str]:
        """What its scripts threw, and what its policy refused."""
        return self.browser._errors.get(self.session, [])


@asynccontextmanager
async def chromium(*flags: str) -> AsyncIterator[Browser]:
    """A browser with a profile of its own, ended on exit."""
    program = require_chromium()
    # it writes into its profile until the last of its processes has ended
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = await asyncio.create_subprocess_exec(
            program,
            *QUIET,
            f"--user-data-dir={profile}",
            *flags,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(PATIENCE):
                address = await _address(process)
            async with (
                aiohttp.ClientSession() as http,
                http.ws_connect(address, max_msg_size=0) as socket,
            ):
                browser = Browser(socket)
                reading = asyncio.gather(browser.read(), _drain(process))
                try:
                    yield browser
                finally:
                    await socket.close()
                    if process.returncode is None:
                        process.terminate()
                    await reading
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def _address(process: asyncio.subprocess.Process) -> str:
    said = ""
    assert process.stderr is not None
    async for line in process.stderr:
        said += line.decode(errors="replace")
        if "DevTools listening on " in said:
            return said.rpartition("DevTools listening on ")[2].strip()
    raise RuntimeError(f"chromium ended at once: {said[-2000:]}")


async def _drain(process: asyncio.subprocess.Process) -> None:
    assert process.stderr is not None
    async for _ in process.stderr:
        pass


# Runs before the tests, where only one process installs.
if __name__ == "__main__" and not find_chromium():
    print("installing chromium, in which tests open the page (once) ...", flush=True)
    why = "it is neither on PATH nor to be installed by this user"
    try:
        installed = debian.install("chromium")
    except RuntimeError as error:
        installed, why = False, str(error)
    if not installed:
        print(f"no chromium, so tests of the page are skipped (and fail under CI): {why}")
