"""`agent talk` and its tokens on a real livekit-server: what they let in, and what they stop."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import aiohttp
import psutil
import pytest
from livekit import rtc
from livekit.rtc.participant import PublishTrackError

from agent.settings import Settings, load_settings
from agent.web import Tokens
from tests.call.scene import cut_off
from tests.support.browser import chromium
from tests.support.caller import Caller
from tests.support.projects import Project, clean_environment
from tests.support.server import LiveKit, find_binary, free_port
from tests.support.worker import PATIENCE, worker
from tests.web.states import FAKE_MICROPHONE, click, says, state

pytestmark = pytest.mark.asyncio(loop_scope="session")

HERE = "127.0.0.1"
ORIGIN = "http://127.0.0.1:7890"


# ---------------------------------------------------------------------- tokens


@pytest.fixture
def settings(livekit: LiveKit, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings of this server, and of an agent that no other test has."""
    for name, value in livekit.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AGENT_NAME", f"agent-{uuid.uuid4().hex[:8]}")
    load_settings.cache_clear()
    return load_settings()


async def ask(tokens: Tokens, room: str = "", visitor: str = "ann") -> dict[str, str]:
    """An answer of the token endpoint."""
    body = f'{{"room": "{room}"}}'.encode()
    return await tokens.answer(body, origin=ORIGIN, address="192.0.2.1", who=visitor)


async def test_a_token_lets_a_guest_speak_and_nothing_more(settings: Settings) -> None:
    answer = await ask(Tokens(settings, origins={ORIGIN}))
    room, other = rtc.Room(), Tokens(settings, origins={ORIGIN}, life=timedelta(seconds=-120))
    try:
        await room.connect(answer["server_url"], answer["participant_token"])
        me = room.local_participant
        assert (room.name, me.identity) == (answer["room"], answer["identity"])
        microphone = rtc.LocalAudioTrack.create_audio_track("me", rtc.AudioSource(48_000, 1))
        await me.publish_track(
            microphone, rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_MICROPHONE)
        )
        await me.send_text("Are you open on Saturday?", topic="lk.chat")
        camera = rtc.LocalVideoTrack.create_video_track("me", rtc.VideoSource(16, 16))
        with pytest.raises(PublishTrackError):
            await me.publish_track(
                camera, rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_CAMERA)
            )
        await me.set_attributes({"plan": "full"})
        assert me.attributes == {}
    finally:
        await room.disconnect()
    expired = await ask(other)
    with pytest.raises(rtc.ConnectError):
        await rtc.Room().connect(expired["server_url"], expired["participant_token"])


async def test_a_page_that_is_loaded_again_goes_on_with_the_same_conversation(
    default_project: Project, livekit: LiveKit, settings: Settings
) -> None:
    tokens = Tokens(settings, origins={ORIGIN})
    async with worker(
        default_project.path, default_project.agent, livekit, AGENT_NAME=settings.name
    ) as running:
        first = await ask(tokens)
        room = first["room"]
        async with Caller(livekit, room, token=first["participant_token"]) as caller:
            assert "help" in await caller.hear_text()
            again = await ask(tokens, room)
            assert (again["room"], again["identity"]) == (room, first["identity"])
            async with Caller(livekit, room, token=again["participant_token"]) as reloaded:
                await cut_off(caller, PATIENCE)
                await reloaded.ask("Where can I park my bicycle?", "bicycle")
                stranger = await ask(tokens, room, visitor="bela")
                assert stranger["room"] != room
        end = await running.ended(room)
        assert (end["reason"], end["turns"]) == ("caller left", 3)
        assert (await ask(tokens, room))["room"] != room


# ---------------------------------------------------------------------- the command


def descendants(pid: int) -> list[psutil.Process]:
    """Its processes, and theirs: `uv run` may be one between."""
    return list(psutil.Process(pid).children(recursive=True))


def bound(process: psutil.Process) -> set[str]:
    """The addresses at which it is reached: its ports that listen, and those of UDP."""
    return {
        found.laddr.ip
        for found in process.net_connections("inet")
        if found.status in {psutil.CONN_LISTEN, psutil.CONN_NONE}
    }


