#!/usr/bin/env bash
# One expects: when a participant joins a room, those who are in it get `participant_connected` at once.
# What happens: livekit-server tells of people who publish nothing in batches, every 3 s: a listener, or a caller who only types,
#   is unknown to an agent that was there first for up to 3 s, while their text already arrives. One who publishes a
#   track is announced at once.
# Why it matters: an agent that waits for its caller, or for one whose connection broke, waits that much longer for a caller without
#   a microphone; and a test whose callers publish nothing is flaky.
# Versions: livekit 1.1.21, livekit-api 1.2.2, livekit-server 1.13.5.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
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
"$binary" --version

cat > "$work/finding.py" <<'PY'
import asyncio
import statistics
import subprocess
import sys
import time
import urllib.request
from importlib.metadata import version

from livekit import api, rtc

URL, BINARY, CONFIG = sys.argv[1:4]
KEY, SECRET = "devkey", "a-secret-for-a-finding-of-over-32-bytes"
JOINS = 8


async def start():
    log = open(CONFIG + ".log", "a")
    server = subprocess.Popen([BINARY, "--config", CONFIG], stdout=log, stderr=log)
    for _ in range(400):
        try:
            await asyncio.to_thread(urllib.request.urlopen, URL.replace("ws", "http", 1))
            return server
        except OSError:
            await asyncio.sleep(0.05)
    server.kill()
    raise SystemExit("livekit-server does not answer")


async def joined(name):
    room = rtc.Room()
    grants = api.VideoGrants(room_join=True, room="a-room")
    await room.connect(URL, api.AccessToken(KEY, SECRET).with_identity(name).with_grants(grants).to_jwt())
    return room


async def announced_after(known, name, publishes):
    """Seconds from the moment in which `name` is in the room until those in it know."""
    room = await joined(name)
    began = time.monotonic()
    if publishes:
        track = rtc.LocalAudioTrack.create_audio_track("voice", rtc.AudioSource(48_000, 1))
        await room.local_participant.publish_track(track)
    while True:
        who, at = await asyncio.wait_for(known.get(), 20)
        if who == name:
            break
    await room.disconnect()
    return max(0.0, at - began)


async def main():
    print("livekit", version("livekit"), "livekit-api", version("livekit-api"))
    server = await start()
    try:
        agent = await joined("agent")
        known = asyncio.Queue()
        agent.on("participant_connected", lambda p: known.put_nowait((p.identity, time.monotonic())))
        took = {}
        for publishes in (True, False):
            took[publishes] = [
                await announced_after(known, f"{'voice' if publishes else 'listener'}-{number}", publishes)
                for number in range(JOINS)
            ]
            kind = "publishes a track" if publishes else "publishes nothing"
            print(f"who {kind} is announced after", " ".join(f"{one:.2f}" for one in took[publishes]), "s")
        await agent.disconnect()
    finally:
        server.kill()
        server.wait()
    assert max(took[False]) < 6, "CHANGED: it takes longer than two batches"
    assert statistics.median(took[False]) > 1, "CHANGED: who publishes nothing is announced at once"
    assert statistics.median(took[True]) < 0.5, "CHANGED: who publishes is announced late too"
    print("as described")


asyncio.run(asyncio.wait_for(main(), 140))
PY
timeout 160 "$work/venv/bin/python" "$work/finding.py" "ws://127.0.0.1:$port" "$binary" "$work/livekit.yaml"
