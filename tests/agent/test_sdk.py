"""Facts of the installed SDK that calls and the worker rely on, with literals and private names.

The SDK does not promise them: a new livekit-agents may change any of them without notice, and calls
would then end in an unexpected way. These tests read the installed SDK, and fail before a caller
notices.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from asyncio import Queue
from dataclasses import fields
from typing import Any, get_args

import pytest
from livekit.agents import AgentServer, __version__, inference, llm, stt, tts
from livekit.agents import worker as sdk_worker
from livekit.agents.evals.judge import _LLMJudge
from livekit.agents.ipc import job_proc_lazy_main as sdk_job
from livekit.agents.ipc import proc_pool as sdk_pool
from livekit.agents.ipc.job_proc_executor import ProcJobExecutor
from livekit.agents.ipc.supervised_proc import SupervisedProc
from livekit.agents.job import RunningJobInfo
from livekit.agents.stt.stream_adapter import StreamAdapterWrapper
from livekit.agents.utils import EventEmitter, is_hosted
from livekit.agents.worker import ServerOptions

from agent.lifecycle import timeouts
from agent.models.scripted import ScriptedLLM, ScriptedTTS

# a job that answers no ping for so long, because it blocks its event loop, is killed
WATCHDOG_SECONDS = 60
TIMEOUTS = "agent/lifecycle/timeouts.py"
WATCH = "Server in agent/server.py, which watches the processes of jobs"


def changed(what: str, look: str) -> str:
    """The message of a failing test: the fact that changed, and the code that relies on it."""
    return f"livekit-agents {__version__} differs: {what}. Look at {look}."


def code(thing: Any) -> ast.Module:
    """The source of a function or class, as a tree."""
    return ast.parse(textwrap.dedent(inspect.getsource(thing)))


def calls(tree: ast.AST, function: str) -> list[ast.Call]:
    """Every call of `function`, as the source spells it, in the order of the source."""
    found = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == function
    ]
    return sorted(found, key=lambda call: (call.lineno, call.col_offset))


def value(node: ast.expr) -> object:
    """The value of a literal; any other expression as the source spells it."""
    return node.value if isinstance(node, ast.Constant) else ast.unparse(node)


def the_call(function: Any, callee: str, look: str) -> ast.Call:
    """The one call of `callee` in `function`."""
    found = calls(code(function), callee)
    assert len(found) == 1, changed(
        f"{function.__qualname__} calls {callee} {len(found)} times", look
    )
    return found[0]


def keyword(call: ast.Call, name: str) -> object:
    """The value of one keyword argument of a call; None if it is not given."""
    return next((value(given.value) for given in call.keywords if given.arg == name), None)


def waits_of(function: Any) -> list[tuple[str, object]]:
    """Everything that `function` awaits with `asyncio.wait_for`, and how long."""
    return [
        (ast.unparse(call.args[0]), keyword(call, "timeout"))
        for call in calls(code(function), "asyncio.wait_for")
    ]


def disorder(function: Any, *landmarks: str) -> str:
    """The problem with the order of `landmarks` in the source of `function`; empty if none."""
    source, place = inspect.getsource(function), -1
    for landmark in landmarks:
        place = source.find(landmark, place + 1)
        if place < 0:
            return f"`{landmark}` is gone, or no longer in its place"
    return ""


# ---------------------------------------------------------------------- deadlines


def test_a_running_entrypoint_the_session_and_its_end_have_the_time_that_we_think() -> None:
    waits = waits_of(sdk_job._JobProc._shutdown_job)
    assert waits == [
        ("asyncio.shield(job_entry_task)", timeouts.SDK_ENTRYPOINT_SECONDS),
        ("session.aclose()", "_SESSION_ACLOSE_TIMEOUT"),
        ("self._session_end_fnc(self._job_ctx)", "self._session_end_timeout"),
    ], changed(f"a job that ends now waits for {waits}", f"SDK_* in {TIMEOUTS}, and Call.start")
    assert sdk_job._SESSION_ACLOSE_TIMEOUT == timeouts.SDK_ACLOSE_SECONDS, changed(
        f"session.aclose() has {sdk_job._SESSION_ACLOSE_TIMEOUT} s",
        "SDK_ACLOSE_SECONDS, and the last sentence's time",
    )


def test_a_job_shuts_down_in_the_order_that_a_call_expects() -> None:
    problem = disorder(
        sdk_job._JobProc._shutdown_job,
        "asyncio.shield(job_entry_task)",
        "session.aclose()",
        "self._session_end_fnc(self._job_ctx)",
        # uploads, which may take minutes
        "self._job_ctx._on_session_end()",
        "send(ShuttingDown())",
        "self._room.disconnect()",
        "self._job_ctx._shutdown_callbacks",
    )
    assert not problem, changed(
        f"in the shutdown of a job {problem}", "session_ended in agent/server.py"
    )


@pytest.mark.parametrize(
    ("setting", "seconds"),
    [
        ("session_end_timeout", timeouts.SDK_SESSION_END_SECONDS),
        ("shutdown_process_timeout", timeouts.SDK_KILL_SECONDS),
    ],
)
def test_a_worker_that_sets_no_deadline_has_the_default_that_we_think(
    setting: str, seconds: float
) -> None:
    default = inspect.signature(AgentServer.__init__).parameters[setting].default
    options = {field.name: field.default for field in fields(ServerOptions)}[setting]
    assert (default, options) == (seconds, seconds), changed(
        f"{setting} is {default} s by default ({options} in ServerOptions)",
        f"SDK_* in {TIMEOUTS}",
    )


def test_the_deadlines_of_the_worker_are_those_of_its_jobs() -> None:
    look = "SDK_KILL_SECONDS and SDK_SESSION_END_SECONDS"
    pool = the_call(AgentServer.run, "ipc.proc_pool.ProcPool", look)
    given = {name: keyword(pool, name) for name in ("close_timeout", "session_end_timeout")}
    assert given == {
        "close_timeout": "self._shutdown_process_timeout",
        "session_end_timeout": "self._session_end_timeout",
    }, changed(f"a job's deadlines come from {given}", look)


def test_a_job_that_is_asked_to_close_is_killed_only_so_long_after_its_session_has_ended() -> None:
    """The kill is counted from ShuttingDown: everything before it has its own time."""
    waits = waits_of(SupervisedProc.aclose)
    assert waits == [
        ("self._shutdown_ack_fut", "self._opts.close_timeout"),
        ("asyncio.shield(self._supervise_atask)", "self._opts.close_timeout"),
    ], changed(
        f"a job that is asked to close is now waited for so: {waits}",
        "SDK_KILL_SECONDS, and Call.on_job_ending",
    )
    problem = disorder(
        SupervisedProc.aclose,
        "wait_for(self._shutdown_ack_fut",
        # without its own limit
        "await self._shutting_down_fut\n",
        "asyncio.shield(self._supervise_atask), timeout",
    )
    assert not problem, changed(
        f"where a worker waits for a job {problem}", "SDK_KILL_SECONDS, and Call.on_job_ending"
    )


def test_nothing_but_a_stopping_worker_the_server_and_a_failed_start_asks_a_job_to_close() -> None:
    """The server asks when the agent has left the room, so that kill follows nearly every end.

    It does not ask in the first seconds of a call: then only our guard kills a job that is stuck in
    its exit.
    """
    asked = {
        function.name
        for tree in (code(sdk_worker), code(sdk_pool))
        for function in ast.walk(tree)
        if isinstance(function, ast.AsyncFunctionDef) and calls(function, "proc.aclose")
    }
    assert asked == {"_handle_termination", "launch_job", "_proc_spawn_task", "_main_task"}, (
        changed(
            f"a job is asked to close by {sorted(asked)}",
            f"EXIT_SECONDS in {TIMEOUTS}, which has to stay below the kill",
        )
    )


def test_a_room_that_is_not_connected_in_time_is_warned_of_after_as_long_as_we_think() -> None:
    look = f"SDK_CONNECT_WARNING_SECONDS in {TIMEOUTS}, and the deadlines of the steps"
    sleep = the_call(sdk_job._JobProc._run_job_task, "asyncio.sleep", look)
    seconds = value(sleep.args[0])
    assert seconds == timeouts.SDK_CONNECT_WARNING_SECONDS, changed(
        f"it warns of a room that is not connected after {seconds} s", look
    )
    problem = disorder(
        sdk_job._JobProc._run_job_task,
        "def _warn_not_connected_task",
        "asyncio.sleep(",
        "logger.warning(",
    )
    assert not problem, changed(
        f"where a job warns of a room that is not connected {problem}", look
    )


@pytest.mark.parametrize(
    "warning",
    [
        "The job task completed without establishing a connection or performing a proper shutdown",
        "The room connection was not established within 10 seconds",
    ],
)
def test_the_warnings_that_our_calls_must_not_log_still_read_so(warning: str) -> None:
    said = [node.value for node in ast.walk(code(sdk_job)) if isinstance(node, ast.Constant)]
    assert any(isinstance(text, str) and warning in text for text in said), changed(
        f"it no longer logs {warning!r}",
        "whatever looks for that sentence in a log, alerts included",
    )


def test_a_job_that_blocks_its_event_loop_is_killed_after_as_long_as_we_think() -> None:
    look = "how long a call that blocks its event loop keeps its caller waiting"
    process = the_call(
        sdk_pool.ProcPool._proc_spawn_task, "job_proc_executor.ProcJobExecutor", look
    )
    seconds = keyword(process, "ping_timeout")
    assert seconds == WATCHDOG_SECONDS, changed(
        f"a job that answers no ping is killed after {seconds} s", look
    )


# ---------------------------------------------------------------------- models


@pytest.mark.parametrize(
    ("adapter", "instances"),
    [
        (llm.FallbackAdapter([ScriptedLLM(), ScriptedLLM()]), "_llm_instances"),
        (tts.FallbackAdapter([ScriptedTTS(), ScriptedTTS()]), "_tts_instances"),
    ],
)
def test_a_fallback_adapter_asks_the_first_of_its_models_that_is_available(
    adapter: Any, instances: str
) -> None:
    look = "with_substitutes in agent/conversation/fallback.py"
    first, second = getattr(adapter, instances)
    assert adapter._next_instance() is first, changed("the first model is not asked first", look)
    adapter._status[0].available = False
    assert adapter._next_instance() is second, changed(
        "a model that is marked as unavailable is not skipped", look
    )


def test_speech_to_text_of_whole_utterances_is_one_method_of_every_plugin() -> None:
    look = "limit_recognition in agent/conversation/fallback.py"
    assert "_recognize_impl" in stt.STT.__abstractmethods__, changed("no such method", look)
    assert calls(code(stt.STT.recognize), "self._recognize_impl"), changed("it is not asked", look)
    assert calls(code(StreamAdapterWrapper), "self._wrapped_stt.recognize"), changed(
        "an utterance is recognised in another way", look
    )


def test_a_fallback_adapter_knows_its_recognisers() -> None:
    recogniser = inference.STT("deepgram/nova-3", api_key="key", api_secret="secret")
    adapter = stt.FallbackAdapter([recogniser])
    look = "alternatives in agent/conversation/fallback.py"
    assert adapter._stt_instances == [recogniser], changed("its recognisers are elsewhere", look)


def test_livekit_cloud_is_told_from_other_machines_as_we_think(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    look = "agent/models/turns.py"
    monkeypatch.delenv("LIVEKIT_REMOTE_EOT_URL", raising=False)
    assert not is_hosted(), changed("any machine is taken for LiveKit Cloud's", look)
    monkeypatch.setenv("LIVEKIT_REMOTE_EOT_URL", "https://eot.test")
    assert is_hosted(), changed("LiveKit Cloud is told by another variable", look)


def test_a_voice_has_its_options_and_an_adapter_its_voice() -> None:
    look = "voice_of in agent/conversation/sounds.py, or sounds are kept of no voice"
    voice = inference.TTS("cartesia/sonic-3", voice="ann", api_key="key", api_secret="secret" * 6)
    assert "voice='ann'" in repr(voice._opts), changed("a voice has no such options", look)
    adapter = tts.StreamAdapter(tts=ScriptedTTS())
    assert isinstance(adapter._wrapped_tts, ScriptedTTS), changed("an adapter hides it", look)


# ---------------------------------------------------------------------- the worker and its jobs


def test_a_worker_says_that_it_has_started_when_it_has_its_jobs_processes() -> None:
    assert issubclass(AgentServer, EventEmitter), changed("a worker emits no events", WATCH)
    assert "worker_started" in get_args(sdk_worker.EventTypes), changed(
        "no event worker_started", WATCH
    )
    problem = disorder(
        AgentServer.run,
        "self._proc_pool = ipc.proc_pool.ProcPool(",
        'self.emit("worker_started")',
        "await self._close_future",
    )
    assert not problem, changed(f"where a worker starts {problem}", WATCH)


def test_a_worker_is_healthy_unless_its_connection_has_failed() -> None:
    """Server in agent/server.py says so until the worker is registered."""
    assert "worker_registered" in get_args(sdk_worker.EventTypes), changed(
        "no event worker_registered", WATCH
    )
    checks = [
        ast.unparse(node.test)
        for node in ast.walk(code(AgentServer.run))
        if isinstance(node, ast.If) and "status=503" in ast.unparse(node.body[0])
    ]
    assert "self._connection_failed" in checks, changed(f"/ fails for {checks}", WATCH)


class Process:
    """An executor of one job, as the pool's monitor uses it."""

    async def join(self) -> None:
        """The process has ended."""


