"""Towers of original-LLaVA members: found, described, and matched with what the member's own file holds."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from timm.models.convnext import ConvNeXt
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

from fuse.anatomy import Member, open_member
from fuse.branches.convnext import ConvNext
from fuse.branches.convnext_files import convnext_names
from fuse.branches.llava_original import LlavaBranch
from fuse.branches.mgm import MgmBranch
from fuse.branches.towers import AUXILIARY, MAIN, Tower, tower_checkpoint, tower_names
from fuse.errors import CheckpointError, RecipeError
from tests import layouts
from tests.original_branches import SIGLIP, TOWER, difference, picture, see, seeded
from tests.test_branch_mgm import AUX, MgmEyes, mgm

CLIP = {k: v for k, v in TOWER.items() if k != "model_type"}
OFFICIAL = {
    "vision_tower.": "model.vision_tower.vision_tower.vision_model.",
    "vision_tower_aux.": "model.vision_tower_aux.",
    "multi_modal_projector.linear_1.": "model.mm_projector.0.",
    "multi_modal_projector.linear_2.": "model.mm_projector.2.",
    "vlm_uni": "model.vlm_uni",
}


def original(
    folder: Path,
    branch: torch.nn.Module,
    settings: dict[str, Any],
    keep: Any = lambda name: True,
    names: Any = None,
    **changes: Any,
) -> Member:
    """A member in layout A with the branch's tensors of which `keep` says yes."""
    language = {k: torch.zeros(s) for k, s in layouts.llama_shapes().items()}
    own = {layouts.renamed(k, names or OFFICIAL): t for k, t in branch.state_dict().items() if keep(k)}
    folder.mkdir(parents=True)
    config = {**{k: v for k, v in settings.items() if k != "towers"}, **layouts.LANGUAGE, **changes}
    layouts.write_config(config, folder)
    layouts.write_tensors({**language, **own}, folder)
    return open_member("m", str(folder), revision=None, relative_to=folder)


def towers_of(member: Member, overrides: dict[str, str], *, relative_to: Path) -> dict[str, Tower]:
    names = (MAIN, AUXILIARY) if member.family.model_type == "mgm" else (MAIN,)
    return {n: tower_checkpoint(member, n, overrides.get(n), relative_to=relative_to) for n in names}


def outside(name: str) -> bool:
    """Tensors that are no tower's."""
    return not name.startswith("vision_tower")


def clip_folder(folder: Path, seed: int = 1) -> Path:
    """A whole CLIP, text half and projections too, as transformers saves it."""
    torch.manual_seed(seed)
    text = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "vocab_size": 10,
    }
    CLIPModel(CLIPConfig(text_config=text, vision_config=CLIP, projection_dim=8)).save_pretrained(folder)
    return folder


def convnext_folder(folder: Path, file: str = "open_clip_model.safetensors", outer: str = "visual.trunk.") -> Path:
    """A ConvNeXt among the tensors of an open_clip model (or alone, as timm stores it)."""
    torch.manual_seed(2)
    trunk = ConvNeXt(depths=tuple(AUX["depths"]), dims=tuple(AUX["dims"]), num_classes=0)
    tensors = {outer + k: t for k, t in trunk.state_dict().items()}
    if outer:
        tensors |= {
            "logit_scale": torch.zeros(1),
            "text.token_embedding.weight": torch.zeros(3, 2),
            "visual.head.proj.weight": torch.zeros(2, 8),
        }
    folder.mkdir()
    save_file(tensors, folder / file)
    return folder


def tensors_of(member: Member, towers: dict[str, Tower]) -> dict[str, torch.Tensor]:
    """What a fused folder would store of the branch."""
    stored = load_file(member.folder / "model.safetensors")
    found = {p.canonical: stored[k] for k, p in member.places.items() if p and p.part != "language"}
    for tower in towers.values():
        for file in tower.checkpoint.weight_files if tower.checkpoint else ():
            found |= {tower.places[k]: t for k, t in load_file(file).items() if k in tower.places}
    return found


def test_names_are_those_that_branches_build() -> None:
    for config in (TOWER, SIGLIP):
        branch = LlavaBranch({**mgm(), "towers": {"vision_tower": config}})
        assert set(tower_names(config, "")) == {n for n in branch.state_dict() if n.startswith("vision_tower.")}
    ours = ConvNext({"towers": {"vision_tower_aux": AUX}})
    assert set(convnext_names(AUX)) == {f"vision_tower_aux.{n}" for n in ours.state_dict()}


