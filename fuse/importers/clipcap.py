"""ClipCap's checkpoints (rmokady/CLIP_prefix_caption): the mapper, and the GPT-2 that the authors save beside it.

`clip_project.*` becomes a projector, `gpt.*` an ordinary GPT-2 folder under OUT/language, whose config.json comes from
`--host`, a GPT-2 folder whose tokenizer is copied too, or else from the tensors' shapes. Shapes do not tell how many
heads GPT-2 has: 64 numbers a head, as in all of GPT-2's own sizes, unless `--set heads=N`. What else they do not tell
are constants of the authors' code: 8 heads in the mapper, Tanh and relu, and captions that end with the first full
stop, which generation_config.json says as a second end (of GPT-2's own vocabulary, where "." is token 13).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fuse.errors import CheckpointError, RecipeError
from fuse.importers import About, Imported, Piece

if TYPE_CHECKING:
    from torch import Tensor

HELP = "ClipCap's mapper (MLP or transformer) and its GPT-2 (coco_prefix-*.pt)"
OPTIONS: Mapping[str, tuple[Any, ...]] = {"normalize": (False, True), "prefix_length": (), "heads": ()}

_MAPPER, _GPT = "clip_project.", "gpt."
_MASK = re.compile(r"gpt\.transformer\.h\.\d+\.attn\.(bias|masked_bias)")  # the causal mask, of old releases
_LAYER = re.compile(r"transformer\.(?:layers|h)\.(\d+)\.")
_HEADS, _HEAD_SIZE = 8, 64
_ROWS, _END, _STOP = 50257, 50256, 13  # of GPT-2's own vocabulary: its tokens, <|endoftext|> and "."


def sort_keys(state: Mapping[str, Tensor], about: About) -> Imported:
    """The mapper into a projector, GPT-2 into a language model.

    Raises CheckpointError for a mapper that is neither of ClipCap's, and for what its tensors do not tell, RecipeError
    for options that do not fit them.
    """
    mapper = {key.removeprefix(_MAPPER): value for key, value in state.items() if key.startswith(_MAPPER)}
    gpt = {key.removeprefix(_GPT): value for key, value in state.items() if key.startswith(_GPT)}
    dropped = {key: "no part of ClipCap" for key in state if not key.startswith((_MAPPER, _GPT))}
    dropped |= {key: "the causal mask, which every model computes" for key in state if _MASK.fullmatch(key)}
    if not mapper:
        raise CheckpointError("holds no `clip_project.*`", hint="ClipCap saves them as coco_prefix-*.pt")
    if "transformer.wte.weight" in gpt:
        head = gpt.get("lm_head.weight")
        if head is not None and head.equal(gpt["transformer.wte.weight"]):
            dropped["gpt.lm_head.weight"] = "the embedding, which GPT-2 uses as its head"
    kind, config = _mapper(mapper, _width(gpt, about), about)
    names = {_MAPPER + name: name for name in mapper}
    told = {"model_type": "gpt2", "norm": "layer", "norm_eps": 1e-5} if gpt else {}
    language, generation = None, {}
    if gpt:
        kept = {_GPT + name: name for name in gpt if _GPT + name not in dropped}
        language = Piece.renamed("gpt2", _gpt_config(gpt, kept.values(), about), state, kept)
        told["layers"] = language.config["n_layer"]
        if len(gpt["transformer.wte.weight"]) == _ROWS:
            generation = {"bos_token_id": _END, "eos_token_id": [_END, _STOP]}
    return Imported(None, Piece.renamed(kind, config, state, names, told), language, dropped, generation)


def _width(gpt: Mapping[str, Tensor], about: About) -> int | None:
    """Hidden size of the language model: of the GPT-2 in the file, else of the host's config."""
    if gpt:
        return _matrix(gpt, "transformer.wte.weight", _GPT).shape[1]
    found = about.host.get("n_embd", about.host.get("hidden_size"))
    return found if type(found) is int else 768 if about.host.get("model_type") == "gpt2" else None


