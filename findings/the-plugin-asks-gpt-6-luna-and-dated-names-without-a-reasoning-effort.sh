#!/usr/bin/env bash
# One expects: livekit-plugins-openai asks models that can think not to think before they speak, as its code does for gpt-5.6-luna:
#   `reasoning_effort: none` is in each request. A newer model of the family, and a model under its dated name, are asked the same.
# What happens: the plugin has a list of exact names. gpt-6-luna, which OpenAI names as the replacement of gpt-4.1-mini and gpt-4o-mini,
#   is not in it, nor is gpt-5.5-2026-04-23, the dated name of gpt-5.5: these are asked without any effort, tools or not, so the server's
#   default counts. openai.LLM, openai.responses.LLM and inference.LLM alike, although livekit-agents has a second list, in which
#   gpt-6-luna may be asked with "none".
# Why it matters: OpenAI documents "medium" as the default of gpt-6-luna, and function tools in chat completions for "none" only. Whoever
#   changes nothing but the name, as gpt-4.1-mini is shut down on 2027-01-14, has an agent that thinks before each sentence at best, and
#   at worst one whose requests are refused as soon as it has a tool. `reasoning_effort="none"` in the constructor is the way out.
# Versions: livekit-agents 1.8.9, livekit-plugins-openai 1.8.9, openai 3.54.0.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if ! command -v uv >/dev/null; then
  python3 -m venv "$work/uv" && "$work/uv/bin/pip" install -q --disable-pip-version-check uv==0.13.9
  PATH="$work/uv/bin:$PATH"
fi
uv venv -q --python '>=3.11' "$work/venv"
uv pip install -q --python "$work/venv/bin/python" livekit-agents==1.8.9 livekit-plugins-openai==1.8.9 openai==3.54.0

cat > "$work/finding.py" <<'PY'
import asyncio
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version

from livekit.agents import function_tool, inference, llm
from livekit.agents.inference.llm import min_reasoning_effort
from livekit.plugins import openai

asked = []
NOT_IN_IT = "nothing"


class Server(BaseHTTPRequestHandler):
    """Writes down what it is asked, and answers with one word."""

    def do_POST(self):
        asked.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        if self.path.endswith("/responses"):
            answer = {"id": "1", "object": "response", "created_at": 1, "model": "m", "status": "completed", "output": []}
            events = [{"type": "response.completed", "sequence_number": 0, "response": answer}]
        else:
            choice = {"index": 0, "delta": {"role": "assistant", "content": "Hello."}, "finish_reason": "stop"}
            events = [{"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}]
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        for event in events:
            self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, *_):
        pass


@function_tool
async def hours() -> str:
    """When the shop is open."""
    return "nine to five"


async def effort(model, tools):
    """The reasoning effort that the request names."""
    context = llm.ChatContext.empty()
    context.add_message(role="user", content="Hello?")
    async for _ in model.chat(chat_ctx=context, tools=tools):
        pass
    await model.aclose()
    body = asked.pop()
    assert not asked and bool(body.get("tools")) == bool(tools), "one request, with the tools that were given"
    return body.get("reasoning_effort") or body.get("reasoning", {}).get("effort") or NOT_IN_IT


async def main():
    for package in ("livekit-agents", "livekit-plugins-openai", "openai"):
        print(package, version(package))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/v1"

    def chat(name, **options):
        return openai.LLM(model=name, base_url=url, api_key="a key", **options)

    def responses(name):
        return openai.responses.LLM(model=name, base_url=url, api_key="a key", use_websocket=False)

    def gateway(name):
        return inference.LLM(f"openai/{name}", base_url=url, api_key="a key", api_secret="a secret of more than 32 bytes, as asked")

    seen = {}
    for make in (chat, responses, gateway):
        for name in ("gpt-5.5", "gpt-5.5-2026-04-23", "gpt-5.6-luna", "gpt-6-luna"):
            efforts = {await effort(make(name), tools) for tools in ([], [hours])}
            seen[make.__name__, name] = efforts
            print(f"{make.__name__}, {name}: the effort in the requests is {' or '.join(sorted(efforts))}")
    told = await effort(chat("gpt-6-luna", reasoning_effort="none"), [hours])
    print(f"chat, gpt-6-luna, told so: the effort in the request is {told}")
    print("the least that livekit-agents knows gpt-6-luna to take:", min_reasoning_effort("gpt-6-luna"))
    server.shutdown()

    for kind in ("chat", "responses"):
        for name in ("gpt-5.5", "gpt-5.6-luna"):
            assert seen[kind, name] == {"none"}, f"not as expected: {kind}, {name}"
        for name in ("gpt-5.5-2026-04-23", "gpt-6-luna"):
            assert seen[kind, name] == {NOT_IN_IT}, f"CHANGED: {kind}, {name} is asked with an effort"
    assert all(seen["gateway", name] == {NOT_IN_IT} for _, name in seen), "CHANGED: inference.LLM names an effort"
    assert told == min_reasoning_effort("gpt-6-luna") == "none", "the way out"
    print("as described: gpt-6-luna is asked without an effort, its elder sister with none")


asyncio.run(asyncio.wait_for(main(), 100))
PY
timeout 150 "$work/venv/bin/python" "$work/finding.py"
