"""SliME branches against the official code's numbers; the gated projector, which has no golden, against numpy."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fuse.branches.clip_tower import look
from fuse.branches.original_tokens import original_tokens
from fuse.branches.slime import GatedProjector, SlimeBranch, SlimeEyes
from fuse.errors import CheckpointError, RecipeError
from tests.original_branches import (
    SIGLIP,
    TOWER,
    built,
    canonical,
    difference,
    embedding,
    golden,
    nearly_the_same,
    picture,
    round_trip,
    see,
    seeded,
    set_heads,
    slime,
)


@pytest.mark.parametrize("name", ["slime_encode_flat", "slime_encode_spatial"])
def test_images_become_the_official_tokens(name: str, tmp_path: Path) -> None:
    tensors, facts = golden(name)
    made = facts["constructor"]
    tower = {
        **TOWER,
        "hidden_size": made["D"],
        "image_size": made["tower_image_size"],
        "patch_size": made["tower_image_size"] // made["tower_grid"],
    }
    settings = slime(
        hidden_size=made["H"], mm_hidden_size=made["D"], towers={"vision_tower": tower}, mm_resampler_type="qformer",
        mm_resampler_dim=made["grid"] ** 2, mm_resampler_topp=made["topp"], mm_resampler_temp=made["temp"],
        mm_patch_merge_type=made["mm_patch_merge_type"], seperator=made["separator_id"],
    )  # fmt: skip
    branch = built(SlimeBranch(settings), canonical(tensors, settings))
    set_heads(branch.sampler, made["selector_heads"])
    embed = nn.Embedding.from_pretrained(tensors["param.embed_tokens.weight"])
    eyes = SlimeEyes(settings, tmp_path)
    features = tensors["input.tower_features"].split(made["crops_per_sample"])
    for i, (size, own) in enumerate(zip(made["image_sizes"], features, strict=True)):
        prepared = eyes.prepare(picture(*size))
        ids, mask = tensors["input.input_ids"][i], tensors["input.attention_mask"][i].bool()
        grid = tuple(prepared.inputs["slices"].tolist())
        with torch.no_grad():
            found = branch.eval().tokens(own, grid, ids[mask & (ids >= 0)], embed)
        assert len(prepared.inputs["pixel_values"]) == len(own)
        assert difference(found, tensors[f"output.image_{i}"]) <= float(facts["tolerance"])
        assert len(found) < prepared.tokens == 9 + 1 + 4 * (len(own) - 1)


@pytest.mark.parametrize("kind", ["cosine", "qformer"])
@pytest.mark.parametrize("size", [(60, 60), (200, 40), (37, 300)])
def test_the_whole_comes_first_then_the_separator_then_what_the_text_asks_for(
    kind: str, size: tuple[int, int], tmp_path: Path
) -> None:
    settings = slime(mm_resampler_type=kind, mm_resampler_topp=0.5)
    branch = seeded(SlimeBranch(settings))
    prepared = SlimeEyes(settings, tmp_path).prepare(picture(*size))
    (seen,) = see(branch, prepared)
    rows, columns = prepared.inputs["slices"].tolist()
    assert prepared.variable and prepared.layout == (17 + 4 * rows * columns,)
    assert original_tokens("slime", settings, size) == prepared.tokens
    with torch.no_grad():
        features, _ = look(branch.vision_tower, prepared.inputs["pixel_values"], branch.sight)
        whole = branch.multi_modal_projector(features[0])
        parts = branch.multi_modal_projector(branch.sampler.post_qformer(features[1:]))
    cells = parts.reshape(rows, columns, 2, 2, 16).permute(0, 2, 1, 3, 4).reshape(-1, 16)
    assert difference(seen.tokens[:16], whole) < 1e-6
    assert torch.equal(seen.tokens[16], embedding().weight[7])
    chosen = [int((cells - token).abs().sum(-1).argmin()) for token in seen.tokens[17:]]
    assert 0 < len(chosen) < len(cells) and chosen == sorted(set(chosen))
    assert difference(seen.tokens[17:], cells[chosen]) < 1e-6


def test_another_question_chooses_other_tokens_of_the_same_image(tmp_path: Path) -> None:
    settings = slime(mm_resampler_temp=0.1, mm_resampler_topp=0.3)
    branch = seeded(SlimeBranch(settings))
    prepared = SlimeEyes(settings, tmp_path).prepare(picture(120, 110))
    text = [torch.tensor([1, 2]), torch.tensor([20, 21, 22])]
    one, other = see(branch, prepared, prepared, text=text)
    assert torch.equal(one.tokens[:17], other.tokens[:17])
    assert one.tokens.shape != other.tokens.shape or not torch.equal(one.tokens, other.tokens)
    (alone,) = see(branch, prepared, text=text[1:])
    assert difference(alone.tokens, other.tokens) < 1e-5


def test_one_part_of_the_two_can_be_left_out(tmp_path: Path) -> None:
    image = picture(60, 60)
    for changes, tokens, variable in (
        ({"use_global_only": True}, 16, False),
        ({"use_local_only": True}, 8, True),
        ({"image_aspect_ratio": "pad"}, 16, False),
    ):
        settings = slime(mm_resampler_topp=1.0, **changes)
        prepared = SlimeEyes(settings, tmp_path).prepare(image)
        (seen,) = see(seeded(SlimeBranch(settings)), prepared)
        assert prepared.layout == (tokens,) and prepared.variable == variable
        assert len(seen.tokens) == tokens


def test_a_prompt_without_words_is_refused(tmp_path: Path) -> None:
    prepared = SlimeEyes(slime(), tmp_path).prepare(picture(60, 60))
    with pytest.raises(RecipeError) as caught:
        see(SlimeBranch(slime()), prepared, text=[torch.tensor([], dtype=torch.long)])
    assert str(caught.value) == "SliME chooses its image tokens by the words of the prompt, and this prompt has none"


def test_there_is_no_class_attention(tmp_path: Path) -> None:
    prepared = SlimeEyes(slime(), tmp_path).prepare(picture(60, 60))
    with pytest.raises(CheckpointError, match=r"no class token .* \(prune: norm works\)$"):
        see(SlimeBranch(slime()), prepared, attention=True)


@pytest.mark.parametrize("only", [-1, 0, 1])
def test_the_gated_projector_against_numpy(only: int) -> None:
    module = seeded(GatedProjector(12, 16, only)).double()
    module.attn.pos_embed.data = module.attn.pos_embed.data.half().double()
    features = torch.randn(2, 576, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    weights = {name: t.numpy() for name, t in module.state_dict().items()}

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        return (
            centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * weights[f"attn.{name}.weight"]
            + weights[f"attn.{name}.bias"]
        )

    def softmax(x: np.ndarray) -> np.ndarray:
        powers = np.exp(x - x.max(-1, keepdims=True))
        return powers / powers.sum(-1, keepdims=True)

    def mlp(x: np.ndarray) -> np.ndarray:
        hidden = x @ weights["linear_1.weight"].T + weights["linear_1.bias"]
        hidden = hidden * 0.5 * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2)))
        return hidden @ weights["linear_2.weight"].T + weights["linear_2.bias"]

    x = features.numpy()
    value = norm(x, "ln_kv")
    inputs = (norm(weights["attn.query"], "ln_q") + weights["attn.pos_embed"], value + weights["attn.pos_embed"], value)
    q, k, v = (
        i @ w.T + b
        for i, w, b in zip(
            inputs,
            np.split(weights["attn.attn.in_proj_weight"], 3),
            np.split(weights["attn.attn.in_proj_bias"], 3),
            strict=True,
        )
    )
    read = softmax(q @ k.transpose(0, 2, 1) / math.sqrt(12)) @ v
    read = norm(read @ weights["attn.attn.out_proj.weight"].T + weights["attn.attn.out_proj.bias"], "ln_post")
    gates = softmax(x @ weights["w_gate"])
    gates = gates / (gates.sum(-1, keepdims=True) + 1e-6)
    wanted = {0: mlp(x), 1: mlp(read), -1: mlp(x) * gates[..., :1] + mlp(read) * gates[..., 1:]}[only]
    with torch.no_grad():
        assert np.abs(module(features).numpy() - wanted).max() < 1e-9
        assert np.abs(module(features[:, :4]).numpy() - mlp(x[:, :4])).max() < 1e-9


def test_built_on_meta_and_loaded_by_transformers_it_gives_the_same_tokens(tmp_path: Path) -> None:
    settings = slime(mm_resampler_type="qformer", mm_projector_type="gated")
    with torch.device("meta"):
        assert all(t.is_meta for t in SlimeBranch(settings).state_dict().values())
    branch = seeded(SlimeBranch(settings))
    prepared = SlimeEyes(settings, tmp_path).prepare(picture(100, 40))
    again = round_trip(branch, settings, SlimeBranch, tmp_path / "saved")
    assert torch.equal(see(again, prepared)[0].tokens, see(branch, prepared)[0].tokens)


@pytest.mark.parametrize("kind", ["cosine", "qformer"])
def test_in_bfloat16_it_sees_nearly_the_same(kind: str, tmp_path: Path) -> None:
    settings = slime(mm_resampler_type=kind, mm_resampler_topp=1.0)
    nearly_the_same(seeded(SlimeBranch(settings)), SlimeEyes(settings, tmp_path).prepare(picture(100, 40)))


def test_parameter_names_are_the_canonical_ones() -> None:
    settings = slime(mm_projector_type="gated")
    official = {
        "model.mm_projector.w_gate", "model.mm_projector.w_noise",
        *(f"model.mm_projector.projection.{n}.{k}" for n in (0, 2) for k in ("weight", "bias")),
    }  # fmt: skip
    resampler = {"pos_embed", "query", "attn.in_proj_weight", "attn.in_proj_bias"}
    resampler |= {f"{m}.{k}" for m in ("attn.out_proj", "ln_q", "ln_kv", "ln_post") for k in ("weight", "bias")}
    official |= {
        f"{outer}.{name}" for outer in ("model.mm_projector.attn", "model.sampler.post_qformer") for name in resampler
    }
    names = canonical({f"param.{key}": torch.zeros(1) for key in official}, settings, "")
    ours = {n for n in SlimeBranch(settings).state_dict() if not n.startswith("vision_tower.")}
    assert ours == set(names)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mm_resampler_type": "identity"}, "config.json: mm_resampler_type is 'identity'; fuse knows cosine, qformer"),
        ({"mm_resampler_type": None}, "config.json: mm_resampler_type is missing; fuse knows cosine, qformer"),
        ({"mm_resampler_topp": None}, "config.json: mm_resampler_topp is None, not a number above 0 and up to 1"),
        ({"mm_resampler_temp": 0}, "config.json: mm_resampler_temp is 0, not a number above 0 and up to 1e+06"),
        ({"mm_resampler_dim": 0}, "config.json: mm_resampler_dim is 0, not a positive whole number"),
        ({"seperator": "\n"}, "config.json: seperator is '\\n', not a token's id"),
        ({"mm_patch_merge_type": "spatial_unpad"}, "config.json: mm_patch_merge_type is 'spatial_unpad', which SliME does not have"),
        ({"mm_learnable_gated": 2, "mm_projector_type": "gated"}, "config.json: mm_learnable_gated is 2; fuse knows -1, 0, 1"),
        ({"image_aspect_ratio": "pad_then_devide"}, "config.json: image_aspect_ratio is 'pad_then_devide'; fuse knows square, pad, anyres"),
        ({"towers": None}, "config.json: towers.vision_tower is missing"),
    ],
)  # fmt: skip
def test_what_it_does_not_know_it_says(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        SlimeBranch(slime(**changes))
    assert str(caught.value) == message


def test_a_siglip_tower_works_too(tmp_path: Path) -> None:
    settings = slime(towers={"vision_tower": SIGLIP})
    prepared = SlimeEyes(settings, tmp_path).prepare(picture(60, 60))
    (seen,) = see(seeded(SlimeBranch(settings)), prepared)
    assert 17 < len(seen.tokens) <= prepared.tokens
