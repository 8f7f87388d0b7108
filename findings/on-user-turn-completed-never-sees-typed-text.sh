#!/usr/bin/env bash
# One expects: Agent.on_user_turn_completed runs before every answer to the user, "before the agent's reply". It is
#   the place where documents for the answer are looked up, and AgentSession.run() is the way to test it.
# What happens: it runs for what is spoken, and for nothing else. A line that is typed into the room (topic lk.chat)
#   is answered without it, and so are generate_reply(user_input=...) and AgentSession.run(user_input=...).
# Why it matters: the same question is answered from the documents when it is spoken, and out of the model's head
#   when it is typed, without an error or a log line. The SDK's own text tests never run the look-up, so they can
#   neither prove that it works nor notice that it broke. (llm_node sees every turn.)
# Versions: livekit-agents 1.8.9 (2.0.0b1 does the same), livekit-server 1.13.5.
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
import sys
import urllib.request
from importlib.metadata import version

from livekit import api, rtc
from livekit.agents import APIConnectOptions, Agent, AgentSession, llm, stt
from livekit.agents.voice import io, room_io

URL = sys.argv[1]
QUESTION = "When are you open?"
heard = []  # what the hook was given


class Model(llm.LLM):
    """Answers from the document that it is shown, if it is shown one."""

    def chat(self, *, chat_ctx, tools=None, conn_options=APIConnectOptions(), **_):
        return Answer(self, chat_ctx=chat_ctx, tools=tools or [], conn_options=conn_options)


class Answer(llm.LLMStream):
    async def _run(self):
        shown = any("DOCUMENT" in (item.text_content or "") for item in self._chat_ctx.messages())
        text = "From the documents: nine to five." if shown else "I make something up."
        self._event_ch.send_nowait(
            llm.ChatChunk(id="1", delta=llm.ChoiceDelta(role="assistant", content=text))
        )


class Ears(stt.STT):
    """Hears the question once, whatever is said."""

    def __init__(self):
        super().__init__(capabilities=stt.STTCapabilities(streaming=True, interim_results=False))

    async def _recognize_impl(self, *_, **__):
        raise NotImplementedError

    def stream(self, *, language=None, conn_options=APIConnectOptions()):
        return Hearing(stt=self, conn_options=conn_options)


class Hearing(stt.RecognizeStream):
    async def _run(self):
        frames = 0
        async for _ in self._input_ch:
            frames += 1
            if frames == 10:
                for kind in ("START_OF_SPEECH", "FINAL_TRANSCRIPT", "END_OF_SPEECH"):
                    words = [stt.SpeechData(language="en", text=QUESTION)]
                    self._event_ch.send_nowait(
                        stt.SpeechEvent(type=stt.SpeechEventType[kind], alternatives=words)
                    )


class Microphone(io.AudioInput):
    async def __anext__(self):
        await asyncio.sleep(0.02)
        return rtc.AudioFrame(b"\0\0" * 480, 24000, 1, 480)


class Librarian(Agent):
    def __init__(self):
        super().__init__(instructions="Answer from the documents.")

    async def on_user_turn_completed(self, turn_ctx, new_message):
        heard.append(new_message.text_content)
        turn_ctx.add_message(role="assistant", content="DOCUMENT: open from nine to five.")


async def answer_to(start, ask, turns="manual", **models):
    """What a new session answers."""
    heard.clear()
    answered = asyncio.get_running_loop().create_future()
    session = AgentSession(llm=Model(), vad=None, turn_handling={"turn_detection": turns}, **models)

    @session.on("conversation_item_added")
    def added(event):
        if event.item.type == "message" and event.item.role == "assistant" and not answered.done():
            answered.set_result(event.item.text_content)

    await start(session)
    await ask(session)
    answer = await asyncio.wait_for(answered, 20)
    await session.aclose()
    return len(heard), answer


async def alone(session):
    await session.start(Librarian())


async def with_microphone(session):
    session.input.audio = Microphone(label="microphone")
    await session.start(Librarian())


async def join(name):
    grants = api.VideoGrants(room_join=True, room="a")
    token = api.AccessToken("devkey", "a-secret-for-a-finding-of-over-32-bytes")
    room = rtc.Room()
    await room.connect(URL, token.with_identity(name).with_grants(grants).to_jwt())
    return room


async def main():
    print("livekit-agents", version("livekit-agents"), "livekit", version("livekit"))
    for _ in range(200):
        try:
            await asyncio.to_thread(urllib.request.urlopen, URL.replace("ws", "http"))
            break
        except OSError:
            await asyncio.sleep(0.05)

    async def nothing(_):
        pass

    async def run(session):
        await session.run(user_input=QUESTION)

    async def reply(session):
        await session.generate_reply(user_input=QUESTION)

    agent, caller = await join("agent"), await join("caller")
    while "caller" not in agent.remote_participants:
        await asyncio.sleep(0.05)

    async def in_room(session):
        options = room_io.RoomOptions(audio_input=False, audio_output=False)
        await session.start(Librarian(), room=agent, room_options=options)

    async def type_it(_):
        await caller.local_participant.send_text(QUESTION, topic="lk.chat")

    seen = {
        "spoken": await answer_to(with_microphone, nothing, "stt", stt=Ears()),
        "typed into the room (lk.chat)": await answer_to(in_room, type_it),
        "generate_reply(user_input=...)": await answer_to(alone, reply),
        "AgentSession.run(user_input=...)": await answer_to(alone, run),
    }
    await caller.disconnect()
    await agent.disconnect()
    for how, (times, answer) in seen.items():
        print(f"{QUESTION!r} {how}: the hook ran {times} times, the answer is {answer!r}")
    assert seen.pop("spoken") == (1, "From the documents: nine to five."), "a spoken turn runs it"
    for how, result in seen.items():
        assert result == (0, "I make something up."), f"CHANGED: {how} runs on_user_turn_completed"
    print("as described: only what is spoken is looked up")


asyncio.run(main())
PY
timeout 80 "$work/venv/bin/python" "$work/finding.py" "ws://127.0.0.1:$port"
