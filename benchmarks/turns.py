"""How long a caller waits for the first sound after joining and speaking, with every store.

    PYTHONPATH=template/src python -m benchmarks.turns [--quick]

The template runs in place on a real livekit-server, with a worker for every combination of
knowledge and memory; Redis and PostgreSQL are real too, and SIGSTOP makes them stall. In every
round each combination takes one call, one after another in a shuffled order; `--quick` only shows
that it works.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import (
    AsyncExitStack,
    ExitStack,
    asynccontextmanager,
    closing,
    contextmanager,
    suppress,
)
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from livekit import api

from benchmarks.calls import Side, TimedCaller
from benchmarks.report import Progress, command, describe, finish, machine
from benchmarks.run import ratio
from tests.support.embedding import minilm
from tests.support.postgres import Postgres
from tests.support.projects import clean_environment
from tests.support.redis import RedisServer
from tests.support.server import LiveKit, livekit_server
from tests.support.templates import WORK_TREE
from tests.support.worker import worker
from tools.history import ROOT

TEMPLATE = ROOT / "template"
LATE_PERSONA = Path(__file__).with_name("late_persona.py")
# the answer is the end of its passage
QUESTION, ANSWER = "How much do you spend on parts before you call?", "30 euros on parts"
NOT_NOW = "cannot look that up"
# after so much silence a reply is over; its own pauses are shorter
QUIET_SECONDS = 0.3

HEALTHY, STALLED = "healthy", "stalled"
# of a call: the stores stall between the third and the fourth
TURNS = {HEALTHY: 3, STALLED: 2}
# rounds repeat as long as another one fits
COMBINATION_SECONDS, LOOKUP_SECONDS = 300.0, 100.0
LOOKUP_TURNS = 4
LOOKUPS, FIRST_WORDS = ("before", "tool"), (0.0, 0.4)

Sample = dict[str, Any]


@dataclass(frozen=True)
class Parts:
    """The configuration of a worker."""

    knowledge: str = "none"
    memory: str = "none"
    embeddings: str = "none"
    lookup: str = "before"
    # None: the scripted model without a delay
    first_word: float | None = None

    def __str__(self) -> str:
        """The name in the tables."""
        knowledge = self.knowledge + (" by meaning" if self.embeddings == "local" else "")
        return f"{knowledge} / {self.memory}"

    @property
    def name(self) -> str:
        """The agent's name: no two combinations share callers, documents or calls."""
        late = "" if self.first_word is None else f"-{self.lookup}-{self.first_word * 1000:.0f}"
        return f"bench-{self.knowledge}-{self.memory}-{self.embeddings}{late}"


BARE = Parts()
COMBINATIONS = (
    *(
        Parts(knowledge, memory)
        for knowledge in ("none", "sqlite", "pgvector")
        for memory in ("none", "redis")
    ),
    # here the embedder can stall
    Parts("sqlite", embeddings="local"),
)
LATE = tuple(
    Parts("sqlite", lookup=lookup, first_word=seconds)
    for seconds in FIRST_WORDS
    for lookup in LOOKUPS
)


# ---------------------------------------------------------------------- workers and their stores


