"""The LiveKit worker: it registers, prepares a process for each call, and starts the call there."""

from __future__ import annotations

import asyncio
import faulthandler
import importlib
import logging
import math
import os
import signal
import time
from collections.abc import Coroutine
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from aiohttp import web
from livekit.agents import AgentServer, JobContext, JobExecutorType, JobProcess
from livekit.agents.ipc.job_executor import JobExecutor
from livekit.agents.job import RunningJobInfo
from livekit.agents.types import NOT_GIVEN, NotGivenOr
from livekit.agents.utils.http_server import HttpServer
from livekit.agents.worker import ServerEnvOption, _DefaultLoadCalc
from prometheus_client import REGISTRY, CollectorRegistry

from agent import knowledge, memory, one_line, telemetry
from agent.conversation import sounds
from agent.entrypoint import models_for, optional_module, prewarm_persona, run_call
from agent.knowledge import KnowledgeUnavailable, local_embedder
from agent.lifecycle import Call, Reason, Step
from agent.lifecycle.timeouts import END_ROOM_SECONDS
from agent.memory import MemoryUnavailable, keep_delivering
from agent.metrics import Metrics, files_in
from agent.models import ModelsUnavailable
from agent.outside import Readiness
from agent.reasons import OF_TELEPHONES, REASONS
from agent.reports import STAGES, cost, delivery, going, kept, recordings
from agent.settings import Settings, SettingsError, load_settings
from agent.transport.room import RoomTransport, end_room

log = logging.getLogger("agent.call")

MAX_IDLE_PROCESSES = 4  # the SDK's own default is one a core, however many there are
# a process that is not ready by then is killed, and another one is tried: on a busy machine the
# SDK's own ten seconds are too short for the imports alone, and no call would ever be taken
READY_SECONDS = 60.0
# livekit-server's default `agents.target_load`: it sends no call to a worker that reports more
SERVER_TARGET_LOAD = 0.7
# for the reports of the last calls, when a worker stops
LAST_DELIVERY_SECONDS = 3.0
# a caller notices that much; a process that is ready takes a call within milliseconds
WAITED_SECONDS = 0.5
# what the first call of a process would otherwise wait for
PREWARMED = (
    *("agent.persona", "agent.resources", "agent.transport.preconnect", "numpy.fft"),
    *("agent.telephony.outbound", "agent.telephony.inbound"),
    *("agent.telephony.answered", "agent.telephony.keys"),
)


