"""What this project owes its owner: it imports, reads its settings, and ends its calls right.

The rows of docs/agent/ending-calls.md that say *here* are run without a server: whatever happens,
the call has one reason, and nothing is left behind. The template proves the rest.
"""

from __future__ import annotations

import asyncio
import importlib
import pkgutil
import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from livekit.agents import (
    APIConnectOptions,
    APIStatusError,
    ModelSettings,
    function_tool,
    llm,
    tts,
    utils,
)
from livekit.agents.types import DEFAULT_API_CONNECT_OPTIONS

import agent
from agent import entrypoint
from agent.conversation import CallAgent
from agent.lifecycle import Call, Step, timeouts
from agent.memory import CallRecord, Note, Profile, Turn
from agent.models.scripted import ScriptedLLM, ScriptedTTS
from agent.settings import Settings, load_settings
from agent.telemetry import Journal

from .talk import FakeTransport

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "agent" / "ending-calls.md"

OPENED = ["room", "memory", "pool", "session"]  # knowledge aside, which not every project has
PLUGINS_READ = {"OPENAI_API_KEY", "DEEPGRAM_API_KEY", "CARTESIA_API_KEY"}
FATAL = APIStatusError("the key is no longer valid", status_code=401, retryable=False)


# ---------------------------------------------------------------------- the project


def test_every_module_can_be_imported() -> None:
    for module in pkgutil.walk_packages(agent.__path__, "agent."):
        if module.name != "agent.ignore_sigterm":  # which is for the SDK's fork server alone
            importlib.import_module(module.name)


def test_the_settings_are_read_and_the_example_names_no_others() -> None:
    assert load_settings().home == ROOT
    fields = Settings.model_fields.items()
    known = {field.alias or f"AGENT_{name.upper()}" for name, field in fields} | PLUGINS_READ
    (example,) = ROOT.glob(".env.example*")  # in the template itself it is not rendered yet
    shown = example.read_text(encoding="utf-8").partition("yours below")[0]
    assert set(re.findall(r"^(?:# )?([A-Z][A-Z_]+)=", shown, re.MULTILINE)) <= known


# ---------------------------------------------------------------------- the table of ends


@dataclass(frozen=True)
class End:
    """One row; the page says what `heard` and `room` mean."""

    name: str
    what: str
    reason: str
    heard: str
    room: str
    proven: frozenset[str]  # server, phone, here


def read(page: Path = PAGE) -> dict[str, End]:
    """Every row of the page, by name."""
    found: dict[str, End] = {}
    for line in page.read_text(encoding="utf-8").splitlines():
        if match := re.fullmatch(r"\| `([a-z0-9-]+)` \|(.*)\|", line):
            what, reason, heard, room, proven = (cell.strip() for cell in match[2].split(" | "))
            assert match[1] not in found, f"{match[1]} is in the table twice"
            found[match[1]] = End(
                match[1], what, reason, heard, room, frozenset(proven.split(", "))
            )
    return found


ENDS = read()


def ends(*names: str) -> pytest.MarkDecorator:
    """Run a test with `end` as each of these rows."""
    return pytest.mark.parametrize("end", [ENDS[name] for name in names], ids=names)


def proven_in(folder: Path) -> set[str]:
    """The rows that the tests of a folder name in `@ends(…)`."""
    named: set[str] = set()
    for file in sorted(folder.glob("test_*.py")):
        for arguments in re.findall(
            r"^\s*@ends\(([^)]*)\)", file.read_text(encoding="utf-8"), re.M
        ):
            named |= set(re.findall(r'"([a-z0-9-]+)"', arguments))
    return named


# ---------------------------------------------------------------------- parts that make trouble


class Remembered:
    """A `CallMemory` of strangers; it is there also in a project that was made without memory."""

    def __init__(self) -> None:
        self.key: str | None = None
        self.turns: list[Turn] = []
        self.records: list[CallRecord] = []

    def key_of(self, identity: str, kind: str, attributes: Mapping[str, str]) -> str | None:
        return identity if kind == "standard" else None

    def identify(self, key: str | None) -> None:
        self.key = key

    async def recall(self) -> Profile | None:
        return None

    def add_turn(self, turn: Turn) -> None:
        if self.key is not None:
            self.turns.append(turn)

    def add_note(self, note: Note) -> bool:
        return False

    def add_call(self, record: CallRecord) -> None:
        if self.key is not None:
            self.records.append(record)


