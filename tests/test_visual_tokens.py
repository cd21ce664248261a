"""Visual tokens counted from configs, against what the processors of transformers and the branches' own eyes write."""

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING

from fuse.branches.llava_original import LlavaEyes
from fuse.branches.mgm import MgmEyes
from fuse.branches.native_eyes import NativeEyes
from fuse.branches.slime import SlimeEyes
from fuse.card import model_card
from fuse.errors import RecipeError
from fuse.fused import FusedBranch
from fuse.fused_view import cost_lines
from fuse.image_files import Sizes, Written
from fuse.native_tokens import NATIVE
from fuse.planner import make_plan
from fuse.recipe_yaml import load_recipe
from fuse.visual_tokens import CONTEXT, Cost, Seeing, cost_of, written
from tests import fused_members, tiny_processors, tiny_vlm
from tests.cli import fuse_here
from tests.original_branches import anyres, config, slime
from tests.test_branch_mgm import mgm

SMALL = [(28, 28), (60, 40), (40, 60), (200, 30), (31, 97), (10, 9), (57, 28), (56, 29), (100, 99), (640, 480)]
LARGE = [(1024, 768), (333, 777), (300, 90), (90, 700), (1125, 2001), (337, 336), (28, 29)]
# arguments of image processor and processor as the published checkpoints have them
PUBLISHED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "llava_next": ({"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336},
                    "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]}, {}),
    "llava_onevision": ({"size": {"height": 384, "width": 384}, "image_grid_pinpoints": [
        [384 * i, 384 * j] for i in range(1, 7) for j in range(1, 7)]}, {"num_image_tokens": 729}),
    "internvl": ({"size": {"height": 448, "width": 448}, "max_patches": 12}, {"image_seq_length": 256}),
    "qwen2_vl": ({"min_pixels": 56 * 56, "max_pixels": 28 * 28 * 1280}, {}),
    "mistral3": ({"size": {"longest_edge": 1540}, "patch_size": {"height": 14, "width": 14}}, {}),
}  # fmt: skip


def layout_of(kind: str, folder: Path, size: tuple[int, int]) -> Written:
    """What the member's own processor writes for an image."""
    values = json.loads((folder / "config.json").read_text())
    layout = NativeEyes(values, folder).prepare(Image.new("RGB", size)).layout
    runs = tuple(item for item in layout if isinstance(item, int))
    return Written(runs, len(layout) - len(runs))


def save(kind: str, folder: Path) -> Sizes:
    tiny_processors.processor(kind).save_pretrained(folder)
    CONFIG_MAPPING[kind](**tiny_vlm.CONFIGS[kind]).save_pretrained(folder)
    return Sizes(json.loads((folder / "config.json").read_text()), folder)


@pytest.mark.parametrize("kind", tiny_processors.PROCESSORS)
def test_counts_are_those_of_the_processors(kind: str, tmp_path: Path) -> None:
    sizes = save(kind, tmp_path)
    for size in SMALL:
        if kind == "mistral3" and max(size) <= 28:  # refused, as its own class fails
            continue
        assert NATIVE[kind](sizes, size) == layout_of(kind, tmp_path, size), size


@pytest.mark.parametrize("split", [True, False])
def test_counts_of_idefics2(split: bool, tmp_path: Path) -> None:
    tokens = fused_members.tokenizer(["<image>", "<fake_token_around_image>", "<end_of_utterance>"])
    size = {"shortest_edge": 28, "longest_edge": 56}
    image = transformers.Idefics2ImageProcessor(size=size, do_image_splitting=split)
    transformers.Idefics2Processor(image, tokens, image_seq_len=4).save_pretrained(tmp_path)
    CONFIG_MAPPING["idefics2"](**{**tiny_vlm.CONFIGS["idefics2"], "image_token_id": 80}).save_pretrained(tmp_path)
    sizes = Sizes(json.loads((tmp_path / "config.json").read_text()), tmp_path)
    assert NATIVE["idefics2"](sizes, (60, 40)) == layout_of("idefics2", tmp_path, (60, 40))


def test_a_llava_with_pixtrals_processor(tmp_path: Path) -> None:
    sizes = save("mistral3", tmp_path)
    assert NATIVE["llava"](sizes, (60, 40)) == layout_of("mistral3", tmp_path, (60, 40))


@pytest.mark.parametrize("kind", PUBLISHED)
def test_counts_at_published_sizes(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, image_name, _, arguments, tokens = tiny_processors.PROCESSORS[kind]
    image, more = PUBLISHED[kind]
    monkeypatch.setitem(tiny_processors.PROCESSORS, kind, (name, image_name, image, {**arguments, **more}, tokens))
    sizes = save(kind, tmp_path)
    for size in LARGE:
        assert NATIVE[kind](sizes, size) == layout_of(kind, tmp_path, size), size


def test_a_photograph_in_llava_next() -> None:
    """By hand: 672x672 of 48x48 patches, of which the photograph fills 36 rows, each ended by a newline; the whole 576."""
    values = {"vision_config": {"image_size": 336, "patch_size": 14}, "image_grid_pinpoints": [[672, 672]]}
    assert NATIVE["llava_next"](Sizes(values, Path("none")), (1024, 768)).tokens == 576 + 36 * 49


RECIPE = "members: {a: a, b: b}\nlanguage: {method: linear, weights: 0.5}\nvision: [a, {from: b, max_tokens: 4}]\n"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pair")
    fused_members.save("llava", root / "a")
    fused_members.save("llava_next", root / "b")
    (root / "r.yaml").write_text(RECIPE)
    return root


LONG = [(1, 500), (500, 1), (1, 1), (2, 300), (300, 2), (900, 4), (28, 28), (3, 1000)]


@pytest.mark.parametrize("kind", tiny_processors.PROCESSORS)
def test_plan_refuses_the_images_that_the_processors_refuse(kind: str, tmp_path: Path) -> None:
    sizes, refused = save(kind, tmp_path), []
    for size in LONG:
        try:
            wanted = layout_of(kind, tmp_path, size)
        except RecipeError as error:
            refused.append(size)
            with pytest.raises(RecipeError) as caught:
                NATIVE[kind](sizes, size)
            assert caught.value.problem.split(": ")[0] == error.problem.split(": ")[0]
            assert caught.value.hint == error.hint
        else:
            assert NATIVE[kind](sizes, size) == wanted, size
    long = {"qwen2_vl": 4, "qwen2_5_vl": 4, "mistral3": 8}
    assert len(refused) == long.get(kind, 0)


REFUSED_IMAGES = {
    ("mistral3", (1, 500)): "mistral3 takes no image of 1x500 pixels: it is too narrow for a visual token",
    ("mistral3", (28, 28)): "mistral3 takes no image of 28x28 pixels: its class takes two visual tokens or more",
    ("qwen2_vl", (900, 4)): "qwen2_vl takes no image of 900x4 pixels: it is longer than 200 to 1",
}


@pytest.mark.parametrize("case", REFUSED_IMAGES)
def test_why_plan_refuses_an_image(case: tuple[str, tuple[int, int]], tmp_path: Path) -> None:
    kind, size = case
    with pytest.raises(RecipeError) as caught:
        NATIVE[kind](save(kind, tmp_path), size)
    assert (caught.value.problem, caught.value.hint) == (REFUSED_IMAGES[case], "crop it or pad it")


@pytest.fixture(scope="module")
def qwens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("qwens")
    for seed, name in enumerate(("a", "b", "c"), 1):
        fused_members.save("qwen2_vl", root / name, seed=seed, base=1)
    (root / "r.yaml").write_text(
        "members: {a: a, b: b, c: c}\nlanguage: {method: linear, weights: 0.33}\nvision: [a, b, c]\n"
    )
    return root


def test_plan_refuses_an_image_of_the_size_asked_for(qwens: Path) -> None:
    ran = fuse_here("plan", qwens / "r.yaml", "--image-size", "900x4")
    told = "vision.a: qwen2_vl takes no image of 900x4 pixels: it is longer than 200 to 1 (crop it or pad it)"
    assert (ran.code, ran.out, ran.err) == (2, "", f"fuse: {told}\n")


def test_branches_of_one_family_on_its_host_share_the_markers_of_the_template(qwens: Path) -> None:
    cost = cost_of(make_plan(load_recipe(qwens / "r.yaml")), (60, 40))
    assert cost is not None and [branch.markers for branch in cost.branches] == [2, 0, 0]
    assert fuse_here("merge", qwens / "r.yaml", qwens / "out").code == 0
    processor = transformers.AutoProcessor.from_pretrained(qwens / "out")
    image = {"type": "image", "image": Image.new("RGB", (60, 40))}
    lengths = [
        processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=True, return_dict=True, return_tensors="pt"
        )["input_ids"].shape[1]
        for content in ([image, {"type": "text", "text": "w5"}], [{"type": "text", "text": "w5"}])
    ]
    assert lengths[0] - lengths[1] == cost.context - cost.left


@pytest.mark.parametrize(("output", "size"), [("", 4), ("output: {dtype: bfloat16}\n", 2)])
def test_weights_at_inference_are_those_of_one_dtype(output: str, size: int, pair: Path, tmp_path: Path) -> None:
    """A guest stored in half precision is loaded in the host's."""
    shutil.copytree(pair / "b", tmp_path / "b")
    tensors = load_file(tmp_path / "b" / "model.safetensors")
    save_file({k: t.to(torch.float16) for k, t in tensors.items()}, tmp_path / "b" / "model.safetensors")
    (tmp_path / "r.yaml").write_text(RECIPE.replace("{a: a", f"{{a: {pair}/a") + output)
    plan = make_plan(load_recipe(tmp_path / "r.yaml"))
    cost = cost_of(plan, (60, 40))
    numbers = sum(math.prod(row.shape) for row in plan.rows)
    assert cost is not None and cost.weights == numbers * size
    if not output:
        assert plan.bytes_written < cost.weights
        assert fuse_here("merge", tmp_path / "r.yaml", tmp_path / "out").code == 0
        model = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "out", dtype="auto")
        assert sum(p.nbytes for p in model.parameters()) == cost.weights


