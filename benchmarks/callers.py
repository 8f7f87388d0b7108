"""Callers in their own processes: calls one after another, printed as JSON lines as they happen.

    python -m benchmarks.callers --port 7880 --agent my-agent --who ann --calls 250
        [--ask QUESTION --hear WORDS]

Every room has a media engine, so that one Python process with many calls would measure itself.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from livekit import rtc

from tests.support.caller import Caller
from tests.support.server import LiveKit
from tools.history import ROOT

Record = dict[str, Any]

# Calls by one identity: memory keeps 200 turns of each.
CALLS_OF_ONE = 50


class TextCaller(Caller):
    """A caller who reads the agent's words. Sound reaches them too, but is not decoded."""

    def _listen(
        self,
        track: rtc.Track,
        publication: rtc.RemoteTrackPublication,
        participant: rtc.RemoteParticipant,
    ) -> None:
        return


class Dropped(Exception):
    """The agent, or the room, was gone before the caller hung up."""


async def unless_dropped(caller: Caller, work: Awaitable[Any]) -> Any:
    """The result of `work`; raises Dropped if the agent leaves first."""
    task = asyncio.ensure_future(work)
    gone = [asyncio.ensure_future(event.wait()) for event in (caller.agent_gone, caller.cut_off)]
    try:
        await asyncio.wait([task, *gone], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Dropped
        return task.result()
    finally:
        for waiting in (task, *gone):
            waiting.cancel()


async def one_call(
    server: LiveKit,
    agent: str,
    identity: str,
    *,
    ask: str = "",
    hear: str = "",
    stay: float = 0.0,
    tell: Callable[[Record], None] = lambda record: None,
) -> Record:
    """Join, hear the greeting, ask, stay, hang up; return the times of each, and any problem.

    Times are of time.time(). `stay` is the minimum of seconds from the greeting to the hang-up.
    """
    room = f"call-{uuid.uuid4().hex[:10]}"
    call: Record = {"room": room, "who": identity, "problem": "", "joined": time.time()}
    tell({"event": "joining", "room": room})
    waiting_for = "room"
    try:
        async with TextCaller(server, room, agent, identity=identity) as caller:
            waiting_for = "greeting"
            await unless_dropped(caller, caller.hear_text_with("help"))
            call["greeted"] = time.time()
            tell({"event": "greeted", "room": room})
            if ask:
                waiting_for = "answer"
                await unless_dropped(caller, caller.ask(ask, hear))
                call["answered"] = time.time()
            waiting_for = "hang-up"
            await unless_dropped(
                caller, asyncio.sleep(max(0.0, call["greeted"] + stay - time.time()))
            )
            call["left"] = time.time()
    except Dropped:
        call["problem"] = f"dropped while waiting for the {waiting_for}"
    except (AssertionError, TimeoutError, rtc.ConnectError) as error:
        call["problem"] = f"no {waiting_for}: {str(error)[:200]}"
    call["over"] = time.time()
    return call


async def many_calls(options: argparse.Namespace) -> None:
    """Make the calls one after another; after SIGTERM, finish the current one and return."""
    # Another process runs the server: only its address and keys are needed.
    nothing = Path(os.devnull)
    process: Any = None
    server = LiveKit(port=options.port, log=nothing, config=nothing, process=process)
    enough = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, enough.set)

    def tell(record: Record) -> None:
        print(json.dumps(record), flush=True)

    identities, chance = -(-options.calls // CALLS_OF_ONE), random.Random(options.who)
    for number in range(options.calls):
        if enough.is_set():
            return
        identity = f"{options.who}-{number % identities}"
        # random, or all would call and hang up at the same moments
        stay = options.stay * chance.uniform(0.5, 1.5)
        tell(
            await one_call(
                server,
                options.agent,
                identity,
                ask=options.ask,
                hear=options.hear,
                stay=stay,
                tell=tell,
            )
        )


# ---------------------------------------------------------------------- starting the processes


@dataclass
class Callers:
    """Running processes of callers, and every call they have finished."""

    processes: list[asyncio.subprocess.Process] = field(default_factory=list)
    calls: list[Record] = field(default_factory=list)
    # rooms, as they are reported
    joining: list[str] = field(default_factory=list)
    greeted: list[str] = field(default_factory=list)
    # lines that are not records
    said: list[str] = field(default_factory=list)
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def read(self, process: asyncio.subprocess.Process) -> None:
        """Collect the lines of a process until it ends."""
        assert process.stdout is not None
        async for line in process.stdout:
            try:
                record = json.loads(line)
            except ValueError:
                self.said.append(line.decode(errors="replace").rstrip())
                continue
            async with self._changed:
                match record.get("event"):
                    case "joining":
                        self.joining.append(record["room"])
                    case "greeted":
                        self.greeted.append(record["room"])
                    case _:
                        self.calls.append(record)
                self._changed.notify_all()

    async def wait_for(self, wanted: Callable[[], bool], seconds: float) -> None:
        """Wait until the callers' reports make `wanted` true."""
        try:
            async with asyncio.timeout(seconds), self._changed:
                await self._changed.wait_for(wanted)
        except TimeoutError:
            raise AssertionError(
                f"not within {seconds:g} s; the callers said: {self.said[-10:]}"
            ) from None

    async def another(self) -> None:
        """Wait until the next call begins."""
        known = len(self.joining)
        await self.wait_for(lambda: len(self.joining) > known, seconds=60)

    def hang_up_soon(self) -> None:
        """Start no new calls; the current ones are finished."""
        for process in self.processes:
            if process.returncode is None:
                process.terminate()

    async def finished(self) -> None:
        """Wait until every process has ended."""
        for process in self.processes:
            await process.wait()


@asynccontextmanager
async def calling(
    server: LiveKit, agent: str, names: Sequence[str], *options: str
) -> AsyncIterator[Callers]:
    """A process of callers for each name, with these options; killed on exit if still running."""
    callers = Callers()
    readers = []
    try:
        for name in names:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "benchmarks.callers", "--port", str(server.port)),
                *("--agent", agent, "--who", name, *options),
                cwd=ROOT,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            callers.processes.append(process)
            readers.append(asyncio.create_task(callers.read(process)))
        yield callers
    finally:
        for process in callers.processes:
            if process.returncode is None:
                process.kill()
        for reader in readers:
            await reader


def main() -> None:
    """Make the calls of the command line."""
    parser = argparse.ArgumentParser(description="Call an agent, again and again.")
    parser.add_argument("--port", type=int, required=True, help="of the livekit-server")
    parser.add_argument("--agent", required=True)
    parser.add_argument("--who", required=True, help="what the callers' identities begin with")
    parser.add_argument("--calls", type=int, default=1_000_000)
    parser.add_argument(
        "--stay", type=float, default=0.0, help="seconds from the greeting to the hang-up, about"
    )
    parser.add_argument("--ask", default="")
    parser.add_argument("--hear", default="", help="words of the answer")
    asyncio.run(many_calls(parser.parse_args()))


if __name__ == "__main__":
    main()
