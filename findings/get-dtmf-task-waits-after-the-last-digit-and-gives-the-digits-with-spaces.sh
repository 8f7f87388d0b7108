#!/usr/bin/env bash
# One expects: livekit-agents' GetDtmfTask(num_digits=4) is through at the fourth key, with "1234".
# What happens: num_digits ends nothing. After the fourth key the task waits dtmf_input_timeout (4 s) for another, and a fifth key makes
#   it fail ("Expect 4 digits, got 5"): the digits are lost. Only # ends it at once, and nothing tells the caller to press it. The
#   result is "1 2 3 4", with spaces: int() refuses it, and it equals no PIN in any database.
# Why it matters: every caller sits through four seconds of silence after his PIN, and who presses a key again because nothing happens
#   fails by that; and `result.user_input == pin` is False for the right PIN.
# Versions: livekit-agents 1.8.9, livekit 1.1.21.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if ! command -v uv >/dev/null; then
  python3 -m venv "$work/uv" && "$work/uv/bin/pip" install -q --disable-pip-version-check uv==0.13.9
  PATH="$work/uv/bin:$PATH"
fi
uv venv -q --python '>=3.11' "$work/venv"
uv pip install -q --python "$work/venv/bin/python" livekit-agents==1.8.9 livekit==1.1.21

cat > "$work/finding.py" <<'PY'
import asyncio
import logging
import time
from importlib.metadata import version

from livekit import rtc
from livekit.agents import Agent, AgentSession, llm
from livekit.agents.beta.workflows.dtmf_inputs import GetDtmfTask
from livekit.agents.testing import fake_job_context

logging.disable(logging.CRITICAL)


class Model(llm.LLM):
    """Asks for the PIN, and nothing else."""

    def chat(self, *, chat_ctx, tools=None, conn_options=None, **_):
        return Answer(self, chat_ctx=chat_ctx, tools=tools or [], conn_options=conn_options)


class Answer(llm.LLMStream):
    async def _run(self):
        delta = llm.ChoiceDelta(role="assistant", content="Please type your PIN.")
        self._event_ch.send_nowait(llm.ChatChunk(id="1", delta=delta))


class Desk(Agent):
    def __init__(self):
        super().__init__(instructions="Help.")
        self.result = asyncio.get_running_loop().create_future()

    async def on_enter(self):
        try:
            got = await GetDtmfTask(num_digits=4)
        except llm.ToolError as error:
            self.result.set_result(error.message)
        else:
            self.result.set_result(got.user_input)


async def typed(keys):
    """What the task gives for these keys, and the seconds from the last key to it."""
    room, asked = rtc.Room(), asyncio.Event()
    with fake_job_context(room=room):
        async with AgentSession(llm=Model()) as session:

            def on_item(event):
                if event.item.type == "message":
                    asked.set()

            session.on("conversation_item_added", on_item)
            desk = Desk()
            await session.start(desk)
            await asked.wait()
            # the prompt is over: the agent listens
            while session.agent_state != "listening":
                await asyncio.sleep(0.05)
            for key in keys:
                code = 11 if key == "#" else int(key)
                room.emit("sip_dtmf_received", rtc.SipDTMF(code=code, digit=key))
            last = time.monotonic()
            return await asyncio.wait_for(desk.result, 30), time.monotonic() - last


async def main():
    print("livekit-agents", version("livekit-agents"), "livekit", version("livekit"))
    seen = {}
    for keys in ("1234#", "1234", "12345"):
        seen[keys] = await typed(keys)
        print(f"num_digits=4, keys {keys}: {seen[keys][0]!r}, {seen[keys][1]:.1f} s after the last key")
    assert seen["1234#"][0] == seen["1234"][0] == "1 2 3 4", f"CHANGED: the digits are {seen['1234'][0]!r}"
    assert seen["1234"][1] > 3.5, "CHANGED: the fourth digit is the end"
    assert seen["1234#"][1] < seen["1234"][1], "CHANGED: # does not end it at once"
    assert "Expect 4 digits, got 5" in seen["12345"][0], f"CHANGED: with a fifth key {seen['12345'][0]!r}"
    print("as described")


asyncio.run(asyncio.wait_for(main(), 100))
PY
timeout 120 "$work/venv/bin/python" "$work/finding.py"
