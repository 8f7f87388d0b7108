#!/usr/bin/env bash
# One expects: livekit-client's `connect()` that fails with a refused token (HTTP 401) rejects with ConnectionError, and says no more: the
#   room was never connected, so nothing is disconnected.
# What happens: it rejects (NotAllowed, 401), and it emits RoomEvent.Disconnected as well, with DisconnectReason.USER_REJECTED, which in
#   LiveKit's protocol is "SIP callee rejected the call". Nobody listening on the port is JOIN_FAILURE.
# Why it matters: a front end that shows a sentence for each DisconnectReason tells a visitor whose token has run out that they
#   were declined; and one that tries again on Disconnected does so beside its own catch of connect().
# Versions: livekit-client 2.23.0 in Chromium 156. Needs chromium and npm on PATH.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chromium=$(command -v chromium || command -v chromium-browser || command -v google-chrome)
npm install --silent --no-audit --no-fund --prefix "$work" livekit-client@2.23.0 >/dev/null
cp "$work/node_modules/livekit-client/dist/livekit-client.umd.js" "$work/"
"$chromium" --version 2>/dev/null

cat > "$work/index.html" <<'HTML'
<!doctype html><meta charset="utf-8"><script src="livekit-client.umd.js"></script><script>
const {Room, RoomEvent, DisconnectReason, ConnectionErrorReason} = LivekitClient;
async function join(port) {
  const room = new Room();
  const disconnected = [];
  room.on(RoomEvent.Disconnected, (reason) => disconnected.push(DisconnectReason[reason] ?? 'no reason'));
  let error = 'none';
  try { await room.connect(`ws://127.0.0.1:${port}`, 'a token'); }
  catch (raised) { error = `${raised.name} ${ConnectionErrorReason[raised.reason]}`; }
  return {error, disconnected};
}
(async () => {
  const ports = new URLSearchParams(location.search);
  const seen = {};
  for (const [name, port] of ports) seen[name] = await join(port).catch(String);
  await fetch('/result', {method: 'POST', body: JSON.stringify(seen)});
})();
</script>
HTML

cat > "$work/finding.py" <<'PY'
import http.server
import json
import os
import socket
import subprocess
import sys
import threading

work, chromium = sys.argv[1:]
os.chdir(work)
seen = None


class Page(http.server.SimpleHTTPRequestHandler):
    def do_POST(self):
        global seen
        seen = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


class Refuses(http.server.BaseHTTPRequestHandler):
    """Answers as livekit-server does to a token that has run out: no WebSocket, and 401 to the question why."""

    def do_GET(self):
        said = b"invalid authorization token"
        self.send_response(401)
        self.send_header("Access-Control-Allow-Origin", "*")
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_):
        pass


refuses = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refuses)
threading.Thread(target=refuses.serve_forever, daemon=True).start()
with socket.create_server(("127.0.0.1", 0)) as free:
    nobody = free.getsockname()[1]
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
server.timeout = 1
flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", f"--user-data-dir={work}/profile"]
address = f"http://127.0.0.1:{server.server_address[1]}/?refused={refuses.server_address[1]}&nobody={nobody}"
browser = subprocess.Popen([chromium, *flags, "--remote-debugging-port=0", address], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
try:
    for _ in range(90):
        server.handle_request()
        if seen is not None:
            break
finally:
    browser.terminate()
    browser.wait()
for name, what in seen.items():
    print(f"{name}: connect() raises {what['error']}; Disconnected with {what['disconnected']}")
assert seen["refused"] == {"error": "ConnectionError NotAllowed", "disconnected": ["USER_REJECTED"]}, "CHANGED"
assert seen["nobody"] == {"error": "ConnectionError ServerUnreachable", "disconnected": ["JOIN_FAILURE"]}, "CHANGED"
print("as described: a refused token is told of twice, the second time as a rejected phone call")
PY
timeout 120 python3 "$work/finding.py" "$work" "$chromium"
