#!/usr/bin/env bash
# One expects: with HTTPS_PROXY and NO_PROXY=127.0.0.1 in the environment a livekit-agents worker reaches a server on 127.0.0.1
#   directly, as Python's urllib and aiohttp with trust_env do.
# What happens: AgentServer reads HTTPS_PROXY, else HTTP_PROXY, for any URL, ws:// without TLS too, and never NO_PROXY: the request for
#   ws://127.0.0.1 goes to the proxy, which knows no such server. `http_proxy=None` in the constructor helps.
# Why it matters: in a company's network a worker next to its own livekit-server, in one pod or one compose file, never registers, and
#   NO_PROXY, which is set rightly and works for other programs, is the last place where people look.
# Versions: livekit-agents 1.8.9, aiohttp 3.14.5.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if ! command -v uv >/dev/null; then
  python3 -m venv "$work/uv" && "$work/uv/bin/pip" install -q --disable-pip-version-check uv==0.13.9
  PATH="$work/uv/bin:$PATH"
fi
uv venv -q --python '>=3.11' "$work/venv"
uv pip install -q --python "$work/venv/bin/python" livekit-agents==1.8.9 aiohttp==3.14.5

cat > "$work/finding.py" <<'PY'
import asyncio
import logging
import os
import urllib.request
from importlib.metadata import version

import aiohttp
from aiohttp import web
from livekit.agents import AgentServer, JobContext

logging.disable(logging.CRITICAL)
VARIABLES = ("HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY")
asked: list[str] = []
told = asyncio.Event()


async def serve(name):
    """Something that says who was asked, and answers 502."""

    async def answer(request):
        asked.append(name)
        told.set()
        return web.Response(status=502)

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return runner, f"127.0.0.1:{runner.addresses[0][1]}"


async def entrypoint(ctx: JobContext):
    """Is never run."""


async def worker_asks(url, **own):
    """Whom a worker asks first to be registered."""
    asked.clear()
    told.clear()
    server = AgentServer(
        ws_url=url, api_key="devkey", api_secret="a-secret-for-a-finding-of-over-32-bytes", host="127.0.0.1", port=0,
        num_idle_processes=0, load_fnc=lambda *_: 0.0, **own,
    )
    server.rtc_session(entrypoint, agent_name="bot")
    running = asyncio.create_task(server.run())
    await asyncio.wait_for(told.wait(), 60)
    first = asked[0]
    await server.aclose()
    await asyncio.gather(running, return_exceptions=True)
    return first


async def main():
    print("livekit-agents", version("livekit-agents"), "aiohttp", version("aiohttp"))
    for name in VARIABLES:
        os.environ.pop(name, None)
        os.environ.pop(name.lower(), None)
    runners = {}
    livekit, address = await serve("the server itself")
    proxy, proxy_address = await serve("the proxy")
    url = f"ws://{address}"
    assert await worker_asks(url) == "the server itself", "no proxy, no detour"

    os.environ.update({name: f"http://{proxy_address}" for name in VARIABLES[:2]}, NO_PROXY="127.0.0.1,localhost")
    assert urllib.request.proxy_bypass("127.0.0.1"), "Python's own reading of NO_PROXY"
    asked.clear()
    async with aiohttp.ClientSession(trust_env=True) as session, session.get(f"http://{address}/agent"):
        pass
    seen = {"aiohttp with trust_env, NO_PROXY=127.0.0.1": asked[0]}
    seen["AgentServer, NO_PROXY=127.0.0.1"] = await worker_asks(url)
    os.environ.pop("HTTP_PROXY")
    seen["AgentServer, HTTPS_PROXY alone, ws:// without TLS, NO_PROXY=127.0.0.1"] = await worker_asks(url)
    seen["AgentServer(http_proxy=None)"] = await worker_asks(url, http_proxy=None)
    for how, whom in seen.items():
        print(f"{how}: asks {whom}")
    await livekit.cleanup()
    await proxy.cleanup()
    expected = ["the server itself", "the proxy", "the proxy", "the server itself"]
    assert list(seen.values()) == expected, f"CHANGED: {seen}"
    print("as described")


asyncio.run(asyncio.wait_for(main(), 150))
PY
timeout 170 "$work/venv/bin/python" "$work/finding.py"
