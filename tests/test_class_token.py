"""`prune: cls`: what `plan` says of a branch beforehand is what the branch does."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from fuse.branches import native
from fuse.branches.class_attention import class_attention
from fuse.branches.class_token import has_class_token
from fuse.branches.encoder import EncoderBranch
from fuse.branches.encoder_files import read_encoder
from fuse.branches.llava_original import LlavaBranch, LlavaEyes
from fuse.branches.mgm import MgmBranch, MgmEyes
from fuse.branches.native_table import NATIVE
from fuse.branches.slime import SlimeBranch, SlimeEyes
from fuse.branches.tower_types import TOWER_TYPES
from fuse.errors import FuseError
from tests import fused_members, tiny_encoders, tiny_processors, tiny_vlm
from tests.cli import fuse_here
from tests.original_branches import SIGLIP, anyres, config, picture, see, seeded, slime
from tests.test_branch_mgm import mgm
from tests.test_branch_towers import OFFICIAL, clip_folder, original, outside

MLCD = {"model_type": "mlcd_vision_model", **tiny_vlm.TOWER}
# what to change in a family's tiny config, and whether its visual tokens are patches that a class token looks at
NATIVES: dict[str, tuple[str, dict[str, Any], bool]] = {
    **{kind: (kind, {}, kind == "llava") for kind in NATIVE},
    "first layer": ("llava", {"vision_feature_layer": 1}, True),
    "last layer": ("llava", {"vision_feature_layer": -1}, True),
    "embeddings": ("llava", {"vision_feature_layer": 0}, False),
    "embeddings from the end": ("llava", {"vision_feature_layer": -3}, False),
    "two layers": ("llava", {"vision_feature_layer": [-1, -2]}, False),
    "class token among the tokens": ("llava", {"vision_feature_select_strategy": "full"}, False),
    "SigLIP": ("llava", {"vision_config": tiny_vlm.SIGLIP, "vision_feature_select_strategy": "full"}, False),
    "SigLIP, read as CLIP": ("llava", {"vision_config": tiny_vlm.SIGLIP}, False),
    "MLCD, whose attention turns": ("llava", {"vision_config": MLCD}, False),
}


def refused(look: Any) -> bool:
    """Whether the branch says no; any other way to fail is one."""
    try:
        look()
    except FuseError as error:
        assert error.hint == "prune: norm works"
        return True
    return False


@pytest.mark.parametrize("case", NATIVES)
def test_native_branches(case: str) -> None:
    kind, changes, wanted = NATIVES[case]
    values = tiny_vlm.build_from(kind, changes).config.to_dict()
    assert has_class_token("native", values) is wanted
    assert has_class_token("native", json.loads(json.dumps(values))) is wanted
    model: Any = native.build(values, "eager").eval()
    pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    run = partial(model.get_image_features, pixel_values=pixels)
    assert refused(lambda: class_attention(model, run, NATIVE[kind].patches)) is not wanted
    if wanted:
        passes: list[Any] = []
        model.vision_tower.register_forward_hook(lambda *_: passes.append(1))
        with torch.no_grad():
            seen = native.see(model, {"pixel_values": [*pixels[:, None]]}, attention=True)
            plain = native.see(model, {"pixel_values": [*pixels[:, None]]})
        assert len(passes) == 2, "one pass for both images gives tokens and attention"
        for one, other in zip(seen, plain, strict=True):
            assert torch.equal(one.tokens, other.tokens) and other.attention is None
            assert one.attention.shape == one.tokens.shape[:1]
            assert (one.attention > 0).all() and one.attention.sum() < 1


def test_what_a_config_leaves_out_is_a_clip_of_24_layers() -> None:
    assert has_class_token("native", {"model_type": "llava", "vision_feature_layer": -24})
    assert not has_class_token("native", {"model_type": "llava", "vision_feature_layer": -25})
    assert not has_class_token("native", {"model_type": "llava", "vision_config": {"num_hidden_layers": "x"}})


LLAVA, MGM, SLIME = (
    ("llava_original", LlavaBranch, LlavaEyes),
    ("mgm", MgmBranch, MgmEyes),
    ("slime", SlimeBranch, SlimeEyes),
)
TOWERS = {"towers": {"vision_tower": SIGLIP}}
ORIGINALS: dict[str, tuple[tuple[str, Any, Any], dict[str, Any], bool]] = {
    "square": (LLAVA, config(image_aspect_ratio=None), True),
    "pad": (LLAVA, config(), True),
    "unpad without tiles": (LLAVA, config(mm_patch_merge_type="spatial_unpad"), True),
    "flat tiles": (LLAVA, anyres("flat"), True),
    "tiles in one map": (LLAVA, anyres("spatial"), True),
    "tiles without their padding": (LLAVA, anyres("spatial_unpad"), False),
    "embeddings": (LLAVA, config(mm_vision_select_layer=0), False),
    "class token among the tokens": (LLAVA, config(mm_vision_select_feature="cls_patch"), False),
    "SigLIP": (LLAVA, config(**TOWERS), False),
    "MGM": (MGM, mgm(), True),
    "MGM in views": (MGM, mgm(image_grid=2, image_global=True, image_size_aux=128), True),
    "MGM with SigLIP": (MGM, mgm(towers={**mgm()["towers"], **TOWERS["towers"]}), False),
    "SliME": (SLIME, slime(), False),
    "SliME without tiles": (SLIME, slime(image_aspect_ratio="pad", mm_patch_merge_type="flat"), False),
}


@pytest.mark.parametrize("case", ORIGINALS)
def test_original_branches(case: str, tmp_path: Path) -> None:
    (kind, branch, eyes), values, wanted = ORIGINALS[case]
    assert has_class_token(kind, values) is wanted
    made, prepared = seeded(branch(values)), eyes(values, tmp_path).prepare(picture(100, 60))
    assert refused(lambda: see(made, prepared, attention=True)) is not wanted
    if wanted:
        (seen,) = see(made, prepared, attention=True)
        assert seen.attention.shape == seen.tokens.shape[:1]


ENCODERS = {"plain": True, "resnet": False, "test_vit": True, "siglip": False, "convnext": False}


@pytest.mark.parametrize("name", ENCODERS)
def test_encoder_branches(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fuse.branches import open_clip_files

    package = tiny_encoders.install(tmp_path)
    monkeypatch.setattr(open_clip_files, "_package", lambda: package)
    tiny_encoders.whole_clip(name, tmp_path)
    width = {"plain": 32, "resnet": 256, "test_vit": 64, "siglip": 96, "convnext": 64}[name]
    entry = {"name": "c", "open_clip": name, "weights": "clip.safetensors"}
    files = read_encoder({**entry, "projector": tiny_encoders.write_projector(tmp_path, width)}, relative_to=tmp_path)
    assert files.has_class is ENCODERS[name]
    edge = tiny_encoders.OPEN_CLIP[name]["image_size"]
    made: Any = tiny_encoders.randomise(EncoderBranch(files.config))
    pixels = torch.randn(1, 3, edge, edge, generator=torch.Generator().manual_seed(1))
    assert refused(lambda: tiny_encoders.see(made, pixels, attention=True)) is not ENCODERS[name]


TIMM = {
    "convit_tiny": 192,
    "cait_xxs24_224": 192,
    "eva02_tiny_patch14_224": 192,
    "test_vit": 64,
    "test_convnext": 64,
    "test_vit3": 96,
    "xcit_nano_12_p16_224": 128,
}


@pytest.mark.parametrize("name", [*TIMM, *(kind for kind in TOWER_TYPES if kind not in tiny_encoders.WITH_STAGES)])
def test_encoder_branches_of_timm_and_transformers(name: str, tmp_path: Path) -> None:
    if name in TIMM:
        whole: Any = tiny_encoders.randomise(timm.create_model(name, num_classes=0))
        save_file({k: t.contiguous() for k, t in whole.state_dict().items()}, tmp_path / "w.safetensors")
        entry, width, edge = {"timm": name, "weights": "w.safetensors"}, TIMM[name], whole.default_cfg["input_size"][1]
    else:
        tiny_encoders.write_transformers(name, tmp_path / "encoder")
        entry, width, edge = {"encoder": "encoder"}, 32, 32
    projector = tiny_encoders.write_projector(tmp_path, width)
    files = read_encoder({"name": "c", "projector": projector, **entry}, relative_to=tmp_path)
    branch: Any = tiny_encoders.randomise(EncoderBranch(files.config))
    pixels = torch.randn(1, 3, edge, edge, generator=torch.Generator().manual_seed(1))
    assert refused(lambda: tiny_encoders.see(branch, pixels, attention=True)) is not files.has_class


PLAN = "language: {method: linear, weights: {a: 1}}\nvision: [{from: %s, max_tokens: 2, prune: cls}]\n"
TOLD = "r.yaml:3:35: vision.0.prune: cls needs a class token that looks at every visual token, and %s has none " \
       "(`prune: norm` works)"  # fmt: skip


@pytest.mark.parametrize("kind", [kind for kind in tiny_processors.PROCESSORS if kind in fused_members.SPECIAL])
def test_plan_and_merge_refuse(kind: str, tmp_path: Path) -> None:
    fused_members.save(kind, tmp_path / "a")
    (tmp_path / "r.yaml").write_text("members: {a: a}\n" + PLAN % "a")
    told = "" if kind == "llava" else f"fuse: {TOLD % f'a ({kind})'}\n"
    planned = fuse_here("plan", tmp_path / "r.yaml")
    assert (planned.code, planned.err) == (2 if told else 0, told)
    if told:
        assert fuse_here("merge", tmp_path / "r.yaml", tmp_path / "out").err == told
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("merge", "aspect", "told"),
    [("flat", "pad", ""), ("flat", "anyres", ""), ("spatial_unpad", "anyres", TOLD % "a (llava_llama)")],
)
def test_plan_of_an_original_llava(merge: str, aspect: str, told: str, tmp_path: Path) -> None:
    values = anyres(merge, image_aspect_ratio=aspect, hidden_size=32)
    clip_folder(tmp_path / "clip")
    made = original(
        tmp_path / "a",
        LlavaBranch(values),
        values,
        outside,
        {**OFFICIAL, "image_newline": "model.image_newline"},
        mm_vision_tower="clip",
        model_type="llava_llama",
    )
    tiny_processors.tokenizer("llava").save_pretrained(made.folder)
    (tmp_path / "r.yaml").write_text("members: {a: a}\n" + PLAN % "a")
    ran = fuse_here("plan", tmp_path / "r.yaml")
    assert (ran.code, ran.err) == (2 if told else 0, f"fuse: {told}\n" if told else "")


def test_asking_needs_no_torch() -> None:
    code = (
        "import sys; from fuse.branches.class_token import has_class_token; has_class_token('native', {'model_type': "
        "'llava'}); print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
