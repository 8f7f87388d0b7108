#!/usr/bin/env bash
# One expects: FTS5's bm25() is that of Lucene and its kin: a word in many passages counts less than a rare one, and
#   still counts. A passage with both words of the question is ahead of one that has only its "please".
# What happens: the weight of a word that is in half of the passages or more would be zero or negative, and FTS5 takes
#   0.000001 instead. A passage with all that was asked for scores -0.000002, and whichever passage happens to have a
#   rare word is first. One unrelated passage more in the table, and the score is 300,000 times as high.
# Why it matters: small knowledge bases and the few passages of a test are this case ("opening hours" in two of four).
#   A floor for bm25() that was tuned on a large table drops the best hits, a weighted sum with vectors does not
#   notice them, and the agent says that it knows nothing, or reads out the passage with "please".
# Versions: SQLite 3.54.1 (apsw 3.54.1.0; the sqlite3 of Python does the same), tantivy 0.27.0 to compare with.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if ! command -v uv >/dev/null; then
  python3 -m venv "$work/uv" && "$work/uv/bin/pip" install -q --disable-pip-version-check uv==0.13.9
  PATH="$work/uv/bin:$PATH"
fi
uv venv -q --python '>=3.11' "$work/venv"
uv pip install -q --python "$work/venv/bin/python" apsw==3.54.1.0 tantivy==0.27.0

cat > "$work/finding.py" <<'PY'
import sqlite3
from importlib.metadata import version

import apsw
import tantivy

PASSAGES = [
    "Opening hours, workshop: nine until five.",
    "Opening hours, car park: day and night.",
    "Please bring your receipt and the key of the lock.",
    "Repairs take three days.",
]
UNRELATED = "Bicycles are collected free of charge."
QUESTION = ["please", "opening", "hours"]


def fts5(connection, passages, words):
    """The hits of SQLite, best first, with bm25()."""
    connection.execute("CREATE VIRTUAL TABLE p USING fts5(text)")
    for passage in passages:
        connection.execute("INSERT INTO p VALUES (?)", (passage,))
    found = connection.execute(
        "SELECT text, bm25(p) FROM p WHERE p MATCH ? ORDER BY bm25(p)", (" OR ".join(words),)
    )
    return list(found)


def bm25_elsewhere(passages, words):
    """The hits of tantivy, best first, with its BM25."""
    schema = tantivy.SchemaBuilder().add_text_field("text", stored=True).build()
    index = tantivy.Index(schema)
    writer = index.writer(num_threads=1)
    for passage in passages:
        writer.add_document(tantivy.Document(text=passage))
    writer.commit()
    index.reload()
    searcher = index.searcher()
    hits = searcher.search(index.parse_query(" OR ".join(words), ["text"]), 10).hits
    return [(searcher.doc(address)["text"][0], score) for score, address in hits]


def show(engine, passages, words, hits):
    print(f"--- {engine}, {len(passages)} passages, {' OR '.join(words)}")
    for text, score in hits:
        print(f"  {score:14.9f}  {text}")


print("SQLite", apsw.sqlite_lib_version(), "and", sqlite3.sqlite_version, "tantivy", version("tantivy"))
few, more = PASSAGES, [*PASSAGES, UNRELATED]
asked = QUESTION[1:]
for engine, connect in (("FTS5", apsw.Connection), ("FTS5 of sqlite3", sqlite3.connect)):
    poor, rich = fts5(connect(":memory:"), few, asked), fts5(connect(":memory:"), more, asked)
    show(engine, few, asked, poor)
    show(engine, more, asked, rich)
    first = fts5(connect(":memory:"), few, QUESTION)
    show(engine, few, QUESTION, first)
    assert all(-0.00001 < score < 0 for _, score in poor), "CHANGED: the two words have a weight"
    assert all(score < -0.4 for _, score in rich), "with a fifth passage they have one"
    assert first[0][0].startswith("Please"), "CHANGED: the passage with both words is first"

hits = bm25_elsewhere(few, QUESTION)
show("tantivy", few, QUESTION, hits)
assert hits[0][0].startswith("Opening") and hits[1][0].startswith("Opening"), "elsewhere they are first"
print("as described: two words of three count for nothing in FTS5, and decide elsewhere")
PY
timeout 30 "$work/venv/bin/python" "$work/finding.py"
