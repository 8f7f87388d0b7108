"""Measure how soon somebody who clicks on the page of `agent talk` hears the agent.

    PYTHONPATH=template/src python -m benchmarks.page [--quick]

The page and its token endpoint as they are served, against the least that a page can do: a token
that was made before the click and asks for the agent itself, livekit-client's `connect`, the
microphone. Both in one Chromium, with one agent and one livekit-server; they take turns. Needs
Chromium and npm.
"""

from __future__ import annotations

import asyncio
import gzip
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web

from agent.settings import load_settings
from agent.web import Tokens, tokens
from agent.web.app import PAGE, web_app
from benchmarks.copies import verdict
from benchmarks.report import (
    Progress,
    Results,
    command,
    describe,
    finish,
    machine,
    make_project,
)
from benchmarks.run import ratio, spread
from tests.support.browser import Browser, chromium, find_chromium
from tests.support.npm import Unavailable, install
from tests.support.server import LiveKit, free_port, livekit_server
from tests.support.templates import WORK_TREE
from tests.support.worker import worker

OURS, BARE = "the page", "livekit-client alone"
AGENT = "bench-agent"
GOAL, GOAL_BYTES = 1.1, 250_000
FAKE_MICROPHONE = "--use-fake-device-for-media-stream"
BARE_PAGE = """<!doctype html><meta charset="utf-8"><script src="client.js"></script>
<button id="talk">Talk</button><script>
const asked = fetch('token').then((answer) => answer.json());
talk.onclick = async () => {
  const room = new LivekitClient.Room();
  room.on('trackSubscribed', (track) => document.body.append(track.attach()));
  const {url, token} = await asked;
  await room.connect(url, token);
  await room.localParticipant.setMicrophoneEnabled(true);
};
asked.then(() => document.body.dataset.state = 'idle');
</script>"""
# in both pages: when what is played is no silence any more
EARS = """
  const ears = new AudioContext();
  function hear(node) {
    if (node.nodeName !== 'AUDIO') return;
    const recorder = ears.createScriptProcessor(256, 1, 1);
    recorder.onaudioprocess = ({inputBuffer}) => {
      if (inputBuffer.getChannelData(0).some((x) => Math.abs(x) > 0.01))
        window.heard ??= performance.now();
    };
    ears.createMediaStreamSource(node.srcObject).connect(recorder).connect(ears.destination);
  }
  new MutationObserver((records) => records.forEach((record) => record.addedNodes.forEach(hear)))
    .observe(document, {childList: true, subtree: true});
"""
CLICK = "window.clicked = performance.now(); document.getElementById('talk').click()"


@asynccontextmanager
async def serving(livekit: LiveKit, client: Path) -> AsyncIterator[dict[str, str]]:
    """Both pages; their addresses."""
    port = free_port()
    origin = f"http://127.0.0.1:{port}"
    settings = load_settings().model_copy(
        update={
            "name": AGENT,
            "livekit_url": livekit.url,
            "livekit_api_key": livekit.api_key,
            "livekit_api_secret": type(load_settings().livekit_api_secret)(livekit.api_secret),
        }
    )

    async def page(_: web.Request) -> web.Response:
        return web.Response(text=BARE_PAGE, content_type="text/html")

    async def script(_: web.Request) -> web.FileResponse:
        return web.FileResponse(client)

    async def token(_: web.Request) -> web.Response:
        room = f"bare-{uuid.uuid4().hex[:8]}"
        made = livekit.token(room, f"visitor of {room}", agent_name=AGENT)
        return web.json_response({"url": livekit.url, "token": made})

    site = web.Application()
    # so many that nobody waits
    desk = Tokens(settings, origins={origin}, new_calls=tokens.ASKS)
    ours = web_app(desk, livekit_url=livekit.url)
    site.add_subapp("/talk/", ours)
    site.add_routes([web.get("/bare/", page), web.get("/bare/client.js", script)])
    site.add_routes([web.get("/bare/token", token)])
    runner = web.AppRunner(site)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        yield {OURS: f"{origin}/talk/", BARE: f"{origin}/bare/"}
    finally:
        await runner.cleanup()


async def click_to_sound(browser: Browser, address: str) -> float:
    """Seconds from a click to the first sound, in a new visitor's page."""
    async with browser.page(address, before=EARS) as page:
        await page.until("document.body.dataset.state === 'idle' && ears.state === 'running'")
        await page.run(CLICK)
        return float(await page.until("window.heard && heard - clicked")) / 1000


def weight() -> int:
    """Bytes of what a visitor's browser loads, as it is sent."""
    names = ("index.html", "talk.css", "talk.js")
    return sum(len(gzip.compress((PAGE / name).read_bytes())) for name in names)


async def measure(scratch: Path, *, quick: bool) -> Results:
    """Pairs of calls, in seconds."""
    tell = Progress()
    tell("making a template and a project")
    client = install() / "livekit-client" / "dist" / "livekit-client.umd.js"
    project = make_project(scratch, WORK_TREE)
    results: Results = {"machine": machine(), "version": WORK_TREE, "quick": quick}
    results["bytes"] = weight()
    pairs = results["pairs"] = list[dict[str, float]]()
    async with (
        livekit_server() as livekit,
        worker(project.path, project.agent, livekit, AGENT_NAME=AGENT),
        serving(livekit, client) as addresses,
        chromium(FAKE_MICROPHONE) as browser,
    ):
        results["machine"]["browser"] = (await browser.ask("Browser.getVersion"))["product"]
        tell("clicking, up to the first sound")
        for address in addresses.values():
            await click_to_sound(browser, address)  # compiles its script, and is not counted
        for number in range(2 if quick else 20):
            pair = dict[str, float]()
            for name in sorted(addresses, reverse=bool(number % 2)):
                pair[name] = round(await click_to_sound(browser, addresses[name]), 4)
            pairs.append(pair)
            tell.dot()
            # a visitor may ask so often
            await asyncio.sleep(tokens.ASK_SECONDS / tokens.ASKS)
    tell("done")
    finish(results, tell.seconds)
    return results


def table(results: Results) -> str:
    """The results as Markdown."""
    ours, bare = ([pair[name] for pair in results["pairs"]] for name in (OURS, BARE))
    middle, low, high = ratio(ours, bare)
    return "\n".join(
        [
            f"{describe(results)} {results['machine']['browser']}; {len(ours)} pairs of visitors.",
            "",
            f"| median (smallest to largest) | {OURS} | {BARE} | ratio of medians (95 %) | goal |",
            "|---|---|---|---|---|",
            f"| click to first sound | {spread(ours)} | {spread(bare)}"
            f" | {middle:.2f} ({low:.2f} to {high:.2f}) | {verdict(middle, GOAL)} |",
            f"| what a browser loads, compressed | {results['bytes'] / 1000:.0f} kB | | "
            f"| {verdict(results['bytes'] / 1000, GOAL_BYTES // 1000, ' kB')} |",
        ]
    )


def main() -> int:
    """Measure and report; 1 if something is not available. A missed goal is not an error."""
    try:
        install()
    except Unavailable as why:
        print(f"bench: {why}", file=sys.stderr)
        return 1
    if find_chromium() is None:
        print("bench: no chromium on PATH: `apt-get install chromium`", file=sys.stderr)
        return 1
    return command(
        "page",
        measure,
        table,
        about="Measure how soon a visitor of the page hears the agent.",
        quick="two pairs, and keep nothing",
    )


if __name__ == "__main__":
    sys.exit(main())
