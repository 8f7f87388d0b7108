#!/usr/bin/env bash
# One expects: a caller who speaks while the agent speaks is heard (barge-in): a browser's echo canceller takes the agent's voice out
#   of the microphone, and leaves the caller's in, all the more where there is no echo, as with a headset.
# What happens: Chromium's echo canceller, with noise suppression on, both being the default, in most runs of the browser sends nothing of
#   the caller as long as the page plays a voice: 60 to 70 dB less, for as long as both speak. In the other runs it takes away 3 dB. With
#   the canceller off nothing is missing. The microphone here is a recording and hears no echo at all; noise in it changes nothing.
# Why it matters: the interruption of an agent cannot be tested with Chromium's fake microphone, nor early words that go on into the
#   greeting: they arrive as silence, and speech-to-text reads half a question. A test has to switch `echoCancellation` off, or to give
#   the page a MediaStream of its own; and an agent that speaks long gives such a caller no way in.
# Versions: Chromium 156. Needs chromium on PATH.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chromium=$(command -v chromium || command -v chromium-browser || command -v google-chrome)
"$chromium" --version 2>/dev/null

cat > "$work/index.html" <<'HTML'
<!doctype html><meta charset="utf-8"><script>
// how loud the microphone is, in dB, in five seconds in which the page plays the agent's voice
async function loudness(echoCancellation) {
  const stream = await navigator.mediaDevices.getUserMedia({audio: {echoCancellation, noiseSuppression: true, autoGainControl: false}});
  const context = new AudioContext();
  const recorder = context.createScriptProcessor(1024, 1, 1);
  const agent = new Audio('agent.wav');
  const heard = [];
  const enough = new Promise((done) => {
    recorder.onaudioprocess = ({inputBuffer}) => {
      const samples = inputBuffer.getChannelData(0);
      const power = samples.reduce((sum, x) => sum + x * x, 0) / samples.length;
      if (!heard.length && power < 1e-5) return;  // the caller has not begun
      if (!heard.length) agent.play();
      heard.push(power);
      if (heard.length * inputBuffer.duration > 5.5) done();
    };
  });
  context.createMediaStreamSource(stream).connect(recorder).connect(context.destination);
  await enough;
  agent.pause();
  stream.getTracks().forEach((track) => track.stop());
  context.close();
  heard.splice(0, Math.round(heard.length / 11));  // the canceller's first half second
  return Math.round(10 * Math.log10(heard.reduce((sum, x) => sum + x) / heard.length + 1e-12));
}
(async () => {
  let run;
  try { run = {on: await loudness(true), off: await loudness(false)}; } catch (error) { run = String(error); }
  await fetch('/result', {method: 'POST', body: JSON.stringify(run)});
})();
</script>
HTML

cat > "$work/finding.py" <<'PY'
import http.server
import json
import math
import os
import random
import struct
import subprocess
import sys
import tempfile
import wave

RATE = 48_000
work, chromium = sys.argv[1:]
os.chdir(work)
run = None


def voice(seconds, pitch, level):
    """Harmonics whose pitch moves, four syllables a second, and some noise."""
    phase = 0.0
    for i in range(seconds * RATE):
        time = i / RATE
        phase += 2 * math.pi * pitch * (1 + 0.08 * math.sin(2 * math.pi * 2.3 * time)) / RATE
        syllable = max(0.0, math.sin(2 * math.pi * 4 * time)) ** 0.7
        tone = sum(math.sin(k * phase) / k**0.7 for k in range(1, 18)) / 6
        yield level * syllable * tone + random.gauss(0, 0.0005)


def write(name, samples):
    with wave.open(name, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(b"".join(struct.pack("<h", round(max(-1, min(1, x)) * 32767)) for x in samples))


class Page(http.server.SimpleHTTPRequestHandler):
    def do_POST(self):
        global run
        run = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


def browse():
    """What one new browser measures."""
    global run
    run = None
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    flags += [f"--user-data-dir={tempfile.mkdtemp(dir=work)}", "--remote-debugging-port=0", "--autoplay-policy=no-user-gesture-required"]
    flags += ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    flags += [f"--use-file-for-fake-audio-capture={work}/caller.wav%noloop"]
    browser = subprocess.Popen([chromium, *flags, address], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(60):
            server.handle_request()
            if run is not None:
                break
    finally:
        browser.terminate()
        browser.wait()
    assert isinstance(run, dict), run
    print(f"while the agent speaks, the caller is heard at {run['off']} dB, and with the echo canceller on at {run['on']} dB")
    return run["off"] - run["on"]


write("caller.wav", [0.0] * RATE + list(voice(9, 140, 0.1)))
write("agent.wav", voice(8, 210, 0.5))
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
server.timeout = 1
address = f"http://127.0.0.1:{server.server_address[1]}/"
lost = [browse() for _ in range(5)]
assert max(lost) > 30, f"CHANGED: with the canceller on only {lost} dB are lost"
print(f"as described: in {sum(dB > 30 for dB in lost)} of {len(lost)} runs the canceller takes the caller away, where there is no echo")
PY
timeout 300 python3 "$work/finding.py" "$work" "$chromium"
