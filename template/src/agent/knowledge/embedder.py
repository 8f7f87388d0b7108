"""The local embedding model: a process that serves OpenAI's `/v1/embeddings` on a Unix socket.

`python -m agent.knowledge.embedder SOCKET MODEL HOME THREADS`; it ends when its standard input
does, and so with the worker, however that ends. It ignores signals to the worker's group: calls
that are still answered need it.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from aiohttp import web

from agent.knowledge import KnowledgeUnavailable

# texts that the model takes at once: one is fastest on a CPU, with 19 ms a passage of 150 words; of
# 16 each takes 110 ms, and the library's own 256 take 6 GB
MODEL_BATCH = 1
# a request that takes longer hangs, and so does the process
LONGEST_SECONDS = 30.0


def load(name: str, home: Path, *, threads: int = 1, download: bool = False) -> Any:
    """The model, a folder or one that was downloaded; raises KnowledgeUnavailable."""
    try:
        fastembed = import_module("fastembed")
        description = import_module("fastembed.common.model_description")
        # its failure is reported below, its attempts need not be
        with suppress(ModuleNotFoundError):
            import_module("loguru").logger.disable("fastembed")
    except ModuleNotFoundError as error:
        raise KnowledgeUnavailable(
            f"AGENT_EMBEDDINGS=local, but {error.name} is not installed: "
            "run `uv sync --group local`"
        ) from error
    folder = Path(name).expanduser()
    folder = folder if folder.is_absolute() else home / folder
    try:
        if folder.is_dir():
            size, pooling, file = _described(folder)
            fastembed.TextEmbedding.add_custom_model(
                model=name,
                pooling=description.PoolingType[pooling],
                normalization=True,
                sources=description.ModelSource(url="file://local"),
                dim=size,
                model_file=file,
            )
            return fastembed.TextEmbedding(name, specific_model_path=str(folder), threads=threads)
        return fastembed.TextEmbedding(
            name, cache_dir=str(models_folder(home)), threads=threads, local_files_only=not download
        )
    except KnowledgeUnavailable:
        raise
    except Exception as error:
        # the library, its hub and the runtime raise errors of many kinds
        cure = "run `agent download-files`"
        if download:
            cure = "check the network and the name in AGENT_EMBEDDINGS_MODEL"
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise KnowledgeUnavailable(
            f"the embedding model {name} cannot be loaded ({said}): {cure}"
        ) from error


def models_folder(home: Path) -> Path:
    """Where `agent download-files` puts models: in the project, so that an image has them."""
    return home / "models"


def _described(folder: Path) -> tuple[int, str, str]:
    """Dimension, pooling and model file of a folder as hubs lay it out."""
    try:
        files = sorted(
            folder.glob("**/*.onnx"),
            key=lambda file: (file.name != "model.onnx", len(file.parts), file),
        )
        size = int(json.loads((folder / "config.json").read_text(encoding="utf-8"))["hidden_size"])
        pooling = folder / "1_Pooling" / "config.json"
        cls = pooling.is_file() and json.loads(pooling.read_text(encoding="utf-8")).get(
            "pooling_mode_cls_token"
        )
        return size, "CLS" if cls else "MEAN", files[0].relative_to(folder).as_posix()
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise KnowledgeUnavailable(
            f"{folder} does not hold a model: it needs an .onnx file, config.json with "
            "hidden_size, tokenizer.json, tokenizer_config.json and special_tokens_map.json"
        ) from error


class _Server:
    def __init__(self, model: Any, name: str) -> None:
        self._model, self._name = model, name
        # one request after another: several at once are not faster
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._since: float | None = None

    async def embeddings(self, request: web.Request) -> web.Response:
        given = (await request.json())["input"]
        texts = given if isinstance(given, list) else [given]
        vectors = await asyncio.get_running_loop().run_in_executor(self._thread, self._embed, texts)
        data = [
            {"object": "embedding", "index": at, "embedding": vector}
            for at, vector in enumerate(vectors)
        ]
        return web.json_response({"object": "list", "model": self._name, "data": data})

    def _embed(self, texts: list[str]) -> list[list[float]]:
        self._since = time.monotonic()
        try:
            return [vector.tolist() for vector in self._model.embed(texts, batch_size=MODEL_BATCH)]
        finally:
            self._since = None

    async def health(self, request: web.Request) -> web.Response:
        hangs = self._since is not None and time.monotonic() - self._since > LONGEST_SECONDS
        return web.json_response({"model": self._name}, status=503 if hangs else 200)


async def serve(socket: str, name: str, home: Path, threads: int) -> None:
    """Answer until standard input ends; raises KnowledgeUnavailable if there is no model."""
    server = _Server(load(name, home, threads=threads), name)
    app = web.Application(client_max_size=64 * 1024 * 1024)
    app.router.add_post("/v1/embeddings", server.embeddings)
    app.router.add_get("/health", server.health)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.UnixSite(runner, socket).start()
    await asyncio.to_thread(sys.stdin.buffer.read)
    # nobody waits for a request that is still being answered
    os._exit(0)


def main() -> None:
    """Run the process: exit code 2 and a sentence on standard error if it cannot serve."""
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, signal.SIG_IGN)
    socket, name, home, threads = sys.argv[1:]
    # a process that was killed leaves it
    Path(socket).unlink(missing_ok=True)
    try:
        asyncio.run(serve(socket, name, Path(home), int(threads)))
    except KnowledgeUnavailable as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
