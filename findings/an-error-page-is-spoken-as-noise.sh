#!/usr/bin/env bash
# One expects: an answer that is no sound, such as an HTML page or a JSON error sent with status 200 by a proxy or a
#   gateway, is an error of the voice: retried, told by the session's `error` event, and not played.
# What happens: with response_format="pcm", the one for the least delay, livekit-plugins-openai plays every byte of it,
#   though the answer's Content-Type says text/html: 70 kB of page are a second and a half of loud noise. The speech
#   counts as complete, no error event, no retry. With mp3 the same page is an error, as one expects.
# Why it matters: a login page of a company's proxy or a gateway's "overloaded" is a burst of noise in the caller's ear,
#   and every measurement says that all went well. A FallbackAdapter does not go to its second voice.
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
import logging
from importlib.metadata import version

from aiohttp import web
from livekit.agents import APIConnectOptions, APIError, tts
from livekit.plugins import openai
from openai import AsyncClient

logging.basicConfig(level=logging.CRITICAL)
PAGE = "<html><body>" + "<p>Please sign in to go on.</p>" * 2300 + "</body></html>"
ERROR = json.dumps({"error": {"message": "overloaded", "type": "server_error"}} | {"detail": "x" * 9600})
ANSWERS = {"text/html": PAGE, "application/json": ERROR}
RATE = 24000
fallback_used = []


async def speech(request):
    if (await request.json())["model"] == "second":
        fallback_used.append(True)
        return web.Response(body=b"\0\1" * RATE, content_type="audio/pcm")
    kind = request.headers["X-Answer"]
    return web.Response(text=ANSWERS[kind], content_type=kind)


async def main():
    print("livekit-agents", version("livekit-agents"), "livekit-plugins-openai", version("livekit-plugins-openai"))
    app = web.Application()
    app.router.add_post("/v1/audio/speech", speech)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    base = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"

    def voice(form, kind, model="first"):
        made = AsyncClient(base_url=base, api_key="a-key", max_retries=0, default_headers={"X-Answer": kind})
        return openai.TTS(client=made, model=model, response_format=form)

    async def spoken(one):
        """The seconds of sound, the loudest sample, and what was raised."""
        seconds, loudest, raised = 0.0, 0, None
        try:
            async for event in one.synthesize("Hello.", conn_options=APIConnectOptions(max_retry=1, retry_interval=0.1)):
                seconds += event.frame.duration
                loudest = max(loudest, *(abs(sample) for sample in event.frame.data))
        except APIError as error:
            raised = type(error).__name__
        return round(seconds, 2), loudest, raised

    seen = {}
    for form in ("pcm", "mp3"):
        for kind, body in ANSWERS.items():
            errors = []
            one = voice(form, kind)
            one.on("error", lambda event, errors=errors: errors.append(str(event.error)))
            seen[form, kind] = seconds, loudest, raised = await spoken(one)
            print(f"{form}, {len(body)} bytes of {kind}: {seconds} s played, loudest sample {loudest}, raised {raised}, "
                  f"{len(errors)} error events")
            if form == "pcm":
                assert seconds > 0.9 * len(body) / 2 / RATE and loudest > 10000, f"CHANGED: {seconds} s are played"
                assert raised is None and not errors, f"CHANGED: {raised} {errors}"
            else:
                assert seconds == 0 and raised and errors, "no sound with mp3"
    both = tts.FallbackAdapter([voice("pcm", "text/html"), voice("pcm", "text/html", "second")])
    seconds, loudest, raised = await spoken(both)
    print(f"with a FallbackAdapter: {seconds} s played, the second voice was asked {len(fallback_used)} times")
    assert seconds > 1 and not fallback_used, "CHANGED: the second voice is asked"
    await both.aclose()
    await runner.cleanup()
    print("as described: with pcm a page is played as noise")


asyncio.run(main())
PY
timeout 150 "$work/venv/bin/python" "$work/finding.py"
