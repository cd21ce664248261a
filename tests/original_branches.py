"""Tiny original-LLaVA branches for tests: configs, the official code's numbers, and a model that holds a branch."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import PretrainedConfig, PreTrainedModel

from fuse.branches.branch import Prepared
from fuse.families import places

GOLDENS = Path(__file__).parent / "goldens"
TOWER = {
    "model_type": "clip_vision_model", "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 3,
    "num_attention_heads": 2, "image_size": 56, "patch_size": 14, "hidden_act": "quick_gelu",
}  # fmt: skip
SIGLIP = {**TOWER, "model_type": "siglip_vision_model", "hidden_act": "gelu_pytorch_tanh"}
LANGUAGE = {
    "model_type": "llava_llama", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 30,
    "intermediate_size": 8,
}  # fmt: skip
POINTS = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]


def config(**changes: Any) -> dict[str, Any]:
    """The config of a tiny LLaVA; a key given as None is left out."""
    whole = {
        **LANGUAGE, "mm_vision_tower": "openai/clip-vit-large-patch14-336", "mm_projector_type": "mlp2x_gelu",
        "mm_hidden_size": 12, "mm_vision_select_layer": -2, "mm_vision_select_feature": "patch",
        "mm_patch_merge_type": "flat", "image_aspect_ratio": "pad", "towers": {"vision_tower": TOWER}, **changes,
    }  # fmt: skip
    return {k: v for k, v in whole.items() if v is not None}


def anyres(merge: str, **changes: Any) -> dict[str, Any]:
    return config(
        **{"image_aspect_ratio": "anyres", "mm_patch_merge_type": merge, "image_grid_pinpoints": POINTS, **changes}
    )


def golden(name: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    return load_file(GOLDENS / f"{name}.safetensors"), json.loads((GOLDENS / f"{name}.json").read_text())


def canonical(
    tensors: dict[str, torch.Tensor], settings: dict[str, Any], outer: str = "model."
) -> dict[str, torch.Tensor]:
    """The parameters of a golden under the names that the family's table gives to their official keys."""
    official = {outer + key.removeprefix("param."): t for key, t in tensors.items() if key.startswith("param.")}
    found = places(settings, list(official), "golden")
    return {place.canonical: official[key] for key, place in found.items() if place and place.part != "language"}


def built(branch: Any, parameters: dict[str, torch.Tensor]) -> Any:
    """The branch with the golden's parameters; only its tower, for which goldens give the features, keeps its own."""
    missing, unexpected = branch.load_state_dict(parameters, strict=False)
    assert not unexpected
    assert not [name for name in missing if not name.startswith("vision_tower")]
    return branch.eval()


def difference(found: torch.Tensor, wanted: torch.Tensor) -> float:
    assert found.shape == wanted.shape
    return (found - wanted).abs().max().item()


def seeded(branch: torch.nn.Module, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in branch.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return branch.eval()


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def see(branch: Any, *prepared: Prepared, text: list[torch.Tensor] | None = None, attention: bool = False) -> Any:
    inputs = {name: [p.inputs[name] for p in prepared] for name in prepared[0].inputs}
    words = [torch.tensor([3, 5, 8])] * len(prepared) if text is None else text
    with torch.no_grad():
        return branch(inputs, text=words, embed=embedding(), attention=attention)


def embedding() -> torch.nn.Embedding:
    """The host's table."""
    return torch.nn.Embedding.from_pretrained(torch.randn(30, 16, generator=torch.Generator().manual_seed(9)))


class Whole(PreTrainedModel):
    """The least that holds a branch as a fused model does."""

    config_class = PretrainedConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.branches = torch.nn.ModuleDict({"m": KINDS[config.kind](config.branch)})
        self.post_init()


KINDS: dict[str, Any] = {}


def round_trip(branch: Any, settings: dict[str, Any], kind: Any, folder: Path) -> Any:
    """The branch saved and loaded as part of a model; asserts that every tensor was found, and only those."""
    KINDS["kind"] = kind
    whole = Whole(PretrainedConfig(kind="kind", branch=settings))
    whole.branches["m"].load_state_dict(branch.state_dict())
    whole.save_pretrained(folder)
    loaded, report = Whole.from_pretrained(folder, config=whole.config, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return loaded.branches["m"].eval()


def nearly_the_same(branch: Any, prepared: Prepared) -> None:
    (full,) = see(branch, prepared)
    half = Prepared(
        {k: t.bfloat16() if t.is_floating_point() else t for k, t in prepared.inputs.items()}, prepared.layout
    )
    (found,) = see(branch.bfloat16(), half)
    assert found.tokens.dtype == torch.bfloat16
    assert difference(found.tokens.float(), full.tokens) < 0.05 * full.tokens.abs().max()


def slime(**changes: Any) -> dict[str, Any]:
    """The config of a tiny SliME: 16 tokens of the whole, 4 of each local view."""
    return config(**{
        "image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial", "mm_resampler_type": "cosine",
        "mm_resampler_dim": 4, "mm_resampler_topp": 0.95, "mm_resampler_temp": 1.0, "seperator": 7, **changes,
    })  # fmt: skip


def set_heads(module: torch.nn.Module, heads: int) -> None:
    """Goldens are too narrow for 128 channels a head and say how many heads they have."""
    for attention in module.modules():
        if isinstance(attention, torch.nn.MultiheadAttention):
            attention.num_heads, attention.head_dim = heads, attention.embed_dim // heads
