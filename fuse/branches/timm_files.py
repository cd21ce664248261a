"""The tensors of a timm encoder, alone or as the trunk of an open_clip tower, from their names and shapes.

timm cannot be imported without torch, so the names of its architectures are read from its source, and sizes from the
stored shapes; the tower that is built says what fits.
"""

import importlib.util
import re
from collections.abc import Mapping
from functools import cache
from math import isqrt
from pathlib import Path
from typing import Any

from fuse import strict_json
from fuse.branches.encoder_layers import widths_differ
from fuse.errors import CheckpointError, MachineError, RecipeError
from fuse.safetensors_header import TensorEntry
from fuse.suggest import did_you_mean

Placed = tuple[TensorEntry, str | None, str]
HEADS = ("head", "head_dist", "fc", "classifier", "attn_pool", "fc_norm")
_COMPUTED = (
    "relative_position_index", "relative_coords_table", "rel_coords_log", "attn_mask", "attn.k_bias", "rope.bands",
    "rope.periods", "rope.pos_embed", "rope.freqs_cos", "rope.freqs_sin",
)  # fmt: skip
_PREFIX = ("cls_token", "dist_token", "reg_token")
_REGISTERED = re.compile(r"^@register_model\s+def (\w+)\(", re.MULTILINE)
_RENAMED = re.compile(r"^register_model_deprecations\(__name__, \{(.*?)^\}\)", re.MULTILINE | re.DOTALL)
_KEY = re.compile(r"^\s*'([\w.]+)'\s*:", re.MULTILINE)
NAME = re.compile(r"\w+(\.\w+)?", re.ASCII)  # no "hf-hub:" and no paths: nothing is fetched by a name


def rows(inner: list[Placed], *, trunk: bool, head: bool = False) -> list[Placed]:
    """The tensors up to the patch tokens keep their names, without open_clip's `trunk.`; the others lose it.

    trunk: the names are those of open_clip's adapter, `trunk.*` and `head.*`; with `head` all of them keep their names.
    """
    if head:
        return [
            (entry, None, "computed from the config") if name and name.endswith(_COMPUTED) else (entry, name, why)
            for entry, name, why in inner
        ]
    prefix = "trunk."
    if not trunk and any(name and name.startswith("visual.trunk.") for _, name, _ in inner):
        prefix, trunk = "visual.trunk.", True
    return [(entry, *_place(name, why, prefix if trunk else "")) for entry, name, why in inner]


def _place(name: str | None, why: str, prefix: str) -> tuple[str | None, str]:
    if name is None:
        return None, why
    if not name.startswith(prefix):
        return None, "works on pooled tokens" if name.startswith("head.") else "outside the vision tower"
    inner = name.removeprefix(prefix)
    if inner.split(".")[0] in HEADS:
        return None, "works on pooled tokens"
    return (None, "computed from the config") if inner.endswith(_COMPUTED) else (inner, "")


def measure(name: str, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int | None, int | None]:
    """(size of one token, pixels that one token is wide); None where only the built tower knows.

    name: timm's architecture. shapes: of the tower's tensors.
    """
    if name.startswith(("convnext", "fastvit", "swin")):  # the first stage at a quarter, each later one at half of that
        row = "layers." if name.startswith("swin") else "stages."
        stages = len({key.split(".")[1] for key in shapes if key.startswith(row)})
        last = {"s": "norm.", "c": f"stages.{stages - 1}.blocks.0.conv_dw.", "f": "final_conv."}[name[0]]
        width = max((shape[0] for key, shape in shapes.items() if key.startswith(last) and shape), default=None)
        return width, 2 ** (stages + 1) if stages else None
    if widths_differ(shapes):
        return None, None
    norm = shapes.get("blocks.0.norm1.weight", (None,))[0]
    if name.startswith("vitamin"):  # two stages of convolutions before its blocks
        return norm, 16
    patch = shapes.get("patch_embed.proj.weight", ())
    plain = len(patch) == 4 and patch[1] == 3 and patch[-1] > 1  # a hybrid cuts the map of another network
    return norm, patch[-1] if plain and norm else None


def grid(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int] | None:
    """The square of patches that a table of absolute positions was made for, with or without its class tokens."""
    places = shapes.get("pos_embed", ())
    if len(places) != 3 or widths_differ(shapes):  # stages make fewer tokens of those that the table is for
        return None
    for count in (places[1] - prefix(shapes), places[1]):
        if count > 0 and isqrt(count) ** 2 == count:
            return isqrt(count), isqrt(count)
    return None


def prefix(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Class and register tokens before the patches."""
    return sum(shapes[key][1] for key in _PREFIX if len(shapes.get(key, ())) == 3)


# CaiT's and ConViT's class token comes in behind the first blocks, and in XCiT channels attend to each other
_OTHERWISE = {"proj_l", "pos_proj", "temperature"}


def has_class(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a class token pays attention to the patches, in blocks one after another."""
    kinds = {key.split(".")[3] for key in shapes if key.startswith("blocks.0.attn.")}
    return "cls_token" in shapes and bool(kinds) and not kinds & _OTHERWISE


@cache
def architectures() -> frozenset[str]:
    """The names that the installed timm builds a model from, old names among them.

    Raises MachineError when timm is not installed.
    """
    spec = importlib.util.find_spec("timm")
    if spec is None or not spec.origin:
        raise MachineError("timm is not installed", hint="pip install timm")
    found: set[str] = set()
    for file in sorted((Path(spec.origin).parent / "models").glob("*.py")):
        text = file.read_text(encoding="utf-8")
        found |= set(_REGISTERED.findall(text))
        found |= {old for table in _RENAMED.findall(text) for old in _KEY.findall(table)}
    return frozenset(found)


def preprocessing(name: str, file: Path) -> dict[str, Any]:
    """What the config.json of a timm repository beside the weights says; empty where there is none.

    Then timm's own table of its architectures decides when the branch is opened. Raises RecipeError for a name that is
    no architecture, CheckpointError when the config describes another one.
    """
    if not NAME.fullmatch(name):
        raise RecipeError(f"timm: {name!r} is not the name of an architecture", hint="e.g. vit_small_patch14_dinov2")
    if not {name, name.partition(".")[0]} & architectures():
        raise RecipeError(f"timm has no architecture {name!r}", hint=did_you_mean(name, architectures()))
    beside = file.parent / "config.json"
    if not beside.is_file():
        return {}
    told = strict_json.read_object(beside, max_bytes=1 << 20)
    if "architecture" not in told:
        return {}
    if told["architecture"] != name.partition(".")[0]:
        raise CheckpointError(f"the weights beside it are a {told['architecture']!r}, not {name!r}", where=beside)
    if told.get("model_args"):
        raise CheckpointError("model_args change the architecture, which fuse does not build", where=beside)
    stated = told.get("pretrained_cfg", told)
    size = stated.get("input_size") if isinstance(stated, dict) else None
    if not (isinstance(size, list) and len(size) == 3 and all(type(n) is int and n > 0 for n in size)):
        raise CheckpointError(f"input_size is {size!r}, not [3, h, w]", where=beside)
    kept = ("mean", "std", "interpolation", "crop_pct", "crop_mode")
    return {"size": size[1:], **{key: stated[key] for key in kept if stated.get(key) is not None}}