class TroubledLLM(ScriptedLLM):
    """Fails, hangs or breaks off where the caller's last words say so."""

    def chat(self, *, chat_ctx: llm.ChatContext, **options: Any) -> llm.LLMStream:
        said = [
            item
            for item in chat_ctx.items
            if isinstance(item, llm.ChatMessage) and item.role == "user"
        ]
        words = (said[-1].text_content or "") if said else ""
        if not words.startswith("llm "):
            return super().chat(chat_ctx=chat_ctx, **options)
        conn_options: APIConnectOptions = options.get("conn_options", DEFAULT_API_CONNECT_OPTIONS)
        return TroubledStream(words, self, chat_ctx=chat_ctx, tools=[], conn_options=conn_options)


class TroubledStream(llm.LLMStream):
    def __init__(self, words: str, *args: Any, **options: Any) -> None:
        self._words = words
        super().__init__(*args, **options)

    async def _run(self) -> None:
        if "hang" in self._words:
            await asyncio.Event().wait()
        if "break off" in self._words:
            delta = llm.ChoiceDelta(role="assistant", content="The answer is ")
            self._event_ch.send_nowait(llm.ChatChunk(id=utils.shortuuid(), delta=delta))
            await asyncio.sleep(0)
        raise FATAL


class TroubledTTS(ScriptedTTS):
    """Fails or hangs where the text says so."""

    def synthesize(
        self, text: str, *, conn_options: APIConnectOptions = DEFAULT_API_CONNECT_OPTIONS
    ) -> tts.ChunkedStream:
        if "voice" not in text:
            return super().synthesize(text, conn_options=conn_options)
        return TroubledVoice(tts=self, input_text=text, conn_options=conn_options)


class TroubledVoice(tts.ChunkedStream):
    async def _run(self, output_emitter: tts.AudioEmitter) -> None:
        if "hang" in self.input_text:
            await asyncio.Event().wait()
        raise FATAL


class NeverConnects(llm.Toolset):
    def __init__(self) -> None:
        super().__init__(id="never connects")

    async def setup(self) -> NeverConnects:
        await asyncio.Event().wait()
        return self


class Troubled(CallAgent):
    """A persona with tools and a greeting for every trouble."""

    must_have_tools = frozenset({"never connects"})

    def __init__(self, call: Call, trouble: str) -> None:
        if trouble == "step-3-fails":
            raise ValueError("no such persona")
        self.trouble = trouble
        tools: list[llm.Tool | llm.Toolset] = [NeverConnects()] if trouble == "step-5-hangs" else []
        super().__init__(call, instructions="", llm=TroubledLLM(), tts=TroubledTTS(), tools=tools)
        if trouble == "task-hangs":
            call.spawn(asyncio.Event().wait(), name="never ends")

    async def welcome(self, profile: Profile | None) -> None:
        if self.trouble == "step-6-fails":
            raise KeyError("no greeting")
        if self.trouble == "step-6-hangs":
            await asyncio.Event().wait()
        await super().welcome(profile)

    @function_tool
    async def hang(self) -> str:
        """Take for ever."""
        await asyncio.Event().wait()
        return ""

    @function_tool
    async def fail(self) -> str:
        """Raise."""
        raise ValueError("a mistake")

    @function_tool
    async def end_three_times(self) -> str:
        """Three causes at one instant."""
        await self.call.hang_up()
        self.session.shutdown()
        self.call.shut_down()
        return ""


@asynccontextmanager
async def pool(trouble: str) -> AsyncIterator[None]:
    """A resource that makes trouble."""
    if trouble == "step-1-fails":
        raise ConnectionError("the database is down")
    if trouble == "step-1-hangs":
        await asyncio.Event().wait()
    yield
    if trouble == "close-hangs":
        await asyncio.Event().wait()
    if trouble == "close-raises":
        raise ConnectionError("lost")
    if trouble == "close-is-slow":
        await asyncio.sleep(0.1)
    until = time.monotonic() + 1
    while trouble == "close-clings" and time.monotonic() < until:
        try:
            await asyncio.sleep(1)
        except asyncio.CancelledError:
            continue


