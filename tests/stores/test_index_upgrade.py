"""An index in PostgreSQL outlives a release: workers of both versions answer from it meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agent.knowledge import KnowledgeUnavailable, index_of
from agent.knowledge.ingest import ingest, stale
from agent.knowledge.lookup import open_index
from agent.settings import Settings
from agent.telemetry import LogJournal
from tests.support.embeddings_server import embeddings_server
from tests.support.postgres import postgres
from tests.support.templates import Template, git

pytestmark = pytest.mark.xdist_group("parts")

RELEASE = "v0.4.0"
QUESTION = "May my dog come in?"
DOCUMENTS = {
    "visit.md": "# Parking\n\nTwelve spaces.\n\n# Dogs\n\nDogs are welcome if they are quiet.\n",
    "tickets.md": "# Refunds\n\nWhat was cancelled a day before is reimbursed.\n",
}
# a worker of that release, and its `agent ingest`
OLD = """
import asyncio, sys
from agent.knowledge import knowledge_of
from agent.knowledge.ingest import ingest
from agent.settings import load_settings
async def main():
    if sys.argv[1] == "ingest":
        await ingest(load_settings())
        return
    async with knowledge_of(load_settings()) as knowledge:
        print([passage.title for passage in await knowledge.search(sys.argv[1])])
asyncio.run(main())
"""


async def titles(settings: Settings) -> list[str]:
    async with open_index(settings, LogJournal()) as knowledge:
        return [passage.title for passage in await knowledge.search(QUESTION)]


async def test_an_index_of_the_release_before_is_upgraded_and_both_versions_read_it(
    template: Template, tmp_path: Path
) -> None:
    sources = tmp_path / "release"
    git(template.path, "worktree", "add", "--quiet", str(sources), RELEASE)
    home = tmp_path / "home"
    (home / "knowledge").mkdir(parents=True)
    for name, text in DOCUMENTS.items():
        (home / "knowledge" / name).write_text(text, encoding="utf-8")
    url = postgres().create("upgrade")
    async with embeddings_server() as server:
        given: dict[str, Any] = {"home": home, "data_dir": home / "data", "name": "desk"}
        given |= {"knowledge": "pgvector", "knowledge_url": url, "embeddings": server.url}
        settings = Settings.model_validate({**given, "knowledge_seconds": 5})
        environment = {
            **os.environ,
            **{f"AGENT_{name.upper()}": str(value) for name, value in given.items()},
            "AGENT_KNOWLEDGE_SECONDS": "5",
            "PYTHONPATH": str(sources / "template" / "src"),
        }

        async def old(what: str) -> str:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", OLD, what), env=environment, stdout=subprocess.PIPE
            )
            said, _ = await process.communicate()
            assert process.returncode == 0
            return said.decode()

        await old("ingest")
        first = await old(QUESTION)
        assert json.loads(first.replace("'", '"'))[0] == "Dogs"
        assert await stale(settings)
        with pytest.raises(KnowledgeUnavailable, match="run `agent ingest`"):
            await titles(settings)
        server.texts.clear()

        report = await ingest(settings)

        assert (report.documents, report.unchanged) == (2, 2)
        assert not any(text.startswith(("Dogs", "Refunds")) for text in server.texts)
        assert not await stale(settings)
        assert (await titles(settings))[0] == "Dogs"
        assert await old(QUESTION) == first
        (home / "knowledge" / "visit.md").write_text("# Dogs\n\nNo dog at all.\n", encoding="utf-8")
        await ingest(settings)
        assert (await old(QUESTION)).startswith("['Dogs'")
        made = await index_of(settings).manifest()
        assert made is not None
        assert set(made.digests) == set(DOCUMENTS)
