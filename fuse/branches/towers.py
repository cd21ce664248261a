"""The vision towers that an original-LLaVA config names: opened, described and matched with what the checkpoint lacks.

Needs no torch: `fuse plan` reads headers with it. A tower is a folder or a hub id, from the recipe or from the config.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from pathlib import Path, PurePosixPath
from typing import Any

from fuse.anatomy import Member
from fuse.branches.convnext_files import convnext_config, convnext_names, open_convnext, unwrapped
from fuse.branches.llava_config import CLASS_TOWER, PLAIN_TOWER
from fuse.branches.tower_check import check_tower
from fuse.checkpoint import Checkpoint, open_checkpoint
from fuse.errors import CheckpointError, FuseError
from fuse.stores.address import is_store

MAIN, AUXILIARY = "vision_tower", "vision_tower_aux"
# MGM's configs name folders of its authors' machines; their README says which hub ids belong there.
_SOUP = "laion2B-s29B-b131K-ft-soup"
KNOWN = {
    "clip-vit-large-patch14-336": "openai/clip-vit-large-patch14-336",
    f"openclip-convnext-large-d-320-{_SOUP}": f"laion/CLIP-convnext_large_d_320.{_SOUP}",
}
# Towers whose config follows from their name and their tensors' shapes: name -> what shapes do not tell.
_TOLD: dict[str, dict[str, Any]] = {
    r"clip-vit-(base|large)-patch(14|16|32)(-336)?": {
        "model_type": CLASS_TOWER, "head": 64, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
    },
    r"siglip-so400m-patch14-(224|384)": {
        "model_type": PLAIN_TOWER, "head": 72, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6,
    },
}  # fmt: skip
_FORGET = ("_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version")
# Defaults of transformers' config classes, which a saved vision_config may leave out.
_DEFAULTS: dict[str, dict[str, Any]] = {
    CLASS_TOWER: {"patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
    PLAIN_TOWER: {"patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6},
}
_SHARED = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "num_channels": 3, "image_size": 224,
}  # fmt: skip
_MODULES = ("layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2", "self_attn.q_proj", "self_attn.k_proj",
            "self_attn.v_proj", "self_attn.out_proj")  # fmt: skip
_LAYER = tuple(f"{module}.{kind}" for module in _MODULES for kind in ("weight", "bias"))


@dataclass(frozen=True)
class Tower:
    """One tower of a member.

    config: its JSON, for `towers` in a fused config. checkpoint: where tensors that the member lacks are read from;
    None where it lacks none and the tower's name says the rest. places: stored key -> canonical name under the branch.
    dropped: stored key -> why it is not needed. The two hold every tensor of the checkpoint.
    """

    config: Mapping[str, Any]
    checkpoint: Checkpoint | None
    places: Mapping[str, str]
    dropped: Mapping[str, str]


def tower_checkpoint(member: Member, name: str, override: str | None, *, relative_to: Path) -> Tower:
    """The tower `name` of a layout-A member: vision_tower, or vision_tower_aux of MGM.

    override: the recipe's folder or hub id, relative to the recipe's folder; without one the config's mm_<name> counts.
    Raises CheckpointError when the tower cannot be opened, is of a kind that fuse does not know, lacks a tensor or does
    not fit what the member holds of it; for an override that does not open, what opening it raises.
    """
    held = {k: e.shape for k, e in member.parts["encoder"].items() if k.startswith(f"{name}.")}
    location = override or member.checkpoint.config.get(f"mm_{name}") or ""
    if not override and (config := _told(name, str(location), held)):
        return Tower(config, None, {}, {})
    if not isinstance(location, str) or not location:
        raise CheckpointError(f"mm_{name} is missing", where=member.folder / "config.json", hint=_hint(name))
    if not override and is_store(location):
        told = f"mm_{name} is {location!r}, and only a recipe may name an object store"
        raise CheckpointError(told, where=member.folder / "config.json", hint=_hint(name))
    here = override or (relative_to / location).is_dir()
    place = location if here else KNOWN.get(PurePosixPath(location).name, location)
    try:
        opened = _open(name, f"{member.name}.{name}", place, relative_to)
    except FuseError as error:
        if override:
            raise
        raise CheckpointError(
            f"mm_{name} is {location!r}, and {error.where or place} does not open: {error.problem}",
            where=member.folder / "config.json",
            hint=_hint(name),
        ) from None
    return _matched(name, opened, _config(name, opened), held, member)


def _hint(name: str) -> str:
    return f"`towers: {{{name}: FOLDER}}` at the member in the recipe, a folder of safetensors"


def _open(name: str, label: str, location: str, relative_to: Path) -> Checkpoint:
    if name == AUXILIARY:
        return open_convnext(label, location, relative_to=relative_to)
    return open_checkpoint(label, location, revision=None, relative_to=relative_to)


def _config(name: str, opened: Checkpoint) -> dict[str, Any]:
    """The tower's own config: the vision part of a CLIP's or SigLIP's, or what a ConvNeXt's shapes tell."""
    if name == AUXILIARY:
        return convnext_config({f"{name}.{k}": s for k, s in unwrapped(opened).items()}, opened.folder)
    config = opened.config
    kind, vision = config.get("model_type"), config.get("vision_config")
    if kind in ("clip", "siglip") and isinstance(vision, Mapping):
        config, kind = vision, f"{kind}_vision_model"
    if kind not in (CLASS_TOWER, PLAIN_TOWER):
        raise CheckpointError(
            f"model_type {kind!r} is no tower of an original LLaVA; fuse knows clip and siglip",
            where=opened.folder / "config.json",
        )
    own = {k: v for k, v in config.items() if k not in _FORGET}
    return {**_SHARED, **_DEFAULTS[kind], **own, "model_type": kind}


def _matched(
    name: str, opened: Checkpoint, config: Mapping[str, Any], held: Mapping[str, Any], member: Member
) -> Tower:
    """Which of the tower's tensors the branch needs and the member lacks."""
    if name == MAIN:
        check_tower(config, {_inner(name, key): entry.shape for key, entry in opened.tensors.items()}, opened.folder)
    needed = convnext_names(config) if name == AUXILIARY else tower_names(config, opened.folder)
    places, dropped = {}, {}
    for key in opened.tensors:
        canonical = f"{name}.{_inner(name, key)}"
        if canonical in held:
            dropped[key] = "the checkpoint holds its own"
        elif canonical in needed:
            places[key] = canonical
        else:
            dropped[key] = _reason(name, key)
    found = {*places.values(), *held}
    if lacking := [n for n in needed if n not in found]:
        raise CheckpointError(f"tensor {lacking[0]!r} is in neither the checkpoint nor its tower", where=opened.folder)
    if strange := [n for n in held if n not in needed]:
        raise CheckpointError(f"tensor {strange[0]!r} is not part of the tower in {opened.folder}", where=member.folder)
    return Tower(config, opened, places, dropped)


