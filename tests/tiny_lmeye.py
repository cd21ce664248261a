"""Tiny LMEye networks for tests: their configs, seeded modules, and donor files as the authors save them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPConfig, CLIPModel

from fuse.grafts.graft import Reading, Sight
from tests.cli import fuse_forked
from tests.tiny_encoders import randomise

CLIP = {"layers": 2, "heads": 2, "intermediate": 12, "activation": "quick_gelu", "eps": 1e-5}
FIRST = {"hidden_size": 16, "width": 8, "prompts": 3, "slots": 2, "place": "question", "clip": CLIP}
SECOND = {"hidden_size": 16, "width": 8, "features": 6, "requests": 3, "place": "question", "clip": CLIP}
BEGIN, END = 38, 39  # of the tiny CLIP's 40 tokens
IMG, IMGQ, IMGD = 28, 29, 30  # placeholders among the 32 tokens of the tiny language model of these tests


def clip(width: int = 8, text_heads: int = 2) -> CLIPModel:
    """A CLIP whose projected features and text tower are `width` wide: 16 patches of images of 56 x 56."""
    text = {
        "hidden_size": width, "num_hidden_layers": 2, "num_attention_heads": text_heads, "intermediate_size": 12,
        "vocab_size": 40, "max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 2,
    }  # fmt: skip
    vision = {
        "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 3, "num_attention_heads": 2,
        "image_size": 56, "patch_size": 14,
    }  # fmt: skip
    return randomise(CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=width)))


def save_clip(folder: Path, width: int = 8) -> Path:
    """The same as a folder that an encoder branch and `fuse import lmeye --set clip=FOLDER` read."""
    clip(width).save_pretrained(folder)
    return write_preprocessor(folder)


def write_preprocessor(folder: Path) -> Path:
    """How images are prepared: 56 x 56, cut out of the middle."""
    square = {"height": 56, "width": 56}
    told = {"image_processor_type": "CLIPImageProcessor", "crop_size": square, "size": {"shortest_edge": 56}}
    (folder / "preprocessor_config.json").write_text(json.dumps(told))
    return folder


def seeded(shapes: dict[str, tuple[int, ...]], seed: int = 3, std: float = 0.3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) * std for name, shape in shapes.items()}


def network(d: int, c: int = 8, p: int = 3, q: int = 2, seed: int = 3) -> dict[str, torch.Tensor]:
    """What the authors save of a first generation, by its official names."""
    return seeded(
        {
            "imgLinear.weight": (d, c), "imgLinear.bias": (d,), "embedding_img": (1, d), "embedding_imgd": (1, d),
            "promptMlp.weight": (p * c, c), "promptMlp.bias": (p * c,), "llm2clip.weight": (c, d),
            "llm2clip.bias": (c,), "imgdLinear.weight": (q * d, c), "imgdLinear.bias": (q * d,),
        },
        seed,
    )  # fmt: skip


def second(d: int, c: int = 8, w: int = 6, r: int = 3, seed: int = 5) -> dict[str, torch.Tensor]:
    """What the authors save of a second generation."""
    return seeded(
        {
            "instruction_embedding_imgd": (1, d), "instruction_embedding_imgq": (1, d),
            "language_projection.weight": (d, w), "language_projection.bias": (d,),
            "instruction_blip22clip.weight": (r * c, d), "instruction_blip22clip.bias": (r * c,),
            "instruction_linear.weight": (c, w), "instruction_linear.bias": (c,),
            "instruction_imgdLinear.weight": (d, c), "instruction_imgdLinear.bias": (d,),
        },
        seed,
    )  # fmt: skip


def save_pickle(net: dict[str, torch.Tensor], file: Path) -> Path:
    """A checkpoint as LMEye's scripts write it: the net beside Adam's state, under DDP's prefix, in the old format."""
    named = {f"module.{name}": torch.nn.Parameter(tensor) for name, tensor in net.items()}
    moments = {i: {"step": 7, "exp_avg": tensor.detach() * 0} for i, tensor in enumerate(named.values())}
    groups = [{"lr": 1e-4, "params": list(moments)}]
    state: dict[str, Any] = {"net": named, "optimizer": {"state": moments, "param_groups": groups}, "epoch": 4}
    torch.save(state, file, _use_new_zipfile_serialization=False)
    return file


def mixer(width: int = 16) -> torch.nn.Module:
    """A causal stand-in for a language model: its state at a token is a function of all kept tokens up to it."""
    return randomise(torch.nn.Linear(width, width), 11)


def run_of(model: torch.nn.Module) -> Any:
    def run(embeds: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        kept = mask[..., None].to(embeds)
        return torch.tanh(model((embeds * kept).cumsum(1)))

    return run


def reading(ids: list[list[int]], images: list[int], features: torch.Tensor, model: torch.nn.Module) -> Reading:
    """Prompts (0: padding) with one visual token for each image, at IMG. images: the row of each, in order."""
    tokens = torch.tensor(ids)
    table = torch.randn(32, 16, generator=torch.Generator().manual_seed(2))
    embeds, sights, taken = table[tokens], [], [0] * len(ids)
    for row, seen in zip(images, features, strict=True):
        column = (tokens[row] == IMG).nonzero()[taken[row]]
        taken[row] += 1
        embeds[row, column] = seen.float().sum()
        sights.append(Sight(row, seen, embeds[row, column], column))
    numbers = (tokens == IMG).long()
    names = {"imgq": IMGQ, "imgd": IMGD}
    return Reading(
        tokens, (tokens != 0).long(), numbers, embeds, {"eyes": sights}, lambda x: table[x], run_of(model), ids=names
    )


def write_donor(folder: Path, host: Mapping[str, Any]) -> None:
    """What `fuse import lmeye` makes of a tiny checkpoint for a host with this text config. Widths are those of the
    CLIP of tests/recipe_members.py.
    """
    beside = folder.parent / f"{folder.name}_files"
    beside.mkdir()
    file, seer = save_pickle(network(host["hidden_size"]), beside / "checkpoint.pth"), save_clip(beside / "clip")
    ran = fuse_forked("import", "lmeye", file, folder, "--set", f"clip={seer}")
    assert (ran.code, ran.err) == (0, ""), ran
