"""The LiveKit worker: it registers, prepares a process for each call, and starts the call there."""

from __future__ import annotations

import asyncio
import importlib
import logging
import math
import os
import time
from contextlib import suppress
from functools import partial

from livekit.agents import AgentServer, JobContext, JobProcess
from livekit.agents.ipc.job_executor import JobExecutor
from livekit.agents.job import RunningJobInfo
from livekit.agents.worker import ServerEnvOption

from agent import knowledge, memory, one_line, telemetry
from agent.entrypoint import run_call
from agent.knowledge import KnowledgeUnavailable, local_embedder
from agent.lifecycle import Call, Reason
from agent.lifecycle.timeouts import END_ROOM_SECONDS
from agent.memory import MemoryUnavailable, keep_delivering
from agent.models import ModelsUnavailable, models_of
from agent.settings import Settings, load_settings
from agent.transport.room import RoomTransport, end_room

log = logging.getLogger("agent.call")

MAX_IDLE_PROCESSES = 4  # the SDK's own default is one a core, however many there are
# what the first call of a process would otherwise wait for
PREWARMED = ("agent.persona", "agent.resources", "agent.transport.preconnect", "numpy.fft")


class Server(AgentServer):
    """The SDK's server with this project's settings, which travel to its jobs as an argument."""

    # the SDK's command line exits with 0 after a failure
    failed = False

    def __init__(self, settings: Settings) -> None:
        idle = settings.idle_processes or min(os.cpu_count() or 1, MAX_IDLE_PROCESSES)
        super().__init__(
            preload_modules=["agent.server", "agent.ignore_sigterm"],
            port=settings.port,
            prometheus_port=settings.metrics_port or None,
            drain_timeout=settings.drain_seconds,
            num_idle_processes=ServerEnvOption(dev_default=1, prod_default=idle),
            load_threshold=ServerEnvOption(dev_default=math.inf, prod_default=settings.max_load),
        )
        self.configure(settings)

    def configure(self, settings: Settings) -> None:
        """Hand these settings to the jobs; the worker's own (ports, load) stay as they are."""
        self.settings = settings
        self.setup_fnc = partial(prewarm, settings)

    async def run(self, *, devmode: bool = False, unregistered: bool = False) -> None:
        settings = self.settings
        self._ending_rooms: set[asyncio.Task[None]] = set()
        self._call_log = telemetry.CallLogHandler(counting=settings.metrics_port != 0)
        logging.getLogger().addHandler(self._call_log)
        self.on("worker_started", self._watch_jobs)
        delivering = asyncio.create_task(keep_delivering(settings), name="memory delivery")
        if devmode or math.isinf(settings.max_load):
            # livekit-server itself sends no call to a worker that reports 1.0
            self.load_fnc = lambda: 0.0
        readable = devmode if settings.log_format == "auto" else settings.log_format == "readable"
        telemetry.format_root(readable=readable, level=settings.log_level)
        try:
            # before there is a job, which learns from its settings where it is
            async with local_embedder(settings) as inside:
                self.configure(inside)
                await super().run(devmode=devmode, unregistered=unregistered)
        except Exception:
            self.failed = True
            raise
        finally:
            delivering.cancel()

    def _watch_jobs(self) -> None:
        # private; the template's canary tells when it changes
        self._proc_pool.on("process_closed", self._job_closed)

    def _job_closed(self, process: JobExecutor) -> None:
        """End the room of a job that was killed or crashed: it has closed nothing itself."""
        if process.running_job is None:
            return
        job = process.running_job.job.id
        if job in self._call_log.ended:
            self._call_log.ended.discard(job)
        elif getattr(process, "exitcode", 0) != 0:
            ending = end_orphaned_room(process.running_job)
            task = asyncio.create_task(ending, name="end an orphaned room")
            self._ending_rooms.add(task)
            task.add_done_callback(self._ending_rooms.discard)


async def end_orphaned_room(running: RunningJobInfo) -> None:
    """End the room of a job whose process is gone, and record the end of its call."""
    about = {"call": running.job.id, "room": running.job.room.name}
    seconds = round(time.time() - running.launched_at, 3)
    try:
        async with asyncio.timeout(END_ROOM_SECONDS):
            await end_room(running.job.room.name, None)
    except Exception as error:
        sentence = "the room could not be deleted: %s"
        log.warning(sentence, one_line(error), extra={"fields": about})
    fields = {"reason": Reason.JOB_DIED, "seconds": seconds, "turns": None, **about}
    log.error("call ended: %s", Reason.JOB_DIED, extra={"fields": fields})


def prewarm(settings: Settings, process: JobProcess) -> None:
    """Give an idle process the settings, and import what its call would otherwise wait for."""
    process.userdata["settings"] = settings
    telemetry.export_spans()
    for name in PREWARMED:
        # `agent start` has reported it before, and the call that needs it will
        with suppress(ImportError), telemetry.protected_logging():
            importlib.import_module(name)
    with suppress(ModelsUnavailable, MemoryUnavailable, KnowledgeUnavailable):
        models_of(settings)
        memory.load(settings)
        knowledge.load(settings)


server = Server(load_settings())
calls: dict[str, Call] = {}  # by job: one in a job process, several where jobs are threads


async def session_ended(ctx: JobContext) -> None:
    """Wait until everything is closed and written; the room is still there, for 300 s at most."""
    if call := calls.pop(ctx.job.id, None):
        await call.wait_closed()


@server.rtc_session(agent_name=server.settings.name, on_session_end=session_ended)
async def entrypoint(ctx: JobContext) -> None:
    """Connect and return; the call goes on in its own task, so no end of it waits for this."""
    settings: Settings = ctx.proc.userdata["settings"]
    call = calls[ctx.job.id] = Call(RoomTransport(ctx), settings)
    await call.start(run_call)
