"""What an image encoder gives: its patch tokens, or what else a projector reads (`fuse.branches.encoder_reads`)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fuse.branches import tower_types
from fuse.branches.encoder_layers import LAST
from fuse.branches.encoder_reads import Reads
from fuse.errors import CheckpointError

WHERE = "config.json: branches"


def patch_map(config: Mapping[str, Any], tower: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Patch tokens [B, n, width], or [B, h, w, width] where the encoder gives a map. config: the branch's JSON."""
    if config.get("layer", LAST) != LAST:
        return _earlier(config, tower, pixels)
    if config["library"] == "transformers":
        found = tower(pixel_values=pixels).last_hidden_state
        skip = tower_types.prefix_tokens(config["tower"])
        return found.permute(0, 2, 3, 1) if found.ndim == 4 else found[:, skip:]
    if hasattr(tower, "forward_features"):  # timm, alone or inside open_clip
        found = tower.forward_features(pixels)
        if not isinstance(found, torch.Tensor) or found.ndim not in (3, 4):
            raise CheckpointError(f"{config['architecture']} gives no patch tokens", where=WHERE)
        if found.ndim == 3:
            has_class = int(getattr(tower, "cls_token", None) is not None)
            return found[:, getattr(tower, "num_prefix_tokens", has_class) :]
        last = getattr(tower, "output_fmt", "NCHW") == "NHWC" or found.shape[1] != tower.num_features
        return found if last else found.permute(0, 2, 3, 1)
    if hasattr(tower, "layer4"):
        for stage in (tower.stem, tower.layer1, tower.layer2, tower.layer3, tower.layer4):
            pixels = stage(pixels)
        return pixels.permute(0, 2, 3, 1)
    return tower.ln_post(tower.transformer(tower._embeds(pixels)))[:, 1:]


def _earlier(config: Mapping[str, Any], tower: Any, pixels: torch.Tensor) -> torch.Tensor:
    """The same of an earlier `layer`, as the encoder's library gives its intermediate features."""
    layer = config["layer"]
    if config["library"] == "transformers":
        found = tower(pixel_values=pixels, output_hidden_states=True).hidden_states[1:][layer]
        skip = tower_types.prefix_tokens(config["tower"])
        return found.permute(0, 2, 3, 1) if found.ndim == 4 else found[:, skip:]
    found = tower.forward_intermediates(
        pixels, indices=[layer], stop_early=True, intermediates_only=True,
        output_fmt="NCHW" if hasattr(tower, "stages") else "NLC",
    )  # fmt: skip
    (found,) = found["image_intermediates"] if isinstance(found, dict) else found
    return found.permute(0, 2, 3, 1) if found.ndim == 4 else found


def layers_of(tower: Any) -> int:
    """How many layers a tower has that `layer` may count; 0 where it counts none."""
    if hasattr(tower, "config"):
        return getattr(tower.config, "num_stages", 0) or getattr(tower.config, "num_hidden_layers", 0)
    if not hasattr(tower, "forward_intermediates"):
        return 0
    resblocks = getattr(getattr(tower, "transformer", None), "resblocks", ())
    return len(getattr(tower, "blocks", getattr(tower, "stages", resblocks)))


def read(config: Mapping[str, Any], tower: Any, pixels: torch.Tensor, reads: Reads) -> torch.Tensor:
    """What `reads` names, in its shape. config: the branch's JSON.

    Raises CheckpointError where the tower has no such thing.
    """
    try:
        if reads.what == "patches":
            found = patch_map(config, tower, pixels)
            return found.flatten(1, 2) if found.ndim == 4 else found
        if reads.layers:
            return _blocks(config, tower, pixels, reads)
        if reads.what == "pooled" and config["library"] == "open_clip":
            found = tower(pixels)
            return (found[0] if isinstance(found, tuple) else found)[:, None]
        found = _normed(config, tower, pixels)
        found = found if reads.what == "projected" else found[:, :1]
        return found if reads.what == "class" else _projected(config, tower, found)
    except AttributeError:
        told = f"{config.get('architecture')} has no {reads.what} features"
        raise CheckpointError(told, where=WHERE) from None


def _normed(config: Mapping[str, Any], tower: Any, pixels: torch.Tensor) -> torch.Tensor:
    """All tokens behind the tower's last norm, the class token first."""
    if config["library"] == "transformers":
        found = tower(pixel_values=pixels).last_hidden_state
        norm = tower_types.TOWER_TYPES[config["tower"]["model_type"]].class_norm
        return getattr(tower, norm)(found) if norm else found
    if hasattr(tower, "forward_features"):
        return tower.forward_features(pixels)
    return tower.ln_post(tower.transformer(tower._embeds(pixels)))


def _projected(config: Mapping[str, Any], tower: Any, tokens: torch.Tensor) -> torch.Tensor:
    return tower.visual_projection(tokens) if config["library"] == "transformers" else tokens @ tower.proj


def _blocks(config: Mapping[str, Any], tower: Any, pixels: torch.Tensor, reads: Reads) -> torch.Tensor:
    """What blocks give, all their tokens [B, k, p, width] or the class tokens alone [B, k, width]."""
    blocks = _stack(tower)
    if any(not -len(blocks) <= layer < len(blocks) for layer in reads.layers):
        told = f"{config.get('architecture')} has {len(blocks)} blocks, and its projector reads {list(reads.layers)}"
        raise CheckpointError(told, where=WHERE)
    caught: dict[int, torch.Tensor] = {}
    places = [layer % len(blocks) for layer in reads.layers]

    def catch(place: int) -> Any:
        return blocks[place].register_forward_hook(lambda *told: caught.__setitem__(place, _tensor(told[2])))

    handles = [catch(place) for place in set(places)]
    try:
        patch_map({**config, "layer": LAST}, tower, pixels)
    finally:
        for handle in handles:
            handle.remove()
    rows_first = not getattr(getattr(tower, "transformer", None), "batch_first", True)
    found = torch.stack([caught[place].transpose(0, 1) if rows_first else caught[place] for place in places], 1)
    return found[:, :, 0] if reads.what == "class" else found


def _tensor(given: Any) -> torch.Tensor:
    return given[0] if isinstance(given, tuple) else given


def _stack(tower: Any) -> Any:
    """The blocks of a vision transformer, in order; none where it has stages or convolutions."""
    for path in ("transformer.resblocks", "blocks", "encoder.layers", "encoder.layer", "layers", "layer"):
        found: Any = tower
        for name in path.split("."):
            found = getattr(found, name, None)
        if isinstance(found, nn.ModuleList | nn.Sequential) and len(found):
            return found
    return ()
