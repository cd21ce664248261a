"""The small files of a native folder: the config of its class, the host's tokenizer, the processor of its branch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fuse import strict_json
from fuse.errors import CheckpointError, RecipeError
from fuse.export.folders import Opened
from fuse.fused_folder import TEMPLATE, TOKENIZER
from fuse.small_files import COPIED, FOLDERS, copy_small, write_json
from fuse.vocabulary import read_vocabulary

ENDS = ("bos_token_id", "eos_token_id", "pad_token_id")
SAID_OUTSIDE = ("model_type", "dtype", "tie_word_embeddings", *ENDS)  # by a class's config beside its text config too
NAMES = ("extra_special_tokens", "processor_class")  # of tokenizer_config.json, for processors


def placeholders(config: Mapping[str, Any]) -> dict[str, int]:
    """The tokens that stand for visual tokens and for what grafts read: token -> row. config: of a fused folder."""
    found = {branch["token"]: branch["token_id"] for branch in config.get("branches") or ()}
    for graft in config.get("grafts") or ():
        found |= {f"<|fuse:{graft['name']}.{name}|>": row for name, row in (graft.get("token_ids") or {}).items()}
    return found


def kept_rows(config: Mapping[str, Any]) -> int:
    """How many rows of the embedding stay: all but those of placeholders at its end.

    No fewer than the branch's own member has, where that is the host: there placeholders took rows of the padding.
    """
    rows, taken = config["text_config"]["vocab_size"], set(placeholders(config).values())
    least = 0
    for branch in config.get("branches") or ():
        own = branch["config"].get("text_config") or branch["config"]
        if branch["config"].get("model_type") == config.get("host_type") and type(own.get("vocab_size")) is int:
            least = own["vocab_size"]
    while rows - 1 in taken and rows > least:
        rows -= 1
    return rows


def native_config(source: Opened, rows: int, changes: Mapping[str, Any], class_name: str) -> dict[str, Any]:
    """config.json of the class: the branch's own with the host's language model, or the language model's alone.

    rows: of the embedding. changes: what folds changed in the text config. class_name: for `architectures`.
    Raises RecipeError where a token that the class looks for is not in the tokenizer.
    """
    text = {**source.config["text_config"], **changes, "vocab_size": rows}
    branches = source.config.get("branches") or ()
    if not branches:
        return {**text, "architectures": [class_name]}
    own = {key: value for key, value in branches[0]["config"].items() if key not in ("text_config", "auto_map")}
    if "text_config" not in branches[0]["config"]:  # the files of 2024: one object for the whole
        own = {key: value for key, value in own.items() if key not in text or key in SAID_OUTSIDE}
    own |= _token_rows(source, own, branches[0])
    own |= {key: text[key] for key in ENDS if key in own and key in text}
    if "vocab_size" in own:
        own["vocab_size"] = rows
    own.pop("torch_dtype", None)
    told = {"architectures": [class_name], "dtype": text.get("dtype", "float32")}
    return {**own, **told, "tie_word_embeddings": bool(text.get("tie_word_embeddings")), "text_config": text}


def _token_rows(source: Opened, own: Mapping[str, Any], branch: Mapping[str, Any]) -> dict[str, int]:
    """The rows of the tokens that the class looks for, in the host's tokenizer."""
    theirs = read_vocabulary(source.folder / "branches" / branch["name"])
    host = read_vocabulary(source.folder)
    if theirs is None or host is None:
        raise CheckpointError("has no tokenizer for its branch", where=source.folder)
    tokens = {row: token for token, row in theirs.ids.items()}
    found: dict[str, int] = {}
    for key, row in own.items():
        if not key.endswith(("_token_id", "_token_index")) or key in ENDS or type(row) is not int:
            continue
        token = tokens.get(row)
        if token is not None and token not in host.ids:
            told = f"its class looks for the token {token!r} ({key}), which the tokenizer does not have"
            raise RecipeError(told, where=source.folder, hint="`embeddings: union` in the recipe adds it")
        if token is not None:
            found[key] = host.ids[token]
    return found


def write_small(source: Opened, folder: Path, config: Mapping[str, Any], written: str) -> None:
    """Write everything but weights, record and card.

    config: config.json of the class. written: what a prompt of its processor writes for an image, "" without one.
    """
    gone = placeholders(source.config)
    for name in TOKENIZER:
        if (source.folder / name).is_file():
            copy_small(source.folder / name, folder / name)
    for branch in source.config.get("branches") or ():
        _write_processor(source.folder / "branches" / branch["name"], folder)
    _forget(folder, gone)
    template = source.folder / TEMPLATE
    if template.is_file():
        text = template.read_text(encoding="utf-8")
        token = source.config.get("image_token", "")
        (folder / TEMPLATE).write_text(text.replace(token, written) if written and token else text, encoding="utf-8")
    generation = source.folder / "generation_config.json"
    if generation.is_file():
        told = strict_json.read_object(generation)
        silent = [row for row in told.pop("suppress_tokens", None) or () if row not in gone.values()]
        write_json(folder / generation.name, {**told, **({"suppress_tokens": silent} if silent else {})})
    write_json(folder / "config.json", config)


def _write_processor(branch: Path, folder: Path) -> None:
    """The branch's own processor, and what its tokenizer's config says for it and the host's does not."""
    for inner in ("", *FOLDERS):
        for name in COPIED:
            if (branch / inner / name).is_file() and (inner or "processor" in name):
                (folder / inner).mkdir(exist_ok=True)
                copy_small(branch / inner / name, folder / inner / name)
    file = "tokenizer_config.json"
    if not (branch / file).is_file():
        return
    theirs = strict_json.read_object(branch / file)
    own = strict_json.read_object(folder / file) if (folder / file).is_file() else {}
    missing = {k: v for k, v in theirs.items() if k not in own and (k in NAMES or k.endswith("_token"))}
    if missing:
        write_json(folder / file, {**own, **missing})


def _forget(folder: Path, gone: Mapping[str, int]) -> None:
    """Take the placeholders out of the tokenizer's files."""
    tokenizer, config, added = (folder / f"{n}.json" for n in ("tokenizer", "tokenizer_config", "added_tokens"))
    if tokenizer.is_file():
        told = strict_json.read_object(tokenizer)
        told["added_tokens"] = [row for row in told.get("added_tokens") or [] if row["content"] not in gone]
        write_json(tokenizer, told)
    if config.is_file():
        told = strict_json.read_object(config)
        if "added_tokens_decoder" in told:
            rows = told["added_tokens_decoder"]
            told["added_tokens_decoder"] = {row: one for row, one in rows.items() if one.get("content") not in gone}
        for key in ("additional_special_tokens", "extra_special_tokens"):
            if isinstance(told.get(key), Sequence):
                told[key] = [token for token in told[key] if token not in gone]
        write_json(config, told)
    if added.is_file():
        told = strict_json.read_object(added)
        write_json(added, {token: row for token, row in told.items() if token not in gone})