@pytest.mark.parametrize(
    ("file", "outer"), [("open_clip_model.safetensors", "visual.trunk."), ("model.safetensors", "")]
)
def test_a_member_without_towers_gets_them_whole(file: str, outer: str, tmp_path: Path) -> None:
    clip, convnext = clip_folder(tmp_path / "clip"), convnext_folder(tmp_path / "convnext", file, outer)
    branch = seeded(MgmBranch(mgm()))
    member = original(tmp_path / "m", branch, mgm(), outside, mm_hidden_size=12, mm_vision_tower="elsewhere/clip")
    found = towers_of(member, {"vision_tower": "clip", "vision_tower_aux": str(convnext)}, relative_to=tmp_path)
    assert list(found) == ["vision_tower", "vision_tower_aux"]
    for tower in found.values():
        assert tower.checkpoint is not None
        assert {*tower.places, *tower.dropped} == set(tower.checkpoint.tensors)
        assert not tower.places.keys() & tower.dropped.keys()
    assert found["vision_tower_aux"].config == AUX
    settings = {**mgm(), "towers": json.loads(json.dumps({name: dict(tower.config) for name, tower in found.items()}))}
    again = MgmBranch(settings)
    again.load_state_dict(tensors_of(member, found))
    tower = CLIPVisionModel.from_pretrained(clip)
    branch.vision_tower.load_state_dict(tower.state_dict())
    stored = load_file(convnext / file)
    kept = {
        f"vision_{k.removeprefix(outer)}": t
        for k, t in stored.items()
        if k.startswith((f"{outer}stem", f"{outer}stages"))
    }
    branch.vision_tower_aux.load_state_dict(kept)
    prepared = MgmEyes(mgm(), tmp_path / "none").prepare(picture(50, 60))
    assert difference(see(again.eval(), prepared)[0].tokens, see(branch, prepared)[0].tokens) == 0


def test_what_is_left_out_has_a_reason(tmp_path: Path) -> None:
    overrides = {
        "vision_tower": str(clip_folder(tmp_path / "clip")),
        "vision_tower_aux": str(convnext_folder(tmp_path / "convnext")),
    }
    member = original(tmp_path / "m", MgmBranch(mgm()), mgm(), outside)
    found = towers_of(member, overrides, relative_to=tmp_path)
    reasons = {key: reason for tower in found.values() for key, reason in tower.dropped.items()}
    text, behind = (
        "the text half of the tower's checkpoint",
        "what comes after the tower's patches, which LLaVA does not use",
    )
    assert reasons["text.token_embedding.weight"] == text and reasons["visual.head.proj.weight"] == behind
    assert reasons["logit_scale"] == behind and reasons["visual_projection.weight"] == behind
    assert {reasons[k] for k in reasons if k.startswith("text_model.")} == {text}
    assert reasons["visual.trunk.head.norm.weight"] == behind


def test_only_what_the_member_lacks_is_taken(tmp_path: Path) -> None:
    branch = seeded(LlavaBranch(mgm()))
    member = original(
        tmp_path / "m", branch, mgm(), lambda n: outside(n) or "layers.1." in n, model_type="llava_llama", mm_vision_tower="clip"
    )  # fmt: skip
    clip_folder(tmp_path / "clip")
    (tower,) = towers_of(member, {}, relative_to=tmp_path).values()
    assert not [name for name in tower.places.values() if "layers.1." in name]
    assert {tower.dropped[k] for k in tower.dropped if "vision_model.encoder.layers.1." in k} == {
        "the checkpoint holds its own"
    }
    again = LlavaBranch({**mgm(), "towers": {"vision_tower": tower.config}})
    again.load_state_dict(tensors_of(member, {"vision_tower": tower}))
    name = "encoder.layers.1.mlp.fc1.weight"
    assert torch.equal(again.vision_tower.state_dict()[name], branch.vision_tower.state_dict()[name])


def test_a_siglip_tower_gives_all_but_its_last_layer_and_its_head(tmp_path: Path) -> None:
    settings = {**mgm(model_type="llava_qwen", towers={"vision_tower": SIGLIP})}
    SiglipVisionModel(SiglipVisionConfig(**{k: v for k, v in SIGLIP.items() if k != "model_type"})).save_pretrained(
        tmp_path / "siglip"
    )
    member = original(
        tmp_path / "m", LlavaBranch(settings), settings, outside, model_type="llava_llama", mm_vision_tower="siglip"
    )
    (tower,) = towers_of(member, {}, relative_to=tmp_path).values()
    again = LlavaBranch({**settings, "towers": {"vision_tower": tower.config}})
    again.load_state_dict(tensors_of(member, {"vision_tower": tower}))
    reasons = {k.removeprefix("vision_model."): r for k, r in tower.dropped.items()}
    assert reasons["encoder.layers.2.mlp.fc1.weight"] == "not part of the tower as LLaVA uses it"
    assert reasons["head.probe"] == "what comes after the tower's patches, which LLaVA does not use"


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_member_that_holds_a_well_known_tower_needs_no_other_file(kind: str, tmp_path: Path) -> None:
    if kind == "clip":
        place = "model_zoo/OpenAI/clip-vit-large-patch14-336"
        tower = {**TOWER, "hidden_size": 64, "num_attention_heads": 1, "num_channels": 3, "layer_norm_eps": 1e-5}
    else:
        place = "google/siglip-so400m-patch14-384"
        tower = {**SIGLIP, "hidden_size": 72, "num_attention_heads": 1, "num_channels": 3, "layer_norm_eps": 1e-6}
    settings = mgm(towers={"vision_tower": tower, "vision_tower_aux": AUX}, mm_hidden_size=tower["hidden_size"])
    member = original(
        tmp_path / "m", MgmBranch(settings), settings, mm_vision_tower=place, mm_vision_tower_aux="model_zoo/x"
    )
    found = towers_of(member, {}, relative_to=tmp_path)
    assert found["vision_tower"] == Tower(tower, None, {}, {})
    assert found["vision_tower_aux"] == Tower(AUX, None, {}, {})


