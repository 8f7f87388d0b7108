#!/usr/bin/env bash
# One expects: a key that the realtime endpoint refuses ends the session at once, as it does in the same plugin where the
#   server says so in an error event (`invalid_api_key`): no retry, one error that is not recoverable.
# What happens: a server that has no use for a key refuses the WebSocket itself, with HTTP 401. livekit-plugins-openai
#   takes that for a broken line: four attempts in about four seconds, three `error` events with recoverable=True, all of
#   them "client connection error", with the 401 in the middle of their text. So it is with 403, and with 404 for a
#   model that does not exist.
# Why it matters: the caller sits in silence meanwhile, and an alarm or a spoken "one moment" for recoverable
#   errors speaks of the network, where a key expired.
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
import time
from importlib.metadata import version

from aiohttp import web
from livekit.agents import APIError
from livekit.plugins import openai

logging.basicConfig(level=logging.CRITICAL)
KEY = {"type": "invalid_request_error", "code": "invalid_api_key", "message": "Incorrect API key provided."}
refuse_with = None
attempts = 0


async def realtime(request):
    """Refuses the handshake with a status, or accepts it and says by an event that the key is not good."""
    global attempts
    attempts += 1
    if refuse_with:
        return web.json_response({"error": KEY}, status=refuse_with)
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    await socket.send_json({"type": "error", "event_id": "1", "error": KEY})
    async for _ in socket:
        pass
    return socket


async def main():
    global refuse_with, attempts
    print("livekit-agents", version("livekit-agents"), "livekit-plugins-openai", version("livekit-plugins-openai"))
    app = web.Application()
    app.router.add_get("/v1/realtime", realtime)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    base = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"

    async def told():
        """The error events of one session until the last, and the seconds that took."""
        model = openai.realtime.RealtimeModel(base_url=base, api_key="an-old-key", model="m")
        session = model.session()
        events, last = [], asyncio.Event()

        def on_error(event):
            events.append((event.recoverable, str(event.error)))
            if not event.recoverable:
                last.set()

        began = time.monotonic()
        session.on("error", on_error)
        await asyncio.wait_for(last.wait(), 60)
        seconds = time.monotonic() - began
        # it raises the error again
        with contextlib.suppress(APIError):
            await session.aclose()
        await model.aclose()
        return events, seconds

    seen = {}
    for refuse_with in (None, 401, 403, 404):
        attempts = 0
        events, seconds = await told()
        how = f"handshake refused with {refuse_with}" if refuse_with else "error event invalid_api_key"
        print(f"{how}: {attempts} attempts, {seconds:.1f} s until the last of these (recoverable, error):")
        for event in events:
            print("   ", event)
        seen[refuse_with] = (attempts, [recoverable for recoverable, _ in events], seconds)
    await runner.cleanup()
    assert seen[None][:2] == (1, [False]), "an error event ends it at once"
    for status in (401, 403, 404):
        count, recoverable, seconds = seen[status]
        assert count == 4 and recoverable == [True, True, True, False] and seconds > 4, (
            f"CHANGED: {status} ends after {count} attempts, {recoverable}"
        )
    print("as described: a refused key is tried four times, as a broken line is")


asyncio.run(main())
PY
timeout 150 "$work/venv/bin/python" "$work/finding.py"
