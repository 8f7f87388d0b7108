"""Fifty callers talk at once, and every turn must be stored: is each written, and how soon?

    PYTHONPATH=template/src python -m benchmarks.writes [--quick]

Five processes hold ten call memories each. Every caller writes a turn, and the next one as soon as
it is stored: in one SQLite file, and in a Redis, in alternating rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import statistics
import sys
import time
from contextlib import AsyncExitStack, closing
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from agent.memory import Turn, open_store
from agent.memory.call_memory import StoredCallMemory, opened
from agent.settings import Settings
from agent.telemetry import LogJournal
from benchmarks.report import Progress, describe, finish, has_server, machine, report, workshop
from tests.support.redis import RedisServer
from tests.support.templates import WORK_TREE

# processes, and callers of each
PROCESSES, CALLERS = 5, 10
# of a caller, each round: as many as a memory recalls, with room for doubled ones
TURNS = 15
PATIENCE = 60.0
STORES = ("sqlite", "redis")

Round = dict[str, Any]


def settings_of(home: Path, store: str, redis_url: str) -> Settings:
    """The settings of an agent with that memory."""
    url = redis_url if store == "redis" else store
    return Settings.model_validate(
        {"home": home, "data_dir": home / f"data-{store}", "memory_url": url}
    )


def caller_of(number: int, process: int, caller: int) -> str:
    """The key of a caller, new in every round."""
    return f"round-{number}-process-{process}-caller-{caller}"


def turn_of(call: str, number: int) -> Turn:
    """A turn of usual length."""
    role = "assistant" if number % 2 else "user"
    return Turn(
        call,
        f"item-{number}",
        role,
        f"{number}: The small service costs 59 euros and takes a day.",
        time.time(),
    )


# ---------------------------------------------------------------------- a process of callers


async def write(settings: Settings, number: int, process: int, barrier: Barrier) -> dict[str, Any]:
    """Ten callers at once: their begin and end, the seconds of each turn, and the losses."""
    took: list[float] = []
    async with AsyncExitStack() as stack:
        memories = [
            await stack.enter_async_context(opened(settings, LogJournal())) for _ in range(CALLERS)
        ]
        for caller, memory in enumerate(memories):
            memory.identify(caller_of(number, process, caller))
        # as before every greeting; it connects
        await asyncio.gather(*(memory.recall() for memory in memories))

        async def talk(caller: int, memory: StoredCallMemory) -> None:
            for at in range(TURNS):
                began = time.perf_counter()
                memory.add_turn(turn_of(f"call-{caller_of(number, process, caller)}", at))
                async with asyncio.timeout(PATIENCE):
                    # `flush` would speed up a retry
                    await memory.queue._written.wait()
                took.append(round(time.perf_counter() - began, 5))

        await asyncio.to_thread(barrier.wait, PATIENCE)
        began = time.time()
        await asyncio.gather(*(talk(caller, memory) for caller, memory in enumerate(memories)))
        ended = time.time()
        lost = sum(memory.queue.lost for memory in memories)
    return {"began": began, "ended": ended, "seconds": took, "given up": lost}


def work(
    process: int,
    rounds: list[tuple[int, str]],
    home: Path,
    redis_url: str,
    barrier: Barrier,
    done: Queue[dict[str, Any]],
) -> None:
    """Every round, in step with the other processes."""
    for number, store in rounds:
        done.put(asyncio.run(write(settings_of(home, store, redis_url), number, process, barrier)))
        barrier.wait(PATIENCE)


# ---------------------------------------------------------------------- all processes


async def remembered(settings: Settings, number: int) -> dict[str, int]:
    """How many turns of a round the store lacks, has twice, or has out of order."""
    lost = doubled = misplaced = 0
    async with open_store(settings) as memory:
        assert memory is not None
        for process in range(PROCESSES):
            for caller in range(CALLERS):
                profile = await memory.recall(caller_of(number, process, caller))
                items = [turn.item for turn in profile.turns] if profile else []
                lost += TURNS - len(set(items))
                doubled += len(items) - len(set(items))
                misplaced += items != [f"item-{at}" for at in range(TURNS)]
    return {"lost": lost, "doubled": doubled, "callers with turns out of order": misplaced}


def measure(scratch: Path, *, quick: bool) -> dict[str, Any]:
    """Every raw number, in seconds."""
    tell = Progress()
    results: dict[str, Any] = {"machine": machine(), "quick": quick, "version": WORK_TREE}
    results |= {
        "callers": PROCESSES * CALLERS,
        "processes": PROCESSES,
        "turns": TURNS,
        "rounds": [],
    }
    rounds = [
        (at, store)
        for at in range(1 if quick else 10)
        for store in (STORES if at % 2 else STORES[::-1])
    ]
    context = multiprocessing.get_context("spawn")
    barrier, done = context.Barrier(PROCESSES), context.Queue()
    with closing(RedisServer("valkey")) as redis:
        processes = [
            context.Process(
                target=work, args=(process, rounds, scratch, redis.url, barrier, done), daemon=True
            )
            for process in range(PROCESSES)
        ]
        tell(f"{PROCESSES * CALLERS} callers talk, {len(rounds)} times")
        for process in processes:
            process.start()
        for number, store in rounds:
            parts = [done.get(timeout=2 * PATIENCE) for _ in processes]
            seconds = max(part["ended"] for part in parts) - min(part["began"] for part in parts)
            results["rounds"].append(
                {
                    "store": store,
                    "round": number,
                    "seconds": round(seconds, 3),
                    "given up": sum(part["given up"] for part in parts),
                    "took": [value for part in parts for value in part["seconds"]],
                }
            )
            tell.dot()
        for process in processes:
            process.join(PATIENCE)
        tell("reading it all")
        for one in results["rounds"]:
            one |= asyncio.run(
                remembered(settings_of(scratch, one["store"], redis.url), one["round"])
            )
    tell("done")
    finish(results, tell.seconds)
    return results


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        f"{describe(results)} {results['callers']} callers in {results['processes']} processes,"
        f" {results['turns']} turns of each a round.",
        "",
        "| memory | rounds | turns | turns a second | written within: p50 | p95 | longest | lost "
        "| doubled |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    wrong = 0
    for store in STORES:
        rounds: list[Round] = [one for one in results["rounds"] if one["store"] == store]
        took = sorted(value * 1000 for one in rounds for value in one["took"])
        rate = statistics.median(len(one["took"]) / one["seconds"] for one in rounds)
        lost, doubled = sum(one["lost"] for one in rounds), sum(one["doubled"] for one in rounds)
        wrong += (
            lost
            + doubled
            + sum(one["given up"] + one["callers with turns out of order"] for one in rounds)
        )
        lines.append(
            f"| {store} | {len(rounds)} | {len(took)} | {rate:.0f} | {took[len(took) // 2]:.1f} ms"
            f" | {took[len(took) * 95 // 100]:.1f} ms | {took[-1]:.0f} ms | {lost} | {doubled} |"
        )
    return "\n".join(
        [
            *lines,
            "",
            f"Goal: none lost, none doubled, all in order: {'**missed**' if wrong else 'met'}.",
        ]
    )


def main() -> int:
    """Measure and report; 1 if no server is available."""
    parser = argparse.ArgumentParser(
        description="Measure how fast many callers' turns are written."
    )
    parser.add_argument("--quick", action="store_true", help="one round of each, and keep nothing")
    quick: bool = parser.parse_args().quick
    if not has_server():
        return 1
    with workshop() as scratch:
        results = measure(scratch, quick=quick)
    report("writes", results, table, quick=quick)
    return 0


if __name__ == "__main__":
    sys.exit(main())
