"""How well documents are found, how fast, and what ingesting and searching them costs.

    PYTHONPATH=template/src python -m benchmarks.knowledge [--quick]

The questions are those of benchmarks/retrieval, from public pages; tuning uses one half of them.
The model is all-MiniLM-L6-v2 in 8 bits, from a wheel, in the process that `agent start` runs
beside the worker. Sizes and times are those of SQLite, and of PostgreSQL with pgvector on this
machine.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil

from agent.knowledge import local_embedder, ranking
from agent.knowledge.evaluate import Question, evaluate
from agent.knowledge.ingest import ingest
from agent.knowledge.lookup import open_index
from agent.knowledge.pgvector import schema_of
from agent.settings import Settings
from agent.telemetry import LogJournal
from benchmarks.report import Progress, command, describe, finish, machine
from benchmarks.retrieval.corpus import pairs, unanswerable, write_answers, write_filler
from tests.support.embedding import minilm
from tests.support.postgres import Postgres
from tests.support.templates import WORK_TREE
from tools.history import ROOT

SOURCES = ROOT / "template" / "src"
# recall at 1 and 5
GOALS = {"hybrid": (0.70, 0.90), "words": (0.50, 0.75)}
# milliseconds of SQLite, at 10,000 passages
P95_GOALS = {"local": 15.0, "none": 2.0}
# MB a call more than without knowledge
MEMORY_GOAL = 15.0
# of an index: SQLite's have the names of their embeddings alone
INDEXES = (
    *((embeddings, "sqlite", embeddings) for embeddings in ("none", "local")),
    *((f"{embeddings}, pgvector", "pgvector", embeddings) for embeddings in ("none", "local")),
)


def settings_of(home: Path, embeddings: str, knowledge: str = "sqlite", url: str = "") -> Settings:
    """The settings of a separate project for each kind of index."""
    model = str(home.parent / "minilm") if embeddings == "local" else ""
    given = {
        "home": home,
        "data_dir": home / f"data-{knowledge}-{embeddings}",
        "name": f"bench-{embeddings}",
    }
    stored = {"knowledge": knowledge, "knowledge_url": url}
    return Settings.model_validate(
        {**given, **stored, "embeddings": embeddings, "embeddings_model": model}
    )


def environment(settings: Settings) -> dict[str, str]:
    """The same settings for another process."""
    names = ("home", "data_dir", "name", "knowledge", "embeddings", "embeddings_model")
    plain = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("AGENT_", "LIVEKIT_"))
    }
    chosen = {f"AGENT_{name.upper()}": str(getattr(settings, name)) for name in names}
    url = {"AGENT_KNOWLEDGE_URL": settings.knowledge_url.get_secret_value()}
    return {**plain, **chosen, **url, "PYTHONPATH": str(SOURCES)}


def questions(half: str) -> list[Question]:
    """The questions of one half, or of "both"."""
    return [Question(pair.question, pair.source) for pair in pairs() if half in (pair.half, "both")]


# ---------------------------------------------------------------------- how well


async def measure_quality(scratch: Path) -> dict[str, Any]:
    """Recall of words, of vectors and of both, by half; and the effect of the floor."""
    home = scratch / "quality"
    write_answers(home / "knowledge")
    found: dict[str, Any] = {}
    both = ranking.MEANING
    for name, embeddings, meaning in (
        ("words", "none", both),
        ("vectors", "local", 1.0),
        ("hybrid", "local", both),
    ):
        settings = settings_of(home, embeddings)
        ranking.MEANING = meaning
        async with local_embedder(settings, wait=True, alone=True) as inside:
            await ingest(inside)
            for half in ("tune", "report"):
                figures = (await evaluate(inside, questions(half))).figures
                found[f"{name} {half}"] = {
                    key: getattr(figures, key)
                    for key in ("n", "recall_at_1", "recall_at_3", "recall_at_5", "mrr")
                }
            found[f"{name} floor"] = await measure_floor(inside)
        ranking.MEANING = both
    return found


async def measure_floor(settings: Settings) -> list[dict[str, float]]:
    """By floor: the share of right first passages that it keeps, and of wrong ones that it drops.

    The wrong ones are those for questions that no passage answers.
    """
    patient = settings.model_copy(update={"knowledge_seconds": 60.0})
    async with open_index(patient, LogJournal()) as knowledge:
        right = []
        for question in questions("report"):
            best = await knowledge.search(question.question, 1)
            if best and best[0].source == question.source:
                right.append(best[0].relevance)
        wrong = []
        for text in unanswerable():
            best = await knowledge.search(text, 1)
            wrong.append(best[0].relevance if best else 0.0)
    return [
        {
            "floor": floor,
            "right kept": round(sum(one >= floor for one in right) / len(right), 3),
            "unanswerable dropped": round(sum(one < floor for one in wrong) / len(wrong), 3),
        }
        for floor in sorted({0.15, 0.35, 0.45, settings.knowledge_floor})
    ]


# ---------------------------------------------------------------------- how fast, how large


def run_ingest(settings: Settings) -> dict[str, float]:
    """`agent ingest` as a process: seconds, and the most memory of it and its embedder in MB."""
    began, peak = time.monotonic(), 0
    process = psutil.Popen(
        [sys.executable, "-m", "agent", "ingest"],
        env=environment(settings),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None:
        try:
            family = [process, *process.children(recursive=True)]
            peak = max(peak, sum(one.memory_info().rss for one in family))
        except psutil.NoSuchProcess:
            pass
        time.sleep(0.05)
    if process.returncode:
        raise RuntimeError(f"agent ingest failed with {process.returncode}")
    return {"seconds": round(time.monotonic() - began, 2), "peak_mb": round(peak / 1e6)}


async def measure_size(
    scratch: Path, postgres: Postgres, passages: int, tell: Progress
) -> dict[str, Any]:
    """Ingest so many passages, again unchanged, and with one document changed; then search them."""
    home = scratch / f"size-{passages}"
    write_answers(home / "knowledge")
    write_filler(home / "knowledge" / "filler", passages - len(pairs()))
    database = f"size-{passages}"
    url = postgres.create(database)
    found: dict[str, Any] = {}
    for kind, store, embeddings in INDEXES:
        tell(f"ingesting {passages} passages, {kind}")
        settings = settings_of(home, embeddings, store, url if store == "pgvector" else "")
        run: dict[str, Any] = {"first": run_ingest(settings), "unchanged": run_ingest(settings)}
        changed = home / "knowledge" / "filler" / "filler-00000.md"
        changed.write_text(
            f"{changed.read_text(encoding='utf-8')}\n\nOne more word.\n", encoding="utf-8"
        )
        run["one changed"] = run_ingest(settings)
        run["index_mb"] = index_mb(settings, postgres, database)
        async with local_embedder(settings, wait=True) as inside:
            figures = (await evaluate(inside, questions("report"))).figures
            run |= {"p50_ms": figures.p50_ms, "p95_ms": figures.p95_ms}
            tell("memory of a call")
            # in a thread, because the embedder is watched meanwhile
            run["call_mb"] = await asyncio.to_thread(measure_memory, inside)
        found[kind] = run
    return found


def index_mb(settings: Settings, postgres: Postgres, database: str) -> float:
    """The index's size on the disk: the file, or the tables with their indexes."""
    if settings.knowledge == "sqlite":
        return round((settings.data / "knowledge.db").stat().st_size / 1e6, 1)
    tables = (
        "SELECT sum(pg_total_relation_size(tables.oid))"
        " FROM pg_class AS tables JOIN pg_namespace AS schemas ON schemas.oid = relnamespace"
        f" WHERE relkind = 'r' AND nspname = '{schema_of(settings.name)}'"
    )
    return round(int(postgres.execute(tables, database)) / 1e6, 1)