@dataclass
class Talk:
    """A running `agent talk`."""

    process: asyncio.subprocess.Process
    address: str = ""
    err: list[str] = field(default_factory=list)

    async def read(self) -> None:
        """Collect what it says."""
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.err.append(line.decode().rstrip())

    @property
    def origin(self) -> str:
        """The page's."""
        return self.address.rstrip("/")

    def children(self) -> dict[str, psutil.Process]:
        """The livekit-server and the worker."""
        found = dict[str, psutil.Process]()
        for child in descendants(self.process.pid):
            line = " ".join(child.cmdline())
            if line.endswith(("-m agent dev --as-child", "-m agent start --as-child")):
                found["worker"] = child
            elif child.name().startswith("livekit-server"):
                found["livekit-server"] = child
        return found

    async def token(self, http: aiohttp.ClientSession, room: str = "") -> dict[str, str]:
        """An answer of its endpoint to its own page."""
        asked = http.post(
            f"{self.address}token", json={"room": room}, headers={"Origin": self.origin}
        )
        async with asked as answer:
            assert answer.status == 200, await answer.text()
            found: dict[str, str] = await answer.json()
            return found

    async def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal; the exit code."""
        self.process.send_signal(number)
        async with asyncio.timeout(PATIENCE):
            return await self.process.wait()


@asynccontextmanager
async def launched(project: Project, *options: str, **environment: str) -> AsyncIterator[Talk]:
    """`agent talk`, which has just begun; stopped on exit, with all that it has started."""
    # as on an owner's PATH
    link = project.path / "data" / "bin" / "livekit-server"
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.exists():
        link.symlink_to(find_binary())
    given = clean_environment(**{"AGENT_MODELS": "scripted", **environment})
    process = await asyncio.create_subprocess_exec(
        *(*project.agent, "talk", "--no-open", "--port", "0", *options),
        cwd=project.path,
        env={**given, "PATH": f"{link.parent}{os.pathsep}{given['PATH']}"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    running = Talk(process)
    reading = asyncio.create_task(running.read())
    try:
        yield running
    finally:
        if process.returncode is None:
            await running.stop()
        await reading


@asynccontextmanager
async def talking(project: Project, *options: str, **environment: str) -> AsyncIterator[Talk]:
    """The same, when it has said where the page is, or has given up."""
    async with launched(project, *options, **environment) as running:
        assert running.process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            running.address = (await running.process.stdout.readline()).decode().rstrip()
        yield running


async def test_it_needs_nothing_and_leaves_nothing_behind(default_project: Project) -> None:
    # livekit-server would heed them before its configuration
    others = {"REDIS_HOST": f"{HERE}:1", "LIVEKIT_KEYS": f"another: {'s' * 32}"}
    # and the SDK would ask it for a server on this machine, by either name
    others |= dict.fromkeys(("HTTP_PROXY", "http_proxy", "HTTPS_PROXY"), f"http://{HERE}:1")
    async with talking(default_project, **others) as page, aiohttp.ClientSession() as http:
        assert page.address.startswith("http://127.0.0.1:"), page.err
        assert page.err.count("loading LiveKit's SDK ...") <= 1
        async with http.get(page.address) as answer:
            assert answer.status == 200
        children = page.children()
        assert children.keys() == {"livekit-server", "worker"}
        theirs = [psutil.Process(page.process.pid), *descendants(page.process.pid)]
        assert {ip for each in theirs for ip in bound(each)} == {HERE}

        for _ in range(2):
            answered = await page.token(http)
            port = int(answered["server_url"].rpartition(":")[2])
            server = LiveKit(port, Path(), Path(), page.process)
            async with Caller(
                server, answered["room"], token=answered["participant_token"]
            ) as caller:
                # the second time, too: a guest is nobody whom the agent knows
                assert await caller.hear_text() == "Hello! How can I help you?"
                await caller.ask("Where can I park my bicycle?", "bicycle")

        assert await page.stop(signal.SIGINT) == 0
        assert [name for name, child in children.items() if child.is_running()] == []
    # whoever tries their own agent sees what they have said
    show = *default_project.agent, "report", answered["room"]
    shown = (await asyncio.to_thread(default_project.run, *show)).stdout
    assert "caller  Where can I park my bicycle?" in shown


async def test_its_page_talks_with_the_agent_in_a_browser(default_project: Project) -> None:
    async with (
        chromium(FAKE_MICROPHONE) as browser,
        talking(default_project) as running,
        browser.page(running.address) as page,
    ):
        await page.run(click("talk"))
        await page.until(f"{state('listening')} && {says('How can I help you?')}")
        await page.reload()
        await page.until(f"{state('listening')} && mute.textContent === 'Mute'")
        await page.run("text.focus()")
        await page.press(*"Where can I park my bicycle?", "Enter")
        await page.until(f"{says('white bicycle')} && {state('listening')}")
        assert await page.run("document.querySelectorAll('.agent').length") == 2
        await page.run(click("hang-up"))
        await page.until(says("You hung up."))
        # such as what its policy refused
        assert page.errors == []


@pytest.mark.parametrize("part", ["livekit-server", "worker"])
async def test_a_part_that_ends_ends_it_all_with_a_sentence(
    default_project: Project, part: str
) -> None:
    async with talking(default_project) as page:
        children = page.children()
        children[part].kill()
        async with asyncio.timeout(PATIENCE):
            assert await page.process.wait() == 1
        assert [name for name, child in children.items() if child.is_running()] == []
    assert f"{part} ended with exit code -9" in page.err[-1]


async def test_what_it_has_started_ends_with_it_when_it_is_killed(default_project: Project) -> None:
    async with talking(default_project) as page:
        children = page.children()
        theirs = descendants(page.process.pid)
        (own,) = {child.ppid() for child in children.values()}
        psutil.Process(own).kill()
        _, alive = psutil.wait_procs(theirs, PATIENCE)
        assert alive == []
        assert children.keys() == {"livekit-server", "worker"}


async def test_a_signal_while_it_starts_stops_what_has_started(default_project: Project) -> None:
    async with launched(default_project) as page:
        async with asyncio.timeout(PATIENCE):
            # another process: there is no event to await
            while "worker" not in (children := page.children()):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert await page.stop() == 128 + signal.SIGTERM
        assert [name for name, child in children.items() if child.is_running()] == []
        assert page.process.stdout is not None
        assert await page.process.stdout.read() == b""


@pytest.mark.parametrize("name", ["AGENT_PORT", "AGENT_METRICS_PORT"])
async def test_a_worker_that_cannot_start_is_a_sentence(
    default_project: Project, livekit: LiveKit, name: str
) -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        ports = {"AGENT_PORT": str(free_port()), name: str(port)}
        environment = {**livekit.environment, **ports}
        async with (
            talking(default_project, "--public", "http://127.0.0.1:7890", **environment) as page,
            asyncio.timeout(PATIENCE),
        ):
            assert await page.process.wait() == 2
    assert page.address == ""
    assert any(f"port {port} is in use" in line and name in line for line in page.err)
    ended = "the worker ended with exit code 2" in page.err[-1]
    # the other one is looked at before there is a worker
    assert ended == (name == "AGENT_METRICS_PORT")


async def test_others_are_let_in_by_the_server_that_is_named(
    default_project: Project, livekit: LiveKit
) -> None:
    public = "https://talk.example.com"
    async with (
        talking(default_project, "--public", public, "--no-worker", **livekit.environment) as page,
        aiohttp.ClientSession() as http,
    ):
        assert page.address == f"{public}/"
        assert page.children() == {}
        # all interfaces, where a proxy is in front of it
        (port,) = {
            found.laddr.port
            for process in [psutil.Process(page.process.pid), *descendants(page.process.pid)]
            for found in process.net_connections("tcp")
            if found.status == psutil.CONN_LISTEN and found.laddr.ip == "0.0.0.0"
        }
        for origin, status in (public, 200), (f"http://127.0.0.1:{port}", 403):
            asked = http.post(f"http://127.0.0.1:{port}/token", headers={"Origin": origin})
            async with asked as answer:
                assert answer.status == status
        assert await page.stop() == 0
