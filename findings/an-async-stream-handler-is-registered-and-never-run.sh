#!/usr/bin/env bash
# One expects: a handler for text or byte streams may be an `async def`: reading a stream is `await reader.read_all()`, and
#   register_rpc_method of the same participant takes an `async def`. If not, it is refused where it is registered, as
#   `room.on(…)` does ("Cannot register an async callback").
# What happens: register_text_stream_handler and register_byte_stream_handler take it, and each stream that comes calls
#   it and throws the coroutine away: the body never runs, the text is lost. The sender's send_text() succeeds. Nothing
#   is logged; Python's own "was never awaited" on stderr is all.
# Why it matters: an agent that gets its orders, forms or files by such a stream answers nobody, and a worker that logs
#   JSON has no record of why. The handler has to be a plain function that starts a task.
# Versions: livekit 1.1.21, livekit-api 1.2.2, livekit-server 1.13.5.
set -euo pipefail

work=$(mktemp -d)
server=
trap 'if [ -n "$server" ]; then kill -9 "$server" && wait "$server" || true; fi 2>/dev/null; rm -rf "$work"' EXIT
if ! command -v uv >/dev/null; then
  python3 -m venv "$work/uv" && "$work/uv/bin/pip" install -q --disable-pip-version-check uv==0.13.9
  PATH="$work/uv/bin:$PATH"
fi
uv venv -q --python '>=3.11' "$work/venv"
uv pip install -q --python "$work/venv/bin/python" livekit==1.1.21 livekit-api==1.2.2

# livekit-server: from PATH, or built once (two minutes) by Go into a cache
binary=$(command -v livekit-server || true)
if [ -z "$binary" ]; then
  binary="${XDG_CACHE_HOME:-$HOME/.cache}/livekit-agent-template/bin/livekit-server-v1.13.5"
  if [ ! -x "$binary" ]; then
    GOBIN="$work" CGO_ENABLED=0 go install github.com/livekit/livekit-server/cmd/server@v1.13.5
    mkdir -p "$(dirname "$binary")" && mv "$work/server" "$binary"
  fi
fi
read -r port udp tcp < <("$work/venv/bin/python" - <<'PY'
import socket

kinds = (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_STREAM)
sockets = [socket.socket(socket.AF_INET, kind) for kind in kinds]
for each in sockets:
    each.bind(("127.0.0.1", 0))
print(*(each.getsockname()[1] for each in sockets))
PY
)
cat > "$work/livekit.yaml" <<YAML
port: $port
bind_addresses: ["127.0.0.1"]
keys: { devkey: a-secret-for-a-finding-of-over-32-bytes }
rtc: { node_ip: 127.0.0.1, udp_port: $udp, tcp_port: $tcp, enable_loopback_candidate: true, stun_servers: ["127.0.0.1:3478"] }
YAML
"$binary" --config "$work/livekit.yaml" > "$work/server.log" 2>&1 &
server=$!
"$binary" --version

cat > "$work/finding.py" <<'PY'
import asyncio
import gc
import io
import logging
import os
import sys
import urllib.request
import warnings
from importlib.metadata import version

from livekit import api, rtc

URL = sys.argv[1]
HTTP = URL.replace("ws", "http", 1)
KEY, SECRET = "devkey", "a-secret-for-a-finding-of-over-32-bytes"


async def join(identity):
    room = rtc.Room()
    grants = api.VideoGrants(room_join=True, room="room", can_update_own_metadata=True)
    await room.connect(URL, api.AccessToken(KEY, SECRET).with_identity(identity).with_grants(grants).to_jwt())
    return room


async def main():
    print("livekit", version("livekit"), "livekit-api", version("livekit-api"))
    for _ in range(200):
        try:
            await asyncio.to_thread(urllib.request.urlopen, HTTP)
            break
        except OSError:
            await asyncio.sleep(0.05)
    logged = io.StringIO()
    logging.basicConfig(stream=logged, level=logging.INFO, format="%(levelname)s %(message)s")
    agent, caller = await join("agent"), await join("caller")
    got, tasks = [], []

    async def on_stream(reader, who):
        got.append("async def, stream")
        await reader.read_all()

    def on_stream_plain(reader, who):
        async def read():
            got.append(f"plain function, stream: {await reader.read_all()}")

        tasks.append(asyncio.create_task(read()))

    async def on_rpc(data):
        got.append("async def, rpc")
        return "yes"

    async def on_event(*_):
        got.append("async def, event")

    refused = None
    try:
        agent.on("participant_disconnected", on_event)
    except Exception as error:
        refused = f"{type(error).__name__}: {error}"
    print("room.on with an async def:", refused)

    agent.local_participant.register_rpc_method("ask", on_rpc)
    agent.register_text_stream_handler("async", on_stream)
    agent.register_byte_stream_handler("async", on_stream)
    agent.register_text_stream_handler("plain", on_stream_plain)
    answer = await caller.local_participant.perform_rpc(destination_identity="agent", method="ask", payload="")
    print("rpc to an async def:", answer)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        await caller.local_participant.send_text("hello", topic="plain")
        info = await caller.local_participant.send_text("hello", topic="async")
        writer = await caller.local_participant.stream_bytes("form", topic="async")
        await writer.write(b"hello")
        await writer.aclose()
        await asyncio.sleep(3)
        gc.collect()
        warned = [str(one.message) for one in warned if "never awaited" in str(one.message)]
    print("send_text() succeeds:", info.topic == "async")
    print("what ran:", got)
    print("warnings of Python:", warned)
    lines = [line for line in logged.getvalue().splitlines() if "stream handler" in line or "coroutine" in line]
    print("logged:", lines)
    assert refused, "room.on refuses an async def"
    assert got == ["async def, rpc", "plain function, stream: hello"], f"CHANGED: {got} ran"
    assert len(warned) == 2 and not lines, f"CHANGED: {warned} {lines}"
    print("as described: an async def is taken as a stream handler and never run")


asyncio.run(main())
sys.stdout.flush()
# all is said: after a room the end of Python was once aborted (exit code 134)
os._exit(0)
PY
timeout 120 "$work/venv/bin/python" "$work/finding.py" "ws://127.0.0.1:$port"
