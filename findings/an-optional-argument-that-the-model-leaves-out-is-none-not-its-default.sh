#!/usr/bin/env bash
# One expects: a tool with `radius: int | None = 10`, where None means "everywhere", is called with 10 when the model says nothing of it.
# What happens: OpenAI's strict schemas, livekit-agents' default, have no optional arguments: all are required, may be null, and a default
#   is left out of what the model is told. So the model leaves one out by sending null. livekit-agents makes the default of it for
#   `radius: int = 10`; for `int | None = 10` it passes None. Only where the key is missing, as with models without strict schemas, is it 10.
# Why it matters: the widest meaning (no limit, no filter, everybody) is what None tends to stand for, and it is now what each call without
#   the argument means. A unit test of the tool, and a scripted model that omits the key, see the default.
# Versions: livekit-agents 1.8.9, livekit-plugins-openai 1.8.9.
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
from livekit.agents import Agent, AgentSession, function_tool
from livekit.plugins import openai

offered, ran = [], []
arguments = {}


@function_tool
async def search(city: str, radius: int | None = 10, limit: int = 3) -> str:
    """Search for shops.

    Args:
        city: Where to search.
        radius: In kilometres; null for everywhere.
        limit: How many shops.
    """
    ran.append({"radius": radius, "limit": limit})
    return "found"


async def completions(request):
    """A model that calls the tool once, with the arguments of the moment."""
    asked = await request.json()
    offered.append(asked["tools"][0]["function"])
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    if asked["messages"][-1]["role"] == "tool":
        deltas = [({"role": "assistant", "content": "Found."}, None), ({}, "stop")]
    else:
        function = {"name": "search", "arguments": json.dumps(arguments)}
        call = {"index": 0, "id": "call_1", "type": "function", "function": function}
        deltas = [({"role": "assistant", "tool_calls": [call]}, None), ({}, "tool_calls")]
    for delta, reason in deltas:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        body = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
        await response.write(f"data: {json.dumps(body)}\n\n".encode())
    await response.write(b"data: [DONE]\n\n")
    await response.write_eof()
    return response


async def main():
    print("livekit-agents", version("livekit-agents"), "livekit-plugins-openai", version("livekit-plugins-openai"))
    app = web.Application()
    app.router.add_post("/v1/chat/completions", completions)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    base = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"

    async def called(**sent):
        """What the tool is called with, for what the model sends."""
        arguments.clear(), ran.clear()
        arguments.update(sent)
        async with AgentSession(llm=openai.LLM(model="m", base_url=base, api_key="a-key")) as session:
            await session.start(Agent(instructions="Help.", tools=[search]))
            await session.run(user_input="Where is a shop?")
        print(f"the model sends {json.dumps(sent)}: the tool is called with {ran[0]}")
        return ran[0]

    left_out = await called(city="Bonn")
    strict = await called(city="Bonn", radius=None, limit=None)
    parameters = offered[0]["parameters"]
    print(f"the schema: strict {offered[0]['strict']}, required {parameters['required']}, radius {parameters['properties']['radius']}")
    await runner.cleanup()
    assert offered[0]["strict"] and set(parameters["required"]) == {"city", "radius", "limit"}, "a strict schema"
    assert "default" not in parameters["properties"]["radius"], "CHANGED: the model is told the default"
    assert left_out == {"radius": 10, "limit": 3}, "a missing key is the default"
    assert strict["limit"] == 3, "null is the default where None is no value of it"
    assert strict["radius"] is None, "CHANGED: null is the default"
    print("as described: null, the only way to leave an argument out, is None and not its default")


asyncio.run(asyncio.wait_for(main(), 60))
PY
timeout 90 "$work/venv/bin/python" "$work/finding.py"
