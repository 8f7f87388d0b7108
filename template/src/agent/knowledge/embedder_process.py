"""The local embedder beside the worker: started, watched, and started again."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp

from agent.knowledge import KnowledgeUnavailable
from agent.knowledge.embeddings import SOCKET, model_of
from agent.settings import Settings

log = logging.getLogger("agent.knowledge")

LOOK_SECONDS = 1.0  # between two looks at whether it answers
SILENT_SECONDS = 3.0  # of no answer, after which it is taken to hang
LOADING_SECONDS = 60.0  # for the model, from a slow disk
MOST_THREADS = (
    4  # a container has fewer cores than its machine, and no text is long enough for more
)
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # before it is started again


@asynccontextmanager
async def local_embedder(
    settings: Settings, *, wait: bool = False, alone: bool = False
) -> AsyncIterator[None]:
    """Have the local embedder running while this is open, if the settings choose it.

    Whatever opens `embedder_of` meanwhile, here or in a process started later, reaches it. With `wait` it is there
    when this is entered, or KnowledgeUnavailable says why not; without, calls do without it until it is. `alone` gives
    it all cores, else it leaves half of them to the calls.
    """
    if settings.knowledge == "none" or settings.embeddings != "local":
        yield
        return
    folder = Path(
        tempfile.mkdtemp(prefix="agent-")
    )  # mode 0700, and short enough for the name of a socket
    os.environ[SOCKET] = str(folder / "embedder.sock")
    cores = min(
        MOST_THREADS,
        len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1,
    )
    keeper = EmbedderProcess(
        folder / "embedder.sock", settings, cores if alone else max(1, cores // 2), awaited=wait
    )
    keeping = asyncio.create_task(keeper.keep(), name="embedder")
    try:
        if wait:
            await keeper.ready()
        yield
    finally:
        keeping.cancel()
        await asyncio.wait([keeping])
        os.environ.pop(SOCKET, None)
        shutil.rmtree(folder, ignore_errors=True)


class EmbedderProcess:
    """The process of the local embedder, restarted when it ends or hangs."""

    def __init__(self, socket: Path, settings: Settings, threads: int, *, awaited: bool) -> None:
        self._socket, self._awaited = socket, awaited
        self._command = [
            *(sys.executable, "-m", "agent.knowledge.embedder"),
            *(str(socket), model_of(settings), str(settings.home), str(threads)),
        ]
        self._answers = False
        self._first: asyncio.Future[str] = (
            asyncio.get_running_loop().create_future()
        )  # empty once it answers

    async def ready(self) -> None:
        """Wait for the first answer; raises KnowledgeUnavailable if it failed first."""
        if why := await self._first:
            raise KnowledgeUnavailable(why)

    async def keep(self) -> None:
        """Start it, and start it again whenever it has ended or hangs."""
        pause = FIRST_PAUSE
        while True:
            self._answers = False
            try:
                why = await self._run()
            except Exception as error:  # no process can be had, for a moment
                why = f"{type(error).__name__}: {error}"
            if self._answers:
                pause = FIRST_PAUSE
            if self._first.done() or not self._awaited:  # else whoever waits for it is told
                log.warning("the local embedder is started again in %g s: %s", pause, why)
            self._heard(why)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _heard(self, why: str) -> None:
        if not self._first.done():
            self._first.set_result(why)

    async def _run(self) -> str:
        """One life of the process; why it is over."""
        process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,  # which ends with us, and the process with it
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the worker
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            },  # it finds what we find
        )
        assert process.stderr is not None
        said = asyncio.create_task(process.stderr.read())
        ended = asyncio.create_task(process.wait())
        try:
            hung = await self._watch(ended)
            if hung:
                return hung
            lines = (await said).decode(errors="replace").strip().splitlines()
            return lines[-1] if lines else f"it ended with code {process.returncode}"
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await asyncio.wait([ended])
            said.cancel()

    async def _watch(self, ended: asyncio.Task[int]) -> str:
        """Until the process ends, or hangs: then what it is that it does not do."""
        clock = asyncio.get_running_loop().time
        patience = clock() + LOADING_SECONDS
        async with aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(str(self._socket))
        ) as client:
            while not ended.done():
                if await _is_well(client):
                    if not self._answers:
                        log.info("the local embedder answers")
                    self._answers = True
                    self._heard("")
                    patience = clock() + SILENT_SECONDS
                elif clock() > patience:
                    return "it does not answer"
                pause = LOOK_SECONDS if self._answers else 0.05
                await asyncio.wait([ended], timeout=pause)
        return ""


async def _is_well(client: aiohttp.ClientSession) -> bool:
    try:
        async with client.get(
            "http://embedder/health", timeout=aiohttp.ClientTimeout(total=SILENT_SECONDS)
        ) as answer:
            return answer.status == 200
    except (aiohttp.ClientError, TimeoutError, OSError):
        return False