# ---------------------------------------------------------------------- a call that is in trouble


class Scene:
    """A call with everything in it; `expect` is what every end owes."""

    def __init__(
        self, end: End, patch: pytest.MonkeyPatch, *, connects: bool = True, **changes: object
    ) -> None:
        self.end, self.memory, self.transport = end, Remembered(), FakeTransport(connects=connects)
        self.agent: Troubled

        @asynccontextmanager
        async def open_memory(settings: Settings, journal: Journal) -> AsyncIterator[Remembered]:
            yield self.memory

        async def open_resources(call: Call) -> None:
            await call.open("pool", pool(end.name), open_seconds=0.2, close_seconds=0.2)

        def build_persona(call: Call) -> CallAgent:
            self.agent = Troubled(call, end.name)
            return self.agent

        patch.setattr(entrypoint, "open_memory", open_memory)
        patch.setattr(entrypoint, "open_resources", open_resources)
        patch.setattr(entrypoint, "build_persona", build_persona)
        quick = {
            "reply_seconds": 0.1,
            "tool_seconds": 0.1,
            "tool_finish_seconds": 0.1,
            **changes,
        }
        self.call = Call(self.transport, load_settings().model_copy(update=quick))

    async def begin(self, caller: str | None = "ann") -> None:
        """The call begins, with a caller or without."""
        if caller is not None:
            self.transport.arrive(caller)
        await self.call.start(entrypoint.run_call)

    async def talk(self) -> None:
        """The call begins, and gets to its conversation."""
        await self.begin()
        assert await self.call.wait_greeted(), self.call.reason

    async def say(self, words: str) -> str:
        """Say something; what the agent has said since."""
        assert self.call.session is not None
        before = len(self.said)
        run: asyncio.Future[Any] = asyncio.ensure_future(self.call.session.run(user_input=words))
        over = asyncio.create_task(self.call.wait_ended())
        await asyncio.wait([run, over], return_when=asyncio.FIRST_COMPLETED)
        over.cancel()
        run.cancel()
        return " ".join(self.said[before:])

    @property
    def said(self) -> list[str]:
        """What the agent has said."""
        assert self.call.session is not None
        return [
            m.text_content or ""
            for m in self.call.session.history.messages()
            if m.role == "assistant"
        ]

    async def expect(
        self, opened: list[str] | None = None, badly: Mapping[str, str] | None = None
    ) -> None:
        """The call ends as the table says: all is closed, memory is complete, the caller gone."""
        async with asyncio.timeout(20):
            await self.call.wait_ended()
            await self.call.wait_closed()
        assert self.call.reason == self.end.reason
        assert self.transport.finished_with == [self.end.reason]
        closed = [(name, outcome) for name, outcome in self.call.closed if name != "knowledge"]
        opened, badly = opened or OPENED, badly or {}
        assert sorted(closed) == sorted((name, badly.get(name, "ok")) for name in opened)
        assert not self.transport.connected
        known = (
            self.call.caller is not None and self.call.caller.kind == "standard"
        )  # phones only if the owner says so
        assert len(self.memory.turns) == (self.call.turns if known else 0)
        if "memory" in opened and known:
            assert [(record.reason, record.turns) for record in self.memory.records] == [
                (self.end.reason, self.call.turns)
            ]
        nobody_is_left = {
            "ended": self.transport.rooms_ended == 1,
            "kept": self.transport.rooms_ended == 0,
        }
        assert nobody_is_left.get(self.end.room, True)
        if self.end.heard == "goodbye":
            assert self.said[-1] == self.agent.goodbye(self.end.reason)


def test_every_end_of_the_table_that_is_said_to_be_proven_here_is() -> None:
    assert proven_in(Path(__file__).parent) == {
        name for name, end in ENDS.items() if "here" in end.proven
    }


