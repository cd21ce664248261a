"""Tiny members, towers and encoder files in place of the big ones that recipes and documents name."""

import atexit
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file

from fuse.branches import open_clip_files
from fuse.branches.mgm import MgmBranch
from fuse.branches.slime import SlimeBranch
from tests import fused_members, layouts, tiny_encoders, tiny_processors, tiny_text, tiny_vlm
from tests.members import TEMPLATE, perturbed
from tests.original_branches import seeded, slime
from tests.test_branch_mgm import mgm
from tests.test_branch_towers import OFFICIAL, clip_folder, convnext_folder, original, outside
from tests.test_fused_originals import GATED
from tests.test_fused_seq2seq import save_t5

TEXT = {k: v for k, v in tiny_vlm.GROUPED.items() if k != "pad_token_id"}
LLMS = {
    "llama": (transformers.LlamaForCausalLM, transformers.LlamaConfig),
    "mistral": (transformers.MistralForCausalLM, transformers.MistralConfig),
    "qwen2": (transformers.Qwen2ForCausalLM, transformers.Qwen2Config),
}
LLAMA_3 = ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
ORIGINAL = {"mgm", "slime"}
ACROSS = "across"  # the host of every bridge, which is the first member once more
Donor = Callable[[Path, Mapping[str, Any]], object]
HIDDEN, CLIP, CONVNEXT = tiny_vlm.TEXT["hidden_size"], "clip", "convnext"


def build(kind: str) -> Any:
    """The random model that all tiny members of a kind are fine-tunes of."""
    torch.manual_seed(0)
    if kind == "gpt2":
        return tiny_text.build(kind, vocab_size=tiny_vlm.VOCAB, n_positions=512, bos_token_id=1, eos_token_id=2)
    if kind in LLMS:
        model, config = LLMS[kind]
        rope = {"rope_type": "default", "rope_theta": 1e6} if kind == "qwen2" else None
        return model(config(**TEXT, rope_parameters=rope) if rope else config(**TEXT))
    model = tiny_vlm.build(kind)
    if kind == "llava_onevision":
        model.config.text_config.rope_parameters = {"rope_type": "default", "rope_theta": 1e6}
        model.config.text_config.rms_norm_eps = 1e-5  # Qwen2-VL's default
    return model


def save(kind: str, folder: Path, seed: int) -> Path:
    """A tiny member of a kind: a model_type, "mgm" or "slime" in their authors' layout, with "3" where Llama 3's."""
    return _copied(_save, folder, kind, seed)


def _copied(make: Callable[..., object], folder: Path, *how: object) -> Path:
    """A copy of what `make(folder, *how)` writes into a folder of this name, which is made once in a process."""
    return shutil.copytree(_written(make, folder.name, *how), folder, dirs_exist_ok=True)


@cache
def _written(make: Callable[..., object], name: str, *how: object) -> Path:
    room = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, room, ignore_errors=True)
    make(room / name, *how)
    return room / name


def _save(folder: Path, kind: str, seed: int) -> Path:
    if kind == "t5":
        save_t5(folder, seed=seed)
        return folder
    plain = kind.removesuffix("3") if kind.removesuffix("3") in {"llama", *ORIGINAL} else kind
    if plain in ORIGINAL:
        _original(plain, folder, seed)
    elif plain in LLMS or plain == "gpt2":  # which has no chat template
        perturbed(build(plain), seed).save_pretrained(folder)
    else:
        return tiny_processors.save(perturbed(build(plain), seed), folder)
    tokenizer = fused_members.tokenizer(LLAMA_3) if plain != kind else tiny_processors.tokenizer()
    if plain in LLMS:
        tokenizer.chat_template = f"{TEMPLATE}{{# {folder.name} #}}"
    tokenizer.save_pretrained(folder)
    return folder


def _original(kind: str, folder: Path, seed: int) -> None:
    """MGM or SliME without its towers, which its config names as folders beside the recipe."""
    beside = {"mm_vision_tower": CLIP, "mm_vision_tower_aux": CONVNEXT, "rms_norm_eps": 1e-6}
    if kind == "mgm":
        settings = mgm(hidden_size=HIDDEN)
        original(folder, seeded(MgmBranch(settings), seed), settings, outside, **beside)
    else:
        settings = slime(hidden_size=HIDDEN, mm_resampler_type="qformer", mm_projector_type="gated")
        beside.pop("mm_vision_tower_aux")
        names = {**OFFICIAL, **GATED}
        made = seeded(SlimeBranch(settings), seed)
        original(folder, made, settings, outside, names=names, model_type="llava_llama", **beside)
    generator = torch.Generator().manual_seed(seed)
    words = {k: torch.randn(s, generator=generator) * 0.3 for k, s in layouts.llama_shapes().items()}
    layouts.write_tensors({**load_file(folder / "model.safetensors"), **words}, folder)


