#!/usr/bin/env bash
# One expects: `await local_participant.set_attributes(…)` sets them, or raises; the token allows it.
# What happens: livekit-server refuses a call whose attributes together are longer than 64 KiB. The call returns normally,
#   in milliseconds, and nothing of it arrives: not the small attributes beside the long one either, nobody gets an
#   event, the old values stay. Only the server logs it. The same attributes in two calls all arrive: the limit is one
#   call's, not the participant's. The server's API says `attribute size exceeds limits` to the same request. A name of 257
#   characters is dropped the same way.
# Why it matters: agents keep what they know in attributes for a caller's page (a basket, a transcript, a state that
#   grows). From some turn on the page shows old values, and the agent's code sees only success.
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
import os
import sys
import urllib.request
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
    agent, caller = await join("agent"), await join("caller")
    events = []
    caller.on("participant_attributes_changed", lambda changed, who: events.append(sorted(changed)))
    async with api.LiveKitAPI(HTTP, KEY, SECRET) as server:

        async def present():
            return await server.room.get_participant(api.RoomParticipantIdentity(room="room", identity="agent"))

        async def given(how, **attributes):
            """Whether the server has them 2 s after the call, and the events at the caller's."""
            events.clear()
            await agent.local_participant.set_attributes(attributes)
            await asyncio.sleep(2)
            has = (await present()).attributes
            arrived = all(has.get(key) == value for key, value in attributes.items())
            sizes = {key: len(value) for key, value in has.items()}
            print(f"{how}: returned; arrived {arrived}, events {events}; the server has (bytes) {sizes}")
            assert arrived == bool(events), "an event for what arrives"
            return arrived

        long = "x" * 40_000
        assert await given("40 kB and a small one", basket=long, turn="1"), "what is small enough arrives"
        assert not await given("80 kB and a small one", basket=long, notes=long, turn="2"), "CHANGED: 80 kB arrive"
        assert (await present()).attributes["turn"] == "1", "CHANGED: the small one arrives"
        assert await given("40 kB more, in a call of their own", notes=long, turn="3"), "80 kB in two calls arrive"

        said = None
        try:
            too_much = {"basket": long, "notes": long}
            await server.room.update_participant(
                api.UpdateParticipantRequest(room="room", identity="agent", attributes=too_much)
            )
        except api.TwirpError as error:
            said = f"{error.code}: {error.message}"
        print("the API says of the same:", said)
        assert said and "exceeds" in said, "CHANGED: the API takes it"

        await agent.local_participant.set_name("n" * 257)
        await asyncio.sleep(2)
        name = (await present()).name
        print(f"set_name with 257 characters: returned; the name has {len(name)}")
        assert not name, "CHANGED: a long name arrives"
    print("as described: what is too long is dropped without an error")


asyncio.run(main())
sys.stdout.flush()
# all is said: after a room the end of Python was once aborted (exit code 134)
os._exit(0)
PY
timeout 120 "$work/venv/bin/python" "$work/finding.py" "ws://127.0.0.1:$port"
