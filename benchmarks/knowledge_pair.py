"""Documents in PostgreSQL: this checkout against another, question by question on one server.

    PYTHONPATH=template/src python -m benchmarks.knowledge_pair [--against v0.4.0]

Both have the same passages and the same vectors, embedded once and kept in a cache; a question's
vector is looked up, so that only the search is timed. Each question is asked of both, and which is
asked first alternates.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.knowledge.documents import documents_in
from agent.knowledge.embedder import load
from benchmarks.report import Progress, describe, finish, has_server, machine, report, workshop
from benchmarks.retrieval.corpus import pairs, write_answers, write_filler
from tests.support.embedding import minilm
from tests.support.postgres import Postgres
from tests.support.templates import WORK_TREE, git, make_template
from tools.history import ROOT

DEPTH = 10
WORDS, MEANING = "by words", "by words and meaning"

# Runs in a separate process with the sources of one side, whose names may differ.
WORKER = """
import asyncio, json, sys, time
import numpy as np
from agent import knowledge
from agent.knowledge.pgvector import PgvectorIndex
from agent.settings import Settings

Manifest = getattr(knowledge, "IndexManifest", None) or knowledge.About
corpus = json.load(open(sys.argv[1]))
passages, questions = np.load(sys.argv[2]), np.load(sys.argv[3])
vectors = dict(zip(corpus["questions"], questions))

class Vectors:
    model = "minilm"
    async def embed(self, asked):
        if isinstance(asked, str):
            return vectors[asked]
        return np.array([vectors[question] for question in asked])
    def fits(self, manifest, vector):
        return True

class Nothing:
    async def embed(self, asked):
        return None

def opened(index, meaning):
    if hasattr(knowledge, "IndexManifest"):
        return index.open(Vectors() if meaning else Nothing())
    return index.open(Vectors() if meaning else None)

async def ingest(index, documents, kept=()):
    digests = {source: "" for source in [*documents, *kept]}
    manifest = Manifest(1, "minilm", passages.shape[1], (), digests)
    async with index.rebuild(manifest) as writer:
        for source in kept:
            assert await writer.keep(source)
        for source, rows in documents.items():
            first, last = rows
            texts = [tuple(one) for one in corpus["passages"][first:last]]
            await writer.add(source, texts, passages[first:last])

async def main():
    settings = Settings.model_validate(
        {"name": "bench", "knowledge": "pgvector", "knowledge_url": sys.argv[4],
         "knowledge_seconds": 60}
    )
    index, say = PgvectorIndex(settings), lambda what: print(json.dumps(what), flush=True)
    documents = corpus["documents"]
    began = time.perf_counter()
    await ingest(index, documents)
    first = time.perf_counter() - began
    await (index.manifest() if hasattr(index, "manifest") else index.about())
    one, *rest = documents
    began = time.perf_counter()
    await ingest(index, {one: documents[one]}, rest)
    say({"first": first, "one changed": time.perf_counter() - began})
    async with opened(index, True) as meaning, opened(index, False) as words:
        for line in sys.stdin:
            asked = json.loads(line)
            began = time.perf_counter()
            found = await (meaning if asked["meaning"] else words).search(asked["question"], 10)
            took = time.perf_counter() - began
            say({"took": took * 1000, "sources": [passage.source for passage in found]})