class Server(AgentServer):
    """The SDK's server with this project's settings, which travel to its jobs as an argument."""

    # the SDK's command line exits with 0 after a failure
    failed = False

    def __init__(self, settings: Settings) -> None:
        idle = settings.idle_processes or min(os.cpu_count() or 1, MAX_IDLE_PROCESSES)
        threshold = settings.max_load
        if not math.isinf(threshold):
            threshold = min(threshold, SERVER_TARGET_LOAD)
        super().__init__(
            preload_modules=["agent.server", "agent.ignore_sigterm"],
            host=settings.host,
            port=settings.port,
            prometheus_port=settings.metrics_port or None,
            drain_timeout=max(settings.drain_seconds, 1),  # 0 would wait for ever
            initialize_process_timeout=READY_SECONDS,
            num_idle_processes=ServerEnvOption(
                dev_default=settings.idle_processes or 1, prod_default=idle
            ),
            load_threshold=ServerEnvOption(dev_default=math.inf, prod_default=threshold),
        )
        self.sounds: Path | None = None
        # of the environment; private, and the template's canary tells when it changes
        self.proxy = self._http_proxy
        if settings.server_is_here:
            # for the worker, which asks nobody else; its jobs ask models
            self._http_proxy = None
        self.configure(settings)
        # a call that asks for a worker before is never given to this one, so the health check
        # fails until then; private, and the template's canary tells when it changes
        self._connection_failed = True
        self.on("worker_registered", self._registered)

    # The SDK makes the server of its health check and starts it in one go, and once started it
    # takes no route more; private, and the template's canary tells when it changes.
    @property
    def _http_server(self) -> HttpServer | None:
        return self._health_server

    @_http_server.setter
    def _http_server(self, server: HttpServer | None) -> None:
        self._health_server = server
        if server is not None:
            self._readiness = Readiness(lambda: self.settings)
            server.app.router.add_get("/ready", self._ready)

    async def _ready(self, request: web.Request) -> web.Response:
        """Whether calls would come here, and have all that the owner opens for them."""
        checks = {"livekit": not self._connection_failed, **await self._readiness.check()}
        ready = all(checks.values())
        return web.json_response({"ready": ready, "checks": checks}, status=200 if ready else 503)

    def _registered(self, *_: object) -> None:
        self._connection_failed = False

    def allow_imports(self, seconds: float) -> None:
        """Each process imports the owner's code, which took so long here, beside three others."""
        self.update_options(initialize_process_timeout=READY_SECONDS + 4 * seconds)

    def configure(self, settings: Settings) -> None:
        """Hand these settings to the jobs; the worker's own (ports, load) stay as they are."""
        self.settings = settings
        self.setup_fnc = partial(
            prewarm, settings, sounds_folder=self.sounds, proxy=self.proxy or None
        )

    async def run(self, *, devmode: bool = False, unregistered: bool = False) -> None:
        settings = self.settings
        self._ending_rooms: set[asyncio.Task[None]] = set()
        counts = self.measured() if settings.metrics_port else None
        self._call_log = telemetry.CallLogHandler(counts)
        logging.getLogger().addHandler(self._call_log)
        self.on("worker_started", self._watch_jobs)
        delivering = [
            asyncio.create_task(keep_delivering(settings), name="memory delivery"),
            asyncio.create_task(delivery.keep_delivering(settings), name="report delivery"),
            asyncio.create_task(going.keep_reporting_deaths(settings), name="reports of deaths"),
            asyncio.create_task(recordings.keep(settings), name="recordings"),
            asyncio.create_task(kept.keep_tidy(settings), name="kept calls"),
        ]
        if devmode or math.isinf(settings.max_load):
            self.load_fnc = lambda: 0.0
        elif settings.max_load > SERVER_TARGET_LOAD:
            self.load_fnc = self.reported_load
        readable = devmode if settings.log_format == "auto" else settings.log_format == "readable"
        telemetry.format_root(readable=readable, level=settings.log_level)
        try:
            # before there is a job, which learns where they are
            with sounds.shared_folder() as self.sounds:
                async with local_embedder(settings) as inside:
                    self.configure(inside)
                    await super().run(devmode=devmode, unregistered=unregistered)
        except Exception:
            self.failed = True
            raise
        finally:
            for task in delivering:
                task.cancel()
            # they hold locks until then; the owner's code may be slow to end
            await asyncio.wait(delivering, timeout=LAST_DELIVERY_SECONDS)
            # of the calls that the worker was drained of; what is left, the next one delivers
            with suppress(OSError):
                going.report_deaths(settings)
            await delivery.deliver_once(settings, LAST_DELIVERY_SECONDS)

    def measured(self, registry: CollectorRegistry = REGISTRY) -> Metrics:
        """The metrics of this worker, which the SDK serves beside its own."""
        settings = self.settings
        reasons = [Reason.error(step.number, step.title) for step in Step if step != Step.CLEAN_UP]
        has_phone = find_spec("agent.telephony") is not None
        reasons += [reason for reason in REASONS if has_phone or reason not in OF_TELEPHONES]
        stages = [stage for stage in STAGES if settings.knowledge != "none" or stage != "documents"]
        currencies = [cost.load_prices(settings.home).currency]
        metrics = Metrics(settings, reasons, stages, currencies, registry=registry)
        calls = "agent_calls_in_progress", "Calls that this worker has now."
        metrics.watch(*calls, lambda: len(self.active_jobs))
        free = "agent_takes_calls", "1 while this worker would take a call."
        metrics.watch(*free, lambda: not self._connection_failed and self._is_available())
        wait = {
            f"report {place.name}": files_in(place.folder(settings), "*.json")
            for place in delivery.places(settings)
        }
        if settings.memory != "none":
            wait["memory"] = files_in(settings.data / "spool", "*.jsonl")
        if recordings.is_in_bucket(settings):
            wait["recordings"] = files_in(recordings.folder_of(settings), "*.ogg")
        help = "What calls have left for a later delivery."
        metrics.watch_each("agent_waiting", help, "what", wait)
        metrics.watch_outages(settings)
        return metrics

    def reported_load(self) -> float:
        """The CPU load, scaled so that it reaches the server's limit where AGENT_MAX_LOAD is."""
        return _DefaultLoadCalc.get_load(self) * SERVER_TARGET_LOAD / self.settings.max_load

    def _watch_jobs(self) -> None:
        # private; the template's canary tells when it changes
        self._proc_pool.on("process_closed", self._job_closed)
        self._proc_pool.on("process_job_launched", self._job_launched)

    def _job_launched(self, process: JobExecutor) -> None:
        """Say so if the caller had to wait for a process."""
        if (running := process.running_job) is None or not running.assigned_at:
            return
        if (waited := running.launched_at - running.assigned_at) < WAITED_SECONDS:
            return
        sentence = (
            "the caller waited %.1f s, because no process was ready: set AGENT_IDLE_PROCESSES to"
            " how many calls may begin within a few seconds, here more than %d"
        )
        about = {"call": running.job.id, "room": running.job.room.name}
        ready = ServerEnvOption.getvalue(self._num_idle_processes, self._devmode)
        log.warning(sentence, waited, ready, extra={"fields": about})

    def _job_closed(self, process: JobExecutor) -> None:
        """End the room of a job that was killed or crashed: it has closed nothing itself."""
        if process.running_job is None:
            return
        job, room = process.running_job.job.id, process.running_job.job.room
        reason = self._call_log.ended.pop(job, None)
        if reason == Reason.TRANSFERRED:
            self._look_after(hang_up_when_alone(room.name, room.sid))
        elif reason is None and getattr(process, "exitcode", 0) != 0:
            self._look_after(end_orphaned_room(process.running_job))

    def _look_after(self, work: Coroutine[Any, Any, None]) -> None:
        """A room whose job is gone."""
        task = asyncio.create_task(work, name="a room without a job")
        self._ending_rooms.add(task)
        task.add_done_callback(self._ending_rooms.discard)

    async def drain(self, timeout: NotGivenOr[int | None] = NOT_GIVEN) -> None:  # noqa: ASYNC109
        """Wait for the calls that go on, and, within the same time, for rooms without a job."""
        until = time.monotonic() + self.settings.drain_seconds
        await super().drain(timeout)
        left = until - time.monotonic()
        if self._ending_rooms and left > 0:
            await asyncio.wait(set(self._ending_rooms), timeout=left)


