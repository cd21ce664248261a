"""Folders of a language model without numbers: a config, safetensors headers over a sparse file, a tokenizer as one likes."""

import json
import math
import struct
from pathlib import Path
from typing import Any

from fuse.families import language_shapes

LLAMA = {
    "model_type": "llama", "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "tie_word_embeddings": True,
}  # fmt: skip
CORE = ["<unk>", "<s>", "</s>", "the", "cat", "sat", "on", "a", "mat", "dog"]


def write(
    folder: Path, tokens: list[str] | None = None, added: dict[str, int] | None = None, *, rows: int = 16,
    config: dict[str, Any] | None = None, tokenizer: dict[str, Any] | None = None, **files: Any,
) -> Path:  # fmt: skip
    """A tiny LLaMA with the tokens (CORE unless others are given) at ids 0, 1, ... and added ones at ids of one's own.

    config: keys that change it. tokenizer: keys that change tokenizer.json. files: further files by name, with `__` for
    a dot; JSON unless the content is text.
    """
    folder.mkdir(parents=True, exist_ok=True)
    whole = {**LLAMA, "vocab_size": rows, **(config or {})}
    text = {
        "model": {"type": "WordLevel", "unk_token": "<unk>", "vocab": {t: i for i, t in enumerate(tokens or CORE)}},
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "normalizer": None, "post_processor": None, "decoder": None,
        "added_tokens": [{"id": i, "content": t, "special": True, "single_word": False, "lstrip": False,
                          "rstrip": False, "normalized": False} for t, i in (added or {}).items()],
        **(tokenizer or {}),
    }  # fmt: skip
    given = {"config__json": whole, "tokenizer__json": text, "tokenizer_config__json": {}, **files}
    for name, content in given.items():
        if content is not None:
            path = folder / name.replace("__", ".")
            path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    _write_headers(folder / "model.safetensors", whole)
    return folder


def _write_headers(path: Path, config: dict[str, Any]) -> None:
    shapes, _ = language_shapes(config, "")
    header, at = {}, 0
    for name, shape in shapes.items():
        if name == "lm_head.weight" and config["tie_word_embeddings"]:
            continue
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)
