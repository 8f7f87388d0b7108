#!/usr/bin/env bash
# One expects: livekit-agents keeps a thinking model's thoughts from the caller: it takes <think>…</think> out of what
#   the model streams, in whatever pieces that comes.
# What happens: only if the stream begins with the opening tag. Templates of several thinking models put <think> at the
#   end of the prompt, so a server without a reasoning parser streams `thoughts</think>answer`. All of it is the answer.
# Why it matters: the same agent is quiet about its thoughts with one server and reads them to the caller with another,
#   the tag included, and goes on in that manner: the thoughts are in the history that the model is shown next.
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
import json
from importlib.metadata import version

from aiohttp import web
from livekit.agents import Agent, AgentSession
from livekit.plugins import openai

THOUGHTS, ANSWER = "The caller is annoyed, be brief.", "At nine."
stream = []


async def completions(request):
    """What a model's server streams: the pieces of text, then the finish_reason."""
    await request.json()
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for part, reason in [*(({"content": piece}, None) for piece in stream), ({}, "stop")]:
        choice = {"index": 0, "delta": part, "finish_reason": reason}
        body = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
        await response.write(f"data: {json.dumps(body)}\n\n".encode())
    await response.write(b"data: [DONE]\n\n")
    await response.write_eof()
    return response


async def main():
    print("livekit-agents", version("livekit-agents"), "livekit-plugins-openai", version("livekit-plugins-openai"))
    app = web.Application()
    app.router.add_post("/v1/chat/completions", completions)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    model = openai.LLM(model="m", base_url=f"http://127.0.0.1:{port}/v1", api_key="a-key")

    async def answer(*pieces):
        stream[:] = pieces
        async with AgentSession(llm=model) as session:
            await session.start(Agent(instructions="Help."))
            await session.run(user_input="When are you open?")
            answers = [one.text_content for one in session.history.items if one.type == "message" and one.role == "assistant"]
        print(f"streamed {pieces}: the answer is {answers}")
        return answers

    tagged = await answer("<think>", THOUGHTS, "</think>", ANSWER)
    pieces = await answer("<th", "ink>" + THOUGHTS[:9], THOUGHTS[9:] + "</thi", "nk>" + ANSWER)
    untagged = await answer(THOUGHTS, "</think>", ANSWER)
    await runner.cleanup()
    assert tagged == pieces == [ANSWER], "thoughts between two tags are taken out"
    assert untagged == [f"{THOUGHTS}</think>{ANSWER}"], "CHANGED: thoughts without an opening tag are taken out"
    print("as described: without the opening tag the thoughts are the answer")


asyncio.run(main())
PY
timeout 200 "$work/venv/bin/python" "$work/finding.py"
