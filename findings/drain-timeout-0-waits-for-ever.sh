#!/usr/bin/env bash
# One expects: AgentServer(drain_timeout=0) does not wait for live calls when the worker is told to stop.
# What happens: 0 is taken for "no limit": the worker drains for ever, as long as its last call lives. 1 waits one second.
#   `drain(timeout=0)` is the same; its docstring names None alone as the way to wait without an end.
# Why it matters: a setting of 0 "to stop at once", as in tests or before a kill of the whole container, makes every stop
#   end by the orchestrator's SIGKILL, so that no call is cleaned up; a caller who stays keeps the worker for hours.
# Versions: livekit-agents 1.8.9, livekit 1.1.21, livekit-server 1.13.5.
set -euo pipefail

work=$(mktemp -d)
server=
trap 'if [ -n "$server" ]; then kill -9 "$server" && wait "$server" || true; fi 2>/dev/null; rm -rf "$work"' EXIT
if ! command -v uv >/dev/null; then
  python3 -m venv "$work/uv" && "$work/uv/bin/pip" install -q --disable-pip-version-check uv==0.13.9
  PATH="$work/uv/bin:$PATH"
fi
uv venv -q --python '>=3.11' "$work/venv"
uv pip install -q --python "$work/venv/bin/python" livekit-agents==1.8.9 livekit==1.1.21 livekit-api==1.2.2

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
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from importlib.metadata import version
from pathlib import Path

from livekit import api, rtc

URL = sys.argv[1]
KEY, SECRET = "devkey", "a-secret-for-a-finding-of-over-32-bytes"
WATCHED = 15.0  # seconds
WORKER = """
import os

from livekit.agents import AgentServer, JobContext, cli

server = AgentServer(
    num_idle_processes=1, load_fnc=lambda *_: 0.0, port=0, drain_timeout=int(os.environ["DRAIN"])
)


@server.rtc_session(agent_name=os.environ["NAME"])
async def entrypoint(ctx: JobContext):
    await ctx.connect()


if __name__ == "__main__":
    cli.run_app(server)
"""


async def until(condition, seconds=60):
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.05)


async def seconds_to_stop(drain, folder):
    """How long a worker with one live call takes to stop after SIGTERM; None if it is still there."""
    name = f"bot-{drain}"
    (folder / "worker.py").write_text(WORKER)
    log = folder / f"log-{drain}"
    own = {"LIVEKIT_URL": URL, "LIVEKIT_API_KEY": KEY, "LIVEKIT_API_SECRET": SECRET}
    with log.open("w") as out:
        worker = subprocess.Popen(
            [sys.executable, folder / "worker.py", "start"],
            env={**os.environ, **own, "DRAIN": str(drain), "NAME": name},
            stdout=out, stderr=out, start_new_session=True,
        )
    room = rtc.Room()
    try:
        await until(lambda: "registered worker" in log.read_text(), 100)
        config = api.RoomConfiguration(agents=[api.RoomAgentDispatch(agent_name=name)])
        token = api.AccessToken(KEY, SECRET).with_identity("caller").with_room_config(config)
        await room.connect(URL, token.with_grants(api.VideoGrants(room_join=True, room=name)).to_jwt())
        await until(lambda: room.remote_participants)
        began = time.monotonic()
        worker.send_signal(signal.SIGTERM)
        try:
            await asyncio.to_thread(worker.wait, WATCHED)
        except subprocess.TimeoutExpired:
            assert "draining worker" in log.read_text(), "it has begun to drain"
            return None
        return time.monotonic() - began
    finally:
        await room.disconnect()
        if worker.poll() is None:
            os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()


async def main():
    print("livekit-agents", version("livekit-agents"), "livekit", version("livekit"))
    for _ in range(200):
        try:
            await asyncio.to_thread(urllib.request.urlopen, URL.replace("ws", "http", 1))
            break
        except OSError:
            await asyncio.sleep(0.05)
    folder = Path(tempfile.mkdtemp(dir=Path(__file__).parent))
    took = {}
    for drain in (1, 0):
        took[drain] = await seconds_to_stop(drain, folder)
        how = f"still there after {WATCHED:g} s" if took[drain] is None else f"gone after {took[drain]:.1f} s"
        print(f"drain_timeout={drain}, one live call, SIGTERM: the worker is {how}")
    assert took[1] is not None, "CHANGED: with 1 the worker does not stop"
    assert took[0] is None, "CHANGED: with 0 the worker stops"
    print("as described")


asyncio.run(asyncio.wait_for(main(), 200))
PY
timeout 220 "$work/venv/bin/python" "$work/finding.py" "ws://127.0.0.1:$port"
