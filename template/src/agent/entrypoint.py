"""What a worker runs for every call: the eight steps, top to bottom."""

from __future__ import annotations

import asyncio
import importlib
import logging
import math
import os
import time
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any, TypeVar

from livekit.agents import AgentServer, JobContext, JobProcess
from livekit.agents.ipc.job_executor import JobExecutor
from livekit.agents.job import RunningJobInfo
from livekit.agents.worker import ServerEnvOption

from agent import knowledge, memory, telemetry
from agent.conversation import CallAgent
from agent.conversation.agent import build_session, conversation
from agent.knowledge import KnowledgeUnavailable, local_embedder, open_knowledge
from agent.lifecycle import Call, Reason
from agent.lifecycle.call import HANG_UP_SECONDS, OpenFailed, describe
from agent.memory import MemoryUnavailable, Profile, keep_delivering, open_memory
from agent.models import ModelsUnavailable, models_of
from agent.settings import load_settings
from agent.transport.room import RoomTransport, end_room

log = logging.getLogger("agent.call")
T = TypeVar("T")

MAX_IDLE_PROCESSES = 4  # the SDK's own default is one a core, however many there are


async def answer(call: Call) -> None:
    """The eight steps of a call. Whatever ends it, wherever, everything leaves through the call's one door."""
    async with call.step(1, "open infrastructure"):  # while the room connects
        await open_infrastructure(call)
    async with call.step(2, "connect"):
        await call.connected()
    async with call.step(3, "build agent and session"):
        session, persona = build_session(call, models_of(call.settings)), build_persona(call)
    async with call.step(4, "wait for the caller"):
        caller = await call.wait_for_caller()
        if call.memory is not None:
            call.memory.identify(persona.remembered_as(caller))
    async with call.step(5, "start the session"):  # while the caller's data loads
        profile = call.spawn(recall(call), name="recall")
        call.session = await call.converse(conversation(call, session, persona, caller))
    async with call.step(6, "load the caller's data and greet"):
        await persona.welcome(await profile)
    async with call.step(7, "stay for the conversation"):
        await call.over()
    # 8, clean up and exit, is the door: lifecycle/call.py closes whatever was opened above, in reverse.


async def open_infrastructure(call: Call) -> None:
    """Memory and knowledge, which a call can do without, and the owner's resources, which it cannot; all at once."""
    call.memory, call.knowledge, call.resources = await asyncio.gather(
        open_optional(call, "memory", open_memory(call.settings, call.journal)),
        open_optional(call, "knowledge", open_knowledge(call.settings, call.journal)),
        open_resources(call),
    )


async def open_optional(
    call: Call, name: str, manager: AbstractAsyncContextManager[T] | None
) -> T | None:
    """Open a part that makes a call better but may never cost one; None is one not chosen."""
    if manager is None:
        return None
    try:
        return await call.open(name, manager)
    except OpenFailed as error:
        log.warning("this call goes on without %s: %s", name, error)
        return None


async def open_resources(call: Call) -> Any:
    """What the owner's resources.py opens for a call; nothing when there is no such file."""
    module = yours("agent.resources")
    return await module.open_resources(call) if module else None


def build_persona(call: Call) -> CallAgent:
    """The owner's persona; a plain one when there is no persona.py."""
    if module := yours("agent.persona"):
        persona: CallAgent = module.Persona(call)
        return persona
    return CallAgent(
        call, instructions="You are a friendly voice assistant. Keep your answers short."
    )