async def test_a_worker_reports_each_jobs_process_that_has_ended() -> None:
    assert {"process_closed", "process_job_launched"} <= {*get_args(sdk_pool.EventTypes)}, changed(
        "no event process_closed, or process_job_launched", WATCH
    )
    pool = sdk_pool.ProcPool.__new__(sdk_pool.ProcPool)
    EventEmitter.__init__(pool)
    process: Any = Process()
    pool._executors = [process]
    pool._warmed_proc_queue = Queue()
    told: list[object] = []
    pool.on("process_closed", told.append)
    await pool._monitor_process_task(process)
    assert told == [process], changed(f"process_closed came with {told}", WATCH)


def test_a_jobs_process_that_has_ended_still_knows_its_job_and_how_it_ended() -> None:
    for name in ("running_job", "exitcode", "killed"):
        assert isinstance(inspect.getattr_static(ProcJobExecutor, name, None), property), changed(
            f"the executor of a job has no {name}", WATCH
        )
    setters = {
        function.name
        for function in ast.walk(code(ProcJobExecutor))
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if ast.unparse(target) == "self._running_job"
    }
    assert setters == {"__init__", "launch_job"}, changed(
        f"the executor's running_job is set by {sorted(setters)}: it may end with the process",
        WATCH,
    )
    problem = disorder(
        SupervisedProc._supervise_task,
        "await self._join_fut",
        "self._exitcode = self._proc.exitcode",
    )
    assert not problem, changed(f"where a job's process is waited for {problem}", WATCH)


def test_a_worker_lists_its_jobs_with_their_rooms_and_the_moment_they_began() -> None:
    assert isinstance(inspect.getattr_static(AgentServer, "active_jobs", None), property), changed(
        "a worker has no active_jobs", WATCH
    )
    missing = {"job", "assigned_at", "launched_at"} - {
        field.name for field in fields(RunningJobInfo)
    }
    assert not missing, changed(f"a running job has no {sorted(missing)}", WATCH)


# ---------------------------------------------------------------------- rehearsals


def test_the_judge_takes_a_criterion_in_words() -> None:
    taken = inspect.signature(_LLMJudge).parameters.keys()
    look = "_judged in agent/cli/rehearse.py"
    assert taken >= {"llm", "instructions", "name"}, changed("_LLMJudge takes others", look)
