#!/usr/bin/env bash
# One expects: an empty OPENAI_API_KEY, as an .env file with `OPENAI_API_KEY=` or a compose file with an unset variable
#   gives it, is refused when the model is made, so that the worker does not start: openai.LLM, STT, TTS and
#   responses.LLM all raise, and openai.realtime.RealtimeModel does where the variable is not set at all.
# What happens: RealtimeModel takes the empty key and sends the header `Authorization: Bearer` with nothing behind it.
#   The mistake shows in the first call, after four attempts, as a "client connection error" with a 401 in it.
# Why it matters: who moves an agent from STT, LLM and TTS to a realtime model loses the check at the start: the worker
#   is healthy, takes calls, and every caller sits in silence.
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
import contextlib
import logging
import os
from importlib.metadata import version

from aiohttp import web
from livekit.agents import APIError
from livekit.plugins import openai

logging.basicConfig(level=logging.CRITICAL)
MODELS = {
    "LLM": openai.LLM,
    "STT": openai.STT,
    "TTS": openai.TTS,
    "responses.LLM": openai.responses.LLM,
    "realtime.RealtimeModel": openai.realtime.RealtimeModel,
}
headers, errors = [], []


async def realtime(request):
    headers.append(request.headers.get("Authorization"))
    return web.json_response({"error": {"message": "You didn't provide an API key."}}, status=401)


async def main():
    print("livekit-agents", version("livekit-agents"), "livekit-plugins-openai", version("livekit-plugins-openai"))
    refused = {}
    for how, variable, arguments in (("unset", None, {}), ("empty", "", {}), ('api_key=""', None, {"api_key": ""})):
        os.environ.pop("OPENAI_API_KEY", None)
        if variable is not None:
            os.environ["OPENAI_API_KEY"] = variable
        for name, model in MODELS.items():
            try:
                model(**arguments)
                refused[how, name] = False
            except Exception as error:
                refused[how, name] = True
                assert "key" in str(error) or "credentials" in str(error), error
        print(f"{how}: taken by {[name for name in MODELS if not refused[how, name]] or 'none'}")
    odd = [which for which, is_refused in refused.items() if not is_refused]
    assert odd == [("empty", "realtime.RealtimeModel")], f"CHANGED: an empty key is taken by {odd}"

    app = web.Application()
    app.router.add_get("/v1/realtime", realtime)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    os.environ["OPENAI_API_KEY"] = ""
    model = openai.realtime.RealtimeModel(base_url=f"http://127.0.0.1:{runner.addresses[0][1]}/v1", model="m")
    session = model.session()
    last = asyncio.Event()

    def on_error(event):
        errors.append(str(event.error).split(", url")[0])
        if not event.recoverable:
            last.set()

    session.on("error", on_error)
    await asyncio.wait_for(last.wait(), 90)
    with contextlib.suppress(APIError):
        await session.aclose()
    await model.aclose()
    await runner.cleanup()
    print(f"in the call: headers {headers}; error events {errors}")
    assert {header.strip() for header in headers} == {"Bearer"}, f"CHANGED: {headers} is sent"
    assert not any("key" in error.lower() for error in errors), "CHANGED: the error event speaks of the key"
    print("as described: only the realtime model takes an empty key")


asyncio.run(main())
PY
timeout 150 "$work/venv/bin/python" "$work/finding.py"
