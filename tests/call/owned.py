"""A harbour's agent: an owner's changes to a project, and questions that only they can answer."""

from __future__ import annotations

from tests.support.caller import Caller
from tests.support.projects import Project

GREETING = "Hello, this is the harbour."
PERSONA = """\
    def greeting(self, profile: Profile | None) -> str:
        return "Hello, this is the harbour."

    @function_tool
    async def tide(self) -> str:
        \"\"\"Tell the tide.\"\"\"
        return f"High water at {self.call.resources.almanac}"

    @function_tool
"""
RESOURCES = """\
@asynccontextmanager
async def almanac() -> AsyncIterator[str]:
    yield "noon"


"""
TEST = """\
from tests.talk import talk


async def test_it_tells_the_tide() -> None:
    async with talk() as call:
        assert call.said[0] == "Hello, this is the harbour."
        await call.say("/tool tide {}")
        assert call.tool_output("tide") == "High water at noon"
    assert ("almanac", "ok") in call.call.closed
"""


def make_it_theirs(project: Project) -> dict[str, str]:
    """Add the owner's greeting, tool, resource, document, test, compose service and dependency.

    Returns the text of each changed file.
    """
    persona, resources = (
        project.read("src/agent/persona.py"),
        project.read("src/agent/resources.py"),
    )
    persona = (
        persona[: persona.index("    def greeting(")]
        + PERSONA
        + persona.split("    @function_tool\n")[1]
    )
    resources = resources.replace(
        "async def open_resources", f"{RESOURCES}async def open_resources"
    )
    resources = resources.replace(
        "    http: aiohttp.ClientSession\n", "    http: aiohttp.ClientSession\n    almanac: str\n"
    )
    resources = resources.replace(
        ", http_client()))", ', http_client()), almanac=await call.open("almanac", almanac()))'
    )
    compose = project.read("compose.yaml") + "  chart:\n    image: nginx\n"
    project.run("uv", "add", "--quiet", "humanize")
    theirs = {
        "src/agent/persona.py": persona,
        "src/agent/resources.py": resources,
        "knowledge/harbour.md": (
            "# Harbour\n\n## Moorings\n\nA mooring costs twelve crowns a night.\n"
        ),
        "tests/yours/test_tide.py": TEST,
        "compose.yaml": compose,
    }
    for name, text in theirs.items():
        project.write(name, text)
    project.commit()
    return theirs | {name: project.read(name) for name in ("pyproject.toml", "uv.lock")}


async def converse(caller: Caller) -> None:
    """Ask questions that only the owner's document, tool and resource can answer."""
    await caller.ask("What does a mooring cost?", "twelve crowns")
    await caller.ask("/tool tide {}", "High water at noon")
