#!/usr/bin/env bash
# One expects: with LIVEKIT_TELEMETRY_ALLOW_PII=false what livekit-agents itself marks as personal (`lk.pii.…`) is not in its log.
# What happens: the variable is for exporters alone. The worker's log has one line at INFO in each call, "RoomIO linked to
#   participant", with `lk.pii.participant_identity`: the phone number of one who calls by SIP.
# Why it matters: production logs of a default `start` are a list of phone numbers with their times, in every log store, and neither
#   the variable nor the log level that services run with keeps them out.
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
import json
import os
import signal
import subprocess
import sys
import tempfile
import urllib.request
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from livekit import api, rtc

URL = sys.argv[1]
KEY, SECRET = "devkey", "a-secret-for-a-finding-of-over-32-bytes"
NUMBER = "+15550001234"
WORKER = """
from livekit.agents import Agent, AgentServer, AgentSession, JobContext, cli

server = AgentServer(num_idle_processes=1, load_fnc=lambda *_: 0.0, port=0)


@server.rtc_session(agent_name="bot")
async def entrypoint(ctx: JobContext):
    await ctx.connect()
    await AgentSession().start(Agent(instructions=""), room=ctx.room)


if __name__ == "__main__":
    cli.run_app(server)
"""


async def until(condition, seconds=60):
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.05)


async def main():
    print("livekit-agents", version("livekit-agents"), "livekit", version("livekit"))
    for _ in range(200):
        try:
            await asyncio.to_thread(urllib.request.urlopen, URL.replace("ws", "http", 1))
            break
        except OSError:
            await asyncio.sleep(0.05)
    folder = Path(tempfile.mkdtemp(dir=Path(__file__).parent))
    (folder / "worker.py").write_text(WORKER)
    log = folder / "log"
    own = {"LIVEKIT_URL": URL, "LIVEKIT_API_KEY": KEY, "LIVEKIT_API_SECRET": SECRET}
    with log.open("w") as out:
        worker = subprocess.Popen(
            [sys.executable, folder / "worker.py", "start"],
            env={**os.environ, **own, "LIVEKIT_TELEMETRY_ALLOW_PII": "false"},
            stdout=out, stderr=out, start_new_session=True,
        )
    room = rtc.Room()
    try:
        await until(lambda: "registered worker" in log.read_text(), 100)
        config = api.RoomConfiguration(agents=[api.RoomAgentDispatch(agent_name="bot")])
        token = api.AccessToken(KEY, SECRET).with_identity(f"sip_{NUMBER}").with_kind("sip").with_room_config(config)
        await room.connect(URL, token.with_grants(api.VideoGrants(room_join=True, room="call")).to_jwt())
        with suppress(TimeoutError):
            await until(lambda: NUMBER in log.read_text())
        await room.disconnect()
    finally:
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    told = [line for line in lines if NUMBER in json.dumps(line)]
    for line in told:
        named = {name: value for name, value in line.items() if NUMBER in str(value)}
        print("LIVEKIT_TELEMETRY_ALLOW_PII=false:", line["level"], repr(line["message"]), named)
    assert any("lk.pii.participant_identity" in line for line in told), "CHANGED: the log has no caller's number"
    print("as described")


asyncio.run(asyncio.wait_for(main(), 150))
PY
timeout 170 "$work/venv/bin/python" "$work/finding.py" "ws://127.0.0.1:$port"