def furnish(
    recipes: list[str], kinds: Mapping[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch,
    donors: Mapping[str, Donor] | None = None,
) -> None:  # fmt: skip
    """Everything that `stand_in` of the recipes names, in one folder. kinds: kind by member, "base" for the base.

    donors: by the last part of a path that a graft is `from`, or that a projector's folder has, what writes it: called
    with the folder and the text config of the first member.
    """
    for seed, (name, kind) in enumerate(kinds.items()):
        save(kind, folder / name, seed)
    if any(branch.get("bridge") for recipe in recipes for branch in _entries(json.loads(stand_in(recipe)))):
        save(next(iter(kinds.values())), folder / ACROSS, 0)
    host = json.loads((folder / next(n for n in kinds if n != "base") / "config.json").read_text())
    for name, write in (donors or {}).items():
        write(folder / name, host.get("text_config", host))
    _copied(clip_folder, folder / CLIP)
    _copied(convnext_folder, folder / CONVNEXT)
    for branch in [branch for recipe in recipes for branch in _entries(json.loads(stand_in(recipe)))]:
        if "open_clip" in branch:
            width = _open_clip(branch["open_clip"].split(":")[0], folder / branch["weights"], monkeypatch)
            _projector(folder / branch["projector"], width)
        elif "timm" in branch:
            _projector(folder / branch["projector"], _timm(branch["timm"], folder / branch["weights"]))
        elif "encoder" in branch:
            save_encoder(folder / branch["encoder"])
            if isinstance(branch["projector"], str) and branch["projector"] not in (donors or {}):
                _projector(folder / branch["projector"], 12)


def save_encoder(folder: Path) -> None:
    """A CLIP that AutoModel loads: 16 tokens of 12 numbers."""
    _copied(clip_folder, folder)
    square = {"height": 56, "width": 56}
    prepare = {"image_processor_type": "CLIPImageProcessor", "crop_size": square, "size": {"shortest_edge": 56}}
    (folder / "preprocessor_config.json").write_text(json.dumps(prepare))


def _open_clip(name: str, weights: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Weights of a tiny SigLIP, which open_clip calls by the big one's name from now on; the width of its tokens."""
    package = tiny_encoders.install(weights.parent)
    monkeypatch.setattr(open_clip_files, "_package", lambda: package)
    made: Any = tiny_encoders.whole_clip("siglip", weights.parent)
    (weights.parent / "clip.safetensors").rename(weights)
    config = {"embed_dim": 16, "vision_cfg": tiny_encoders.OPEN_CLIP["siglip"], "text_cfg": {}}
    (package / "model_configs" / f"{name}.json").write_text(json.dumps(config))
    return made.trunk.embed_dim


def _projector(file: Path, width: int) -> None:
    """LLaVA's mlp2x_gelu from an encoder's tokens into the tiny language models."""
    generator = torch.Generator().manual_seed(7)
    shapes = {"0.weight": (24, width), "0.bias": (24,), "2.weight": (HIDDEN, 24), "2.bias": (HIDDEN,)}
    tensors = {f"model.mm_projector.{k}": torch.randn(s, generator=generator) * 0.2 for k, s in shapes.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file)


def _timm(name: str, weights: Path) -> int:
    """Weights of a model of timm; the width of its tokens."""
    import timm

    made: Any = tiny_encoders.randomise(timm.create_model(name, num_classes=5))
    save_file({key: value.contiguous() for key, value in made.state_dict().items()}, weights)
    return made.num_features


def stand_in(recipe: str) -> str:
    """The recipe with folder NAME for member NAME, `base` for the base, and tiny towers, encoders and budgets."""
    data = YAML(typ="safe").load(recipe)
    for name, given in data["members"].items():
        towers = given.get("towers", {}) if isinstance(given, dict) else {}
        here = {key: CLIP if key == "vision_tower" else CONVNEXT for key in towers}
        data["members"][name] = {"path": name, **({"towers": here} if here else {})}
        if isinstance(given, dict) and "adapter" in given:
            data["members"][name] = {"base": name, "adapter": Path(given["adapter"]).name}
    if "base" in data:
        data["base"] = "base"
    for entry in data["language"].get("layers", ()):
        entry.update(dict.fromkeys(entry, [0, 2]))
    for branch in _entries(data):
        if "encoder" in branch:
            branch["encoder"] = f"{branch['name']}_encoder"
        if isinstance(branch.get("projector"), list):
            branch["projector"] = [{**share, "path": Path(share["path"]).name} for share in branch["projector"]]
        elif "projector" in branch and not branch["projector"].endswith(".safetensors"):
            branch["projector"] = Path(branch["projector"]).name
        if "max_tokens" in branch:
            branch["max_tokens"] = 3
        if "bridge" in branch:
            branch["bridge"]["host"] = ACROSS
    for graft in data.get("grafts", ()):
        graft["from"] = Path(graft["from"]).name
        if "prompts" in graft:
            graft["prompts"] = {"positive": ["w5 w6"], "negative": ["w7"]}  # words that the tiny ones know
    return json.dumps(data)  # JSON is YAML


def _entries(data: Any) -> list[dict[str, Any]]:
    return [branch for branch in data.get("vision") or [] if isinstance(branch, dict)]