def test_a_saved_vision_config_may_leave_out_defaults(tmp_path: Path) -> None:
    clip = clip_folder(tmp_path / "clip")
    config = json.loads((clip / "config.json").read_text())
    for key in ("hidden_act", "layer_norm_eps", "num_channels"):
        config["vision_config"].pop(key, None)
    (clip / "config.json").write_text(json.dumps(config))
    member = original(tmp_path / "m", LlavaBranch(mgm()), mgm(), outside, model_type="llava_llama")
    (tower,) = towers_of(member, {"vision_tower": "clip"}, relative_to=tmp_path).values()
    wanted = CLIPVisionConfig(**CLIP)
    for key in ("hidden_act", "layer_norm_eps", "num_channels", "num_hidden_layers", "image_size"):
        assert tower.config[key] == getattr(wanted, key)


def test_a_missing_tower_is_one_sentence(tmp_path: Path) -> None:
    member = original(
        tmp_path / "m", LlavaBranch(mgm()), mgm(), outside, model_type="llava_llama", mm_vision_tower="./not/here"
    )
    with pytest.raises(CheckpointError) as caught:
        towers_of(member, {}, relative_to=tmp_path)
    assert str(caught.value) == (
        f"{member.folder}/config.json: mm_vision_tower is './not/here', and ./not/here does not open: './not/here' does not exist "
        "(`towers: {vision_tower: FOLDER}` at the member in the recipe, a folder of safetensors)"
    )


def test_a_hub_tower_without_a_network_is_one_sentence(tmp_path: Path) -> None:
    place = "model_zoo/OpenAI/clip-vit-large-patch14-336"
    member = original(
        tmp_path / "m", LlavaBranch(mgm()), mgm(), outside, model_type="llava_llama", mm_vision_tower=place
    )
    with pytest.raises(CheckpointError) as caught:
        towers_of(member, {}, relative_to=tmp_path)
    begin = f"{member.folder}/config.json: mm_vision_tower is {place!r}, and openai/clip-vit-large-patch14-336 does not open: "
    assert str(caught.value).startswith(begin)
    assert str(caught.value).endswith(
        "(`towers: {vision_tower: FOLDER}` at the member in the recipe, a folder of safetensors)"
    )


def test_a_config_that_names_no_tower(tmp_path: Path) -> None:
    member = original(
        tmp_path / "m", MgmBranch(mgm()), mgm(), outside, mm_vision_tower=str(clip_folder(tmp_path / "clip"))
    )
    with pytest.raises(CheckpointError) as caught:
        towers_of(member, {}, relative_to=tmp_path)
    assert str(caught.value) == (
        f"{member.folder}/config.json: mm_vision_tower_aux is missing "
        "(`towers: {vision_tower_aux: FOLDER}` at the member in the recipe, a folder of safetensors)"
    )


def test_the_recipes_own_mistake_is_the_recipes(tmp_path: Path) -> None:
    member = original(tmp_path / "m", LlavaBranch(mgm()), mgm(), outside, model_type="llava_llama")
    with pytest.raises(RecipeError) as caught:
        towers_of(member, {"vision_tower": "./nowhere"}, relative_to=tmp_path)
    assert str(caught.value) == "'./nowhere' does not exist (a folder, relative to the recipe, or a hub id org/name)"


