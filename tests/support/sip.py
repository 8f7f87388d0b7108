"""A real livekit-sip on loopback, beside a livekit-server of its own; built by Go, and kept."""

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
from tests.support.redis import PASSWORD, RedisServer
from tests.support.server import CACHE, LiveKit, Unavailable, free_port, livekit_server
from tests.support.templates import ROOT

VERSION = "v1.8.0"
BINARY = CACHE / "bin" / f"livekit-sip-{VERSION}"
# apart from the server's, which has another version of their protocol
MODULE = ROOT / "tools" / "livekit-sip"
NEEDS = ("libopus-dev", "libopusfile-dev", "libsoxr-dev", "pkg-config", "build-essential")
START_SECONDS = 30.0


@dataclass
class Network:
    """A telephone network: a server, and what connects telephones with it."""

    livekit: LiveKit
    port: int
    log: Path
    process: asyncio.subprocess.Process

    async def inbound(self, number: str, agent: str, metadata: str = "", room: str = "") -> None:
        """Calls of this number reach this agent, each in a room of its own that begins so."""
        trunk = api.SIPInboundTrunkInfo(
            name=number, numbers=[number], allowed_addresses=["127.0.0.1/32"]
        )
        alone = api.SIPDispatchRuleCallee(room_prefix=room or f"in{number[1:]}-", randomize=True)
        sent = api.RoomAgentDispatch(agent_name=agent, metadata=metadata)
        async with self.livekit.api() as server:
            made = await server.sip.create_inbound_trunk(
                api.CreateSIPInboundTrunkRequest(trunk=trunk)
            )
            await server.sip.create_dispatch_rule(
                api.CreateSIPDispatchRuleRequest(
                    trunk_ids=[made.sip_trunk_id],
                    rule=api.SIPDispatchRule(dispatch_rule_callee=alone),
                    room_config=api.RoomConfiguration(agents=[sent]),
                )
            )

    async def outbound(self, port: int, number: str = "+4930555000", *, tcp: bool = False) -> str:
        """A trunk that leads to a phone which listens there; its id."""
        by = api.SIPTransport.SIP_TRANSPORT_TCP if tcp else api.SIPTransport.SIP_TRANSPORT_UDP
        trunk = api.SIPOutboundTrunkInfo(
            name=f"to {port}",
            address=f"127.0.0.1:{port}",
            transport=by,
            numbers=[number],
        )
        async with self.livekit.api() as server:
            made = await server.sip.create_outbound_trunk(
                api.CreateSIPOutboundTrunkRequest(trunk=trunk)
            )
        return made.sip_trunk_id


def kept_binary() -> Path | None:
    """The binary, if there is one already."""
    if found := shutil.which("livekit-sip"):
        return Path(found)
    return BINARY if BINARY.exists() else None


def build() -> Path:
    """Build it by Go, in two to fourteen minutes; raises Unavailable.

    `go install` refuses this version: so it is built by a module whose go.sum pins everything.
    """
    if shutil.which("go") is None:
        raise Unavailable("livekit-sip is not on PATH, and without Go it cannot be built")
    try:
        install(*NEEDS)
    except RuntimeError as error:
        raise Unavailable(str(error)) from error
    print(f"building livekit-sip {VERSION} (minutes, once) ...", file=sys.stderr, flush=True)
    BINARY.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BINARY.parent) as folder:
        made = Path(folder) / "livekit-sip"
        package = "github.com/livekit/sip/cmd/livekit-sip"
        done = subprocess.run(
            ["go", "build", "-trimpath", "-ldflags", "-s -w", "-o", str(made), package],
            cwd=MODULE,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            said = " ".join(done.stderr.split())[-300:]
            raise Unavailable(f"livekit-sip cannot be built (it needs {', '.join(NEEDS)}): {said}")
        os.replace(made, BINARY)
    return BINARY


def require_sip() -> Path:
    """The binary; where none is kept the test is skipped, under CI too.

    Who builds it decides: `make test-all`, `make telephone` and the weekly workflow do, once, and
    then every test of the telephone runs. `make test` builds nothing of this size for the one call
    that it has, and makes that call wherever the binary is there already.
    """
    if (binary := kept_binary()) is None:
        pytest.skip("no livekit-sip is kept here: `make telephone` builds it, once, in minutes")
    return binary


@asynccontextmanager
async def telephone_network(folder: Path) -> AsyncIterator[Network]:
    """A private network on free loopback ports, ended on exit.

    Raises RuntimeError if its livekit-sip does not start.
    """
    binary = require_sip()
    # it has the trunks and rules, and the two find each other through it
    store = RedisServer("valkey", keeps=False)
    address = f"redis: {{ address: '127.0.0.1:{store.port}', password: {PASSWORD} }}\n"
    try:
        async with livekit_server(folder) as livekit:
            await livekit.kill()
            with livekit.config.open("a", encoding="utf-8") as config:
                config.write(address)
            await livekit.start()
            async with _livekit_sip(binary, folder, livekit, address) as network:
                yield network
    finally:
        store.close()


@asynccontextmanager
async def _livekit_sip(
    binary: Path, folder: Path, livekit: LiveKit, store: str
) -> AsyncIterator[Network]:
    port, health = free_port(socket.SOCK_DGRAM), free_port()
    log, config = folder / "livekit-sip.log", folder / "sip.yaml"
    # loopback is named as an address behind NAT, because it is none of those that are looked for
    config.write_text(
        f"""api_key: {livekit.api_key}
api_secret: {livekit.api_secret}
ws_url: {livekit.url}
{store}sip_port: {port}
rtp_port: {port + 10_000}-{port + 10_400}
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
    network = Network(livekit, port, log, process)
    try:
        await _ready(network, health)
        yield network
    finally:
        # a gentle signal would wait for calls to end
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _ready(network: Network, health: int) -> None:
    async with asyncio.timeout(START_SECONDS), aiohttp.ClientSession() as http:
        while True:
            # an error at its start leaves the exit code 0
            if network.process.returncode is not None:
                said = network.log.read_text()[-2000:]
                raise RuntimeError(f"livekit-sip ended at once: {said}")
            try:
                async with http.get(f"http://127.0.0.1:{health}/"):
                    return
            except aiohttp.ClientConnectionError:
                pass
            # another process: there is no event to await
            await asyncio.sleep(0.05)


# Runs before the tests that need it: a build takes longer than a test may.
if __name__ == "__main__":
    try:
        print(f"livekit-sip: {kept_binary() or build()}")
    except Unavailable as error:
        said = f"no livekit-sip, so tests of the telephone are skipped: {error}"
        # there they are what was asked for
        sys.exit(said) if os.environ.get("CI") else print(said)
