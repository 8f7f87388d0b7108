#!/usr/bin/env bash
# One expects: in the handler of `RoomEvent.ParticipantActive` that participant's `isActive` is true.
# What happens: it is false. updateInfo emits the event first and sets what `isActive` reads afterwards; a microtask later it is true.
# Why it matters: a handler that looks at the room, such as one shared by several events, finds nobody who can read yet, and
#   the event does not come again. A page that keeps what was typed until an active agent is there then keeps it for ever.
# Versions: livekit-client 2.23.0 in Chromium 156, livekit-server 1.13.5. Needs chromium and npm on PATH.
set -euo pipefail

work=$(mktemp -d)
server=
trap 'if [ -n "$server" ]; then kill -9 "$server" && wait "$server" || true; fi 2>/dev/null; rm -rf "$work"' EXIT
chromium=$(command -v chromium || command -v chromium-browser || command -v google-chrome)
npm install --silent --no-audit --no-fund --prefix "$work" livekit-client@2.23.0 >/dev/null
cp "$work/node_modules/livekit-client/dist/livekit-client.umd.js" "$work/"
"$chromium" --version 2>/dev/null

# livekit-server: from PATH, or built once (two minutes) by Go into a cache
binary=$(command -v livekit-server || true)
if [ -z "$binary" ]; then
  binary="${XDG_CACHE_HOME:-$HOME/.cache}/livekit-agent-template/bin/livekit-server-v1.13.5"
  if [ ! -x "$binary" ]; then
    GOBIN="$work" CGO_ENABLED=0 go install github.com/livekit/livekit-server/cmd/server@v1.13.5
    mkdir -p "$(dirname "$binary")" && mv "$work/server" "$binary"
  fi
fi
read -r port udp tcp < <(python3 - <<'PY'
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

cat > "$work/index.html" <<'HTML'
<!doctype html><meta charset="utf-8"><script src="livekit-client.umd.js"></script><script>
const [url, first, second] = decodeURIComponent(location.hash.slice(1)).split(' ').map(decodeURIComponent);
(async () => {
  const [room, other] = [new LivekitClient.Room(), new LivekitClient.Room()];
  const seen = await new Promise(async (done) => {
    room.on('participantActive', (who) => {
      const during = who.isActive;
      queueMicrotask(() => done({during, after: who.isActive}));
    });
    try { await room.connect(url, first); await other.connect(url, second); } catch (error) { done({error: String(error)}); }
  });
  await fetch('/result', {method: 'POST', body: JSON.stringify(seen)});
})();
</script>
HTML

cat > "$work/finding.py" <<'PY'
import base64
import hashlib
import hmac
import http.server
import json
import os
import socket
import subprocess
import sys
import time
from urllib.parse import quote

work, chromium, port = sys.argv[1:]
os.chdir(work)
seen = None


def token(identity):
    def part(value):
        return base64.urlsafe_b64encode(value).rstrip(b"=")

    claims = {"iss": "devkey", "sub": identity, "exp": int(time.time()) + 600, "video": {"roomJoin": True, "room": "room"}}
    signed = b".".join(part(json.dumps(each).encode()) for each in ({"alg": "HS256", "typ": "JWT"}, claims))
    signature = hmac.digest(b"a-secret-for-a-finding-of-over-32-bytes", signed, hashlib.sha256)
    return (signed + b"." + part(signature)).decode()


class Page(http.server.SimpleHTTPRequestHandler):
    def do_POST(self):
        global seen
        seen = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


for _ in range(100):
    try:
        socket.create_connection(("127.0.0.1", int(port))).close()
        break
    except OSError:
        time.sleep(0.1)
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
server.timeout = 1
flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", f"--user-data-dir={work}/profile"]
flags += ["--remote-debugging-port=0"]
given = " ".join(map(quote, (f"ws://127.0.0.1:{port}", token("first"), token("second"))))
address = f"http://127.0.0.1:{server.server_address[1]}/#{given.replace(' ', '%20')}"
browser = subprocess.Popen([chromium, *flags, address], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
try:
    for _ in range(100):
        server.handle_request()
        if seen is not None:
            break
finally:
    browser.terminate()
    browser.wait()
print(f"isActive in the handler of participantActive: {seen['during']}; a microtask later: {seen['after']}")
assert seen == {"during": False, "after": True}, "CHANGED"
print("as described: the event comes before what it says")
PY
timeout 120 python3 "$work/finding.py" "$work" "$chromium" "$port"