ORIGINALS = {
    "flat": ("llava_original", config(), LlavaEyes),
    "spatial": ("llava_original", anyres("spatial"), LlavaEyes),
    "unpad": ("llava_original", anyres("spatial_unpad"), LlavaEyes),
    "mgm": ("mgm", mgm(), MgmEyes),
    "slime": ("slime", slime(), SlimeEyes),
}


@pytest.mark.parametrize("case", ORIGINALS)
def test_counts_of_original_branches(case: str, tmp_path: Path) -> None:
    kind, values, eyes = ORIGINALS[case]
    branch = FusedBranch("a", kind, None, values)
    for size in [(60, 40), (40, 60), (30, 200)]:
        found = written(branch, size)
        assert found is not None and found.tokens == eyes(values, tmp_path).prepare(Image.new("RGB", size)).tokens


def test_contexts_are_the_defaults_of_the_config_classes() -> None:
    for kind, context in CONTEXT.items():
        made = transformers.AutoConfig.for_model(kind)
        assert context == (made.n_positions if kind == "gpt2" else made.max_position_embeddings), kind


def test_plan_tells_tokens_context_and_memory(pair: Path) -> None:
    ran = fuse_here("plan", pair / "r.yaml", "--image-size", "60x40")
    assert ran.code == 0, ran.err
    assert ran.out[ran.out.index("encoders (") :].splitlines() == [
        "encoders (an image of 60x40 pixels; --image-size asks about another)",
        "  a: clip_vision_model, 4 visual tokens",
        "  b: clip_vision_model, 14 visual tokens, 4 after pool",
        "  = context of a 256: 8 visual tokens, 248 left",
        "at inference",
        "  weights 207.5 kB, KV cache 2.0 kB an image and 256.0 kB for 1,000 text tokens",
    ]