def _mapper(mapper: Mapping[str, Tensor], width: int | None, about: About) -> tuple[str, dict[str, Any]]:
    """The mapper's kind and config."""
    normalize = bool(about.options.get("normalize", False))
    if "prefix_const" in mapper:
        const, linear = _matrix(mapper, "prefix_const", _MAPPER), _matrix(mapper, "linear.weight", _MAPPER)
        inner = _matrix(mapper, "transformer.layers.0.mlp.fc1.weight", _MAPPER)
        length = about.options.get("prefix_length", const.shape[0])
        if length != const.shape[0] or (width and const.shape[1] != width):
            told = f"its prefix is {const.shape[0]} tokens of {const.shape[1]} numbers"
            raise CheckpointError(f"{told}, and not {length} of {width or const.shape[1]}")
        return "clipcap_transformer", {
            "width": linear.shape[1], "hidden_size": const.shape[1], "clip_length": linear.shape[0] // const.shape[1],
            "prefix_length": const.shape[0], "layers": _layers(mapper), "heads": _HEADS, "inner": inner.shape[0],
            "normalize": normalize,
        }  # fmt: skip
    first, last = (_matrix(mapper, f"model.{i}.weight", _MAPPER) for i in (0, 2))
    length = about.options.get("prefix_length") or (last.shape[0] // width if width else None)
    if length is None:
        raise CheckpointError(
            f"its prefix of {last.shape[0]} numbers may be cut into tokens in several ways",
            hint="--host FOLDER of the GPT-2, or --set prefix_length=10",
        )
    if type(length) is not int or length <= 0 or last.shape[0] % length or (width and last.shape[0] != length * width):
        told = f" of {width}" if width else ""
        raise CheckpointError(f"its prefix of {last.shape[0]} numbers cannot be cut into {length} tokens{told}")
    return "clipcap_mlp", {
        "width": first.shape[1], "hidden": first.shape[0], "hidden_size": last.shape[0] // length,
        "prefix_length": length, "normalize": normalize,
    }  # fmt: skip


def _gpt_config(gpt: Mapping[str, Tensor], kept: Any, about: About) -> dict[str, Any]:
    """config.json of the language model: the host's, else from shapes."""
    embedding, places = (_matrix(gpt, f"transformer.{name}.weight", _GPT) for name in ("wte", "wpe"))
    inner = _matrix(gpt, "transformer.h.0.mlp.c_fc.weight", _GPT)
    rows, width = embedding.shape
    sizes: dict[str, Any] = {"vocab_size": rows, "n_embd": width, "n_positions": places.shape[0],
                             "n_layer": _layers(gpt)}  # fmt: skip
    dtype = str(embedding.dtype).removeprefix("torch.")
    tied = {"tie_word_embeddings": "lm_head.weight" not in kept, "dtype": dtype}
    if about.host:
        if about.host.get("model_type") != "gpt2":
            raise CheckpointError(f"holds a GPT-2, and --host is a {about.host.get('model_type')}")
        if "heads" in about.options:
            raise RecipeError("heads is what --host says", where="--set", hint="leave one of the two out")
        config = {key: value for key, value in about.host.items() if key not in ("torch_dtype", "_name_or_path")}
        return config | tied
    heads = about.options.get("heads", width // _HEAD_SIZE)
    if "heads" not in about.options and width % _HEAD_SIZE:
        told = f"does not tell how many heads GPT-2 has, and {width} numbers are no heads of {_HEAD_SIZE}"
        raise CheckpointError(told, hint="--set heads=N, or --host FOLDER")
    if type(heads) is not int or heads <= 0 or width % heads:
        raise RecipeError(f"heads is {heads}, and does not divide {width}", where="--set")
    ends = {"bos_token_id": _END, "eos_token_id": _END} if rows == _ROWS else {}
    return {
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], **sizes, "n_head": heads, "n_inner": inner.shape[1],
        "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, **ends, **tied,
    }  # fmt: skip


def _layers(tensors: Mapping[str, Tensor]) -> int:
    return 1 + max((int(found[1]) for name in tensors if (found := _LAYER.match(name))), default=-1)


def _matrix(tensors: Mapping[str, Tensor], name: str, prefix: str) -> Tensor:
    """A tensor of two dimensions that every such file has."""
    if name not in tensors:
        raise CheckpointError(f"tensor {prefix + name!r} is missing")
    if tensors[name].ndim != 2 or 0 in tensors[name].shape:
        raise CheckpointError(f"tensor {prefix + name!r} has shape {list(tensors[name].shape)}, which is no matrix")
    return tensors[name]
