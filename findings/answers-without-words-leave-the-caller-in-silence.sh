#!/usr/bin/env bash
# One expects: when a model gives no words, livekit-agents emits the session's `error` event, or at least a warning.
# What happens: a turn ends as if nothing had been asked when the model refuses (the stream's `refusal` field), when a
#   content filter stops it before the first word, when a thinking model spends max_tokens on its thoughts, and when
#   the limit cuts a tool call in two (the call is dropped). No answer, no error event, no log line; AgentSession.run()
#   returns normally. finish_reason says in each case what happened, and is not passed on.
# Why it matters: the caller asked and hears nothing, for ever: the agent is listening again. Alarms built on the error
#   event stay quiet. Only who counts turns of the user without an answer sees it.
# Versions: livekit-agents and livekit-plugins-openai 1.8.9.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if ! command -v uv >/dev/null; then
  python3 -m venv "$work/uv" && "$work/uv/bin/pip" install -q --disable-pip-version-check uv==0.13.9
  PATH="$work/uv/bin:$PATH"
fi
uv venv -q --python '>=3.11' "$work/venv"
uv pip install -q --python "$work/venv/bin/python" livekit-agents==1.8.9 livekit-plugins-openai==1.8.9

cat > "$work/finding.py" <<'PY'
import asyncio
import io
import json
import logging
from importlib.metadata import version

from aiohttp import web
from livekit.agents import Agent, AgentSession, function_tool
from livekit.plugins import openai

said = io.StringIO()
logging.basicConfig(stream=said, level=logging.INFO)
booked = []


def tool_call(arguments):
    call = {"index": 0, "id": "1", "type": "function", "function": {"name": "book", "arguments": arguments}}
    return {"role": "assistant", "tool_calls": [call]}


# what the model streams, and its finish_reason
TURNS = {
    "words": ({"role": "assistant", "content": "At nine."}, "stop"),
    "a refusal": ({"role": "assistant", "content": None, "refusal": "I cannot help with that."}, "stop"),
    "a filter before the first word": ({"role": "assistant", "content": ""}, "content_filter"),
    "max_tokens spent on thoughts": ({"role": "assistant", "content": None, "reasoning_content": "The caller"}, "length"),
    "max_tokens inside a tool call": (tool_call('{"day": "mon'), "length"),
}
streams = []


async def completions(request):
    """What a model's server streams: one delta, then the finish_reason."""
    await request.json()
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    delta, finish = streams.pop(0)
    for part, reason in ((delta, None), ({}, finish)):
        choice = {"index": 0, "delta": part, "finish_reason": reason}
        body = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
        await response.write(f"data: {json.dumps(body)}\n\n".encode())
    await response.write(b"data: [DONE]\n\n")
    await response.write_eof()
    return response


class Desk(Agent):
    def __init__(self):
        super().__init__(instructions="Help.")

    @function_tool
    async def book(self, day: str) -> str:
        """Book a day."""
        booked.append(day)
        return "booked"


async def main():
    print("livekit-agents", version("livekit-agents"), "livekit-plugins-openai", version("livekit-plugins-openai"))
    app = web.Application()
    app.router.add_post("/v1/chat/completions", completions)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    model = openai.LLM(model="m", base_url=f"http://127.0.0.1:{port}/v1", api_key="a-key")

    seen = {}
    for how, stream in TURNS.items():
        streams[:] = [stream]
        events = []
        said.seek(0)
        said.truncate()
        async with AgentSession(llm=model) as session:
            session.on("error", lambda event: events.append("error"))
            session.on("close", lambda event: events.append("close"))
            await session.start(Desk())
            await session.run(user_input="When are you open?")
            happened = list(events)
            items = session.history.items
            answers = [one.text_content for one in items if one.type == "message" and one.role == "assistant"]
        log = [line for line in said.getvalue().splitlines() if line.startswith(("WARNING", "ERROR"))]
        print(f"{how} (finish_reason {stream[1]}): answers {answers}, events {happened}, warnings and errors logged {log}")
        seen[how] = (answers, happened, log)
    await runner.cleanup()
    assert not booked, "no tool ran"
    assert seen.pop("words") == (["At nine."], [], []), "words are said"
    for how, result in seen.items():
        assert result == ([], [], []), f"CHANGED: {how} is {result}"
    print("as described: four ways into silence, and nothing says so")


asyncio.run(main())
PY
timeout 200 "$work/venv/bin/python" "$work/finding.py"
