#!/usr/bin/env bash
# One expects: a text for destination_identities=[] goes to nobody; the list is of those who are to get it.
# What happens: an empty list is the same as none, and none means everybody in the room: send_text(), publish_data()
#   and the server API's send_data alike. A list with a name that is not in the room goes to nobody.
# Why it matters: `[p.identity for p in room.remote_participants.values() if is_supervisor(p)]` is empty as long as no
#   supervisor is in the room. The note for him ("this caller has not paid three times") is then sent to the caller's
#   screen, without an error. A test in which a supervisor is there shows nothing.
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
import sys
import urllib.request
from importlib.metadata import version

from livekit import api, rtc

URL = sys.argv[1]
HTTP = URL.replace("ws", "http", 1)
KEY, SECRET = "devkey", "a-secret-for-a-finding-of-over-32-bytes"
got = []


async def join(name):
    room = rtc.Room()

    def text(reader, _):
        async def read():
            got.append((name, await reader.read_all()))

        tasks.append(asyncio.create_task(read()))

    tasks = []
    room.register_text_stream_handler("note", text)
    room.on("data_received", lambda packet: got.append((name, packet.data.decode())))
    grants = api.VideoGrants(room_join=True, room="a")
    token = api.AccessToken(KEY, SECRET).with_identity(name).with_grants(grants)
    await room.connect(URL, token.to_jwt())
    return room


async def main():
    print("livekit", version("livekit"), "livekit-api", version("livekit-api"))
    for _ in range(200):
        try:
            await asyncio.to_thread(urllib.request.urlopen, HTTP)
            break
        except OSError:
            await asyncio.sleep(0.05)
    agent, caller = await join("agent"), await join("caller")
    while "caller" not in agent.remote_participants:
        await asyncio.sleep(0.05)
    me = agent.local_participant

    async with api.LiveKitAPI(HTTP, KEY, SECRET) as server:

        async def send_text(to):
            await me.send_text("note", topic="note", destination_identities=to)

        async def publish_data(to):
            await me.publish_data("note", topic="note", destination_identities=to)

        async def send_data(to):
            request = api.SendDataRequest(room="a", data=b"note", topic="note", destination_identities=to)
            await server.room.send_data(request)

        failed = []
        for send in (send_text, publish_data, send_data):
            # somebody else, who is not in the room; then nobody; then the caller, who gets it in any case
            for to, expected in ((["supervisor"], False), ([], True), (["caller"], True)):
                got.clear()
                await send(to)
                # what comes, comes in milliseconds; nothing is waited for only where nothing is to come
                for _ in range(100 if expected else 15):
                    if any(name == "caller" for name, _ in got):
                        break
                    await asyncio.sleep(0.1)
                reached = any(name == "caller" for name, _ in got)
                print(f"{send.__name__}(destination_identities={to}): the caller {'got it' if reached else 'got nothing'}")
                if reached is not expected:
                    failed.append((send.__name__, to))
    await caller.disconnect()
    await agent.disconnect()
    assert not failed, f"CHANGED: {failed}"
    print("as described: a list of nobody reaches everybody")


asyncio.run(main())
PY
timeout 60 "$work/venv/bin/python" "$work/finding.py" "ws://127.0.0.1:$port"
