"""A real MCP server over stdio, or with `http PORT` on loopback.

With the argument `stubborn` it outlives its client.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading

from mcp.server import MCPServer

server = MCPServer("test")


@server.tool()
def whoami() -> str:
    """Return the id of the server's process."""
    return str(os.getpid())


@server.tool()
async def hang() -> str:
    """Never answer."""
    await asyncio.Event().wait()
    return "never"


if __name__ == "__main__":
    if "http" in sys.argv:
        server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[-1]))
    else:
        server.run()
    if "stubborn" in sys.argv:
        # longer than a test takes, but not for ever if it fails
        threading.Event().wait(120)