async def end_orphaned_room(running: RunningJobInfo) -> None:
    """End the room of a job whose process is gone, and record the end of its call."""
    about = {"call": running.job.id, "room": running.job.room.name}
    seconds = round(time.time() - running.launched_at, 3)
    try:
        async with asyncio.timeout(END_ROOM_SECONDS):
            room, me = running.job.room, running.accept_arguments.identity
            await end_room(room.name, room.sid, me, None)
    except Exception as error:
        sentence = "the room could not be deleted: %s"
        log.warning(sentence, one_line(error), extra={"fields": about})
    fields = {"reason": Reason.JOB_DIED, "seconds": seconds, "turns": None, **about}
    log.error("call ended: %s", Reason.JOB_DIED, extra={"fields": fields})
    # who was being called in may talk to the caller now
    await hang_up_when_alone(running.job.room.name, running.job.room.sid)


async def hang_up_when_alone(room: str, sid: str) -> None:
    """Look after people who talk on without the agent, where there is a telephone."""
    if (transfers := optional_module("agent.telephony.transfers")) is not None:
        await transfers.hang_up_when_alone(room, sid)


def prewarm(
    settings: Settings,
    process: JobProcess,
    *,
    sounds_folder: Path | None = None,
    proxy: str | None = None,
) -> None:
    """Give an idle process the settings, and load what its call would otherwise wait for."""
    if process.executor_type is JobExecutorType.PROCESS:
        dump_stacks_when_killed()
    process.userdata["settings"] = settings
    process._http_proxy = proxy
    sounds.kept.share(sounds_folder)
    telemetry.export_spans()
    telemetry.hush_hang_ups()
    for name in PREWARMED:
        # `agent start` has reported it before, and the call that needs it will
        with suppress(ImportError), telemetry.protected_logging():
            importlib.import_module(name)
    try:
        prewarm_persona(settings)
        with suppress(ModelsUnavailable):
            models_for(settings)
            if settings.models == "local":
                importlib.import_module("agent.models.local").load()
    except Exception as error:
        # the call comes to it in its own way, and ends with a reason
        log.error("prewarm of the persona failed: %s", one_line(error), exc_info=error)
    with suppress(SettingsError):  # the call warns
        cost.load_prices(settings.home)
    with suppress(MemoryUnavailable, KnowledgeUnavailable):
        memory.load(settings)
        knowledge.load(settings)


def dump_stacks_when_killed() -> None:
    """Print every thread's stack on standard error at the signal that precedes the SDK's SIGKILL.

    The SDK's own handler is missing under a fork server, and runs in no process that is stuck in C.
    """
    faulthandler.register(signal.SIGUSR1)


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
