"""What an encoder branch reads besides patch tokens, against what the encoder's own library gives."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPModel

from fuse.branches.encoder import EncoderBranch, EncoderEyes
from fuse.branches.encoder_files import EncoderFiles, read_encoder
from fuse.branches.projector_kinds import describe
from fuse.errors import CheckpointError, RecipeError
from tests.original_branches import difference, picture
from tests.tiny_encoders import HOST, OPEN_CLIP, load, see, whole_clip, write_transformers

POOLED, PROJECTED, CLASS, BLOCKS = "clipcap_mlp", "llama_adapter", "lavin", "lion_aggregator"


def write_projector(folder: Path, kind: str, **config: Any) -> str:
    """A projector folder of a kind with random tensors."""
    folder.mkdir(parents=True)
    told = {
        POOLED: {"hidden": 6, "prefix_length": 3}, PROJECTED: {}, CLASS: {"hidden": 6, "layers": []},
        BLOCKS: {"heads": 2, "intermediate": 8, "inner": 8, "layers": [-1, 0]},
    }[kind] | {"hidden_size": HOST} | config  # fmt: skip
    shapes = describe(kind, told, "here").shapes
    (folder / "projector.json").write_text(json.dumps({"format": 1, "kind": kind, "config": told, "host": None}))
    if shapes:
        generator = torch.Generator().manual_seed(4)
        save_file({k: torch.randn(s, generator=generator) for k, s in shapes.items()}, folder / "projector.safetensors")
    return str(folder)


def opened(tmp_path: Path, kind: str, encoder: dict[str, Any], **config: Any) -> tuple[EncoderBranch, EncoderFiles]:
    """The branch as a fused folder gives it."""
    entry = {"name": "c", "projector": write_projector(tmp_path / f"{kind}_projector", kind, **config), **encoder}
    files = read_encoder(entry, relative_to=tmp_path)
    branch: Any = load(files, tmp_path / f"{kind}_out")
    assert {row.name for row in files.rows if row.name} == set(branch.state_dict())
    return branch, files


def pixels_of(size: Any) -> torch.Tensor:
    height, width = size if isinstance(size, list) else (size, size)
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def clip(folder: Path) -> CLIPModel:
    write_transformers("clip", folder)
    square = {"height": 32, "width": 32}
    prepare = {"image_processor_type": "CLIPImageProcessor", "crop_size": square, "size": {"shortest_edge": 32}}
    (folder / "preprocessor_config.json").write_text(json.dumps(prepare))
    return CLIPModel.from_pretrained(folder).eval()


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in OPEN_CLIP if name not in ("coca", "siglip")])
def test_pooled_features_are_what_encode_image_gives(tmp_path: Path, installed: Path, name: str) -> None:
    visual = whole_clip(name, tmp_path)
    pixels = pixels_of(OPEN_CLIP[name]["image_size"])
    wanted = visual(pixels)
    wanted = wanted[0] if isinstance(wanted, tuple) else wanted
    branch, files = opened(tmp_path, POOLED, {"open_clip": name, "weights": "clip.safetensors"}, width=wanted.shape[-1])
    assert difference(branch.features(pixels), wanted[:, None]) <= 1e-5 * max(1, float(wanted.abs().max()))
    seen = see(branch, pixels)
    assert [tuple(one.tokens.shape) for one in seen] == [(3, HOST)] * 2
    assert files.grid is None and not files.has_class and files.config["tokens"] == 3
    eyes = EncoderEyes(files.config, tmp_path)
    assert eyes.prepare(picture(50, 40)).tokens == 3


@torch.no_grad()
def test_all_tokens_of_open_clip_projected(tmp_path: Path, installed: Path) -> None:
    visual: Any = whole_clip("plain", tmp_path)
    pixels = pixels_of(16)
    caught: list[torch.Tensor] = []
    handle = visual.transformer.register_forward_hook(lambda _, args, out: caught.append(out))
    pooled = visual(pixels)
    handle.remove()
    wanted = visual.ln_post(caught[0]) @ visual.proj
    encoder = {"open_clip": "plain", "weights": "clip.safetensors"}
    branch, _ = opened(tmp_path, PROJECTED, encoder, width=16)
    found = branch.features(pixels)
    assert found.shape == (2, 17, 16) and difference(found, wanted) <= 1e-4
    assert difference(found[:, 0], pooled) <= 1e-4
    raw, _ = opened(tmp_path, CLASS, encoder, width=32)
    assert difference(raw.features(pixels), visual.ln_post(caught[0])[:, :1]) <= 1e-4


@torch.no_grad()
def test_features_of_a_clip_of_transformers(tmp_path: Path) -> None:
    whole: Any = clip(tmp_path / "clip")
    pixels, encoder = pixels_of(32), {"encoder": "clip"}
    vision = whole.vision_model(pixel_values=pixels, output_hidden_states=True)
    normed = whole.vision_model.post_layernorm(vision.last_hidden_state)
    pooled = whole.visual_projection(normed[:, :1])
    given = whole.get_image_features(pixel_values=pixels)
    assert difference(getattr(given, "pooler_output", given), pooled[:, 0]) <= 1e-5
    branch, files = opened(tmp_path, POOLED, encoder, width=8)
    assert difference(branch.features(pixels), pooled) <= 1e-5
    assert EncoderEyes(files.config, tmp_path / "clip").prepare(picture(50, 40)).tokens == 3
    branch, files = opened(tmp_path, PROJECTED, encoder, width=8)
    assert difference(branch.features(pixels), whole.visual_projection(normed)) <= 1e-5
    prepared = EncoderEyes(files.config, tmp_path / "clip").prepare(picture(50, 40))
    assert (prepared.tokens, prepared.variable) == (1, True)  # a place that stays empty
    seen = see(branch, pixels)
    assert seen[0].features is not None and difference(seen[0].features, whole.visual_projection(normed)[0]) <= 1e-5
    branch, _ = opened(tmp_path, CLASS, encoder, width=32)
    assert difference(branch.features(pixels), normed[:, :1]) <= 1e-5
    branch, files = opened(tmp_path, BLOCKS, encoder, width=32, layers=[-1, 1, 0])
    wanted = torch.stack([vision.hidden_states[1:][layer] for layer in (-1, 1, 0)], 1)
    assert difference(branch.features(pixels), wanted) <= 1e-5
    assert files.config["tokens"] == 17 == EncoderEyes(files.config, tmp_path / "clip").prepare(picture(9, 9)).tokens


@torch.no_grad()
@pytest.mark.parametrize("name", ["plain", "test_vit", "eva"])
def test_blocks_are_what_the_towers_blocks_give(tmp_path: Path, installed: Path, name: str) -> None:
    visual: Any = whole_clip(name, tmp_path)
    pixels = pixels_of(OPEN_CLIP[name]["image_size"])
    blocks = visual.trunk.blocks if hasattr(visual, "trunk") else visual.transformer.resblocks
    caught: dict[int, torch.Tensor] = {}
    for i, block in enumerate(blocks):
        block.register_forward_hook(lambda _, args, out, i=i: caught.__setitem__(i, out))
    visual(pixels)
    last, width = len(blocks) - 1, caught[0].shape[-1]
    encoder = {"open_clip": name, "weights": "clip.safetensors"}
    branch, _ = opened(tmp_path, BLOCKS, encoder, width=width, heads=1, layers=[-1, 0])
    assert difference(branch.features(pixels), torch.stack([caught[last], caught[0]], 1)) <= 1e-4
    branch, files = opened(tmp_path, CLASS, encoder, width=width, layers=[0, last])
    assert difference(branch.features(pixels), torch.stack([caught[0][:, 0], caught[last][:, 0]], 1)) <= 1e-4
    assert files.config["tokens"] == 2


HINT = "(a CLIP of open_clip, or of transformers with its visual_projection)"
REFUSED: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "another size": (POOLED, "clip", {"width": 9}, "takes tokens of 9 numbers but the encoder gives 8"),
    "no head": (POOLED, "dinov2", {"width": 8},
                f"vision.c: its projector reads pooled features, which dinov2 does not give {HINT}"),
    "pooling queries": (POOLED, "coca", {"width": 16},
                        f"vision.c: its projector reads pooled features, which coca does not give {HINT}"),
    "no class token": (CLASS, "siglip", {"width": 32}, "vision.c: its projector reads class features, and "
                       "siglip has no class token (a vision transformer with one)"),
    "far": (BLOCKS, "clip", {"width": 32, "layers": [-1, 7]},
            "vision.c: its projector reads blocks features of blocks, and clip_vision_model has 3 blocks, and no block 7"),
    "a layer": (POOLED, "clip", {"width": 8}, "vision.c.layer: chooses among patch tokens, and its projector reads "
                "pooled features (leave `layer` out)"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_encoders_without_such_features(tmp_path: Path, installed: Path, case: str) -> None:
    kind, encoder, config, told = REFUSED[case]
    entry = {"name": "c", "projector": write_projector(tmp_path / "projector", kind, **config)}
    if encoder in OPEN_CLIP:
        whole_clip(encoder, tmp_path)
        entry |= {"open_clip": encoder, "weights": "clip.safetensors"}
    else:
        write_transformers(encoder, tmp_path / "tower")
        (tmp_path / "tower" / "preprocessor_config.json").write_text('{"size": {"height": 32, "width": 32}}')
        entry |= {"encoder": "tower"}
    entry |= {"layer": -2} if case == "a layer" else {}
    with pytest.raises((CheckpointError, RecipeError)) as error:
        read_encoder(entry, relative_to=tmp_path)
    assert str(error.value).endswith(told), str(error.value)
