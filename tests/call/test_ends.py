"""Every way a call can end, of docs/agent/ending-calls.md, on a real server."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio
from livekit import api

from tests.call.scene import ALL_STEPS, OPENED, Scene, cut_off, measured, new_room, scene, troubled
from tests.support.caller import Caller
from tests.support.ends import ENDS, End, ends, proven_in
from tests.support.projects import Project, clean_environment
from tests.support.server import LiveKit, free_port
from tests.support.templates import Template
from tests.support.terminal import terminal
from tests.support.worker import SDK_WARNINGS, Record

pytestmark = pytest.mark.asyncio(loop_scope="session")

QUICK: dict[str, Any] = {
    "AGENT_CALLER_WAIT_SECONDS": "2",
    "AGENT_REPLY_SECONDS": "2",
    "AGENT_TOOL_SECONDS": "2",
}


@pytest.fixture(scope="module")
def project(template: Template, tmp_path_factory: pytest.TempPathFactory) -> Project:
    return troubled(template, tmp_path_factory.mktemp("troubled"))


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def stage(project: Project, livekit: LiveKit) -> AsyncIterator[Scene]:
    """A worker for every end that needs no other settings."""
    async with scene(project, livekit, **QUICK) as started:
        yield started
        warned = [
            r
            for r in started.running.records
            if any(said in str(r.get("message")) for said in SDK_WARNINGS)
        ]
        assert warned == []


async def test_every_end_of_the_table_is_proven_where_it_says(template: Template) -> None:
    here, rendered = Path(__file__).parent, Path(__file__).parents[2] / "template" / "tests"
    assert proven_in(here) == {
        name for name, end in ENDS.items() if end.proven & {"server", "phone"}
    }
    assert proven_in(rendered) == {name for name, end in ENDS.items() if "here" in end.proven}


# ---------------------------------------------------------------------- the caller


@ends("leaves-listening")
async def test_the_caller_hangs_up_while_the_agent_listens(end: End, stage: Scene) -> None:
    room = new_room()
    async with stage.caller(room):
        await stage.step(room, 6)
    await stage.expect(end, room)


@ends("leaves-greeting")
async def test_the_caller_hangs_up_while_the_agent_greets(end: End, stage: Scene) -> None:
    room = new_room()
    async with stage.caller(room) as caller:
        await caller.hear_sound()
    await stage.running.ended(room)
    # the server reports a hang-up after about a second
    greeted = 7 in stage.running.steps(room)
    await stage.expect(end, room, steps=ALL_STEPS if greeted else [1, 2, 3, 4, 5, 6, 8])


@ends("leaves-thinking")
async def test_the_caller_hangs_up_while_the_model_thinks(end: End, stage: Scene) -> None:
    room = new_room()
    async with stage.caller(room) as caller:
        await caller.hear_text_with("help")
        await caller.write("llm hang")
        await stage.said(room, "the model was asked")
    await stage.expect(end, room)


@ends("leaves-in-tool")
async def test_a_hang_up_inside_a_slow_tool_does_not_wait_for_the_tool(
    end: End, stage: Scene
) -> None:
    room = new_room()
    async with stage.caller(room) as caller:
        await caller.hear_text_with("help")
        await caller.write("/tool slow {}")
        await stage.said(room, "the slow tool began")
    await stage.expect(end, room)
    said = [record["message"] for record in stage.running.of(room)]
    assert "the slow tool was cancelled" in said
    assert "the tool slow was cut short: its call has ended" in said


@ends("phone-leaves-early", "browser-leaves-early")
async def test_a_caller_who_leaves_before_anybody_answers(end: End, stage: Scene) -> None:
    room = new_room("open-is-slow")
    async with stage.caller(
        room, kind="sip" if end.name.startswith("phone") else "standard"
    ) as caller:
        async with asyncio.timeout(10):
            await caller.agent_here.wait()
    kept = [name for name in OPENED if name != "session"]
    # it ends the call before the pool has opened
    if end.name.startswith("phone"):
        await stage.expect(
            end, room, steps=[1, 8], opened=[name for name in kept if name != "pool"]
        )
    else:
        await stage.expect(end, room, steps=[1, 2, 3, 4, 8], opened=kept)


@ends("calls-again")
async def test_a_caller_who_comes_back_is_greeted_again(end: End, stage: Scene) -> None:
    room = new_room()
    async with stage.caller(room) as caller:
        await caller.hear_text_with("help")
        await stage.step(room, 6)
    await stage.expect(end, room)
    async with stage.caller(room, identity=caller.identity) as again:
        await again.hear_text_with("help")
        await again.ask("Where can I park my bicycle?", "bicycle")
        assert not again.cut_off.is_set()
    await stage.running.free()


@ends("back-while-closing")
async def test_a_caller_who_comes_back_while_the_call_is_closing_gets_another_agent(
    end: End, project: Project, livekit: LiveKit
) -> None:
    room = new_room()
    # the tool takes eight seconds, and no deadline cuts it short
    patient: dict[str, Any] = {"AGENT_TOOL_SECONDS": "60", "AGENT_TOOL_FINISH_SECONDS": "60"}
    async with scene(project, livekit, **patient) as stage:
        async with stage.caller(room) as caller:
            await caller.hear_text_with("help")
            await caller.write("/tool slow {}")
            await stage.said(room, "the slow tool began")
        await stage.said(room, "ending")
        async with stage.caller(room, identity=caller.identity) as again:
            assert (await stage.running.ended(room))["reason"] == end.reason
            await stage.said(room, "an agent was sent again")
            await again.hear_text_with("help")
            await again.ask("Where can I park my bicycle?", "bicycle")
            assert not again.cut_off.is_set()
        await stage.running.free()
    assert not await stage.is_there(room)


@ends("company-leaves")
async def test_somebody_else_who_joins_and_leaves_is_not_the_caller(end: End, stage: Scene) -> None:
    room = new_room()
    async with stage.caller(room) as caller:
        await caller.hear_text_with("help")
        async with stage.caller(room, identity="supervisor"):
            pass
        await caller.ask("Where can I park my bicycle?", "bicycle")
    await stage.expect(end, room)


@ends("company-stays")
async def test_the_room_stays_for_others_when_the_caller_hangs_up(end: End, stage: Scene) -> None:
    room = new_room()
    async with stage.caller(room) as caller:
        await caller.hear_text_with("help")
        async with stage.caller(room, identity="supervisor") as supervisor:
            await caller.hang_up()
            await stage.expect(end, room)
            assert await stage.present(room) == ["supervisor"]
            assert not supervisor.cut_off.is_set()


@ends("no-show")
async def test_nobody_comes(end: End, stage: Scene) -> None:
    room = new_room()
    await stage.dispatch(room)
    kept = [name for name in OPENED if name != "session"]
    await stage.expect(end, room, steps=[1, 2, 3, 4, 8], opened=kept)


@ends("too-silent")
async def test_silence_is_asked_about_once_and_then_ends_the_call(
    end: End, project: Project, livekit: LiveKit
) -> None:
    room = new_room()
    async with scene(project, livekit, AGENT_MAX_SILENCE_SECONDS="2") as stage:
        async with stage.caller(room) as caller:
            await caller.hear_text_with("still there")
            await caller.hear_text_with("cannot hear you")
            await cut_off(caller)
        await stage.expect(end, room)


# ---------------------------------------------------------------------- agent, server and worker


@ends("room-deleted")
async def test_the_room_is_deleted(end: End, stage: Scene) -> None:
    room = new_room()
    async with stage.caller(room) as caller, stage.livekit.api() as server:
        await stage.step(room, 6)
        await server.room.delete_room(api.DeleteRoomRequest(room=room))
        await stage.expect(end, room)
        await cut_off(caller)


@ends("agent-removed")
async def test_the_agent_is_removed_and_its_caller_too(end: End, stage: Scene) -> None:
    room = new_room()
    async with stage.caller(room) as caller, stage.livekit.api() as server:
        await stage.step(room, 6)
        (agent,) = caller.room.remote_participants
        await server.room.remove_participant(api.RoomParticipantIdentity(room=room, identity=agent))
        await stage.expect(end, room)
        await cut_off(caller)


@ends("agent-hangs-up", "job-shut-down", "three-at-once")
async def test_the_agent_hangs_up_after_a_goodbye_that_is_heard_to_its_end(
    end: End, stage: Scene
) -> None:
    room = new_room()
    words = {"job-shut-down": "/tool shut_job_down {}", "three-at-once": "/tool end_three_times {}"}
    async with stage.caller(room) as caller:
        await stage.step(room, 6)
        before = caller.loud_seconds
        await caller.ask(words.get(end.name, "goodbye"), "Goodbye!")
        await cut_off(caller)
        assert caller.loud_seconds > before
        assert await stage.present(room) == []
    await stage.expect(end, room)


@ends("agent-hangs-up-to-a-viewer")
async def test_who_only_listens_is_no_caller_and_keeps_no_room(end: End, stage: Scene) -> None:
    room = new_room()
    # both are there before the agent: a viewer has no say in how long it waits for a caller
    async with (
        Caller(stage.livekit, room, identity="viewer", listens=True) as viewer,
        Caller(stage.livekit, room) as caller,
    ):
        await stage.dispatch(room)
        await caller.hear_text_with("help")
        await caller.ask("goodbye", "Goodbye!")
        await cut_off(caller)
        await cut_off(viewer)
    await stage.expect(end, room)


@ends("agent-hangs-up-in-company")
async def test_somebody_else_in_the_room_keeps_it_when_the_agent_hangs_up(
    end: End, stage: Scene
) -> None:
    room = new_room()
    async with stage.caller(room) as caller:
        await caller.hear_text_with("help")
        async with stage.caller(room, identity="supervisor"):
            await caller.ask("goodbye", "Goodbye!")
            await stage.expect(end, room)
            assert sorted(await stage.present(room)) == sorted([caller.identity, "supervisor"])


@ends("too-long")
async def test_a_call_that_is_too_long_ends_with_a_goodbye(
    end: End, project: Project, livekit: LiveKit
) -> None:
    room = new_room()
    async with scene(project, livekit, AGENT_MAX_CALL_SECONDS="10") as stage:
        async with stage.caller(room) as caller:
            await caller.hear_text_with("as long as I can")
            await cut_off(caller)
        await stage.expect(end, room)


@ends("drain")
async def test_a_worker_in_production_lets_its_live_call_go_on(
    end: End, project: Project, livekit: LiveKit
) -> None:
    room = new_room()
    async with scene(project, livekit) as stage:
        async with stage.caller(room) as caller:
            await caller.hear_text_with("help")
            stage.running.process.send_signal(signal.SIGTERM)
            await stage.running.wait_for(lambda record: "draining" in str(record.get("message")))
            await caller.ask("Where can I park my bicycle?", "bicycle")
            async with stage.caller(new_room()) as late:
                await caller.ask("What does a puncture cost?", "euros")
                # no new call is accepted
                assert not late.agent_here.is_set()
        async with asyncio.timeout(30):
            assert await stage.running.process.wait() == 0
        record = await stage.running.ended(room)
        assert record["reason"] == end.reason
        stage.remembered(end, record)


@ends("drain-group")
async def test_a_process_group_that_is_stopped_keeps_its_live_call(
    end: End, project: Project, livekit: LiveKit
) -> None:
    """Stop it like systemd; without `uv run`, which would send the signal a second time."""
    room = new_room()
    command = [str(project.path / ".venv" / "bin" / "agent")]
    async with scene(project, livekit, command=command) as stage:
        async with stage.caller(room) as caller:
            await caller.hear_text_with("help")
            os.killpg(stage.running.process.pid, signal.SIGTERM)
            await stage.running.wait_for(lambda record: "draining" in str(record.get("message")))
            await caller.ask("Where can I park my bicycle?", "bicycle")
        async with asyncio.timeout(30):
            assert await stage.running.process.wait() == 0
        record = await stage.running.ended(room)
        assert record["reason"] == end.reason
        stage.remembered(end, record)


@pytest.mark.parametrize("phase", ["waiting", "greeting", "listening"])
@ends("dev-stop")
async def test_a_dev_worker_that_is_stopped_ends_its_call_in_order(
    end: End, phase: str, project: Project, livekit: LiveKit
) -> None:
    room = new_room()
    async with scene(project, livekit, "dev") as stage:
        if phase == "waiting":
            await stage.dispatch(room)
            await stage.step(room, 3)
            assert await timed_stop(end, stage) == 0
        else:
            async with stage.caller(room) as caller:
                await caller.hear_sound()
                if phase == "listening":
                    await stage.step(room, 6)
                assert await timed_stop(end, stage) == 0
                await cut_off(caller)
        assert (await stage.running.ended(room))["reason"] == end.reason
        assert {outcome for _, outcome in stage.running.closed(room)} == {"ok"}
        steps = {
            "waiting": [1, 2, 3, 4, 8],
            "greeting": [1, 2, 3, 4, 5, 6, 8],
            "listening": ALL_STEPS,
        }
        assert stage.running.steps(room) == steps[phase]


async def timed_stop(end: End, stage: Scene) -> int:
    """Stop the worker; return the exit code."""
    began = time.monotonic()
    code = await stage.running.stop(signal.SIGTERM)
    measured(end, time.monotonic() - began)
    return code


@ends("dev-ctrl-c")
async def test_ctrl_c_at_a_terminal_ends_the_call_in_order(
    end: End, project: Project, livekit: LiveKit
) -> None:
    """A terminal interrupts all processes in the foreground: uv, the worker and its jobs."""
    room, agent = new_room(), "agent-at-a-terminal"
    keyless = {
        "AGENT_MODELS": "scripted",
        "AGENT_PORT": str(free_port()),
        "AGENT_LOG_FORMAT": "json",
    }
    environment = clean_environment(**livekit.environment, **keyless, AGENT_NAME=agent)
    async with terminal([*project.agent, "dev"], project.path, environment) as shown:
        await shown.shows("registered worker")
        async with Caller(livekit, room, agent) as caller:
            await caller.hear_text_with("help")
            pressed = time.monotonic()
            shown.press(b"\x03")
            await cut_off(caller)
        async with asyncio.timeout(10):
            assert await shown.process.wait() == 0
        measured(end, time.monotonic() - pressed)
        records = shown.records()
        assert [r["reason"] for r in records if "turns" in r] == [end.reason]
        assert {r["outcome"] for r in records if "resource" in r} == {"ok"}


@ends("job-killed")
async def test_a_killed_job_loses_no_finished_turn_and_strands_nobody(
    end: End, stage: Scene
) -> None:
    room = new_room()
    async with stage.caller(room, identity="ben") as caller:
        await caller.hear_text_with("help")
        await caller.ask("Where can I park my bicycle?", "bicycle")
        told = await stage.step(room, 6)
        await until(lambda: stage.turns(told["call"]) == 3)
        os.kill(told["pid"], signal.SIGKILL)
        await cut_off(caller)
    record = await stage.running.ended(room)
    assert (record["reason"], record["turns"]) == (end.reason, None)
    await stage.running.free()
    await stage.counted(end)
    report = await stage.reported(end, told["call"])
    assert (report["room"], report["caller"], report["kind"]) == (room, "ben", "standard")
    again = new_room()
    async with stage.caller(again, identity="ben") as caller:
        await caller.hear_text_with("cut off")
    await stage.expect(ENDS["leaves-listening"], again)


@ends("worker-killed")
async def test_jobs_that_outlive_their_worker_close_everything_and_leave(
    end: End, project: Project, livekit: LiveKit
) -> None:
    room = new_room()
    async with scene(project, livekit) as stage:
        async with stage.caller(room) as caller:
            await caller.hear_text_with("help")
            await caller.ask("Where can I park my bicycle?", "bicycle")
            told = await stage.step(room, 6)
            # the answer has been said to its end
            await until(lambda: stage.turns(told["call"]) == 3)
            # between them is the SDK's fork server
            worker = psutil.Process(told["pid"]).parents()[1]
            family = [worker, *worker.children(recursive=True)]
            worker.kill()
            await cut_off(caller)
            assert await stage.present(room) == []
        _, alive = await asyncio.to_thread(psutil.wait_procs, family, timeout=20)
        assert alive == []
        span = await stage.spans.call(room)
        assert span.attributes["reason"] == end.reason
        stage.remembered(end, {"call": told["call"], "turns": 3})
        report = await stage.reported(end, told["call"])
        assert len(report["said"]) == 3


# ---------------------------------------------------------------------- something fails or hangs


WITHOUT_SESSION = [name for name in OPENED if name != "session"]


@ends("step-1-fails", "step-1-hangs", "step-3-fails", "step-5-hangs")
async def test_a_call_that_cannot_begin_ends_at_once_and_for_its_caller_too(
    end: End, stage: Scene
) -> None:
    troubles = {
        "step-1-fails": ("open-fails", [1, 8], ["room", "memory", "knowledge", "http"]),
        "step-1-hangs": ("open-hangs", [1, 8], ["room", "memory", "knowledge", "http"]),
        "step-3-fails": ("persona-fails", [1, 2, 3, 8], WITHOUT_SESSION),
        "step-5-hangs": ("start-hangs", [1, 2, 3, 4, 5, 8], WITHOUT_SESSION),
    }
    trouble, steps, opened = troubles[end.name]
    room = new_room(trouble)
    async with stage.caller(room) as caller:
        await cut_off(caller, 30)
    await stage.expect(end, room, steps=steps, opened=opened)


@ends("step-4-fails")
async def test_the_room_is_deleted_while_the_caller_is_awaited(end: End, stage: Scene) -> None:
    room = new_room()
    await stage.dispatch(room)
    await stage.step(room, 3)
    async with stage.livekit.api() as server:
        await server.room.delete_room(api.DeleteRoomRequest(room=room))
    await stage.expect(end, room, steps=[1, 2, 3, 4, 8], opened=WITHOUT_SESSION)


@ends("step-6-fails", "step-6-hangs")
async def test_a_greeting_that_fails_or_never_comes(end: End, stage: Scene) -> None:
    room = new_room("greeting-fails" if end.name == "step-6-fails" else "greeting-hangs")
    async with stage.caller(room) as caller:
        await stage.step(room, 5)
        # the step has 20 s
        async with asyncio.timeout(40):
            while "something went wrong" not in await caller.sentences.get():
                pass
        await cut_off(caller)
    await stage.expect(end, room, steps=[1, 2, 3, 4, 5, 6, 8])


@ends("llm-fails", "llm-hangs", "llm-breaks-off")
async def test_a_reply_that_the_language_model_fails_is_an_apology(end: End, stage: Scene) -> None:
    room = new_room()
    async with stage.caller(room) as caller:
        await caller.hear_text_with("help")
        words = {
            "llm-fails": "llm fail",
            "llm-hangs": "llm hang",
            "llm-breaks-off": "llm break off",
        }
        before = caller.loud_seconds
        await caller.ask(words[end.name], "I am sorry, I cannot answer that just now.")
        assert caller.loud_seconds > before
        await caller.ask("Where can I park my bicycle?", "bicycle")
    await stage.expect(end, room)


@ends("llm-fails-for-good")
async def test_a_language_model_that_fails_again_and_again_ends_the_call(
    end: End, stage: Scene
) -> None:
    room = new_room()
    async with stage.caller(room) as caller:
        await caller.hear_text_with("help")
        await caller.ask("llm fail", "I cannot answer")
        await caller.ask("llm fail", "I cannot answer")
        await caller.ask("llm fail", "something went wrong")
        await cut_off(caller)
    await stage.expect(end, room)


@ends("tts-fails", "tts-hangs")
async def test_a_voice_that_fails_is_three_tones(end: End, stage: Scene) -> None:
    room = new_room()
    async with stage.caller(room) as caller:
        await caller.hear_text_with("help")
        await stage.step(room, 6)
        before = caller.loud_seconds
        text = json.dumps({"text": "voice hang" if end.name == "tts-hangs" else "voice fail"})
        await caller.write(f"/tool say {text}")
        await stage.said(room, "text-to-speech failed")
        # three times a quarter of a second
        await until(lambda: caller.loud_seconds >= before + 0.6)
        await caller.ask("Where can I park my bicycle?", "bicycle")
    await stage.expect(end, room)


@ends("model-replaced")
async def test_a_model_that_hangs_is_replaced_by_the_adapters_next_one(
    end: End, stage: Scene
) -> None:
    room = new_room("model-replaced")
    async with stage.caller(room) as caller:
        await caller.hear_text_with("help")
        await caller.write("llm hang")
        async with asyncio.timeout(40):
            assert "I am sorry" not in await caller.sentences.get()
        before = caller.loud_seconds
        await caller.ask('/tool say {"text": "voice hang"}', "voice hang")
        # longer than the tones
        await until(lambda: caller.loud_seconds > before)
    await stage.expect(end, room)
    told = [str(record["message"]) for record in stage.running.of(room)]
    assert sum("the next one is asked" in message for message in told) == 2
    assert not [message for message in told if "failed" in message]


@ends("tts-fails-for-good")
async def test_a_voice_that_fails_again_and_again_ends_the_call(end: End, stage: Scene) -> None:
    room = new_room()
    async with stage.caller(room) as caller:
        await caller.hear_text_with("help")
        for failure in range(1, 4):
            await caller.write('/tool say {"text": "voice fail"}')

            def failed(record: Record, failure: int = failure) -> bool:
                return record.get("room") == room and record.get("failures") == failure

            await stage.running.wait_for(failed)
        await cut_off(caller)
    await stage.expect(end, room)


@ends("stt-fails")
async def test_speech_to_text_that_loses_its_connection_is_spoken_of(
    end: End, stage: Scene
) -> None:
    room = new_room("stt-fails")
    async with stage.caller(room) as caller:
        await caller.hear_text_with("I cannot hear you at the moment")
    await stage.expect(end, room)


@ends("stt-fails-for-good")
async def test_speech_to_text_that_fails_again_and_again_ends_the_call(
    end: End, stage: Scene
) -> None:
    room = new_room("stt-fails-for-good")
    async with stage.caller(room) as caller:
        await caller.hear_text_with("something went wrong")
        await cut_off(caller)
    await stage.expect(end, room)


@ends("stt-crashes")
async def test_speech_to_text_that_nothing_mends_ends_the_call(end: End, stage: Scene) -> None:
    room = new_room("stt-crashes")
    async with stage.caller(room) as caller:
        await caller.hear_text_with("something went wrong")
        await cut_off(caller)
    record = await stage.running.ended(room)
    if record["reason"] == end.reason:
        await stage.expect(end, room)
        return
    steps = stage.running.steps(room)
    # it may crash while the greeting ends, and then step 7 is there and over at once
    assert steps in (ALL_STEPS, [1, 2, 3, 4, 5, 6, 8])
    await stage.expect(ENDS["step-6-fails"], room, steps=steps)


@ends("tool-fails", "tool-hangs")
async def test_a_tool_that_fails_or_hangs_is_spoken_of(end: End, stage: Scene) -> None:
    room = new_room()
    async with stage.caller(room) as caller:
        await caller.hear_text_with("help")
        if end.name == "tool-fails":
            await caller.ask("/tool fail {}", "error")
        else:
            await caller.ask("/tool hang {}", "No answer within 2 s")
        await caller.ask("Where can I park my bicycle?", "bicycle")
    await stage.expect(end, room)


@ends("close-hangs", "close-raises", "close-clings", "close-is-slow")
async def test_a_close_that_goes_wrong_does_not_keep_the_others_from_it(
    end: End, stage: Scene
) -> None:
    room = new_room(end.name)
    async with stage.caller(room):
        await stage.step(room, 6)
    outcomes = {
        "close-hangs": "timeout",
        "close-raises": "error",
        "close-clings": "timeout",
        "close-is-slow": "ok",
    }
    await stage.expect(end, room, badly={"pool": outcomes[end.name]})


@ends("task-hangs", "callback-raises")
async def test_what_an_owner_leaves_behind_does_not_hold_the_call(end: End, stage: Scene) -> None:
    room = new_room(end.name)
    async with stage.caller(room):
        await stage.step(room, 6)
    await stage.expect(end, room)


@ends("thread-hangs")
async def test_a_thread_that_nothing_can_stop_does_not_hold_the_slot(
    end: End, stage: Scene
) -> None:
    room = new_room()
    async with stage.caller(room) as caller:
        await caller.hear_text_with("help")
        await caller.write("/tool stuck {}")
        await stage.said(room, "the stuck tool began")
    record = await stage.running.ended(room)
    assert record["reason"] == end.reason
    # long before the thread would end
    await stage.running.free()
    assert any("ended by force" in record["message"] for record in stage.running.of(room))
    stage.remembered(end, record)


@ends("loop-blocked")
async def test_code_that_blocks_the_event_loop_is_warned_of_by_name(end: End, stage: Scene) -> None:
    room = new_room()
    async with stage.caller(room) as caller:
        await caller.hear_text_with("help")
        await caller.ask('/tool block {"seconds": 1.5}', "was blocked")
    await stage.expect(end, room)
    warned = [
        r
        for r in stage.running.records
        if "event loop" in str(r.get("message")) and r.get("room") == room
    ]
    assert any("persona.py" in json.dumps(r) for r in warned)


async def until(holds: Callable[[], bool], seconds: float = 20) -> None:
    """Wait for something that no event tells of."""
    async with asyncio.timeout(seconds):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.02)