SEEN = {
    Seeing("a", "native", "siglip_vision_model", 1, 1, 1, ""): "  a: siglip_vision_model, 1 visual token, 1 marker",
    Seeing("a", "llava_original", "clip_vision_model", 2880, 2880, 0, ""):
        "  a: original LLaVA, clip_vision_model, 2,880 visual tokens",
    Seeing("a", "mgm", "clip_vision_model + convnext", 576, 64, 2, "norm"):
        "  a: MGM, clip_vision_model + convnext, 576 visual tokens, 64 after norm, 2 markers",
    Seeing("a", "slime", "clip_vision_model", 865, 865, 0, ""):
        "  a: SliME, clip_vision_model, up to 865 visual tokens",
    Seeing("a", "encoder", "timm eva", None, 64, 0, "pool"):
        "  a: timm eva, visual tokens known once the encoder is built, at most 64 (pool)",
}  # fmt: skip


@pytest.mark.parametrize("branch", SEEN)
def test_what_plan_says_of_a_branch(pair: Path, branch: Seeing) -> None:
    plan = make_plan(load_recipe(pair / "r.yaml"))
    assert cost_lines(plan, Cost((9, 9), (branch,), 100, 1, 1))[1] == SEEN[branch]


def test_what_plan_says_of_the_context(pair: Path) -> None:
    plan = make_plan(load_recipe(pair / "r.yaml"))
    one, unknown = (Seeing("a", "encoder", "timm eva", n, n, 0, "") for n in (1, None))
    assert cost_lines(plan, Cost((9, 9), (one,), 100, 1, 1))[2] == "  = context of a 100: 1 visual token, 99 left"
    assert cost_lines(plan, Cost((9, 9), (one, unknown), 100, 1, 1))[3] == (
        "  = context of a 100: 1 visual token and those of branches that are not known, 99 left"
    )


