#!/usr/bin/env bash
# One expects: `setMicrophoneEnabled(true, undefined, {preConnectBuffer: true})` records what is said before the agent is there:
#   preConnectBuffer is one of TrackPublishOptions, which is the third argument, and was introduced with this line.
# What happens: nothing is recorded. The publish options of the third argument are not looked at: setTrackEnabled reads
#   preConnectBuffer from the room's publishDefaults and from the second argument, which has the options of capture.
# Why it matters: the first words of every caller are lost, without a warning; the agent hears "Open on Saturday."
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
// nothing is connected: the recording begins before that, or not at all
const start = MediaRecorder.prototype.start;
let started = 0;
MediaRecorder.prototype.start = function (...given) { started++; return start.apply(this, given); };
async function tried(defaults, ...options) {
  started = 0;
  const room = new LivekitClient.Room({publishDefaults: defaults});
  room.localParticipant.setMicrophoneEnabled(true, ...options).catch(() => {});
  await new Promise((done) => setTimeout(done, 1500));
  return started;
}
(async () => {
  const on = {preConnectBuffer: true};
  const runs = {publishDefaults: await tried(on), third: await tried({}, undefined, on), second: await tried({}, on)};
  await fetch('/result', {method: 'POST', body: JSON.stringify(runs)});
})();
</script>
HTML

cat > "$work/finding.py" <<'PY'
import http.server
import json
import os
import subprocess
import sys

work, chromium = sys.argv[1:]
os.chdir(work)
runs = None


class Page(http.server.SimpleHTTPRequestHandler):
    def do_POST(self):
        global runs
        runs = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
server.timeout = 1
flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", f"--user-data-dir={work}/profile"]
flags += ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream", "--remote-debugging-port=0"]
address = f"http://127.0.0.1:{server.server_address[1]}/"
browser = subprocess.Popen([chromium, *flags, address], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
try:
    for _ in range(500):
        server.handle_request()
        if runs is not None:
            break
finally:
    browser.terminate()
    browser.wait()
where = {"publishDefaults": "in publishDefaults", "third": "as the third argument", "second": "as the second argument"}
for each, place in where.items():
    print(f"preConnectBuffer {place}: {'recorded' if runs[each] else 'nothing was recorded'}")
assert (runs["publishDefaults"], runs["third"]) == (1, 0), "CHANGED"
print("as described: the third argument is not looked at")
PY
timeout 120 python3 "$work/finding.py" "$work" "$chromium"
