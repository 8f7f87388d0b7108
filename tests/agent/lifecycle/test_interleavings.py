"""Exactly once: in any order of opening, failing, cancelling and closing, a call ends well."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from itertools import combinations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.lifecycle import Reason, timeouts
from tests.agent.lifecycle.clock import VirtualClock, run_virtually
from tests.agent.lifecycle.world import (
    CAUSES,
    INSTANT,
    INTERRUPTIONS,
    Act,
    Arrive,
    CancelEntrypoint,
    CancelOpener,
    Deed,
    Happens,
    Kill,
    Open,
    Part,
    Resource,
    Script,
    Spawn,
    Tool,
    World,
)

# Few values, among them the deadlines of the lifecycle, so that events happen at the same instant.
SECONDS = st.sampled_from((0.0, 0.0, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0))
TURNS = st.integers(0, 3)
DEEDS = st.builds(
    Deed,
    turns=TURNS,
    seconds=SECONDS,
    then=st.sampled_from(("done", "done", "done", "raises", "is cancelled", "hangs")),
    stubborn=st.sampled_from((False, False, False, True)),
)
QUICK = st.builds(Deed, turns=TURNS, seconds=st.sampled_from((0.0, 0.0, 0.1)))
PARTS = st.builds(
    Part,
    opening=QUICK | QUICK | DEEDS,
    closing=QUICK | DEEDS,
    open_seconds=st.sampled_from((0.1, 1.0, 5.0)),
    close_seconds=st.sampled_from((0.1, 2.0, 5.0)),
    needed=st.sampled_from((False, False, False, True)),
)
ACTS: st.SearchStrategy[Act] = st.one_of(
    st.builds(Open, PARTS),
    st.builds(Open, PARTS),
    st.builds(CancelOpener, st.integers(0, 5)),
    st.builds(Spawn, DEEDS, st.booleans()),
    st.builds(Tool, DEEDS, st.sampled_from((0.5, 20.0))),
    st.builds(Happens, st.sampled_from(CAUSES)),
    st.builds(Happens, st.sampled_from(INTERRUPTIONS)),
    st.just(Arrive()),
    st.just(CancelEntrypoint()),
    st.builds(Kill, st.booleans()),
)
SCRIPTS = st.builds(
    Script,
    room=st.builds(Part, QUICK | QUICK | QUICK | DEEDS, QUICK | DEEDS),
    early=st.lists(PARTS, max_size=3).map(tuple),
    at_once=st.booleans(),
    session=st.none() | PARTS,
    greeting=QUICK | QUICK | DEEDS,
    late=st.none() | PARTS,
    returns=st.sampled_from((False, False, False, True)),
    phone=st.booleans(),
    end_room=QUICK
    # ours, which can be cancelled
    | DEEDS.filter(lambda deed: not deed.stubborn),
    close_seconds=st.sampled_from((0.5, 3.0, 6.0)),
    acts=st.lists(st.tuples(TURNS, SECONDS, ACTS), min_size=2, max_size=12).map(tuple),
    arrives=st.sampled_from((True, True, True, False)),
)


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    """Disable the log of thousands of calls."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logging.getLogger("agent.call"), "disabled", True)
        yield


@settings(
    max_examples=200, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck)
)
@given(SCRIPTS)
def test_everything_that_opened_is_closed_once_in_order_however_it_interleaves(
    script: Script,
) -> None:
    run_virtually(_prove(script))


@pytest.mark.slow
@pytest.mark.parametrize("thousand", range(10))
@settings(
    max_examples=1000, deadline=None, print_blob=True, suppress_health_check=list(HealthCheck)
)
@given(script=SCRIPTS)
def test_everything_that_opened_is_closed_once_in_order_in_ten_thousand_calls(
    thousand: int, script: Script
) -> None:
    run_virtually(_prove(script))


# Found by ten thousand runs; two hundred may miss it.


def test_an_opener_learns_that_a_clinging_open_failed() -> None:
    clings = Part(opening=Deed(seconds=3.0, then="raises", stubborn=True))
    acts = ((0, 0.0, Open(clings)), (0, 0.0, Happens("hangs up")))
    run_virtually(_prove(Script(acts=acts, arrives=True)))


def test_what_is_opened_by_steps_that_cling_to_a_dying_process_is_left() -> None:
    room = Part(opening=Deed(turns=1))
    greeting = Deed(turns=3, seconds=0.5, stubborn=True)
    run_virtually(
        _prove(
            Script(
                room=room, greeting=greeting, late=Part(), acts=((3, 0.5, Kill()),), arrives=True
            )
        )
    )


async def _prove(script: Script) -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualClock)
    world = World(script, loop)
    await world.play()
    assert world.left_over() == []
    await world.let_them_go()
    assert loop.alive() == [asyncio.current_task()]
    assert world.wrong == []
    assert world.unexpected() == []
    assert loop.complaints == []
    _ended_for_its_first_cause(world)
    for resource in world.resources.values():
        _entered_and_left_once_by_one_task(resource)
    if world.killed and world.over and world.over.number > world.killed.number:
        # a step failed when it was cancelled: the call closes, not knowing that the process dies
        return
    _left_in_order(world)
    _ended_the_room(world)
    _cancelled_tools(world)
    _let_background_tasks_finish(world)
    if world.killed:
        assert world.transport.guarded <= 1
        # a close that hangs does not hold the process
        assert world.transport.guarded or not world.open_when_killed
    else:
        _reported_everything(world)
        _kept_to_its_budget(world)


