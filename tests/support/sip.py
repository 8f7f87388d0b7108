"""A real livekit-sip on loopback, beside a livekit-server of its own; built once into the cache."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
from livekit import api

from tests.support.debian import install
from tests.support.engines import valkey_url
from tests.support.server import CACHE, LiveKit, Unavailable, free_port, livekit_server

VERSION = "v1.8.0"
BINARY = CACHE / "bin" / f"livekit-sip-{VERSION}"


@dataclass
class Network:
    """A telephone network: a server, and what connects telephones with it."""

    livekit: LiveKit
    port: int
    log: Path
    process: asyncio.subprocess.Process

    async def inbound(self, number: str, agent: str, metadata: str = "") -> None:
        """Calls of this number reach this agent, in a room whose name begins with its own."""
        async with self.livekit.api() as server:
            trunk = api.SIPInboundTrunkInfo(
                name=number, numbers=[number], allowed_addresses=["127.0.0.1/32"]
            )
            made = await server.sip.create_inbound_trunk(
                api.CreateSIPInboundTrunkRequest(trunk=trunk)
            )
            individual = api.SIPDispatchRuleIndividual(room_prefix=f"in{number[1:]}-")
            sent = api.RoomAgentDispatch(agent_name=agent, metadata=metadata)
            sends = api.RoomConfiguration(agents=[sent])
            await server.sip.create_dispatch_rule(
                api.CreateSIPDispatchRuleRequest(
                    trunk_ids=[made.sip_trunk_id],
                    rule=api.SIPDispatchRule(dispatch_rule_individual=individual),
                    room_config=sends,
                )
            )

    async def outbound(self, port: int, number: str = "+4930555000", *, tcp: bool = False) -> str:
        """A trunk that leads to a phone which listens there; its id."""
        async with self.livekit.api() as server:
            trunk = api.SIPOutboundTrunkInfo(
                name=f"to {port}",
                address=f"127.0.0.1:{port}",
                transport=api.SIPTransport.Value(f"SIP_TRANSPORT_{'TCP' if tcp else 'UDP'}"),
                numbers=[number],
            )
            made = await server.sip.create_outbound_trunk(
                api.CreateSIPOutboundTrunkRequest(trunk=trunk)
            )
        return made.sip_trunk_id


def find_sip() -> Path:
    """livekit-sip's binary, built by Go (two to fourteen minutes, once) if needed.

    Raises Unavailable.
    """
    if found := shutil.which("livekit-sip"):
        return Path(found)
    if not BINARY.exists():
        build(BINARY)
    return BINARY


def build(binary: Path) -> None:
    """Build it by its own module: `go install` refuses one with this version. Raises Unavailable."""
    if shutil.which("go") is None:
        raise Unavailable("livekit-sip is not on PATH, and without Go it cannot be built")
    try:
        install("libopus-dev", "libopusfile-dev", "libsoxr-dev", "pkg-config", "build-essential")
    except RuntimeError as error:
        raise Unavailable(str(error)) from error
    print(f"building livekit-sip {VERSION} (minutes, once) ...", file=sys.stderr, flush=True)
    binary.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=binary.parent) as folder:
        made = Path(folder) / "livekit-sip"
        done = subprocess.run(
            [
                *("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", str(made)),
                "github.com/livekit/sip/cmd/livekit-sip",
            ],
            cwd=Path(__file__).parents[2] / "tools" / "livekit-sip",
            capture_output=True,
            text=True,
        )
        if done.returncode:
            said = " ".join(done.stderr.split())[-300:]
            raise Unavailable(f"livekit-sip cannot be built: {said}")
        os.replace(made, binary)


def require_sip() -> Path:
    """The binary; without it the test is skipped, and fails under CI."""
    try:
        return find_sip()
    except Unavailable as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))


@asynccontextmanager
async def telephone_network(folder: Path) -> AsyncIterator[Network]:
    """A private network on free loopback ports, ended on exit."""
    binary = require_sip()
    # trunks and rules are in the store: each network has one of its own
    store = valkey_url().removeprefix("redis://")
    async with livekit_server(folder, redis=store) as livekit:
        port, health = free_port(socket.SOCK_DGRAM), free_port()
        log, config = folder / "livekit-sip.log", folder / "sip.yaml"
        config.write_text(
            f"""api_key: {livekit.api_key}
api_secret: {livekit.api_secret}
ws_url: {livekit.url}
redis: {{ address: {store} }}
sip_port: {port}
rtp_port: {port + 10000}-{port + 10400}
listen_ip: 127.0.0.1
nat_1_to_1_ip: 127.0.0.1
use_external_ip: false
health_port: {health}
media_timeout: 4s
media_timeout_initial: 6s
max_cpu_utilization: 1
logging: {{ level: info, json: true }}
""",
            encoding="utf-8",
        )
        with log.open("ab") as file:
            process = await asyncio.create_subprocess_exec(
                str(binary), "--config", str(config), stdout=file, stderr=file
            )
        try:
            await _ready(process, health, log)
            yield Network(livekit, port, log, process)
        finally:
            # a gentle signal waits for calls to end
            if process.returncode is None:
                process.kill()
            await process.wait()


async def _ready(process: asyncio.subprocess.Process, port: int, log: Path) -> None:
    async with asyncio.timeout(30), aiohttp.ClientSession() as http:
        while True:
            if process.returncode is not None:
                raise RuntimeError(f"livekit-sip ended at once: {log.read_text()[-2000:]}")
            try:
                async with http.get(f"http://127.0.0.1:{port}/"):
                    return
            except aiohttp.ClientConnectionError:
                pass
            # another process: there is no event to await
            await asyncio.sleep(0.05)
