"""Make the pictures of the page for the docs: every state, in docs/pictures/.

    python tools/pictures.py

The agent in them is a stand-in that does what it is told; page, browser and server are real.
"""

from __future__ import annotations

import asyncio
import io
import sys
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.support.browser import Looks, chromium
from tests.support.server import livekit_server
from tests.support.templates import ROOT
from tests.web.served import served
from tests.web.states import FAKE_MICROPHONE, every_state

PICTURES = ROOT / "docs" / "pictures"
COLOURS = 48
# what is there besides every state in light, as wide as a tablet's half
WIDTH, HEIGHT = 480, 560
DARK = {"listening", "speaking", "microphone-denied"}
PHONE = {"speaking", "microphone-denied"}
PHONE_WIDTH = 320


def keep(name: str, picture: bytes) -> None:
    """Write a picture with few colours, as it has."""
    file = PICTURES / f"{name}.png"
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(file, optimize=True)
    print(f"{file.relative_to(ROOT)}: {file.stat().st_size} bytes", flush=True)


async def main() -> None:
    """Make them all."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    for old in PICTURES.glob("*.png"):
        old.unlink()
    async with (
        livekit_server() as livekit,
        served(livekit) as page_server,
        chromium(FAKE_MICROPHONE) as browser,
    ):
        async for name, page in every_state(browser, page_server):
            # not in the middle of a turn
            await page.run("document.getAnimations().forEach((one) => one.cancel())")
            await page.show(Looks("light", WIDTH, HEIGHT))
            keep(name, await page.picture())
            if name in PHONE:
                await page.show(Looks("light", PHONE_WIDTH, HEIGHT))
                keep(f"{name}-phone", await page.picture())
            if name in DARK:
                await page.show(Looks("dark", WIDTH, HEIGHT))
                keep(f"{name}-dark", await page.picture())


if __name__ == "__main__":
    asyncio.run(main())
