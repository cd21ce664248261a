"""Visual tokens counted from configs, against what the processors of transformers and the branches' own eyes write."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from PIL import Image
from transformers import CONFIG_MAPPING

from fuse.branches.llava_original import LlavaEyes
from fuse.branches.mgm import MgmEyes
from fuse.branches.native_eyes import NativeEyes
from fuse.branches.slime import SlimeEyes
from fuse.errors import CheckpointError, RecipeError
from fuse.fused import FusedBranch
from fuse.fused_view import cost_lines
from fuse.image_files import Sizes, Written
from fuse.native_tokens import NATIVE
from fuse.planner import make_plan
from fuse.recipe_yaml import load_recipe
from fuse.visual_tokens import CONTEXT, Cost, Seeing, written
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
        if kind == "mistral3" and NATIVE[kind](sizes, size).tokens == 1:
            with pytest.raises(RecipeError, match="two visual tokens or more"):  # as its own class fails
                layout_of(kind, tmp_path, size)
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


def test_an_image_that_qwen_refuses(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="an image of 900x4 is longer than Qwen2-VL takes"):
        NATIVE["qwen2_vl"](Sizes({}, tmp_path), (900, 4))


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


RECIPE = "members: {a: a, b: b}\nlanguage: {method: linear, weights: 0.5}\nvision: [a, {from: b, max_tokens: 4}]\n"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pair")
    fused_members.save("llava", root / "a")
    fused_members.save("llava_next", root / "b")
    (root / "r.yaml").write_text(RECIPE)
    return root


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