# ---------------------------------------------------------------------- the caller


@ends("leaves-listening", "leaves-in-tool")
async def test_the_caller_hangs_up(end: End, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(end, monkeypatch, tool_seconds=60)
    await scene.talk()
    asking = asyncio.create_task(
        scene.say("/tool hang {}" if end.name == "leaves-in-tool" else "hello")
    )
    await asyncio.sleep(0.05)
    scene.transport.leave()
    await scene.expect()
    await asking


@ends("dropped", "phone-dropped")
async def test_the_connection_breaks_for_good(end: End, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(end, monkeypatch, rejoin_seconds=0.05)
    scene.transport.arrive(kind="sip" if end.name == "phone-dropped" else "standard")
    await scene.call.start(entrypoint.run_call)
    assert await scene.call.wait_greeted()
    scene.transport.drop()
    await scene.expect()


@ends("rejoins")
async def test_the_caller_comes_back_twice(end: End, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(end, monkeypatch, rejoin_seconds=60)
    await scene.talk()
    greeted = scene.said
    windows: list[asyncio.TimerHandle | None] = []
    for _ in range(2):
        scene.transport.drop()
        windows.append(scene.call._rejoin_timer)
        scene.transport.come_back()
    first, second = windows
    assert first is not None
    assert second is not None
    assert first.cancelled()
    assert second.when() > first.when()  # a whole window again
    assert scene.said == greeted
    scene.transport.leave()
    await scene.expect()


@ends("no-show")
async def test_nobody_comes(end: End, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(end, monkeypatch, caller_wait_seconds=0.05)
    await scene.begin(caller=None)
    await scene.expect(opened=["room", "memory", "pool"])


@ends("too-silent", "too-long")
async def test_a_call_has_limits(end: End, monkeypatch: pytest.MonkeyPatch) -> None:
    limit: dict[str, Any] = (
        {"max_call_seconds": 0.5} if end.name == "too-long" else {"max_silence_seconds": 0.2}
    )
    scene = Scene(end, monkeypatch, **limit)
    await scene.begin()
    await scene.expect()


@ends("too-expensive")
async def test_a_call_may_cost_so_much(
    end: End, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    prices = 'date = "today"\n[minutes]\nroom = 1e9\n'
    (tmp_path / "prices.toml").write_text(prices, encoding="utf-8")
    scene = Scene(end, monkeypatch, home=tmp_path, max_call_cost=0.01)
    await scene.talk()
    await scene.say("hello")
    await scene.expect()


# ---------------------------------------------------------------------- agent, server and worker


@ends("room-deleted", "agent-removed")
async def test_the_room_is_lost(end: End, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(end, monkeypatch)
    await scene.talk()
    scene.transport.close_room(removed=end.name == "agent-removed")
    await scene.expect()


@ends("agent-hangs-up", "three-at-once")
async def test_the_agent_hangs_up(end: End, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(end, monkeypatch)
    await scene.talk()
    await scene.say("goodbye" if end.name == "agent-hangs-up" else "/tool end_three_times {}")
    await scene.expect()


@ends("dev-stop")
async def test_the_worker_is_stopped(end: End, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(end, monkeypatch)
    await scene.talk()
    assert scene.call.session is not None
    await scene.call.session.aclose()  # what the SDK does first when a job is to end
    await scene.expect()


@ends("worker-killed")
async def test_the_worker_is_killed(end: End, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the SDK cancels every task of a job at once, and runs no callback."""
    scene = Scene(end, monkeypatch)
    before = asyncio.all_tasks()
    await scene.talk()
    await scene.say("hello")
    tasks = asyncio.all_tasks() - before
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert scene.call.reason == end.reason
    assert (scene.transport.connected, scene.transport.rooms_ended) == (False, 1)
    assert len(scene.memory.turns) == scene.call.turns == 3
    assert [record.reason for record in scene.memory.records] == [end.reason]


# ---------------------------------------------------------------------- something fails or hangs


@ends(
    "step-1-fails",
    "step-1-hangs",
    "step-2-fails",
    "step-3-fails",
    "step-5-hangs",
    "step-6-fails",
    "step-6-hangs",
)
async def test_a_step_fails_or_hangs(end: End, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Step.CONNECT, "seconds", 0.2)
    monkeypatch.setattr(Step.START_SESSION, "seconds", 1.0)
    monkeypatch.setattr(Step.GREET, "seconds", 1.0)
    scene = Scene(end, monkeypatch, connects=end.name != "step-2-fails")
    await scene.begin()
    opened = {"1": ["room", "memory"], "2": ["memory", "pool"], "3": ["room", "memory", "pool"]}
    opened["5"] = opened["3"]
    await scene.expect(opened.get(end.name[5]))


@ends("llm-fails", "llm-hangs", "llm-breaks-off")
async def test_the_language_model_fails_one_reply(
    end: End, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(end, monkeypatch)
    await scene.talk()
    words = {"llm-fails": "llm fail", "llm-hangs": "llm hang", "llm-breaks-off": "llm break off"}
    assert scene.agent.sorry() in await scene.say(words[end.name])
    assert await scene.say("thank you") == "You are welcome."
    scene.transport.leave()
    await scene.expect()


@ends("llm-fails-for-good")
async def test_the_language_model_fails_again_and_again(
    end: End, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(end, monkeypatch)
    await scene.talk()
    for _ in range(3):
        await scene.say("llm fail")
    await scene.expect()


async def test_a_reply_that_succeeds_forgives_those_that_did_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene = Scene(ENDS["llm-fails"], monkeypatch)
    await scene.talk()
    for words in ("llm fail", "llm fail", "thank you", "llm fail", "llm fail"):
        await scene.say(words)
    assert scene.call.reason is None
    scene.transport.leave()
    await scene.expect()


@ends("tts-fails", "tts-hangs", "tts-fails-for-good")
async def test_the_voice_fails(end: End, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(end, monkeypatch)
    await scene.talk()
    for _ in range(3 if end.name == "tts-fails-for-good" else 1):
        heard = [
            frame
            async for frame in scene.agent.tts_node(
                words("voice hang" if "hang" in end.name else "voice"), ModelSettings()
            )
        ]
        assert len(heard) == 3
        assert all(any(frame.data) for frame in heard)
    if end.name != "tts-fails-for-good":
        heard = [
            frame async for frame in scene.agent.tts_node(words("All is well."), ModelSettings())
        ]
        assert sum(frame.duration for frame in heard) > 0
        scene.transport.leave()
    await scene.expect()


async def test_a_voice_may_wait_for_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is slow to write what is to be said is not the voice."""
    scene = Scene(ENDS["tts-hangs"], monkeypatch)
    await scene.talk()

    async def slowly() -> AsyncIterator[str]:
        for part in ("One sentence. ", "Another one."):
            await asyncio.sleep(0.2)
            yield part

    heard = [frame async for frame in scene.agent.tts_node(slowly(), ModelSettings())]
    assert {frame.samples_per_channel for frame in heard} != {12_000}  # not the tones
    assert scene.agent._failures["text-to-speech"] == 0
    scene.transport.leave()
    await scene.expect()


async def words(text: str) -> AsyncIterator[str]:
    """What is to be spoken."""
    yield text


@ends("tool-fails", "tool-hangs")
async def test_a_tool_fails_or_hangs(end: End, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(end, monkeypatch)
    await scene.talk()
    heard = await scene.say("/tool fail {}" if end.name == "tool-fails" else "/tool hang {}")
    assert ("error" if end.name == "tool-fails" else "No answer within 0.1 s") in heard
    scene.transport.leave()
    await scene.expect()


@ends("close-hangs", "close-raises", "close-clings", "close-is-slow", "task-hangs")
async def test_a_close_goes_wrong(end: End, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeouts, "CLOSE_SECONDS", 0.5)
    scene = Scene(end, monkeypatch)
    await scene.talk()
    scene.transport.leave()
    outcomes = {"close-hangs": "timeout", "close-raises": "error", "close-clings": "timeout"}
    await scene.expect(badly={"pool": outcomes.get(end.name, "ok")})