def test_folders_that_hold_no_such_tower(tmp_path: Path) -> None:
    member = original(
        tmp_path / "m", MgmBranch(mgm()), mgm(), outside, mm_vision_tower=str(clip_folder(tmp_path / "clip"))
    )
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(CheckpointError) as caught:
        towers_of(member, {"vision_tower_aux": "empty"}, relative_to=tmp_path)
    assert str(caught.value) == (
        f"{empty}: holds neither open_clip_model.safetensors nor model.safetensors (open_clip's pickle is not read: "
        "load it where you trust it, and save its state_dict as safetensors)"
    )
    with pytest.raises(CheckpointError) as caught:
        towers_of(member, {"vision_tower_aux": "clip"}, relative_to=tmp_path)
    assert str(caught.value) == f"{tmp_path / 'clip'}: holds no ConvNeXt of open_clip or timm (stem, stages of blocks)"
    with pytest.raises(CheckpointError) as caught:
        towers_of(member, {"vision_tower": "m"}, relative_to=tmp_path)
    assert str(caught.value) == (
        f"{member.folder}/config.json: model_type 'mgm' is no tower of an original LLaVA; fuse knows clip and siglip"
    )


def test_a_tower_that_lacks_a_tensor_or_does_not_fit(tmp_path: Path) -> None:
    clip = clip_folder(tmp_path / "clip")
    tensors = load_file(clip / "model.safetensors")
    short = {k: t for k, t in tensors.items() if not k.endswith("post_layernorm.weight")}
    save_file(short, clip / "model.safetensors")
    member = original(tmp_path / "m", LlavaBranch(mgm()), mgm(), outside, model_type="llava_llama")
    with pytest.raises(CheckpointError) as caught:
        towers_of(member, {"vision_tower": "clip"}, relative_to=tmp_path)
    assert (
        str(caught.value)
        == f"{clip}: tensor 'vision_tower.post_layernorm.weight' is in neither the checkpoint nor its tower"
    )
    save_file(tensors, clip / "model.safetensors")
    deeper = mgm(towers={"vision_tower": {**TOWER, "num_hidden_layers": 4}})
    other = original(tmp_path / "o", LlavaBranch(deeper), deeper, model_type="llava_llama")
    with pytest.raises(CheckpointError) as caught:
        towers_of(other, {"vision_tower": "clip"}, relative_to=tmp_path)
    assert str(caught.value).endswith(f" is not part of the tower in {clip}")


BETTER = "; better, copy the config from the tower's own repository"
LIES = {
    ("num_hidden_layers", 1): "the tower's file holds 3 layers (num_hidden_layers 3 fits this file",
    ("hidden_size", 24):
        "the tower's file has a patch embedding of shape [12, 3, 14, 14] (hidden_size 12 fits this file",
    ("num_channels", 1): "the tower's file has a patch embedding of shape [12, 3, 14, 14] (num_channels 3 fits this file",
    ("patch_size", 7): "the tower's file has a patch embedding of shape [12, 3, 14, 14] (patch_size 14 fits this file",
    ("image_size", 112):
        "the tower's file has 17 positions of 12 numbers for patches of 14 (image_size 56 fits this file",
    ("intermediate_size", 40):
        "the tower's file has a first MLP layer of shape [20, 12] (intermediate_size 20 fits this file",
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_towers_config_is_that_of_its_file(lie: tuple[str, int], tmp_path: Path) -> None:
    clip = clip_folder(tmp_path / "clip")
    config = json.loads((clip / "config.json").read_text())
    config["vision_config"][lie[0]] = lie[1]
    (clip / "config.json").write_text(json.dumps(config))
    member = original(tmp_path / "m", LlavaBranch(mgm()), mgm(), outside, model_type="llava_llama")
    with pytest.raises(CheckpointError) as caught:
        towers_of(member, {"vision_tower": "clip"}, relative_to=tmp_path)
    assert str(caught.value) == f"{clip}/config.json: {lie[0]} is {lie[1]}, but {LIES[lie]}{BETTER})"


def test_a_siglip_towers_config_is_that_of_its_file(tmp_path: Path) -> None:
    folder = tmp_path / "siglip"
    made = SiglipVisionConfig(**{k: v for k, v in SIGLIP.items() if k != "model_type"})
    SiglipVisionModel(made).save_pretrained(folder)
    settings = {**mgm(model_type="llava_qwen", towers={"vision_tower": SIGLIP})}
    member = original(tmp_path / "m", LlavaBranch(settings), settings, outside, model_type="llava_llama")
    config = json.loads((folder / "config.json").read_text())
    for key, value, told in (
        ("num_hidden_layers", 2, "the tower's file holds 3 layers (num_hidden_layers 3 fits this file"),
        ("image_size", 28, "the tower's file has 16 positions of 12 numbers for patches of 14 (image_size 56 fits this file"),
    ):  # fmt: skip
        (folder / "config.json").write_text(json.dumps({**config, key: value}))
        with pytest.raises(CheckpointError) as caught:
            towers_of(member, {"vision_tower": "siglip"}, relative_to=tmp_path)
        assert str(caught.value) == f"{folder}/config.json: {key} is {value}, but {told}{BETTER})"


def test_it_needs_no_torch() -> None:
    code = "import sys, fuse.branches.towers, fuse.branches.original_tokens; print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