asyncio.run(main())
"""


class Side:
    """One side: a process with its sources, and its own database on the server."""

    def __init__(self, name: str, sources: Path, files: Sequence[Path], postgres: Postgres) -> None:
        self.name, self._postgres, self._database = name, postgres, f"pair-{name}"
        url = postgres.create(self._database)
        self._process = subprocess.Popen(
            [sys.executable, "-c", WORKER, *map(str, files), url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(sources)},
        )
        self.ingest: dict[str, float] = self._answer()
        tables = "SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relkind = 'r'"
        mine = " AND relnamespace IN (SELECT oid FROM pg_namespace WHERE nspname LIKE 'agent_%')"
        self.megabytes = round(int(postgres.execute(tables + mine, self._database)) / 1e6, 1)
        self.took: dict[str, list[float]] = {WORDS: [], MEANING: []}
        self.ranks: dict[str, list[int]] = {WORDS: [], MEANING: []}

    def ask(self, question: str, source: str, how: str) -> None:
        """Ask, and note how long it took and the rank of the source."""
        assert self._process.stdin is not None
        asked = {"question": question, "meaning": how == MEANING}
        print(json.dumps(asked), file=self._process.stdin, flush=True)
        answer = self._answer()
        self.took[how].append(round(answer["took"], 3))
        found = answer["sources"]
        self.ranks[how].append(found.index(source) + 1 if source in found else 0)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()

    def figures(self, how: str) -> dict[str, float]:
        """Recall, and milliseconds without the first round, which warms up."""
        took, ranks = self.took[how][len(pairs()) :], self.ranks[how]
        cuts = statistics.quantiles(took, n=100)
        recall = {f"recall_at_{n}": sum(0 < r <= n for r in ranks) / len(ranks) for n in (1, 5)}
        mrr = sum(1 / rank for rank in ranks if rank) / len(ranks)
        return {**recall, "mrr": mrr, "p50_ms": cuts[49], "p95_ms": cuts[94]}

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            raise RuntimeError(f"the process of {self.name} ended")
        return json.loads(line)


# ---------------------------------------------------------------------- inputs of both


def corpus(cache: Path, passages: int, tell: Progress) -> list[Path]:
    """The passages and questions, and the vectors of both; embedded once for each cache."""
    files = [cache / f"{passages}-{name}" for name in ("corpus.json", "passages.npy", "asked.npy")]
    if all(file.is_file() for file in files):
        return files
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        write_answers(home)
        write_filler(home / "filler", passages - len(pairs()))
        texts, documents = list[tuple[str, str]](), dict[str, tuple[int, int]]()
        for document in documents_in([home]):
            found = document.passages()
            documents[document.source] = len(texts), len(texts) + len(found)
            texts += found
        questions = [pair.question for pair in pairs()]
        given = {"passages": texts, "documents": documents, "questions": questions}
        model = load(str(minilm(home / "minilm")), home, threads=os.cpu_count() or 1)
        tell(f"embedding {len(texts)} passages")
        np.save(files[1], embedded(model, [f"{title}\n{text}" for title, text in texts]))
        np.save(files[2], embedded(model, questions))
        files[0].write_text(json.dumps(given), encoding="utf-8")
    return files


def embedded(model: Any, texts: list[str]) -> NDArray[np.float32]:
    """A row of length 1 for each text, as the embedder's client makes them."""
    rows = np.array(list(model.embed(texts, batch_size=1)), np.float32)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    scaled: NDArray[np.float32] = rows / np.maximum(lengths, 1e-12)
    return scaled


def measure(scratch: Path, cache: Path, against: str, passages: int, rounds: int) -> dict[str, Any]:
    """Every raw number."""
    tell = Progress()
    files = corpus(cache, passages, tell)
    results: dict[str, Any] = {"machine": machine(), "version": WORK_TREE, "against": against}
    results |= {"passages": passages, "rounds": rounds}
    sources = {"this": ROOT / "template" / "src"}
    if (other := Path(against)).is_dir():
        sources["other"] = other
    else:
        template = make_template(scratch / "template")
        git(template.path, "worktree", "add", "--quiet", str(scratch / "other"), against)
        sources["other"] = scratch / "other" / "template" / "src"
    with closing(Postgres()) as postgres, ExitStack() as stack:
        sides = []
        for name, place in sources.items():
            tell(f"ingesting, {name}")
            sides.append(stack.enter_context(closing(Side(name, place, files, postgres))))
        for number in range(rounds + 1):
            tell(f"asking, round {number}")
            for at, pair in enumerate(pairs()):
                for how in (WORDS, MEANING):
                    for side in sides[:: 1 if (at + number) % 2 else -1]:
                        side.ask(pair.question, pair.source, how)
        for side in sides:
            results[side.name] = {
                "ingest": side.ingest,
                "index_mb": side.megabytes,
                **{how: side.figures(how) for how in (WORDS, MEANING)},
            }
            results[side.name]["raw"] = side.took
    finish(results, time.monotonic() - tell.began)
    return results


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        describe(results),
        "",
        f"{results['passages']:,} passages, {len(pairs())} questions, {results['rounds']} rounds.",
        "",
        f"| | this | {results['against']} | ratio |",
        "|---|---|---|---|",
    ]
    this, other = results["this"], results["other"]

    def row(what: str, one: float, two: float, unit: str) -> None:
        lines.append(f"| {what} | {one:.3g}{unit} | {two:.3g}{unit} | {one / two:.2f} |")

    for how in (WORDS, MEANING):
        for name, what in (("recall_at_1", "R@1"), ("recall_at_5", "R@5"), ("mrr", "MRR")):
            row(f"{how}: {what}", this[how][name], other[how][name], "")
        for name in ("p50_ms", "p95_ms"):
            row(f"{how}: search {name[:3]}", this[how][name], other[how][name], " ms")
    for what in this["ingest"]:
        row(f"ingest: {what}", this["ingest"][what], other["ingest"][what], " s")
    row("index", this["index_mb"], other["index_mb"], " MB")
    return "\n".join(lines)


def main() -> int:
    """Measure and report; 1 if no server is available."""
    parser = argparse.ArgumentParser(description="Compare how documents are found by two versions.")
    parser.add_argument("--against", default="v0.4.0", help="a release, or the sources of another")
    parser.add_argument("--passages", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cache", type=Path, help="where the vectors are kept for the next time")
    parser.add_argument("--quick", action="store_true", help="keep nothing")
    given = parser.parse_args()
    if not has_server():
        return 1
    with workshop() as scratch:
        cache = given.cache or scratch / "cache"
        results = measure(scratch, cache, given.against, given.passages, given.rounds)
    report("knowledge-postings", results, table, quick=given.quick)
    return 0


if __name__ == "__main__":
    sys.exit(main())