def _inner(name: str, key: str) -> str:
    """The name of a stored tensor inside the tower."""
    if name == AUXILIARY:
        inner = key.removeprefix("visual.").removeprefix("trunk.")
        return re.sub(r"^(stem|stages)\.", r"vision_\1.", inner)
    return key.removeprefix("vision_model.")


def _reason(name: str, key: str) -> str:
    if key.startswith(("text", "token_embedding", "positional_embedding", "transformer.", "ln_final")):
        return "the text half of the tower's checkpoint"
    if (
        key.startswith("logit_")
        or "projection" in key
        or ".head." in f".{key}"
        or (name == AUXILIARY and "norm" in key)
    ):
        return "what comes after the tower's patches, which LLaVA does not use"
    if key.endswith("position_ids"):
        return "computed when a model is built"
    return "not part of the tower as LLaVA uses it"


def tower_names(config: Mapping[str, Any], where: object) -> list[str]:
    """Every tensor of a tower as a branch builds it, under canonical names; of a SigLIP without its last layer."""
    layers, plain = config.get("num_hidden_layers"), config["model_type"] == PLAIN_TOWER
    if type(layers) is not int or not 0 < layers <= 1000:
        raise CheckpointError(f"config.json: num_hidden_layers is {layers!r}", where=where)
    outer = ["embeddings.patch_embedding.weight", "embeddings.position_embedding.weight"]
    outer += ["embeddings.patch_embedding.bias"] if plain else ["embeddings.class_embedding"]
    norms = ("post_layernorm",) if plain else ("pre_layrnorm", "post_layernorm")
    outer += [f"{norm}.{kind}" for norm in norms for kind in ("weight", "bias")]
    inner = [f"encoder.layers.{n}.{row}" for n in range(layers - plain) for row in _LAYER]
    return [f"{MAIN}.{row}" for row in (*outer, *inner)]


def _told(name: str, location: str, held: Mapping[str, tuple[int, ...]]) -> dict[str, Any] | None:
    """The config of a tower that the member holds whole, by its name and shapes; None where they tell too little."""
    if name == AUXILIARY:
        config = convnext_config(held, "") if f"{name}.vision_stem.0.weight" in held else None
        return config if config and set(convnext_names(config)) == set(held) else None
    known = next((v for k, v in _TOLD.items() if re.fullmatch(k, PurePosixPath(location).name)), None)
    patch, table = (held.get(f"{MAIN}.embeddings.{n}_embedding.weight", ()) for n in ("patch", "position"))
    fc1 = held.get(f"{MAIN}.encoder.layers.0.mlp.fc1.weight", ())
    if known is None or len(patch) != 4 or len(table) != 2 or len(fc1) != 2:
        return None
    plain = known["model_type"] == PLAIN_TOWER
    layers = {int(found[1]) for key in held if (found := re.search(r"\.layers\.(\d+)\.", key))}
    config = {
        **_SHARED, **{k: v for k, v in known.items() if k != "head"}, "hidden_size": patch[0], "patch_size": patch[3],
        "num_attention_heads": patch[0] // known["head"], "intermediate_size": fc1[0],
        "num_hidden_layers": len(layers) + plain, "image_size": patch[3] * isqrt(table[0] - (not plain)),
    }  # fmt: skip
    return config if set(tower_names(config, "")) == set(held) else None
