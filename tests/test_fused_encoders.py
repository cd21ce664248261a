"""Encoder branches from recipe to answer: open_clip, timm and transformers, every way of pruning, every refusal."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from safetensors.torch import load_file, save_file
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from torch.nn.functional import gelu
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor

import fuse  # noqa: F401 - makes the Auto classes know the folder
from fuse.branches import open_clip_files
from tests import fused_members, tiny_encoders, tiny_processors, tiny_vlm
from tests.cli import Ran, fuse_here
from tests.original_branches import picture

HIDDEN = tiny_vlm.TEXT["hidden_size"]
PHOTO = picture(90, 60)
KEPT = 4
Tokens = torch.Tensor


def write_projector(file: Path, width: int, hidden: int = HIDDEN) -> dict[str, Tokens]:
    """LLaVA's mlp2x_gelu with weights that bfloat16 holds exactly."""
    generator = torch.Generator().manual_seed(7)
    shapes = {"0.weight": (24, width), "0.bias": (24,), "2.weight": (hidden, 24), "2.bias": (hidden,)}
    tensors = {key: (torch.randn(s, generator=generator) * 0.2).bfloat16().float() for key, s in shapes.items()}
    save_file(tensors, file)
    return tensors


def projected(patches: Tokens, weights: dict[str, Tokens]) -> Tokens:
    hidden = gelu(patches @ weights["0.weight"].T + weights["0.bias"])
    return hidden @ weights["2.weight"].T + weights["2.bias"]


def merged(folder: Path, recipe: str) -> Any:
    """The recipe merged and opened as a user does, in float32, with nothing missing, unexpected or of another shape."""
    (folder / "recipe.yaml").write_text(recipe)
    ran = fuse_here("merge", folder / "recipe.yaml", folder / "out")
    assert (ran.code, ran.err) == (0, ""), ran
    model, report = AutoModelForImageTextToText.from_pretrained(
        folder / "out", output_loading_info=True, dtype=torch.float32
    )
    assert {k: list(v) for k, v in report.items() if v} == {}
    return model.eval()


def written(model: Any, folder: Path) -> dict[str, Tokens]:
    """The visual tokens of each branch, as they stand in the prompt about the photo."""
    batch = AutoProcessor.from_pretrained(folder / "out")(images=[PHOTO], text=["<image> w5 w6"], return_tensors="pt")
    with torch.no_grad():
        prompt = model.read(**batch)
    return {b["name"]: prompt.embeds[batch["input_ids"] == b["token_id"]] for b in model.config.branches}


def same(found: Tokens, wanted: Tokens) -> None:
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() <= 1e-5 * max(1.0, float(wanted.abs().max()))


def answers(folder: Path) -> None:
    PHOTO.save(folder / "photo.png")
    asked = ("ask", folder / "out", "w5 w6", "--image", folder / "photo.png", "--max-tokens", 3, "--json")
    ran = fuse_here(*asked)
    assert (ran.code, ran.err) == (0, ""), ran
    assert json.loads(ran.out)["question"] == "w5 w6"


# Real architectures of the registry ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "layer", "rest"), [("ViT-S-32", -2, ", max_tokens: 9, prune: cls"), ("convnext_tiny", -1, "")]
)
def test_open_clips_smallest_towers(tmp_path: Path, name: str, layer: int, rest: str) -> None:
    """Random weights of the registry's smallest ViT and ConvNeXt, stored in bfloat16, beside a LLaVA."""
    torch.manual_seed(3)
    whole, _, prepare = open_clip.create_model_and_transforms(name, pretrained=None)
    whole = whole.bfloat16().float().eval()
    visual: Any = whole.visual
    tensors = {f"visual.{key}": value.bfloat16() for key, value in visual.state_dict().items()}
    save_file({**tensors, "logit_scale": whole.logit_scale.detach().clone()}, tmp_path / "clip.safetensors")
    with torch.no_grad():
        maps = visual.forward_intermediates(
            prepare(PHOTO)[None], indices=-layer, normalize_intermediates=layer == -1, intermediates_only=True
        )["image_intermediates"]
    patches = maps[0][0].flatten(1).T
    weights = write_projector(tmp_path / "p.safetensors", patches.shape[-1])
    tiny_processors.save(tiny_vlm.build("llava", 1), tmp_path / "a")
    model = merged(
        tmp_path,
        "members: {a: a}\nlanguage: {method: linear, weights: 1}\n"
        f"vision: [a, {{name: c, open_clip: {name}, weights: clip.safetensors, projector: p.safetensors, "
        f"layer: {layer}{rest}}}]\n",
    )
    found, wanted = written(model, tmp_path)["c"], projected(patches, weights)
    if not rest:
        same(found, wanted)
    else:
        scores = class_attention_of(visual, prepare(PHOTO)[None], layer)
        same(found, wanted[np.sort(np.argsort(-scores, kind="stable")[:9])])
    answers(tmp_path)
    for file in tmp_path.rglob("*.safetensors"):  # pytest keeps the folders of its last runs
        file.unlink()


