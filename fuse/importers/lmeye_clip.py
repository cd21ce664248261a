"""The frozen CLIP text tower of LMEye's network: of the CLIP folder in `--set clip=FOLDER`, or of the file itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fuse import strict_json
from fuse.errors import CheckpointError
from fuse.importers import About
from fuse.importers.lmeye_parts import check, in_folder, need

if TYPE_CHECKING:
    from torch import Tensor

PREFIX = "clip."
PARTS = ("text_model.", "text_projection.")
EMBEDDING, POSITIONS = (f"text_model.embeddings.{what}_embedding.weight" for what in ("token", "position"))
BUFFER = "text_model.embeddings.position_ids"
LAYER = "text_model.encoder.layers.{}."
HEAD = 64  # numbers of one attention head in every CLIP of OpenAI
ENDS = ("<|startoftext|>", "<|endoftext|>")
OLD_EOS = 2  # old configs say that the ends of a text are 0 and 2; they are the last two ids of the vocabulary


@dataclass(frozen=True)
class Tower:
    """config: `clip` of the graft's. tensors, origins: as `fuse.importers.Piece` has them."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    origins: dict[str, tuple[str, ...]]


def text_tower(state: Mapping[str, Tensor], about: About, width: int, last: int) -> Tower:
    """The tower as `fuse.grafts.lmeye_text.ClipText` holds it: of its tables, two tokens at positions 0 and `last`.

    Raises CheckpointError where there is no tower, one that is not whole, or one of another width.
    """
    mine = {key.removeprefix(PREFIX): key for key in state if key.startswith(tuple(PREFIX + part for part in PARTS))}
    mine.pop(BUFFER, None)
    if named := about.options.get("clip"):
        found, told, folder = in_folder("clip", str(named), PARTS)
        found.pop(BUFFER, None)
        origins: dict[str, tuple[str, ...]] = {PREFIX + name: () for name in found}
    elif mine:
        found, told, folder = {name: state[key] for name, key in mine.items()}, {}, None
        origins = {PREFIX + name: (key,) for name, key in mine.items()}
    else:
        hint = "`--set clip=FOLDER`: the CLIP that the network was trained with, openai/clip-vit-large-patch14"
        raise CheckpointError("holds no text tower of a CLIP, and the network needs one", hint=hint)
    need(found, EMBEDDING, POSITIONS, "text_projection.weight")
    check(EMBEDDING, found[EMBEDDING], (None, width))
    check(POSITIONS, found[POSITIONS], (None, width))
    if last >= found[POSITIONS].shape[0]:
        told_positions = f"the text tower has {found[POSITIONS].shape[0]} positions, and the network needs {last + 1}"
        raise CheckpointError(told_positions)
    config = _config(found, told.get("text_config", told), width)
    begin, end = _ends(told.get("text_config", told), folder, found[EMBEDDING].shape[0])
    found[EMBEDDING], found[POSITIONS] = found[EMBEDDING][[begin, end]], found[POSITIONS][[0, last]]
    return Tower(config, {PREFIX + name: tensor for name, tensor in found.items()}, origins)


def _config(found: Mapping[str, Tensor], told: Mapping[str, Any], width: int) -> dict[str, Any]:
    """What the tower is: from its config, or from shapes and what every CLIP of OpenAI is."""
    first = LAYER.format(0) + "mlp.fc1.weight"
    need(found, first)
    layers = sum(1 for name in found if name.endswith(".mlp.fc1.weight"))
    return {
        "layers": layers, "heads": told.get("num_attention_heads", max(1, width // HEAD)),
        "intermediate": int(found[first].shape[0]), "activation": told.get("hidden_act", "quick_gelu"),
        "eps": float(told.get("layer_norm_eps", 1e-5)),
    }  # fmt: skip


def _ends(told: Mapping[str, Any], folder: Path | None, rows: int) -> tuple[int, int]:
    """The ids of the tokens that begin and end a text: the tokenizer's, else the config's, else the last two."""
    found: Any = (told.get("bos_token_id"), told.get("eos_token_id"))
    if found[1] == OLD_EOS or None in found:
        found = (rows - 2, rows - 1)
    if folder is not None and (folder / "vocab.json").is_file():
        vocabulary = strict_json.read_object(folder / "vocab.json", max_bytes=16 << 20)
        found = tuple(vocabulary.get(token, one) for token, one in zip(ENDS, found, strict=True))
    if not all(type(one) is int and 0 <= one < rows for one in found):
        raise CheckpointError(f"the text tower's ends are {found}, and its table has {rows} rows", where=folder or "")
    return found
