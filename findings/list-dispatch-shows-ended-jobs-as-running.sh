#!/usr/bin/env bash
# One expects: list_dispatch tells of each job whether it is running, has ended or failed, as its fields say (status,
#   started_at, ended_at, error).
# What happens: a job's state is that of the moment in which a worker took it, for as long as the room is there. Jobs
#   that have ended by shutdown(), crashed in the entrypoint, or died with their worker are all JS_RUNNING, with no
#   ended_at and no error, while nobody but the caller is in the room.
# Why it matters: a watchdog that asks list_dispatch whether a call still has its agent, and sends another one if not,
#   never sends one. The participants tell: is one of kind AGENT in the room?
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
import os
import subprocess
import sys
import tempfile
import urllib.request
from importlib.metadata import version
from pathlib import Path

from livekit import api, rtc
from livekit.protocol import agent, models

URL = sys.argv[1]
HTTP = URL.replace("ws", "http", 1)
KEY, SECRET = "devkey", "a-secret-for-a-finding-of-over-32-bytes"
WORKER = """
import asyncio

from livekit.agents import AgentServer, JobContext, cli

server = AgentServer(num_idle_processes=1, load_fnc=lambda *_: 0.0, port=0)


@server.rtc_session(agent_name="bot")
async def entrypoint(ctx: JobContext):
    await ctx.connect()
    end = asyncio.Event()
    ctx.room.on("data_received", lambda _: end.set())
    if ctx.job.metadata == "stays":
        return
    await end.wait()
    if ctx.job.metadata == "crashes":
        raise RuntimeError("a bug in the entrypoint")
    ctx.shutdown("all done")


if __name__ == "__main__":
    cli.run_app(server)
"""


async def until(condition, seconds=60):
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.05)


async def main():
    print("livekit-agents", version("livekit-agents"), "livekit", version("livekit"))
    for _ in range(200):
        try:
            await asyncio.to_thread(urllib.request.urlopen, HTTP)
            break
        except OSError:
            await asyncio.sleep(0.05)
    folder = Path(tempfile.mkdtemp(dir=Path(__file__).parent))
    (folder / "worker.py").write_text(WORKER)
    log = folder / "log"
    with log.open("w") as out:
        worker = subprocess.Popen(
            [sys.executable, folder / "worker.py", "start"],
            env={**os.environ, "LIVEKIT_URL": URL, "LIVEKIT_API_KEY": KEY, "LIVEKIT_API_SECRET": SECRET},
            stdout=out, stderr=out, start_new_session=True,
        )
    states = {}
    try:
        await until(lambda: "registered worker" in log.read_text(), 100)
        async with api.LiveKitAPI(HTTP, KEY, SECRET) as server:
            for name, how in (("ends", "ended by shutdown()"), ("crashes", "crashed"), ("stays", "died with its worker")):
                room = rtc.Room()
                token = api.AccessToken(KEY, SECRET).with_identity("caller")
                await room.connect(URL, token.with_grants(api.VideoGrants(room_join=True, room=name)).to_jwt())
                request = api.CreateAgentDispatchRequest(room=name, agent_name="bot", metadata=name)
                mine = await server.agent_dispatch.create_dispatch(request)
                await until(lambda: room.remote_participants)

                async def jobs():
                    listed = await server.agent_dispatch.list_dispatch(name)
                    return [job for found in listed if found.id == mine.id for job in found.state.jobs]

                while not (before := await jobs()):
                    await asyncio.sleep(0.1)
                assert [job.state.status for job in before] == [agent.JS_RUNNING], "it runs"
                if name == "stays":
                    os.killpg(worker.pid, 9)
                    worker.wait()
                else:
                    await room.local_participant.publish_data("end")
                await until(lambda: not room.remote_participants)
                # time for the worker to report, and for the server to take note
                await asyncio.sleep(8)
                after = await jobs()
                asked = api.ListParticipantsRequest(room=name)
                present = (await server.room.list_participants(asked)).participants
                agents = sum(person.kind == models.ParticipantInfo.AGENT for person in present)
                states[how] = [(agent.JobStatus.Name(job.state.status), job.state.ended_at, job.state.error) for job in after]
                print(f"the job that {how}: agents in the room {agents}, list_dispatch (status, ended_at, error): {states[how]}")
                assert agents == 0, "the agent has left"
                await room.disconnect()
    finally:
        try:
            os.killpg(worker.pid, 9)
            worker.wait()
        except ProcessLookupError:
            pass
    for how, state in states.items():
        assert state == [("JS_RUNNING", 0, "")], f"CHANGED: the job that {how} is {state}"
    print("as described: all of them are running, if one asks list_dispatch")


asyncio.run(asyncio.wait_for(main(), 240))
PY
timeout 260 "$work/venv/bin/python" "$work/finding.py" "ws://127.0.0.1:$port"