def _ended_for_its_first_cause(world: World) -> None:
    killed = world.killed.time if world.killed else float("inf")
    causes = [cause for cause in world.causes if cause.when.time <= killed + INSTANT]
    first = min((cause.when.time for cause in causes), default=0.0)
    at_once = [cause for cause in causes if cause.when.time <= first + INSTANT]
    certain: list[str | None] = [cause.reason for cause in at_once if not cause.by_timer]
    possible = {*certain[:1], *(cause.reason for cause in at_once if cause.by_timer)}
    if world.killed and not certain and not world.open_when_killed:
        # nothing was open yet
        possible |= {None, Reason.WORKER_DIED}
    assert world.call.reason in possible, f"{world.call.reason} was not the first of {possible}"
    if world.killed:
        assert world.transport.finished_with in ([], [world.call.reason])
    else:
        assert world.transport.finished_with == [world.call.reason]


def _entered_and_left_once_by_one_task(resource: Resource) -> None:
    assert resource.enters <= 1
    assert resource.leaves == resource.enters, f"{resource.name} was left {resource.leaves} times"
    assert resource.left_by is (resource.task if resource.entered else None)
    if resource.refused:
        assert (resource.told, resource.begun) == ("over", None)
    if resource.told == "opened":
        assert resource.entered
    if resource.asked and resource.opened and not resource.world.killed:
        deadline = resource.asked.time + resource.part.open_seconds + INSTANT
        assert resource.opened.time <= deadline or resource.part.opening.stubborn
        if resource.leaving and resource.opened.time > deadline:
            assert resource.leaving.time <= resource.opened.time + INSTANT, (
                f"{resource.name} was kept without an opener"
            )


def _in_the_order_of_closing(world: World, opened: list[Resource]) -> list[Resource]:
    """The session, then the others in reverse order; only reverse order if a kill closed it."""
    session = world.resources.get("session")
    killed = world.killed
    if session in opened and (
        killed is None or (session.leaving and session.leaving.number < killed.number)
    ):
        return [session, *(resource for resource in reversed(opened) if resource is not session)]
    return opened[::-1]


def _left_in_order(world: World) -> None:
    """In order, and one after the other unless the one before exceeded its time."""
    killed = world.killed
    opened = [resource for resource in world.asked if resource.entered and not resource.late]
    # a resource that clung to its opening may have opened since
    if killed:
        opened = [
            resource
            for resource in opened
            if resource.entered and resource.entered.number < killed.number
        ]
    for first, second in combinations(_in_the_order_of_closing(world, opened), 2):
        assert first.leaving
        assert first.left
        assert second.leaving
        order = f"{second.name} was left before {first.name}"
        assert second.leaving.number > first.leaving.number, order
        had_its_time = (
            killed and second.leaving.time >= killed.time + timeouts.CLOSE_SECONDS - INSTANT
        )
        # resources that were opened after the session do not wait for it if the kill cuts its close
        was_cut = killed and first.name == "session" and first.leaving.number < killed.number
        if first.recorded != "timeout" and not had_its_time and not was_cut:
            order = f"{second.name} was left while {first.name} was"
            assert second.leaving.number > first.left.number, order


def _ended_the_room(world: World) -> None:
    """The room ends unless there is none; after the session, before the rest."""
    ended = world.rooms_ended
    wanted = world.call.reason not in {Reason.ROOM_CLOSED, None}
    room = world.resources["room"]
    if not wanted:
        assert not ended or (world.killed and world.call.reason is None)
    elif not world.killed:
        (attempt,) = ended
        session = world.resources.get("session")
        if session is not None and session.left and session.recorded != "timeout":
            assert session.left.number < attempt.begun.number
        for resource in world.asked:
            if resource.leaving and not resource.late and resource is not session:
                assert attempt.begun.number < resource.leaving.number
    elif room in world.open_when_killed:
        whole = [attempt for attempt in ended if not attempt.cut]
        assert whole, "the caller was left alone in the room"
        assert room.leaving
        assert ended[-1].begun.number < room.leaving.number


def _cancelled_tools(world: World) -> None:
    for tool in world.tools:
        assert not tool.begun or tool.ended
        if world.over and tool.begun and tool.ended and not tool.deed.stubborn:
            assert tool.ended.time <= max(world.over.time, tool.begun.time) + INSTANT


def _let_background_tasks_finish(world: World) -> None:
    """Their resources are not closed during their time; then they are cancelled."""
    patience = min(timeouts.CLOSE_SECONDS, world.script.close_seconds)
    for work in world.work:
        assert not (work.refused and work.begun)
        if work.begun is None or work.deed.stubborn or world.killed:
            continue
        assert work.ended
        if work.deed.then == "done" and work.deed.seconds < patience - INSTANT:
            assert work.outcome == "done"
        for resource in world.resources.values():
            if (
                resource.leaving
                and resource.recorded
                and resource.name != "session"
                and not resource.late
            ):
                assert work.ended.number < resource.leaving.number


def _reported_everything(world: World) -> None:
    recorded = [resource for resource in world.asked if resource.recorded]
    order = [resource.name for resource in _in_the_order_of_closing(world, recorded)]
    assert [name for name, _ in world.call.closed] == order
    for resource in world.resources.values():
        assert resource.recorded or resource.late or not resource.entered, (
            f"the close of {resource.name} is not reported"
        )


def _kept_to_its_budget(world: World) -> None:
    settings = world.call.settings
    assert world.over
    assert world.door_closed
    most = timeouts.UNWIND_SECONDS + settings.close_seconds + settings.goodbye_seconds
    most += timeouts.LAST_CHANCE_SECONDS * (len(world.asked) + 3)
    assert world.door_closed.time - world.over.time <= most + INSTANT
