#!/usr/bin/env bash
# One expects: a provider that answers 429 with `Retry-After: 8` is asked again after 8 s, or not at all; and what an owner's code gets
#   in the end is the APIStatusError with status_code 429, as the SDK's own classes say.
# What happens: nothing in the SDK reads Retry-After. It asks again after 0.1 s, 2.1 s and 4.2 s, four times in all, which most
#   providers count. Then the two differ: a TTS raises APIStatusError with 429, an LLM wraps it into APIConnectionError ("failed to
#   generate LLM completion after 4 attempts"), which has no status_code; only its cause has. With 500 and 503 it is the same.
# Why it matters: code that tells "too many requests" (say so, wait, take another model) from "no network" by the class or the status
#   takes an LLM's rate limit for the network; and the retries of all calls together keep a limit of so many a minute exceeded.
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
import logging
import time
from importlib.metadata import version

from aiohttp import web
from livekit.agents import APIConnectionError, APIStatusError, llm
from livekit.plugins import openai

logging.basicConfig(level=logging.CRITICAL)
status, asked = 429, []


async def refuse(request):
    """Answers every request alike: come again in eight seconds."""
    asked.append(time.monotonic())
    return web.json_response({"error": {"message": "slow down"}}, status=status, headers={"Retry-After": "8"})


async def outcome(stream):
    """What the stream raises in the end."""
    asked.clear()
    try:
        async for _ in stream:
            pass
    except Exception as error:
        return error


async def main():
    global status
    print("livekit-agents", version("livekit-agents"), "livekit-plugins-openai", version("livekit-plugins-openai"))
    app = web.Application()
    app.router.add_post("/v1/audio/speech", refuse)
    app.router.add_post("/v1/chat/completions", refuse)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    where = {"base_url": f"http://127.0.0.1:{runner.addresses[0][1]}/v1", "api_key": "any"}
    context = llm.ChatContext.empty()
    context.add_message(role="user", content="Hello")
    for status in (429, 503):
        kinds = {
            "TTS": lambda: openai.TTS(**where, response_format="pcm").synthesize("Hello."),
            "LLM": lambda: openai.LLM(**where, model="any").chat(chat_ctx=context),
        }
        for kind, ask in kinds.items():
            error = await outcome(ask())
            times = [round(at - asked[0], 1) for at in asked]
            seen = f"{type(error).__name__}, status_code {getattr(error, 'status_code', 'none')}"
            print(f"{kind}, {status} with Retry-After: 8: asked at {times} s, then {seen}")
            assert len(times) == 4 and times[1] < 1 and times[-1] < 7, f"CHANGED: {times}"
            if kind == "TTS":
                assert isinstance(error, APIStatusError) and error.status_code == status, "CHANGED"
            else:
                assert isinstance(error, APIConnectionError) and not isinstance(error, APIStatusError), "CHANGED"
                assert getattr(error.__cause__, "status_code", None) == status, "CHANGED: the cause"
    await runner.cleanup()
    print("as described: Retry-After is not read, and an LLM's refusal ends as a connection error")


asyncio.run(main())
PY
timeout 120 "$work/venv/bin/python" "$work/finding.py"