MEMORY_PROBE = """
import asyncio, gc, psutil
from agent import entrypoint
from agent.knowledge import open_knowledge
from agent.settings import Settings, load_settings
from agent.telemetry import LogJournal
QUESTIONS = "What does it cost?", "How do I change my password?", "Where is my data?"
async def main():
    me, settings = psutil.Process(), load_settings().model_copy(update={"embeddings": %r})
    if (opening := open_knowledge(settings, LogJournal())) is not None:
        async with opening as knowledge:
            for question in QUESTIONS * 3:
                await knowledge.search(question)
            gc.collect()
            print(me.memory_full_info().uss)
    else:
        gc.collect()
        print(me.memory_full_info().uss)
asyncio.run(main())
"""


def measure_memory(settings: Settings, rounds: int = 3) -> dict[str, list[float]]:
    """Private memory in MB of a process that has answered questions, and of one without any."""
    found: dict[str, list[float]] = {"with": [], "without": []}
    for _ in range(rounds):
        for name, knowledge in (("with", settings.knowledge), ("without", "none")):
            env = {**environment(settings), "AGENT_KNOWLEDGE": knowledge}
            del env["AGENT_EMBEDDINGS"]
            probe = [sys.executable, "-c", MEMORY_PROBE % settings.embeddings]
            probed = subprocess.run(probe, env=env, capture_output=True, text=True)
            found[name].append(round(int(probed.stdout.split()[-1]) / 1e6, 1))
    return found


