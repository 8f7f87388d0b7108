"""How soon a phone is answered and hears the agent, and whether it hears the first word whole.

    PYTHONPATH=template/src python -m benchmarks.telephone [--quick]

Ours, with documents and the caller's memory, against a bare AgentSession behind the same
livekit-sip, in turn: from the phone's INVITE to its 200 OK, and to the first sound.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from livekit import api

from benchmarks.calls import BARE_NAME, OURS, Side, sides
from benchmarks.report import (
    Progress,
    Results,
    command,
    describe,
    finish,
    machine,
    make_project,
)
from benchmarks.run import ratio, spread
from tests.support.phone import LOUD, Phone, loudness
from tests.support.sip import Network, require_sip, telephone_network
from tests.support.templates import WORK_TREE

# what both sides say to a caller who is known, and its first word
GREETING = "Welcome back! How can I help you today?"
FIRST_WORD = GREETING.partition(" ")[0]
NUMBERS = {OURS: "+4930555001", BARE_NAME: "+4930555002"}
PARTS = ("answered", "first sound")
GOAL = 1.0  # of the bare agent's
CALLS, GOAL_WHOLE = 100, 0.95
SAMPLES, WHOLE = "calls", "first words whole"

Sample = dict[str, Any]


def first_word_is_whole(heard: list[float]) -> bool:
    """Whether nothing of the first word is missing, in what a phone has heard.

    The whole greeting says where it begins. A packet is loud or not by chance, at a sound's edges.
    """
    said = np.array(loudness(GREETING)) > LOUD
    word = said[: len(loudness(FIRST_WORD))]
    # so that a greeting whose beginning is missing begins before the first packet
    packets = np.pad(np.array(heard) > LOUD, len(said))
    agreement = np.correlate(2.0 * packets - 1, 2.0 * said - 1, "valid")
    begins = int(agreement.argmax())
    missing = word & ~packets[begins : begins + len(word)]
    return bool(missing.sum() <= 1)


async def call(network: Network, side: Side, number: str) -> Sample:
    """One call, until the greeting has been heard."""
    async with Phone(network, "+4930555900") as phone:
        phone.call(number)
        await phone.wait(phone.sound.sound)
        await phone.sound.until(lambda: phone.sound.is_quiet)
        assert phone.sound.first_sound_at is not None
        sample = {
            "answered": round(phone.answered_at - phone.called_at, 4),
            "first sound": round(phone.sound.first_sound_at - phone.called_at, 4),
            WHOLE: first_word_is_whole(phone.sound.heard),
        }
    # the bare agent would hold its slot for 20 s; our room is already gone
    async with side.server.api() as server:
        for room in (await server.room.list_rooms(api.ListRoomsRequest())).rooms:
            with suppress(api.TwirpError):
                await server.room.delete_room(api.DeleteRoomRequest(room=room.name))
    await side.settled()
    return sample


async def measure(scratch: Path, *, quick: bool) -> Results:
    """Pairs of calls, in seconds; and more of ours, for their first words."""
    tell = Progress()
    require_sip()
    tell("making a template and a project")
    project = make_project(scratch, WORK_TREE)
    results: Results = {"machine": machine(), "version": WORK_TREE, "quick": quick}
    samples: dict[str, list[Sample]] = {OURS: [], BARE_NAME: []}
    pairs, calls = (2, 3) if quick else (20, CALLS)
    async with (
        telephone_network(scratch) as network,
        sides(
            project, network.livekit, list(samples), AGENT_REMEMBER_PHONE_NUMBERS="true"
        ) as workers,
    ):
        for name, side in workers.items():
            await network.inbound(NUMBERS[name], side.agent_name)
            await call(network, side, NUMBERS[name])  # the caller is known from now on
        tell("calling")
        for pair in range(pairs):
            for name in sorted(workers, reverse=bool(pair % 2)):
                samples[name].append(await call(network, workers[name], NUMBERS[name]))
            Progress.dot()
        whole = [sample[WHOLE] for sample in samples[OURS]]
        tell("calling ours")
        while len(whole) < calls:
            whole.append((await call(network, workers[OURS], NUMBERS[OURS]))[WHOLE])
            Progress.dot()
    results |= {SAMPLES: samples, WHOLE: whole}
    tell("done")
    finish(results, tell.seconds)
    return results


def table(results: Results) -> str:
    """The results as Markdown."""

    def row(part: str) -> str:
        ours, bare = (
            [sample[part] for sample in results[SAMPLES][side]] for side in (OURS, BARE_NAME)
        )
        middle, low, high = ratio(ours, bare)
        met = "met" if round(middle, 2) <= GOAL else "**missed**"
        return (
            f"| INVITE to {part} | {spread(ours)} | {spread(bare)}"
            f" | {middle:.2f} ({low:.2f} to {high:.2f}) | at most {GOAL}: {met} |"
        )

    whole = results[WHOLE]
    met = "met" if sum(whole) >= GOAL_WHOLE * len(whole) else "**missed**"
    theirs = [sample[WHOLE] for sample in results[SAMPLES][BARE_NAME]]
    return "\n".join(
        [
            f"{describe(results)} {len(results[SAMPLES][OURS])} pairs of calls by telephone.",
            "",
            "| median (smallest to largest) | ours | bare | ratio of medians (95 %) | goal |",
            "|---|---|---|---|---|",
            *map(row, PARTS),
            f"| first words heard whole | {sum(whole)} of {len(whole)}"
            f" | {sum(theirs)} of {len(theirs)} | | {GOAL_WHOLE:.0%} of ours: {met} |",
        ]
    )


def main() -> int:
    """Measure and report; 1 if no server is available. A missed goal is not an error."""
    return command(
        "telephone",
        measure,
        table,
        about="Measure how soon a phone is answered, and hears the first word.",
        quick="two pairs, and keep nothing",
    )


if __name__ == "__main__":
    sys.exit(main())