def yours(name: str) -> Any | None:
    """A module that belongs to the owner and may be missing; an error inside it is not taken for its absence."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == name:
            return None
        raise


async def recall(call: Call) -> Profile | None:
    """What is known of the caller, in time for the greeting; None for a stranger, or without memory."""
    if call.memory is None:
        return None
    return await call.memory.recall()  # never raises, and never takes longer than memory_seconds


class Server(AgentServer):
    """The SDK's server, with our log format, and with a memory for its own failure (its command line exits 0)."""

    failed = False

    async def run(self, *, devmode: bool = False, unregistered: bool = False) -> None:
        self._burying: set[asyncio.Task[None]] = set()
        self._ledger = telemetry.CallLogHandler(counting=settings.metrics_port != 0)
        logging.getLogger().addHandler(self._ledger)
        self.on("worker_started", self._watch_jobs)
        delivering = asyncio.create_task(keep_delivering(settings), name="memory delivery")
        if devmode or math.isinf(settings.max_load):
            self.load_fnc = lambda: (
                0.0
            )  # livekit-server itself sends no call to a worker that reports 1.0
        readable = devmode if settings.log_format == "auto" else settings.log_format == "readable"
        telemetry.format_root(readable=readable, level=settings.log_level)
        try:
            async with local_embedder(
                settings
            ):  # before there is a job, which learns from the environment where it is
                await super().run(devmode=devmode, unregistered=unregistered)
        except Exception:
            self.failed = True
            raise
        finally:
            delivering.cancel()

    def _watch_jobs(self) -> None:
        self._proc_pool.on(
            "process_closed", self._job_closed
        )  # private; the canary tells when it changes

    def _job_closed(self, process: JobExecutor) -> None:
        """A job that died, killed or crashed, has closed nothing: its caller sits in silence until we end the room."""
        if process.running_job is None:
            return
        job = process.running_job.job.id
        if job in self._ledger.ended:
            self._ledger.ended.discard(job)
        elif getattr(process, "exitcode", 0) != 0:
            task = asyncio.create_task(bury(process.running_job), name="bury")
            self._burying.add(task)
            task.add_done_callback(self._burying.discard)


async def bury(running: RunningJobInfo) -> None:
    """The end of a call whose process is gone, in the log and for whoever is still in its room."""
    call = {"call": running.job.id, "room": running.job.room.name}
    seconds = round(time.time() - running.launched_at, 3)
    try:
        async with asyncio.timeout(HANG_UP_SECONDS):
            await end_room(running.job.room.name, None)
    except Exception as error:
        log.warning("the caller could not be hung up: %s", describe(error), extra={"fields": call})
    fields = {"reason": Reason.JOB_DIED, "seconds": seconds, "turns": None, **call}
    log.error("call ended: %s", Reason.JOB_DIED, extra={"fields": fields})


settings = load_settings()


def prewarm(process: JobProcess) -> None:
    """Import in an idle process what the first call would otherwise wait for."""
    telemetry.export_spans()
    for name in ("agent.persona", "agent.resources", "agent.transport.preconnect", "numpy.fft"):
        with suppress(ImportError):  # said by `agent start` before, and by the call that needs it
            importlib.import_module(name)
    with suppress(ModelsUnavailable, MemoryUnavailable, KnowledgeUnavailable):
        models_of(settings)
        memory.load(settings)
        knowledge.load(settings)


server = Server(
    setup_fnc=prewarm,
    preload_modules=["agent.entrypoint", "agent.ignore_sigterm"],
    port=settings.port,
    prometheus_port=settings.metrics_port or None,
    drain_timeout=settings.drain_seconds,
    num_idle_processes=ServerEnvOption(
        dev_default=1,
        prod_default=settings.idle_processes or min(os.cpu_count() or 1, MAX_IDLE_PROCESSES),
    ),
    load_threshold=ServerEnvOption(dev_default=math.inf, prod_default=settings.max_load),
)
calls: dict[str, Call] = {}  # by job; one in a job process, several where jobs are threads


async def session_ended(ctx: JobContext) -> None:
    """The SDK's last stop with the room still there, at most 300 s: wait until everything is closed and written."""
    if call := calls.pop(ctx.job.id, None):
        await call.finished()


@server.rtc_session(agent_name=settings.name, on_session_end=session_ended)
async def entrypoint(ctx: JobContext) -> None:
    """Connect and return; the call goes on in its own task, so no end of it ever waits for this function."""
    call = calls[ctx.job.id] = Call(RoomTransport(ctx), settings)
    await call.begin(answer)
