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
from agent.knowledge.embeddings import UNIX, model_of
from agent.settings import Settings

log = logging.getLogger("agent.knowledge")

# Between two looks at whether it answers; after so long without an answer it is taken to hang: not
# sooner, because on a busy machine an ingest would be cut off, and no call waits for it anyway.
LOOK_SECONDS, SILENT_SECONDS = 1.0, 10.0
# for the model, from a slow disk
LOADING_SECONDS = 60.0
# a container has fewer cores than its machine, and no text is long enough for more
MOST_THREADS = 4
# before it is started again
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0


@asynccontextmanager
async def running(settings: Settings, *, wait: bool, alone: bool) -> AsyncIterator[Settings]:
    """Have it running while this is open: see `agent.knowledge.local_embedder`."""
    # mode 0700, and short enough for the name of a socket
    folder = Path(tempfile.mkdtemp(prefix="agent-"))
    socket = folder / "embedder.sock"
    on_linux = sys.platform == "linux"
    cores = len(os.sched_getaffinity(0)) if on_linux else os.cpu_count() or 1
    threads = min(MOST_THREADS, cores)
    process = EmbedderProcess(
        socket, settings, threads if alone else max(1, threads // 2), awaited=wait
    )
    keeping = asyncio.create_task(process.keep_running(), name="embedder")
    try:
        if wait:
            await process.first_answer()
        yield settings.model_copy(update={"embeddings": f"{UNIX}{socket}"})
    finally:
        keeping.cancel()
        await asyncio.wait([keeping])
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
        # why it failed before its first answer, empty once it has answered
        self._first: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def first_answer(self) -> None:
        """Wait for it; raises KnowledgeUnavailable if the process failed before."""
        if why := await self._first:
            raise KnowledgeUnavailable(why)

    async def keep_running(self) -> None:
        """Start the process, and start it again whenever it has ended or hangs."""
        pause = FIRST_PAUSE
        while True:
            self._answers = False
            try:
                why = await self._run()
            except Exception as error:
                # as where no process can be had for a moment
                why = f"{type(error).__name__}: {error}"
            if self._answers:
                pause = FIRST_PAUSE
            # otherwise `first_answer` raises it
            if self._first.done() or not self._awaited:
                log.warning("the local embedder is started again in %g s: %s", pause, why)
            self._settle(why)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _settle(self, why: str) -> None:
        if not self._first.done():
            self._first.set_result(why)

    async def _run(self) -> str:
        """One life of the process; why it is over."""
        process = await asyncio.create_subprocess_exec(
            *self._command,
            # the pipe ends with this process, and the embedder with the pipe
            stdin=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            # Ctrl-C is for the worker
            start_new_session=True,
        )
        assert process.stderr is not None
        stderr = asyncio.create_task(process.stderr.read())
        ended = asyncio.create_task(process.wait())
        try:
            if hung := await self._watch(ended):
                return hung
            lines = (await stderr).decode(errors="replace").strip().splitlines()
            return lines[-1] if lines else f"it ended with code {process.returncode}"
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await asyncio.wait([ended])
            stderr.cancel()

    async def _watch(self, ended: asyncio.Task[int]) -> str:
        """Until the process ends (then nothing), or hangs: then what it does not do."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + LOADING_SECONDS
        connector = aiohttp.UnixConnector(str(self._socket))
        async with aiohttp.ClientSession(connector=connector) as client:
            while not ended.done():
                if await _is_well(client):
                    if not self._answers:
                        log.info("the local embedder answers")
                    self._answers = True
                    self._settle("")
                    deadline = clock() + SILENT_SECONDS
                elif clock() > deadline:
                    return "it does not answer"
                pause = LOOK_SECONDS if self._answers else 0.05
                await asyncio.wait([ended], timeout=pause)
        return ""


async def _is_well(client: aiohttp.ClientSession) -> bool:
    timeout = aiohttp.ClientTimeout(total=SILENT_SECONDS)
    try:
        async with client.get("http://embedder/health", timeout=timeout) as answer:
            return answer.status == 200
    except (aiohttp.ClientError, TimeoutError, OSError):
        return False