def test_a_card_says_one_tensor(pair: Path) -> None:
    plan = make_plan(load_recipe(pair / "r.yaml"))
    one = next(row for row in plan.rows if row.action == "merge")
    card = model_card(dataclasses.replace(plan, rows=(one,), drops=()), pair / "a", {}, {}, {})
    assert "Made without training: 1 tensor merged, 0 copied, 0 left out" in card


def test_plan_as_json(pair: Path) -> None:
    found = json.loads(fuse_here("plan", pair / "r.yaml", "--json").out)["fused"]
    assert found["image_size"] == [1024, 768] and found["visual_tokens"] == 8 and found["context_left"] == 248
    assert [b["kept"] for b in found["branches"]] == [4, 4] and found["branches"][1]["prune"] == "pool"
    layers, kv_heads, head_dim, bytes_a_number = 2, 2, 8, 4
    assert found["inference"]["cache_per_token"] == 2 * layers * kv_heads * head_dim * bytes_a_number


REFUSED = {
    ("vision: [a, {from: b, max_tokens: 4}]\n", "--image-size", "60"):
        "Invalid value for '--image-size': '60' is not a size in pixels such as 640x480",
    ("vision: [a, {from: b, max_tokens: 4}]\n", "--image-size", "0x5"):
        "Invalid value for '--image-size': '0x5' is not a size in pixels such as 640x480",
    ("vision: [c, b]\n", "--image-size", "60x40"):
        "one image of 60x40 pixels takes 18 visual tokens, and the context holds 16 (`max_tokens` on a branch, a "
        "smaller image, or fewer branches)",
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(pair: Path, tmp_path: Path, case: tuple[str, str, str]) -> None:
    vision, *arguments = case
    changes = {"text_config": {**tiny_vlm.LLAMA, "max_position_embeddings": 16}}
    fused_members.save("llava", tmp_path / "c", changes=changes)
    recipe = f"members: {{a: {pair}/a, b: {pair}/b, c: c}}\nlanguage: {{method: linear, weights: 0.5}}\n"
    (tmp_path / "r.yaml").write_text(recipe + vision)
    ran = fuse_here("plan", tmp_path / "r.yaml", *arguments)
    assert (ran.code, ran.out, ran.err) == (2, "", f"fuse: {REFUSED[case]}\n")


@pytest.mark.parametrize("names", [("hue", "form"), ("base", "expert")], ids=["native", "text"])
def test_a_size_is_refused_where_nothing_is_counted(tmp_path: Path, names: tuple[str, str]) -> None:
    zoo = Path(__file__).parent.parent / "recipes" / "zoo"
    members = ", ".join(f"m_{name}: {zoo / name}" for name in names)
    vision = "vision: [m_hue]\n" if "hue" in names else ""
    (tmp_path / "r.yaml").write_text(f"members: {{{members}}}\nlanguage: {{method: linear, weights: 0.5}}\n{vision}")
    said = "counts the visual tokens of a fused model's branches, and this output has none (leave it out)"
    ran = fuse_here("plan", tmp_path / "r.yaml", "--image-size", "60x40")
    assert (ran.code, ran.out, ran.err) == (2, "", f"fuse: --image-size: {said}\n")
    assert fuse_here("plan", tmp_path / "r.yaml").code == 0


def test_without_a_size_asked_for_a_full_context_is_a_remark(pair: Path, tmp_path: Path) -> None:
    changes = {"text_config": {**tiny_vlm.LLAMA, "max_position_embeddings": 8}}
    fused_members.save("llava", tmp_path / "c", changes=changes)
    (tmp_path / "r.yaml").write_text(
        f"members: {{c: c, b: {pair}/b}}\nlanguage: {{method: linear, weights: 0.5}}\nvision: [c, b]\n"
    )
    ran = fuse_here("plan", tmp_path / "r.yaml")
    said = "  ! context of c 8: 14 visual tokens, which leave no room for words; give branches max_tokens"
    assert ran.code == 0 and said in ran.out.splitlines()


def test_counting_needs_no_torch(pair: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys; from fuse.planner import make_plan; from fuse.recipe_yaml import load_recipe; from pathlib import Path; "
        "from fuse.visual_tokens import cost_of; cost_of(make_plan(load_recipe(Path(sys.argv[1]))), (9, 9)); "
        "print([m for m in ('torch', 'transformers', 'open_clip', 'timm') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(pair / "r.yaml")], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