class Stores:
    """A private Redis and PostgreSQL, and the folders that the workers share."""

    def __init__(self, scratch: Path, redis: RedisServer, postgres: Postgres) -> None:
        self.redis, self.postgres = redis, postgres
        self.knowledge_url = postgres.create("turns")
        self.home, self.model, self.late = (
            scratch / "home",
            minilm(scratch / "minilm"),
            scratch / "late",
        )
        # below the ports that connections get while several workers start
        self._ports = itertools.count(21_000)
        self.home.mkdir()
        shutil.copytree(TEMPLATE / "knowledge", self.home / "knowledge")
        shutil.copytree(TEMPLATE / "src", self.late, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copyfile(LATE_PERSONA, self.late / "agent" / "persona.py")

    def data(self, parts: Parts) -> Path:
        """The folder where a worker writes."""
        return self.home / f"data-{parts.name}"

    def port(self) -> str:
        """A free port, different on every call."""
        for port in self._ports:
            with suppress(OSError), socket.create_server(("", port)):
                return str(port)
        raise AssertionError("there is always another number")

    def environment(self, parts: Parts) -> dict[str, str]:
        """The environment of a worker."""
        late = {} if parts.first_word is None else {"BENCH_FIRST_WORD": str(parts.first_word)}
        return {
            **late,
            "PYTHONPATH": str(self.late if late else TEMPLATE / "src"),
            "AGENT_HOME": str(self.home),
            "AGENT_DATA_DIR": str(self.data(parts)),
            "AGENT_NAME": parts.name,
            "AGENT_IDLE_PROCESSES": "1",
            "AGENT_KNOWLEDGE": parts.knowledge,
            "AGENT_KNOWLEDGE_URL": self.knowledge_url,
            "AGENT_KNOWLEDGE_LOOKUP": parts.lookup,
            "AGENT_MEMORY_URL": self.redis.url if parts.memory == "redis" else parts.memory,
            "AGENT_EMBEDDINGS": parts.embeddings,
            "AGENT_EMBEDDINGS_MODEL": str(self.model) if parts.embeddings == "local" else "",
        }

    def ingest(self, parts: Parts) -> None:
        """Fill the index, as an owner does before workers start on a shared one."""
        command = [sys.executable, "-m", "agent", "ingest"]
        done = subprocess.run(
            command,
            env=clean_environment(**self.environment(parts)),
            cwd=self.home,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"agent ingest exited with {done.returncode}: {done.stderr[-1000:]}")


@dataclass
class Desk(Side):
    """A running worker of one combination."""

    parts: Parts
    data: Path

    def embedders(self) -> list[psutil.Process]:
        """The worker's embedder, if it has one."""
        if self.parts.embeddings != "local":
            return []
        found = []
        for process in psutil.Process(self.running.process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if "agent.knowledge.embedder" in process.cmdline():
                    found.append(process)
        return found

    @asynccontextmanager
    async def talking(self) -> AsyncIterator[TimedCaller]:
        """A call whose room is deleted at its end: a server takes seconds to report a hang-up."""
        async with self.called() as caller:
            yield caller
            async with self.server.api() as client:
                with suppress(api.TwirpError):
                    await client.room.delete_room(api.DeleteRoomRequest(room=caller.room_name))

    async def between_calls(self) -> None:
        """Wait until the worker is idle, and forget failures of the last call."""
        await self.settled()
        # an embedder that has stalled for long is replaced
        if self.parts.embeddings == "local":
            await asyncio.sleep(0.3)
            await self.running.wait_for(
                lambda _: (
                    self._said("the local embedder answers")
                    > self._said("the local embedder is started again")
                )
            )
        for outage in self.data.glob("*.outage"):
            outage.unlink(missing_ok=True)

    def _said(self, words: str) -> int:
        return sum(str(record.get("message")).startswith(words) for record in self.running.records)


@asynccontextmanager
async def desks(
    server: LiveKit, stores: Stores, wanted: Sequence[Parts]
) -> AsyncIterator[list[Desk]]:
    """Workers of these combinations, all at once, each with a known caller; ended on exit."""
    for parts in wanted:
        if parts.knowledge == "pgvector":
            await asyncio.to_thread(stores.ingest, parts)
    command = [sys.executable, "-m", "agent"]
    async with AsyncExitStack() as stack:

        async def started(parts: Parts) -> Desk:
            running = await stack.enter_async_context(
                worker(
                    stores.home,
                    command,
                    server,
                    AGENT_PORT=stores.port(),
                    **stores.environment(parts),
                )
            )
            return Desk(parts.name, running, server, parts, stores.data(parts))

        opened = await asyncio.gather(*(started(parts) for parts in wanted))
        await asyncio.gather(*(first_call(desk) for desk in opened))
        try:
            yield opened
        finally:
            await asyncio.gather(*(desk.running.stop() for desk in opened))


@contextmanager
def stalled(stores: Stores, desk: Desk) -> Iterator[None]:
    """Inside, every store that can stall does: it accepts connections and does not answer."""
    embedders = desk.embedders()
    stores.redis.stop()
    stores.postgres.stop()
    try:
        for embedder in embedders:
            embedder.suspend()
        yield
    finally:
        for embedder in embedders:
            with suppress(psutil.NoSuchProcess):
                embedder.resume()
        stores.postgres.go_on()
        stores.redis.go_on()


# ---------------------------------------------------------------------- timed calls


async def quiet(caller: TimedCaller) -> None:
    """Wait until the agent has been silent for a moment."""
    # no event reports silence
    while time.monotonic() - (caller.last_sound_at or 0.0) < QUIET_SECONDS:  # noqa: ASYNC110
        await asyncio.sleep(0.02)


async def greeted(caller: TimedCaller) -> Sample:
    """Hear the greeting; seconds since before joining to its first sound, and if one is known."""
    await caller.hear_sound()
    assert caller.first_sound_at is not None
    joined_to_sound = caller.first_sound_at - caller.began
    known = (await caller.hear_text_with("help")).startswith("Welcome back")
    await quiet(caller)
    return {"seconds": round(joined_to_sound, 4), "known": known}


async def turn(caller: TimedCaller) -> Sample:
    """Ask, and hear the reply; seconds from the caller's words to its first sound, and its kind."""
    caller.first_sound_at = None
    caller.sound.clear()
    asked = time.monotonic()
    await caller.write(QUESTION)
    await caller.hear_sound()
    assert caller.first_sound_at is not None
    waited = caller.first_sound_at - asked
    said = await caller.hear_text()
    await quiet(caller)
    kinds = {ANSWER: "documents", NOT_NOW: "not now", "I heard": "no documents"}
    kind = next((kind for words, kind in kinds.items() if words in said), said)
    return {"seconds": round(waited, 4), "answer": kind}


async def first_call(desk: Desk) -> None:
    """Warm up, and make the caller known to the worker."""
    async with desk.talking() as caller:
        await greeted(caller)
        await turn(caller)
    await desk.between_calls()


async def measured_call(
    desk: Desk, stores: Stores, turns: dict[str, int], results: dict[str, Any], at: int
) -> None:
    """A call: greeting, turns, and turns after the stores stall."""
    about = {"parts": str(desk.parts), "round": at}
    async with desk.talking() as caller:
        results["greetings"].append({**about, "stores": HEALTHY, **await greeted(caller)})
        await desk.another_process()
        for number in range(turns[HEALTHY]):
            results["turns"].append(
                {**about, "stores": HEALTHY, "turn": number, **await turn(caller)}
            )
        with stalled(stores, desk):
            for number in range(turns[STALLED]):
                results["turns"].append(
                    {**about, "stores": STALLED, "turn": number, **await turn(caller)}
                )
    await desk.between_calls()


async def stalled_greeting(desk: Desk, stores: Stores, results: dict[str, Any], at: int) -> None:
    """A call that begins with stalled stores; they continue after its first sound."""
    about = {"parts": str(desk.parts), "round": at, "stores": STALLED}
    with ExitStack() as until_heard:
        until_heard.enter_context(stalled(stores, desk))
        async with desk.talking() as caller:
            await caller.hear_sound()
            until_heard.close()
            assert caller.first_sound_at is not None
            results["greetings"].append(
                {**about, "seconds": round(caller.first_sound_at - caller.began, 4)}
            )
    await desk.between_calls()


async def lookup_call(desk: Desk, turns: int, results: dict[str, Any], at: int) -> None:
    """A call: its turns, with this desk's model and kind of lookup."""
    about = {"lookup": desk.parts.lookup, "first word": desk.parts.first_word, "round": at}
    async with desk.talking() as caller:
        await greeted(caller)
        await desk.another_process()
        for number in range(turns):
            results["lookups"].append({**about, "turn": number, **await turn(caller)})
    await desk.between_calls()


async def rounds(
    opened: list[Desk],
    seconds: float,
    chance: random.Random,
    call: Callable[[Desk, int], Awaitable[None]],
) -> int:
    """Rounds of calls, at least one, as long as another one fits; return how many."""
    until, longest, done = time.monotonic() + seconds, 0.0, 0
    while done == 0 or time.monotonic() + longest < until:
        began = time.monotonic()
        for desk in chance.sample(opened, len(opened)):
            await call(desk, done)
            Progress.dot()
        longest = max(longest, time.monotonic() - began)
        done += 1
    return done


async def measure(scratch: Path, *, quick: bool) -> dict[str, Any]:
    """Every raw number, in seconds."""
    tell, chance = Progress(), random.Random(7)
    results: dict[str, Any] = {
        "machine": machine(),
        "quick": quick,
        "version": WORK_TREE,
        "question": QUESTION,
    }
    results |= {"rounds": {}, "greetings": [], "turns": [], "lookups": []}
    turns = {**TURNS, HEALTHY: 1} if quick else TURNS
    async with AsyncExitStack() as stack:
        redis = stack.enter_context(closing(RedisServer("valkey")))
        stores = Stores(scratch, redis, stack.enter_context(closing(Postgres())))
        server = await stack.enter_async_context(livekit_server())
        tell(f"starting {len(COMBINATIONS)} workers")
        async with desks(server, stores, COMBINATIONS) as opened:

            async def both(desk: Desk, at: int) -> None:
                await measured_call(desk, stores, turns, results, at)
                await stalled_greeting(desk, stores, results, at)

            tell("calling, with healthy stores and with stalled ones")
            results["rounds"]["combinations"] = await rounds(
                opened, 0 if quick else COMBINATION_SECONDS, chance, both
            )
        tell(f"starting {len(LATE)} workers")
        async with desks(server, stores, LATE) as opened:

            async def asked(desk: Desk, at: int) -> None:
                await lookup_call(desk, 1 if quick else LOOKUP_TURNS, results, at)

            tell("calling, with lookups before the reply and by tool")
            results["rounds"]["lookups"] = await rounds(
                opened, 0 if quick else LOOKUP_SECONDS, chance, asked
            )
    tell("done")
    finish(results, tell.seconds)
    return results


# ---------------------------------------------------------------------- the tables


def of(results: dict[str, Any], kind: str, **wanted: object) -> list[Sample]:
    """The samples of a kind with these values, by round and turn, so that they make pairs."""
    keys = {name.replace("_", " "): value for name, value in wanted.items()}
    found = [
        sample
        for sample in results[kind]
        if all(sample[key] == value for key, value in keys.items())
    ]
    return sorted(found, key=lambda sample: (sample["round"], sample.get("turn", 0)))


def times(samples: Sequence[Sample]) -> list[float]:
    """The seconds of each sample."""
    return [sample["seconds"] for sample in samples]


def spread(values: Sequence[float]) -> str:
    """Median, smallest and largest, in milliseconds."""
    middle, low, high = (1000 * figure(values) for figure in (statistics.median, min, max))
    return f"{middle:.0f} ms ({low:.0f} to {high:.0f})"


def compared(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """The ratio of the medians and its interval."""
    middle, low, high = ratio(ours, theirs)
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    counts = results["rounds"]

    def cells(kind: str, parts: Parts, **wanted: object) -> Iterator[str]:
        samples = of(results, kind, parts=str(parts), **wanted)
        bare = of(results, kind, parts=str(BARE), **wanted)
        yield spread(times(samples))
        yield "" if parts == BARE else compared(times(samples), times(bare))

    def turns_of(parts: Parts) -> str:
        stalls = [
            cell
            for turn in range(TURNS[STALLED])
            for cell in cells("turns", parts, stores=STALLED, turn=turn)
        ]
        there = of(results, "turns", parts=str(parts), stores=STALLED)
        answered = f"{sum(sample['answer'] == 'documents' for sample in there)} of {len(there)}"
        last = "" if parts.knowledge == "none" else answered
        return (
            f"| {' | '.join([str(parts), *cells('turns', parts, stores=HEALTHY), *stalls, last])} |"
        )

    def greetings_of(parts: Parts) -> str:
        both = [
            cell for state in (HEALTHY, STALLED) for cell in cells("greetings", parts, stores=state)
        ]
        return f"| {' | '.join([str(parts), *both])} |"

    lines = [
        f"{describe(results)} Rounds of calls: {counts['combinations']} of every combination,"
        f" {counts['lookups']} of the lookups.",
        "",
        "| knowledge / memory: words to sound | healthy | to none / none (95 %) "
        "| stores stalled: first turn | to none / none (95 %) | next turn | to none / none (95 %) "
        "| answered from documents then |",
        "|---|---|---|---|---|---|---|---|",
        *map(turns_of, COMBINATIONS),
        "",
        "| knowledge / memory: join to sound | healthy | to none / none (95 %) "
        "| stalled before the call | to none / none (95 %) |",
        "|---|---|---|---|---|",
        *map(greetings_of, COMBINATIONS),
        "",
        "| the model's first word comes after | looked up before the reply | by a tool "
        "| tool to before (95 %) |",
        "|---|---|---|---|",
    ]
    for seconds in FIRST_WORDS:
        before, tool = (
            times(of(results, "lookups", lookup=lookup, first_word=seconds)) for lookup in LOOKUPS
        )
        lines.append(
            f"| {seconds * 1000:.0f} ms | {spread(before)} | {spread(tool)} "
            f"| {compared(tool, before)} |"
        )
    wrong = [sample for sample in results["turns"] + results["lookups"] if unexpected(sample)]
    strange = [
        sample
        for sample in results["greetings"]
        if "known" in sample and sample["known"] != sample["parts"].endswith("redis")
    ]
    lines += [
        "",
        f"Unexpected replies and greetings: {len(wrong + strange) or 'none'}.",
        "",
    ]
    lines += ["![How long callers wait, with every choice of stores](plots/turns.png)"]
    return "\n".join(lines)


def unexpected(sample: Sample) -> bool:
    """Whether a reply is not the one that this state of the documents gives."""
    knows = sample.get("parts", "sqlite").split(" ")[0]
    if knows == "none":
        return bool(sample["answer"] != "no documents")
    if sample.get("stores") == STALLED and knows == "pgvector":
        return bool(sample["answer"] != "not now")
    return bool(sample["answer"] != "documents")


def main() -> int:
    """Measure and report; 1 if no server is available. A missed goal is not an error."""
    return command(
        "turns",
        measure,
        table,
        about="Measure how long callers wait, with every choice of stores.",
        quick="one round of one turn, and keep nothing",
    )


if __name__ == "__main__":
    sys.exit(main())