async def measure(scratch: Path, *, quick: bool) -> dict[str, Any]:
    """Every raw number."""
    tell = Progress()
    minilm(scratch / "minilm")
    # for the embedder, which is started as a module of the agent
    os.environ["PYTHONPATH"] = str(SOURCES)
    results: dict[str, Any] = {"machine": machine(), "quick": quick, "version": WORK_TREE}
    tell("questions and answers")
    results["quality"] = await measure_quality(scratch)
    with closing(Postgres()) as postgres:
        results["sizes"] = {
            str(passages): await measure_size(scratch, postgres, passages, tell)
            for passages in ((500,) if quick else (1000, 10_000))
        }
    finish(results, tell.seconds)
    return results


# ---------------------------------------------------------------------- the tables


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    quality, sizes = results["quality"], results["sizes"]
    lines = [
        describe(results),
        "",
        f"| {len(pairs())} questions of public pages, an answer each | tuned on: R@1 | R@5 "
        "| **reported**: R@1 | R@5 | MRR | goal |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in ("words", "vectors", "hybrid"):
        tune, other = quality[f"{name} tune"], quality[f"{name} report"]
        goal = met(name, other["recall_at_1"], other["recall_at_5"]) if name in GOALS else ""
        figures = [
            tune["recall_at_1"],
            tune["recall_at_5"],
            other["recall_at_1"],
            other["recall_at_5"],
            other["mrr"],
        ]
        lines.append(f"| {name} | {' | '.join(f'{figure:.2f}' for figure in figures)} | {goal} |")
    lines += [
        "",
        "| floor | right first passages kept | passages for unanswerable questions dropped |",
        "|---|---|---|",
    ]
    for name in ("words", "hybrid"):
        for floor in quality[f"{name} floor"]:
            shares = f"{floor['right kept']:.2f} | {floor['unanswerable dropped']:.2f}"
            lines.append(f"| {name}, {floor['floor']} | {shares} |")
    lines += [
        "",
        "| passages, embeddings | ingest | most memory | unchanged | one changed | index "
        "| search p50 | p95 | a call's memory more |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for passages, kinds in sizes.items():
        for kind, run in kinds.items():
            more = statistics.median(run["call_mb"]["with"]) - statistics.median(
                run["call_mb"]["without"]
            )
            large, p95_goal = passages == "10000", P95_GOALS.get(kind)
            lines.append(
                f"| {int(passages):,}, {kind} | {run['first']['seconds']:.1f} s "
                f"| {run['first']['peak_mb']} MB | {run['unchanged']['seconds']:.1f} s "
                f"| {run['one changed']['seconds']:.1f} s | {run['index_mb']} MB "
                f"| {run['p50_ms']:.1f} ms "
                f"| {run['p95_ms']:.1f} ms{goal_of(large, run['p95_ms'], p95_goal, 'ms')} "
                f"| {more:.1f} MB{goal_of(large, more, MEMORY_GOAL, 'MB')} |"
            )
    lines += ["", "![How long an ingest takes](plots/knowledge.png)"]
    return "\n".join(lines)


def met(name: str, first: float, fifth: float) -> str:
    """Whether both recalls meet their goals."""
    goals = GOALS[name]
    reached = first >= goals[0] and fifth >= goals[1]
    return f"{goals[0]:.2f} and {goals[1]:.2f}: {'met' if reached else '**missed**'}"


def goal_of(counts: bool, value: float, goal: float | None, unit: str) -> str:
    """Whether a figure meets its goal, if there is one."""
    if not counts or goal is None:
        return ""
    return f" (at most {goal:g} {unit}: {'met' if value <= goal else '**missed**'})"


def main() -> int:
    """Measure and report; 1 if no server is available. A missed goal is not an error."""
    return command(
        "knowledge",
        measure,
        table,
        about="Measure how documents are found, and what that costs.",
        quick="a small index, and keep nothing",
    )


if __name__ == "__main__":
    sys.exit(main())
