#!/usr/bin/env bash
# One expects: update_participant(metadata="") takes a participant's metadata away, as update_room_metadata(metadata="")
#   does with a room's, and as set_attributes({key: ""}) does with an attribute.
# What happens: it succeeds, and the metadata and the name stay as they were: an empty string is a field that was not
#   given. The participant's own set_metadata("") returns normally too and changes nothing, with the grant to do so.
# Why it matters: what was put there for the time of a call (a customer number, a hold reason, "vip") cannot be taken
#   back: everybody who joins later is still shown it. Only another text replaces it, such as "{}" or a blank.
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


async def main():
    print("livekit", version("livekit"), "livekit-api", version("livekit-api"))
    for _ in range(200):
        try:
            await asyncio.to_thread(urllib.request.urlopen, HTTP)
            break
        except OSError:
            await asyncio.sleep(0.05)
    room = rtc.Room()
    grants = api.VideoGrants(room_join=True, room="a", can_update_own_metadata=True)
    token = api.AccessToken(KEY, SECRET).with_identity("caller").with_grants(grants)
    await room.connect(URL, token.to_jwt())
    me = room.local_participant

    async with api.LiveKitAPI(HTTP, KEY, SECRET) as server:

        async def seen(wanted=None):
            """What the server has: metadata, name, attributes; waits a while for what is wanted."""
            for _ in range(20):
                found = await server.room.get_participant(api.RoomParticipantIdentity(room="a", identity="caller"))
                state = (found.metadata, found.name, dict(found.attributes))
                if state == wanted:
                    break
                await asyncio.sleep(0.1)
            return state

        async def update(**fields):
            request = api.UpdateParticipantRequest(room="a", identity="caller", **fields)
            await server.room.update_participant(request)

        await update(metadata="vip", name="Ann", attributes={"number": "7"})
        print("set by the server API:", before := await seen(("vip", "Ann", {"number": "7"})))
        assert before == ("vip", "Ann", {"number": "7"})

        await update(metadata="", name="", attributes={"number": ""})
        print("after update_participant with empty metadata, name and attribute:", after := await seen(("", "", {})))

        await me.set_metadata("gold")
        print("after the caller's own set_metadata('gold'):", gold := await seen(("gold", "Ann", {})))
        await me.set_metadata("")
        await me.set_name("")
        print("after the caller's own set_metadata('') and set_name(''):", own := await seen(("", "", {})))

        await server.room.create_room(api.CreateRoomRequest(name="b", metadata="vip"))
        await server.room.update_room_metadata(api.UpdateRoomMetadataRequest(room="b", metadata=""))
        rooms = await server.room.list_rooms(api.ListRoomsRequest(names=["b"]))
        print("a room's metadata after update_room_metadata(''):", repr(rooms.rooms[0].metadata))

        await update(metadata="{}")
        print("after update_participant(metadata='{}'):", replaced := await seen(("{}", "Ann", {})))
    await room.disconnect()
    assert rooms.rooms[0].metadata == "", "a room's metadata is emptied"
    assert gold == ("gold", "Ann", {}), "the caller may set his metadata"
    assert after == ("vip", "Ann", {}), "CHANGED: the server API empties metadata or name"
    assert own == ("gold", "Ann", {}), "CHANGED: a participant empties its metadata or name"
    assert replaced == ("{}", "Ann", {}), "another text replaces it"
    print("as described: neither the server nor the participant can empty them")


asyncio.run(main())
PY
timeout 60 "$work/venv/bin/python" "$work/finding.py" "ws://127.0.0.1:$port"