def class_attention_of(visual: Any, pixels: Tokens, layer: int) -> np.ndarray:
    """What the class token of a CLIP pays to the patches in one block, in float64 numpy."""
    caught: list[Tokens] = []
    block = visual.transformer.resblocks[layer]
    handle = block.ln_1.register_forward_hook(lambda _, args, out: caught.append(out))
    with torch.no_grad():
        visual(pixels)
    handle.remove()
    attn, tokens = block.attn, caught[0].reshape(-1, caught[0].shape[-1]).double().numpy()
    weight, bias = (t.detach().double().numpy() for t in (attn.in_proj_weight, attn.in_proj_bias))
    query, key, _ = np.split(tokens @ weight.T + bias, 3, axis=-1)
    query, key = (x.reshape(len(tokens), attn.num_heads, -1).transpose(1, 0, 2) for x in (query, key))
    logits = np.einsum("hd,hld->hl", query[:, 0], key) / np.sqrt(key.shape[-1])
    paid = np.exp(logits - logits.max(-1, keepdims=True))
    return (paid / paid.sum(-1, keepdims=True)).mean(0)[1:]


# Every way of pruning -----------------------------------------------------------------------------------------------


def pooled(tokens: Tokens) -> Tokens:
    """Means over KEPT = 2 x 2 cells of a square, neighbours overlapping where its side is odd."""
    side = round(len(tokens) ** 0.5)
    cut = [slice(i * side // 2, -(-(i + 1) * side // 2)) for i in range(2)]
    square = tokens.reshape(side, side, -1)
    return torch.stack([square[rows, columns].mean((0, 1)) for rows in cut for columns in cut])


def longest(tokens: Tokens) -> Tokens:
    order = np.argsort(-np.linalg.norm(tokens.double().numpy(), axis=1), kind="stable")
    return tokens[np.sort(order[:KEPT])]


def newest(tokens: Tokens, said: Tokens) -> Tokens:
    """The tokens whose largest cosine to what was said is the least; the longest and then the farthest, if nothing was."""
    unit = tokens.double().numpy() / np.linalg.norm(tokens.double().numpy(), axis=1, keepdims=True)
    if len(said):
        others = said.double().numpy() / np.linalg.norm(said.double().numpy(), axis=1, keepdims=True)
        return tokens[np.sort(np.argsort((unit @ others.T).max(1), kind="stable")[:KEPT])]
    chosen = [int(np.argmax(np.linalg.norm(tokens.double().numpy(), axis=1)))]
    while len(chosen) < KEPT:
        likeness = (unit @ unit[chosen].T).max(1)
        likeness[chosen] = np.inf
        chosen.append(int(np.argmin(likeness)))
    return tokens[sorted(chosen)]


def check_rules(folder: Path, encoder: str, patches: Tokens, *, member: str = "", ranked: Tokens | None = None) -> None:
    """One recipe with a branch for each rule, against the library's patch tokens [n, width].

    encoder: the keys of a branch. member: the host's branch, which is written first. ranked: the class attention [n].
    """
    weights = write_projector(folder / "p.safetensors", patches.shape[-1])
    rules = ["similarity", "", "pool", "norm", *(["cls"] if ranked is not None else [])]
    rows = [f"  - {member}\n"] if member else []
    for rule in rules:
        budget = f", max_tokens: {KEPT}, prune: {rule}" if rule else ""
        rows.append(f"  - {{name: {rule or 'whole'}, {encoder}, projector: p.safetensors{budget}}}\n")
    host = member or "llm"
    recipe = f"members: {{{host}: {host}}}\nlanguage: {{method: linear, weights: 1}}\nvision:\n" + "".join(rows)
    found = written(merged(folder, recipe), folder)
    wanted = projected(patches, weights)
    same(found["whole"], wanted)
    same(found["pool"], pooled(wanted))
    same(found["norm"], longest(wanted))
    same(found["similarity"], newest(wanted, found[member] if member else wanted[:0]))
    if ranked is not None:
        same(found["cls"], wanted[np.sort(np.argsort(-ranked.double().numpy(), kind="stable")[:KEPT])])
    answers(folder)


@pytest.fixture
def llava(tmp_path: Path) -> Path:
    tiny_processors.save(tiny_vlm.build("llava", 1), tmp_path / "a")
    return tmp_path


def pixels_of(name: str) -> Tokens:
    prepare: Any = image_transform_v2(PreprocessCfg(size=tiny_encoders.OPEN_CLIP[name]["image_size"]), is_train=False)
    return prepare(PHOTO)[None]


@pytest.fixture
def tiny_open_clip(llava: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    package = tiny_encoders.install(llava)
    monkeypatch.setattr(open_clip_files, "_package", lambda: package)
    return llava


def test_rules_of_an_open_clip_vit(tiny_open_clip: Path) -> None:
    visual: Any = tiny_encoders.whole_clip("plain", tiny_open_clip)
    ranked = torch.from_numpy(class_attention_of(visual, pixels_of("plain"), -1))
    visual.output_tokens = True
    with torch.no_grad():
        patches = visual(pixels_of("plain"))[1][0]
    encoder = "open_clip: plain, weights: clip.safetensors"
    check_rules(tiny_open_clip, encoder, patches, member="a", ranked=ranked)


def test_rules_of_an_open_clip_convnext(tiny_open_clip: Path) -> None:
    visual: Any = tiny_encoders.whole_clip("convnext", tiny_open_clip)
    with torch.no_grad():
        patches = visual.trunk.forward_features(pixels_of("convnext"))[0].flatten(1).T
    check_rules(tiny_open_clip, "open_clip: convnext, weights: clip.safetensors", patches, member="a")


def timm_model(name: str, folder: Path) -> tuple[Any, Tokens]:
    """A timm model with random weights, saved, and the photo as it prepares it."""
    trunk: Any = tiny_encoders.randomise(timm.create_model(name, num_classes=5))
    save_file({key: value.clone() for key, value in trunk.state_dict().items()}, folder / "timm.safetensors")
    prepare: Any = create_transform(**resolve_model_data_config(trunk), is_training=False)
    return trunk, prepare(PHOTO)[None]


def test_rules_of_a_timm_vit(llava: Path) -> None:
    trunk, pixels = timm_model("test_vit", llava)
    trunk.blocks[-1].attn.fused_attn = False
    caught: list[Tokens] = []
    trunk.blocks[-1].attn.attn_drop.register_forward_hook(lambda _, args, out: caught.append(out))
    with torch.no_grad():
        patches = trunk.forward_features(pixels)[0, trunk.num_prefix_tokens :]
    ranked = caught[0].mean(1)[0, 0, trunk.num_prefix_tokens :]
    check_rules(llava, "timm: test_vit, weights: timm.safetensors", patches, member="a", ranked=ranked)


def test_rules_of_a_timm_convnext(llava: Path) -> None:
    trunk, pixels = timm_model("test_convnext", llava)
    with torch.no_grad():
        patches = trunk.forward_features(pixels)[0].flatten(1).T
    check_rules(llava, "timm: test_convnext, weights: timm.safetensors", patches, member="a")


def test_rules_of_a_dinov2_beside_an_llm(tmp_path: Path) -> None:
    fused_members.save_llm(tmp_path / "llm", template=tiny_processors.template("llava"))
    dino: Any = tiny_encoders.write_transformers("dinov2", tmp_path / "dino")
    dino.set_attn_implementation("eager")
    pixels = AutoImageProcessor.from_pretrained(tmp_path / "dino")(PHOTO, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        out = dino(pixel_values=pixels, output_attentions=True)
    ranked = out.attentions[-1].mean(1)[0, 0, 1:]
    check_rules(tmp_path, "encoder: dino", out.last_hidden_state[0, 1:], ranked=ranked)


# Refusals -----------------------------------------------------------------------------------------------------------

PICKLE = (
    "is not safetensors but a pickle, which can run code; fuse does not read it "
    "(where you trust it: safetensors.torch.save_file(torch.load(FILE, weights_only=True), NEW_FILE))"
)
VIT = {"open_clip": "plain", "weights": "clip.safetensors", "projector": "p.safetensors"}
REFUSED: dict[str, tuple[dict[str, Any], int, str]] = {
    "unknown architecture": (
        {"open_clip": "ViT-B-23"}, 2,
        "recipe.yaml:5:5: vision.1: open_clip has no architecture 'ViT-B-23' (did you mean: ViT-B-32, ViT-S-32, ViT-M-32)",
    ),
    "unknown timm architecture": (
        {"open_clip": None, "timm": "test_vti", "weights": "timm.safetensors"}, 2,
        "recipe.yaml:5:5: vision.1: timm has no architecture 'test_vti' (did you mean: test_vit, test_vit4, test_vit3)",
    ),
    "pickled weights": ({"weights": "clip.bin"}, 3, f"{{}}/clip.bin: {PICKLE}"),
    "no weights": (
        {"weights": None}, 2, "recipe.yaml:5:5: vision.1.weights: is missing, and a branch with open_clip needs it",
    ),
    "no projector": (
        {"projector": None}, 2, "recipe.yaml:5:5: vision.1.projector: is missing, and a branch with open_clip needs it",
    ),
    "no such projector": (
        {"projector": "q.safetensors"}, 2,
        "recipe.yaml:5:5: vision.1: {}/q.safetensors: there is no such file (`projector` is one safetensors file)",
    ),
    "projector of another width": (
        {"projector": "wide.safetensors"}, 3,
        "{}/wide.safetensors: takes tokens of 33 numbers but the encoder gives 32",
    ),
    "projector of another stage": (
        {"open_clip": "convnext", "weights": "convnext.safetensors", "projector": "last.safetensors", "layer": -2}, 3,
        "{}/last.safetensors: takes tokens of 64 numbers but the encoder gives 48",
    ),
    "projector of another host": (
        {"projector": "other.safetensors"}, 3,
        "{}/other.safetensors: the projector of c gives tokens of 48 numbers, and a reads 32 "
        "(a projector belongs to the language model that it was trained for; a `bridge` brings it over)",
    ),
    "weights of another architecture": (
        {"open_clip": "ViT-B-32"}, 3,
        "{}/clip.safetensors: has no tensor 'visual.transformer.resblocks.3.ln_1.weight' of ViT-B-32 "
        "(108 of 151 are missing)",
    ),
    "no such layer": (
        {"layer": -4}, 2,
        "recipe.yaml:5:86: vision.1.layer: plain has 3 blocks, and no layer -4 "
        "(-1 is its end, -2 the last but one, -3 the first)",
    ),
    "no class token": (
        {"open_clip": "convnext", "weights": "convnext.safetensors", "projector": "last.safetensors", "max_tokens": 4,
         "prune": "cls"}, 2,
        "recipe.yaml:5:111: vision.1.prune: cls needs a class token that looks at every visual token, and convnext has "
        "none (`prune: norm` works)",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA, towers of three architectures, and projectors that fit and do not fit them."""
    folder = tmp_path_factory.mktemp("files")
    tiny_processors.save(tiny_vlm.build("llava", 1), folder / "a")
    tiny_encoders.install(folder)
    tiny_encoders.whole_clip("convnext", folder)
    (folder / "clip.safetensors").rename(folder / "convnext.safetensors")
    tiny_encoders.whole_clip("plain", folder)
    timm_model("test_vit", folder)
    torch.save(load_file(folder / "clip.safetensors"), folder / "clip.bin")
    for name, width, hidden in (("p", 32, 32), ("wide", 33, 32), ("other", 32, 48), ("last", 64, 32)):
        write_projector(folder / f"{name}.safetensors", width, hidden)
    return folder


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    change, code, told = REFUSED[case]
    monkeypatch.setattr(open_clip_files, "_package", lambda: files / "open_clip")
    keys = {key: value for key, value in (VIT | change).items() if value is not None}
    branch = ", ".join(f"{key}: {value}" for key, value in keys.items())
    (files / "recipe.yaml").write_text(
        f"members: {{a: a}}\nlanguage: {{method: linear, weights: 1}}\nvision:\n  - a\n  - {{name: c, {branch}}}\n"
    )
    ran: Ran = fuse_here("merge", files / "recipe.yaml", tmp_path / "out")
    assert (ran.code, ran.out, ran.err) == (code, "", f"fuse: {told.replace('{}', str(files))}\n")
    assert not (tmp_path / "out").exists()
