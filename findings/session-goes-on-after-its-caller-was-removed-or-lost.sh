#!/usr/bin/env bash
# One expects: the session closes when its caller has left the room, however that came: `close_on_disconnect` is on, and
#   nobody is left to talk to.
# What happens: it closes for who leaves by himself, and when the room is deleted. A caller whom the server API removes
#   (remove_participant), and one whose phone dies or loses its network, is gone from the room, and the session goes
#   on with nobody: no `close` event, answers are still made. As long as somebody else is there, that is for ever.
# Why it matters: with a supervisor, a recorder's page or a forgotten tab in the room, the agent's job, its models'
#   connections and its slot on the worker are kept until that one leaves; what is hung on the `close` event (the
#   record of the call) does not happen. The room's participant_disconnected says it, with the reason.
# Versions: livekit-agents 1.8.9, livekit 1.1.21, livekit-api 1.2.2, livekit-server 1.13.5.
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
import subprocess
import sys
import urllib.request
from importlib.metadata import version

from livekit import api, rtc
from livekit.agents import APIConnectOptions, Agent, AgentSession, llm
from livekit.agents.voice import room_io

URL = sys.argv[1]
HTTP = URL.replace("ws", "http", 1)
KEY, SECRET = "devkey", "a-secret-for-a-finding-of-over-32-bytes"
# a caller of its own process, so that it can die like a phone without a battery; a line on stdin: it leaves
CALLER = """
import asyncio
import sys

from livekit import rtc


async def main():
    room = rtc.Room()
    await room.connect(sys.argv[1], sys.argv[2])
    await asyncio.to_thread(sys.stdin.readline)
    await room.disconnect()


asyncio.run(main())
"""


class Model(llm.LLM):
    def chat(self, *, chat_ctx, tools=None, conn_options=APIConnectOptions(), **_):
        return Answer(self, chat_ctx=chat_ctx, tools=tools or [], conn_options=conn_options)


class Answer(llm.LLMStream):
    async def _run(self):
        delta = llm.ChoiceDelta(role="assistant", content="Are you still there?")
        self._event_ch.send_nowait(llm.ChatChunk(id="1", delta=delta))


def token(room, identity):
    grants = api.VideoGrants(room_join=True, room=room)
    return api.AccessToken(KEY, SECRET).with_identity(identity).with_grants(grants).to_jwt()


async def join(room_name, identity):
    room = rtc.Room()
    await room.connect(URL, token(room_name, identity))
    return room


async def tried(how):
    """The reason for which the caller left, whether the session closed, whether it still answers."""
    agent, supervisor = await join(how, "agent"), await join(how, "supervisor")
    arguments = [sys.executable, "-c", CALLER, URL, token(how, "caller")]
    caller = subprocess.Popen(arguments, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        async with asyncio.timeout(120):
            while "caller" not in agent.remote_participants:
                await asyncio.sleep(0.05)
        session = AgentSession(llm=Model(), vad=None, turn_handling={"turn_detection": "manual"})
        left, closed = asyncio.get_running_loop().create_future(), asyncio.Event()
        session.on("close", lambda _: closed.set())
        agent.on("participant_disconnected", lambda person: left.done() or left.set_result(person.disconnect_reason))
        options = room_io.RoomOptions(audio_input=False, audio_output=False, participant_identity="caller")
        await session.start(Agent(instructions="Help."), room=agent, room_options=options)

        if how == "leaves":
            caller.stdin.write("\n")
            caller.stdin.flush()
        elif how == "is removed":
            async with api.LiveKitAPI(HTTP, KEY, SECRET) as server:
                await server.room.remove_participant(api.RoomParticipantIdentity(room=how, identity="caller"))
        else:
            caller.kill()
        reason = rtc.DisconnectReason.Name(await asyncio.wait_for(left, 60))
        try:
            # for who leaves, it takes a tenth of a second
            await asyncio.wait_for(closed.wait(), 15)
        except TimeoutError:
            await asyncio.wait_for(session.generate_reply(), 20)
        answers = [one.text_content for one in session.history.items if one.type == "message"]
        result = (reason, closed.is_set(), answers)
        print(f"the caller {how} ({reason}): in the room {list(agent.remote_participants)}, "
              f"session closed: {closed.is_set()}, it still says {answers}")
        await session.aclose()
    finally:
        caller.kill()
        caller.wait()
    await supervisor.disconnect()
    await agent.disconnect()
    return result


async def main():
    print("livekit-agents", version("livekit-agents"), "livekit", version("livekit"))
    for _ in range(200):
        try:
            await asyncio.to_thread(urllib.request.urlopen, HTTP)
            break
        except OSError:
            await asyncio.sleep(0.05)
    leaves, removed, dies = await asyncio.gather(*(tried(how) for how in ("leaves", "is removed", "dies")))
    assert leaves == ("CLIENT_INITIATED", True, []), "the session closes when the caller leaves"
    assert removed == ("PARTICIPANT_REMOVED", False, ["Are you still there?"]), f"CHANGED: removed, {removed}"
    assert dies == ("CONNECTION_TIMEOUT", False, ["Are you still there?"]), f"CHANGED: dead, {dies}"
    print("as described: the session goes on without the caller who was removed, or whose connection died")


asyncio.run(asyncio.wait_for(main(), 280))
PY
timeout 300 "$work/venv/bin/python" "$work/finding.py" "ws://127.0.0.1:$port"
