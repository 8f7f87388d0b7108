#!/usr/bin/env bash
# One expects: livekit-agents' AMD, started before the call is made as its docstring asks, waits for somebody to answer: "its detection
#   timeout begins only after listening starts; SIP settings bound the pre-answer phase".
# What happens: it waits five seconds for an audio track, a limit that no option names (timeout, no_speech_threshold and the others begin
#   later), then gives its verdict: uncertain, reason participant_missing, as for a call that has ended. Who comes after
#   that is not listened to; execute() has returned. At the default log level only "amd prediction" is logged.
# Why it matters: a phone that takes longer than five seconds to have a track in the room is taken for a call nobody can judge: the agent
#   speaks to a mailbox as to a person, or hangs up on a person.
# Versions: livekit-agents 1.8.9, livekit 1.1.21, livekit-server 1.13.5.
set -euo pipefail

work=$(mktemp -d)
server=
trap 'if [ -n "$server" ]; then kill -9 "$server" && wait "$server" || true; fi 2>/dev/null; rm -rf "$work"' EXIT
if ! command -v uv >/dev/null; then
  python3 -m venv "$work/uv" && "$work/uv/bin/pip" install -q --disable-pip-version-check uv==0.13.9
  PATH="$work/uv/bin:$PATH"
fi
uv venv -q --python '>=3.11' "$work/venv"
uv pip install -q --python "$work/venv/bin/python" livekit-agents==1.8.9 livekit==1.1.21 livekit-api==1.2.2

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
import io
import logging
import sys
import time
import urllib.request
from importlib.metadata import version

from livekit import api, rtc
from livekit.agents import AMD, Agent, AgentSession, llm
from livekit.agents.testing import fake_job_context

URL = sys.argv[1]
KEY, SECRET = "devkey", "a-secret-for-a-finding-of-over-32-bytes"
# all the limits that there are, none of them near five seconds
OPTIONS = {"timeout": 60.0, "no_speech_threshold": 20.0}
said = io.StringIO()
logging.basicConfig(stream=said, level=logging.INFO)


class Model(llm.LLM):
    """Is not asked: nobody speaks."""

    def chat(self, **_):
        raise NotImplementedError


async def joined(name, room_name):
    room = rtc.Room()
    token = api.AccessToken(KEY, SECRET).with_identity(name)
    await room.connect(URL, token.with_grants(api.VideoGrants(room_join=True, room=room_name)).to_jwt())
    return room


async def answered(after, room_name):
    """AMD in a room into which the one who is called comes after so many seconds, or with the verdict; what it has by then, and when."""
    agent = await joined("agent", room_name)
    caller = None
    try:
        with fake_job_context(room=agent):
            async with AgentSession(llm=Model()) as session:
                await session.start(Agent(instructions=""), room=agent)
                began = time.monotonic()
                async with AMD(session, detection_options=OPTIONS, suppress_compatibility_warning=True) as detector:
                    verdict = asyncio.create_task(detector.execute())
                    await asyncio.wait({verdict}, timeout=after)
                    early = verdict.done()
                    took = time.monotonic() - began
                    caller = await joined("called", room_name)
                    track = rtc.LocalAudioTrack.create_audio_track("mic", rtc.AudioSource(48000, 1))
                    await caller.local_participant.publish_track(track)
                    until = time.monotonic() + 3
                    while not detector.started and time.monotonic() < until and not early:
                        await asyncio.sleep(0.05)
                    listens = detector.started
                    if not early:
                        verdict.cancel()
                        await asyncio.gather(verdict, return_exceptions=True)
                        return None, took, listens
                    result = verdict.result()
                    return (result.category.value, result.reason), took, listens
    finally:
        for room in (caller, agent):
            if room is not None:
                await room.disconnect()


async def main():
    print("livekit-agents", version("livekit-agents"), "livekit", version("livekit"))
    for _ in range(200):
        try:
            await asyncio.to_thread(urllib.request.urlopen, URL.replace("ws", "http", 1))
            break
        except OSError:
            await asyncio.sleep(0.05)
    for after in (1, 15):
        said.seek(0)
        said.truncate()
        verdict, took, listens = await answered(after, f"call-{after}")
        told = [line for line in said.getvalue().splitlines() if "amd" in line.lower()]
        print(f"called for up to {after} s: after {took:.1f} s the verdict is {verdict}; listens to who comes then: {listens}; logged {told}")
        if after == 1:
            assert verdict is None and listens, "who comes in time is listened to"
    assert verdict == ("uncertain", "participant_missing"), f"CHANGED: {verdict}"
    assert 4.5 < took < 14, f"CHANGED: after {took:.1f} s"
    assert not listens, "CHANGED: it listens to who comes later"
    print("as described")


asyncio.run(asyncio.wait_for(main(), 100))
PY
timeout 120 "$work/venv/bin/python" "$work/finding.py" "ws://127.0.0.1:$port"
