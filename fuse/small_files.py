"""Which small files of a checkpoint folder travel, and how: JSON loses what would make a loader run code."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fuse import strict_json
from fuse.code_keys import without_code
from fuse.errors import CheckpointError
from fuse.strict_json import MAX_BYTES

# Copied as they are; nothing else travels, so no code does.
COPIED = (
    "generation_config.json", "processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json",
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "chat_template.jinja",
    "chat_template.json",
)  # fmt: skip
TEMPLATES = ("chat_template.jinja", "chat_template.json")
TOKENIZER = frozenset(COPIED) - {name for name in COPIED if "processor" in name or name.startswith("generation")}
FOLDERS = ("qformer_tokenizer",)  # InstructBLIP's second tokenizer
VOCABULARIES = ("tokenizer.json", "vocab.json", "added_tokens.json")  # whose keys are tokens


def copy_small(source: Path, target: Path) -> None:
    """Copy a file; a JSON file that names code is written again without it."""
    if source.suffix == ".json" and source.name not in VOCABULARIES:
        value = strict_json.read_object(source)
        if (clean := without_code(value)) != value:
            write_json(target, clean)
            return
    target.write_bytes(strict_json.read_bytes(source))


def check_small(folder: Path) -> None:
    """Refuse a folder whose small files are too large to be copied: it may say so of holes that take no room on disk.

    Raises CheckpointError for the first.
    """
    for path in (place / name for place in (folder, *(folder / inner for inner in FOLDERS)) for name in COPIED):
        if path.is_file() and (size := path.stat().st_size) > MAX_BYTES:
            told = f"{size:,} bytes is more than the {MAX_BYTES:,} that fuse reads"
            raise CheckpointError(told, where=path)


def set_dtype(config: dict[str, Any], dtype: str) -> None:
    """State the dtype in a config and in those inside it that state one, under the key that is in use."""
    key = "torch_dtype" if "torch_dtype" in config and "dtype" not in config else "dtype"
    config[key] = dtype
    for inner in config.values():
        if isinstance(inner, dict) and ("dtype" in inner or "torch_dtype" in inner):
            set_dtype(inner, dtype)


def change_keys(config: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """Set keys of a config, and take out those that are changed to None."""
    config |= changes
    for key, value in changes.items():
        if value is None:
            del config[key]


def write_json(path: Path, value: object) -> None:
    path.write_bytes(json_bytes(value))


def json_bytes(value: object) -> bytes:
    """As `write_json` writes it."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
