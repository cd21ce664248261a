"""A fused folder in the hands of transformers: Auto classes, saving, devices, attention, beams, caches, budgets."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, StaticCache, pipeline

from fuse import torchvision_shim
from fuse.errors import CheckpointError, RecipeError
from fuse.model.config import FusedConfig
from fuse.model.fused import FusedForConditionalGeneration
from fuse.model.processor import FusedProcessor
from tests import tiny_fused, tiny_vlm
from tests.test_fused_model import fused, greedy, own, picture


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("fused")
    tiny_fused.fused({"a": own("llava", 1)[0], "b": own("llava_next", 2)[0]}, "a", where)
    return where


@pytest.fixture(scope="module")
def batch(folder: Path):
    return FusedProcessor.from_pretrained(folder)(images=[picture((60, 40))], text=["<image> w5 w6"])


LOAD = (
    "from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor;"
    "print(type(AutoConfig.from_pretrained(folder)).__name__,"
    " type(AutoModelForImageTextToText.from_pretrained(folder)).__name__,"
    " type(AutoProcessor.from_pretrained(folder)).__name__)"
)
ORDERS = {
    first: f"{first}; {LOAD}"
    for first in (
        "import fuse.model.config",
        "import fuse.branches.mgm",
        "import fuse; from transformers import CLIPVisionConfig",
        "import fuse; from transformers import pipeline",
    )
} | {
    "transformers": (
        "import importlib.util as u;"
        f"spec = u.spec_from_file_location('shim', {torchvision_shim.__file__!r}); shim = u.module_from_spec(spec);"
        "spec.loader.exec_module(shim); shim.install();"
        "from transformers import AutoModelForImageTextToText, AutoProcessor; import fuse;"
        "print(type(AutoProcessor.from_pretrained(folder)).__name__)"
    ),
    "resources": (
        "import fuse, pkgutil, transformers.models.auto.configuration_auto as m;"
        "print(type(m.__loader__).__name__, len(pkgutil.get_data('torchvision', 'version.py')) > 10)"
    ),
}  # fmt: skip
# Runs each program in a fork, which has nothing of transformers, torchvision or fuse, but what they import elsewhere.
FORKS = """
import json, os, sys, tempfile, traceback
import huggingface_hub.dataclasses, numpy, PIL.Image, safetensors.torch, tokenizers, torch, torch.distributed.tensor
assert not {"fuse", "torchvision", "transformers"} & set(sys.modules)
told = {}
folder, programs = json.load(sys.stdin)
for name, program in programs.items():
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        if not (child := os.fork()):
            os.dup2(out.fileno(), 1), os.dup2(err.fileno(), 2)
            try:
                exec(program, {"__name__": "__main__", "folder": folder})
                sys.stdout.flush()
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(0)
        os.waitpid(child, 0)
        out.seek(0), err.seek(0)
        told[name] = out.read(), err.read()
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def orders(folder: Path) -> dict[str, tuple[str, str]]:
    """What each program of ORDERS says, and its stderr."""
    given = json.dumps([str(folder), ORDERS])
    done = subprocess.run(
        [sys.executable, "-c", FORKS], input=given, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


CLASSES = ["FusedConfig", "FusedForConditionalGeneration", "FusedProcessor"]


def test_import_fuse_registers_the_auto_classes_in_a_fresh_interpreter(folder: Path) -> None:
    program = f"import fuse; folder = {str(folder)!r}; {LOAD}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.split() == CLASSES, done.stderr


@pytest.mark.parametrize("first", [name for name in ORDERS if name.startswith("import")])
def test_import_fuse_registers_the_auto_classes(orders: dict[str, tuple[str, str]], first: str) -> None:
    """Whatever part of transformers, or of us, is imported first."""
    out, err = orders[first]
    assert out.split() == CLASSES, err


def test_import_fuse_imports_neither_torch_nor_transformers() -> None:
    program = "import sys, fuse; print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr


def test_transformers_imported_first_is_told_at_once(orders: dict[str, tuple[str, str]]) -> None:
    out, err = orders["transformers"]
    assert out.strip() == "FusedProcessor", err


def test_loading_reports_nothing_and_saving_again_changes_nothing(folder: Path, tmp_path: Path, batch) -> None:
    model, report = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True, dtype="auto")
    assert {k: list(v) for k, v in report.items() if v} == {}
    assert isinstance(model, FusedForConditionalGeneration)
    model.save_pretrained(tmp_path)
    AutoProcessor.from_pretrained(folder).save_pretrained(tmp_path)
    again, report = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert {k: list(v) for k, v in report.items() if v} == {}
    assert model.state_dict().keys() == again.state_dict().keys()
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())
    moved = AutoProcessor.from_pretrained(tmp_path)(images=[picture((60, 40))], text=["<image> w5 w6"])
    assert moved["input_ids"].tolist() == batch["input_ids"].tolist()
    assert isinstance(AutoConfig.from_pretrained(tmp_path), FusedConfig)


def test_gradients_are_off(folder: Path) -> None:
    assert not any(p.requires_grad for p in tiny_fused.load(folder).parameters())


def test_a_device_map_splits_the_model(folder: Path, batch, tmp_path: Path) -> None:
    whole = tiny_fused.load(folder)
    parts = ("embed_tokens", "layers.0", "norm", "rotary_emb")
    split = {f"language_model.model.{part}": "cpu" for part in parts}
    split |= {"language_model.model.layers.1": "disk", "language_model.lm_head": "cpu", "branches": "cpu"}
    spread = tiny_fused.load(folder, device_map=split, offload_folder=tmp_path)
    assert next(spread.get_decoder().layers[1].parameters()).device.type == "meta", "it is on the disk"
    with torch.no_grad():
        assert torch.equal(whole(**batch).logits, spread(**batch).logits)


def test_eager_and_sdpa_agree(folder: Path, batch) -> None:
    eager, sdpa = tiny_fused.load(folder, attn_implementation="eager"), tiny_fused.load(folder)
    for part in (eager, *eager.branches.values()):
        assert part.config._attn_implementation == "eager"
    with torch.no_grad():
        assert (eager(**batch).logits - sdpa(**batch).logits).abs().max() < 1e-5


def test_bfloat16(folder: Path, batch) -> None:
    model = tiny_fused.load(folder, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert greedy(model, batch.to(torch.bfloat16), 4).shape == (1, 4)


@pytest.mark.parametrize("members", [("a=llava:1", "b=llava_next:2"), ("a=qwen2_vl:1", "b=qwen2_vl:2")])
def test_beams_of_a_batch_are_those_of_its_rows(members: tuple[str, ...]) -> None:
    model, ours = fused(*members)
    texts = [f"{ours.image_token} w5 w6", f"w9 {ours.image_token}"]
    images = [[picture((60, 40), 1)], [picture((40, 60), 2)]]
    together = greedy(model, ours(images=images, text=texts), 6, num_beams=3)
    for row, (text, some) in enumerate(zip(texts, images, strict=True)):
        assert greedy(model, ours(images=[some], text=[text]), 6, num_beams=3)[0].tolist() == together[row].tolist()


@pytest.mark.parametrize("host", ["llava", "qwen2_vl", "paligemma", "paligemma with Gemma 2", "gemma3"])
def test_a_static_cache_gives_the_same_words(host: str) -> None:
    model, ours = fused(f"a={host}:1", f"b={host}:2")
    given = ours(images=[[picture((60, 40), 1)], []], text=[f"{ours.image_token} w5 w6", "w7 w8 w9"])
    want = greedy(model, given, 8)
    assert greedy(model, given, 8, cache_implementation="static", disable_compile=True).tolist() == want.tolist()


def test_a_static_cache_longer_than_the_window_of_sliding_layers(tmp_path: Path) -> None:
    """Gemma 3's layers of both kinds: the sliding ones keep less than the others."""
    text = {
        **tiny_vlm.CONFIGS["gemma3"]["text_config"], "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"],
    }  # fmt: skip
    member = tiny_vlm.build_from("gemma3", {"text_config": text}, 1)
    model, ours = tiny_fused.fused({"a": member, "b": member}, "a", tmp_path)
    given = ours(images=[[picture((60, 40), 1)], []], text=[f"{ours.image_token} w5 w6", "w7 w8 w9"])
    want = greedy(model, given, 24)
    assert greedy(model, given, 24, cache_implementation="static", disable_compile=True).tolist() == want.tolist()
    assert greedy(model, given, 24, use_cache=False).tolist() == want.tolist()


@pytest.mark.parametrize(
    ("family", "text"),
    [
        ("llava", {"model_type": "cohere", **tiny_vlm.GROUPED, "logit_scale": 0.0625}),
        ("llava", {"model_type": "gemma2", **tiny_vlm.GEMMA, "final_logit_softcapping": 5.0}),
        ("gemma3", {**tiny_vlm.CONFIGS["gemma3"]["text_config"], "final_logit_softcapping": 5.0}),
        ("paligemma", {"model_type": "gemma2", **tiny_vlm.GEMMA, "final_logit_softcapping": 5.0}),
    ],
)
def test_logits_are_scaled_as_the_members_class_does(tmp_path: Path, family: str, text: dict[str, object]) -> None:
    member = tiny_vlm.build_from(family, {"text_config": text}, 1)
    with torch.no_grad():
        member.get_input_embeddings().weight.mul_(20)
        member.get_output_embeddings().weight.mul_(20 if not member.config.text_config.tie_word_embeddings else 1)
    model, _ = tiny_fused.fused({"a": member}, "a", tmp_path)
    words = torch.tensor([[5, 6, 7, 8]])
    causal = torch.full_like(words, -1)
    with torch.no_grad():
        want = member(input_ids=words, attention_mask=torch.ones_like(words)).logits
        got = model(input_ids=words, attention_mask=torch.ones_like(words), token_type_ids=causal).logits[..., :96]
    assert want.abs().max() > 3
    assert (got - want).abs().max() < 1e-4


@pytest.mark.parametrize("host", ["llava", "qwen2_vl", "paligemma", "gemma3"])
def test_logits_with_a_cache_are_those_without(host: str) -> None:
    model, ours = fused(f"a={host}:1", f"b={host}:2")
    given = ours(images=[[picture((60, 40), 1)], []], text=[f"{ours.image_token} w5 w6", "w7 w8 w9"])
    logits = []
    with torch.no_grad():
        for cached in (True, False):
            out = model.generate(
                **given, max_new_tokens=12, do_sample=False, pad_token_id=2, use_cache=cached, output_logits=True,
                return_dict_in_generate=True, min_new_tokens=12,
            )  # fmt: skip
            logits.append(torch.stack(out.logits))
    assert (logits[0] - logits[1]).abs().max() < 1e-4


def test_placeholders_are_never_sampled(folder: Path, batch) -> None:
    model = tiny_fused.load(folder)
    with torch.no_grad():
        model.get_output_embeddings().weight[model.config.placeholder_ids] = 50.0
        model.get_output_embeddings().weight[5] = 40.0
    words = model.generate(**batch, max_new_tokens=3, do_sample=False, pad_token_id=2, suppress_tokens=[5])
    assert not {5, *model.config.placeholder_ids} & set(words[0, batch["input_ids"].shape[1] :].tolist())


@pytest.mark.parametrize("host", ["llava", "qwen2_vl", "paligemma", "gemma3"])
def test_a_loop_by_hand_gives_the_same_words(host: str) -> None:
    """forward, and forward again with the cache and the mask alone, as a user would write it."""
    model, ours = fused(f"a={host}:1", f"b={host}:2")
    given = ours(images=[picture((60, 40), 1)], text=[f"{ours.image_token} w5 w6"])
    want = greedy(model, given, 6)[0].tolist()
    mask, words = given["attention_mask"], []
    with torch.no_grad():
        out = model(**given, use_cache=True)
        for _ in range(6):
            logits = out.logits[:, -1].clone()
            logits[:, [2, *model.config.placeholder_ids]] = -torch.inf
            words.append(int(logits.argmax()))
            mask = torch.cat([mask, mask.new_ones(1, 1)], 1)
            out = model(input_ids=torch.tensor([[words[-1]]]), attention_mask=mask, past_key_values=out.past_key_values)
    assert words == want


@pytest.mark.parametrize("host", ["llava", "qwen2_vl", "paligemma", "gemma3"])
def test_a_step_with_a_static_cache_is_one_graph(host: str) -> None:
    """What generate compiles on a GPU: no break, and the same logits."""
    model, ours = fused(f"a={host}:1", f"b={host}:2")
    given = ours(images=[picture((60, 40))], text=[f"{ours.image_token} w5 w6"])
    length = given["input_ids"].shape[1]
    mask = torch.ones(1, length + 1, dtype=torch.long)
    step = torch.compile(model.forward, backend="eager", fullgraph=True)
    found = []
    for forward in (model.forward, step):
        cache = StaticCache(config=model.get_decoder().config, max_cache_len=64)
        with torch.no_grad():
            model(**given, past_key_values=cache, use_cache=True)
            found.append(
                forward(
                    input_ids=torch.tensor([[7]]), past_key_values=cache, attention_mask=mask, use_cache=True
                ).logits
            )
    assert (found[0] - found[1]).abs().max() < 1e-5


def test_every_branch_is_read() -> None:
    model, ours = fused("a=llava:1", "b=llava_next:2")
    given = ours(images=[picture((60, 40), 1)], text=["<image> w5 w6"])
    with torch.no_grad():
        before = model(**given).logits[0, -1]
        for name in ("a", "b"):
            key = f"branches.{name}.pixel_values"
            other = {**given, key: [-given[key][0]]}
            assert (model(**other).logits[0, -1] - before).abs().max() > 1e-4


def test_labels_give_the_loss_of_the_language_model() -> None:
    model, ours = fused("a=llava:1")
    given = ours(images=[picture((60, 40), 1)], text=["<image> w5 w6 w7"])
    labels = given["input_ids"].masked_fill(given["input_ids"] >= 96, -100)
    with torch.no_grad():
        out = model(**given, labels=labels)
    shifted, wanted = out.logits[0, :-1].double(), labels[0, 1:]
    want = torch.nn.functional.cross_entropy(shifted[wanted != -100], wanted[wanted != -100])
    assert abs(float(out.loss) - float(want)) < 1e-5


@pytest.mark.parametrize("prune", ["pool", "norm", "cls", "similarity"])
def test_a_budget_is_kept(prune: str) -> None:
    budget = (("max_tokens", 2), ("prune", prune))
    model, ours = fused("a=llava:2", "b=llava:1", b=budget)
    full, _ = fused("a=llava:2", "b=llava:1")
    given = ours(images=[picture((60, 40), 1)], text=["<image> w5"])
    assert [int((given["input_ids"] == i).sum()) for i in model.config.placeholder_ids] == [4, 2]
    whole = fused("a=llava:2", "b=llava:1")[1](images=[picture((60, 40), 1)], text=["<image> w5"])
    with torch.no_grad():
        kept, every = model.get_image_features(**given), full.get_image_features(**whole)
    assert torch.equal(kept[:4], every[:4])
    if prune == "pool":
        assert (kept[4:] - every[4:].view(2, 2, -1).mean(0)).abs().max() < 1e-6
    else:
        rows = [(every[4:] - row).abs().sum(-1).argmin().item() for row in kept[4:]]
        assert rows == sorted(set(rows)), "in their order, each once"
        assert torch.equal(kept[4:], every[4:][rows])
    if prune == "norm":
        assert rows == sorted(every[4:].norm(dim=-1).topk(2).indices.tolist())
    assert greedy(model, given, 3).shape == (1, 3)


def test_class_attention_is_that_of_the_tower() -> None:
    from fuse.branches.native import see

    member, _ = own("llava", 1)
    pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    tower = type(member.model.vision_tower)._from_config(member.config.vision_config, attn_implementation="eager")
    tower.load_state_dict(member.model.vision_tower.state_dict())
    with torch.no_grad():
        told = tower.eval()(pixels, output_attentions=True).attentions
        seen = see(member.model, {"pixel_values": [*pixels[:, None]]}, attention=True)
    got = torch.stack([one.attention for one in seen])
    assert (got - told[0].mean(1)[:, 0, 1:]).abs().max() < 1e-6  # the layer whose output is hidden_states[-2]


def test_a_branch_without_class_token_refuses_cls() -> None:
    model, ours = fused("a=vipllava:1", a=(("max_tokens", 2), ("prune", "cls")))
    given = ours(images=[picture((60, 40), 1)], text=["<image> w5"])
    with pytest.raises(RecipeError, match="a vipllava branch has no class token over its visual tokens"):
        model(**given)


def change(folder: Path, tmp_path: Path, **changes: object) -> Path:
    import shutil

    shutil.copytree(folder, tmp_path / "changed")
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "changed" / "config.json").write_text(json.dumps({**config, **changes}))
    return tmp_path / "changed"


def test_configs_that_cannot_be(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    first, second = config["branches"]
    cases = [
        ([{k: v for k, v in first.items() if k != "kind"}], "config.json: branch 'a' has no kind"),
        ([{**first, "token_id": 9999}], "config.json: branch 'a' has token_id 9999, and the embedding has 98 rows"),
        ([first, {**second, "name": "a"}], "config.json: two branches have one name or one token_id"),
    ]
    for number, (branches, told) in enumerate(cases):
        with pytest.raises(CheckpointError) as error:
            AutoConfig.from_pretrained(change(folder, tmp_path / str(number), branches=branches))
        assert str(error.value) == told
    with pytest.raises(CheckpointError, match=r"branch 'a' has kind 'x' \(known: native, llava_original, mgm, slime"):
        changed = change(folder, tmp_path / "kind", branches=[{**first, "kind": "x"}])
        AutoModelForImageTextToText.from_pretrained(changed)


MISTAKES = [
    (["<image> w5"], [[picture((9, 9))] * 2], "prompt 1 has 1 image tokens '<image>' and 2 images"),
    (["w5", "<image> w6"], [[], []], "prompt 2 has 1 image tokens '<image>' and 0 images"),
    (["<image> w5"], [[picture((9, 9))], []], "1 prompts and images for 2"),
    ([], None, "there is no text"),
    (
        ["<image> " * 40],
        [[picture((60, 40))] * 40],
        "prompt 1 has 720 tokens, 720 of them visual, and the context is 256",
    ),
]


@pytest.mark.parametrize(("texts", "images", "told"), MISTAKES)
def test_processor_mistakes(texts, images, told: str) -> None:
    _, ours = fused("a=llava:1", "b=llava_next:2")
    with pytest.raises(RecipeError) as error:
        ours(images=images, text=texts)
    assert error.value.problem == told


def test_video_is_refused() -> None:
    _, ours = fused("a=llava:1", "b=llava_next:2")
    with pytest.raises(RecipeError, match="video is not supported"):
        ours(text=["w5"], videos=[object()])
    turn = {"role": "user", "content": [{"type": "video", "path": "x.mp4"}, {"type": "text", "text": "w5"}]}
    with pytest.raises(RecipeError, match="video is not supported"):
        ours.apply_chat_template([turn], tokenize=True)


def test_a_missing_processor_of_a_branch_is_named(folder: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(folder, tmp_path / "x")
    shutil.rmtree(tmp_path / "x" / "branches" / "b")
    with pytest.raises(CheckpointError, match="its processor does not load"):
        FusedProcessor.from_pretrained(tmp_path / "x")


def test_chat_templates_with_lists_and_with_strings(folder: Path) -> None:
    ours = FusedProcessor.from_pretrained(folder)
    image, text = {"type": "image", "image": picture((60, 40))}, {"type": "text", "text": "w5 w6"}
    turns = [{"role": "user", "content": [image, text]}]
    direct = ours(images=[picture((60, 40))], text=["<image> w5 w6 "], add_special_tokens=False)
    batch = ours.apply_chat_template(turns, tokenize=True, return_dict=True, return_tensors="pt")
    assert batch["input_ids"].tolist() == direct["input_ids"].tolist()
    strings = "{% for m in messages %}{{ m['content'] + ' ' }}{% endfor %}"
    assert ours.apply_chat_template(turns, chat_template=strings) == "<image>\nw5 w6 "


def test_flash_attention_is_refused_where_images_attend_both_ways(folder: Path, tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(change(folder, tmp_path, host_type="gemma3"))
    config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(RecipeError, match="flash_attention_2 has no masks for gemma3, whose images attend in both"):
        FusedForConditionalGeneration(config)


def test_original_hosts_tokenize_around_images_in_pieces(folder: Path, tmp_path: Path) -> None:
    """As their code does: a tokenizer that treats the beginning of a text apart does so behind every image."""
    ours = FusedProcessor.from_pretrained(change(folder, tmp_path, host_type="llava_original"))
    told: list[str] = []
    inner = ours.tokenizer

    class Spy:
        def __getattr__(self, name: str):
            return getattr(inner, name)

        def __call__(self, text: str, **how):
            told.append(text)
            return inner(text, **how)

    ours.tokenizer = Spy()
    batch = ours(images=[picture((60, 40))], text=["w5<image>w6 w7"])
    assert told == ["w5", "w6 w7"]
    first = ours.fused.placeholder_ids[0]
    assert batch["input_ids"][0, :2].tolist() == [5, first]


@pytest.mark.parametrize(
    ("model_type", "size"),
    [("qwen2_vl", (1, 500)), ("mistral3", (1, 500)), ("mistral3", (500, 1)), ("mistral3", (1, 1))],
)
def test_images_that_a_family_does_not_take(model_type: str, size: tuple[int, int]) -> None:
    model, ours = fused(f"a={model_type}:1", f"b={model_type}:2")
    with pytest.raises(RecipeError, match=f"^{model_type} takes no image of {size[0]}x{size[1]} pixels: "):
        model(**ours(images=[picture(size)], text=[f"{ours.image_token} w5"]))


def test_a_placeholder_in_the_words_is_refused() -> None:
    _, ours = fused("a=llava:1", "b=llava_next:2")
    with pytest.raises(RecipeError) as error:
        ours(text=["what is <|fuse:b|> ?"])
    assert error.value.problem == "the text holds '<|fuse:b|>', which is a placeholder of the model"


def test_saving_onto_itself_by_another_path(folder: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(folder, tmp_path / "x")
    (tmp_path / "y").symlink_to(tmp_path / "x")
    FusedProcessor.from_pretrained(tmp_path / "x").save_pretrained(tmp_path / "y")
    FusedProcessor.from_pretrained(tmp_path / "x")


def test_a_pipeline_in_batches(folder: Path) -> None:
    pipe = pipeline("image-text-to-text", model=str(folder), batch_size=2)
    turns = [
        [
            {
                "role": "user",
                "content": [{"type": "image", "image": picture((60, 40), i)}, {"type": "text", "text": "w5"}],
            }
        ]
        for i in (1, 2, 3)
    ]
    told = pipe(text=turns, max_new_tokens=4, return_full_text=False)
    alone = [pipe(text=turn, max_new_tokens=4, return_full_text=False)[0] for turn in turns]
    assert [one[0]["generated_text"] for one in told] == [one["generated_text"] for one in alone]


@pytest.mark.parametrize("host", ["llava", "qwen2_vl"])
def test_tuples_where_they_are_asked_for(host: str) -> None:
    model, ours = fused(f"a={host}:1")
    batch = ours(images=[picture((60, 40))], text=[f"{ours.image_token} w5"])
    with torch.no_grad():
        assert torch.equal(model(**batch, return_dict=False)[0], model(**batch).logits)
        labelled = model(**batch, labels=batch["input_ids"].clamp(max=9), return_dict=False)
    assert labelled[0].ndim == 0


def test_more_rows_for_new_tokens() -> None:
    model, ours = fused("a=qwen2_vl:1", "b=qwen2_vl:3")
    rows = model.config.text_config.vocab_size
    model.resize_token_embeddings(rows + 3)
    assert model.get_input_embeddings().weight.shape[0] == model.get_output_embeddings().weight.shape[0] == rows + 3
    assert model.config.text_config.vocab_size == rows + 3
    batch = ours(images=[picture((60, 40))], text=[f"{ours.image_token} w5"])
    assert model(**batch).logits.shape[-1] == rows + 3


def test_chunks_of_a_prompt_are_refused() -> None:
    model, ours = fused("a=llava:1")
    batch = ours(images=[picture((60, 40))], text=["<image> w5"])
    with pytest.raises(RecipeError, match="prefill_chunk_size does not work here"):
        model.generate(**batch, prefill_chunk_size=2, max_new_tokens=2)


def test_training_reaches_what_asks_for_it() -> None:
    """Gradients through the visual tokens into a projector, with checkpointing."""
    model, ours = fused("a=llava:4", "b=llava_next:4")
    batch = ours(images=[picture((60, 40))], text=["<image> w5 w6 w7"])
    model.gradient_checkpointing_enable()
    wanted = model.branches["b"].multi_modal_projector.linear_1.weight.requires_grad_(True)
    try:
        labels = batch["input_ids"].masked_fill(batch["input_ids"] >= 96, -100)
        model.train()(**batch, labels=labels).loss.backward()
        assert wanted.grad is not None and wanted.grad.abs().sum() > 0
        assert all(p.grad is None for p in model.parameters() if p is not wanted)
    finally:
        model.gradient_checkpointing_disable()
        model.eval().requires_grad_(False)


def test_what_a_processor_tells_of_itself(folder: Path) -> None:
    ours = FusedProcessor.from_pretrained(folder)
    assert repr(ours).startswith("FusedProcessor(branches: a, b; image token '<image>'; ")
    assert ours.image_token_id == ours.fused.placeholder_ids[0]


OPTIONS = [
    ({"truncation": True, "max_length": 3}, "truncation would cut images apart"),
    ({"return_tensors": "np"}, "only return_tensors='pt' works here"),
    ({"imagez": []}, "there is no option 'imagez'"),
]


@pytest.mark.parametrize(("options", "told"), OPTIONS)
def test_options_that_would_be_lost(folder: Path, options: dict[str, object], told: str) -> None:
    with pytest.raises(RecipeError) as error:
        FusedProcessor.from_pretrained(folder)(text=["w5 w6"], **options)
    assert error.value.problem == told


def test_padding_as_asked(folder: Path) -> None:
    ours = FusedProcessor.from_pretrained(folder)
    texts = ["w5", "w6 w7"]
    assert ours(text=texts)["input_ids"].tolist() == [[2, 5], [6, 7]]
    assert ours(text=texts, padding_side="right")["input_ids"].tolist() == [[5, 2], [6, 7]]
    assert ours(text=texts, padding="max_length", max_length=3)["attention_mask"].tolist() == [[0, 0, 1], [0, 1, 1]]
    with pytest.raises(RecipeError, match="prompt 2 has no tokens"):
        ours(text=["w5", ""])


def test_importing_through_fuse_keeps_resources(orders: dict[str, tuple[str, str]]) -> None:
    out, err = orders["resources"]
    assert out.split() == ["SourceFileLoader", "True"], err


HOSTS = [("banana", "llama"), ("qwen2_vl", "llama"), ("mllama", "llama")]


@pytest.mark.parametrize(("host", "text"), HOSTS)
def test_hosts_that_cannot_be(folder: Path, tmp_path: Path, host: str, text: str) -> None:
    with pytest.raises(CheckpointError) as error:
        AutoConfig.from_pretrained(change(folder, tmp_path, host_type=host))
    assert error.value.problem == f"config.json: host_type is {host!r} and the text model is {text!r}"


BROKEN = [
    (
        {"name": "../../x"},
        "a branch cannot be called '../../x': a name is a letter followed by letters, digits, - or _",
    ),
    ({"name": "half"}, "a branch cannot be called 'half': torch's modules keep the word for themselves"),
    ({"kind": []}, "branch 'a' has kind []"),
    ({"config": "x"}, "branch 'a' has config 'x'"),
    ({"max_tokens": "8"}, "branch 'a' has max_tokens '8'"),
    ({"max_tokens": 0}, "branch 'a' has max_tokens 0"),
    ({"prune": "evil"}, "branch 'a' has prune 'evil'"),
]


@pytest.mark.parametrize(("edit", "told"), BROKEN)
def test_edited_branches_are_refused(folder: Path, tmp_path: Path, edit: dict[str, object], told: str) -> None:
    first, second = json.loads((folder / "config.json").read_text())["branches"]
    with pytest.raises(CheckpointError) as error:
        AutoConfig.from_pretrained(change(folder, tmp_path, branches=[{**first, **edit}, second]))
    assert error.value.problem == f"config.json: {told}"


def test_an_encoder_that_its_processor_does_not_suit(folder: Path, tmp_path: Path) -> None:
    """Tiles of another size than the tower takes: one sentence, not the tower's own error."""
    model, ours = fused("a=llava:1", "b=llava_next:2")
    given = ours(images=[picture((60, 40))], text=["<image> w5"])
    given["branches.a.pixel_values"] = [torch.zeros(1, 3, 56, 56)]
    with pytest.raises(CheckpointError, match=r"^branch 'a' cannot encode its image: "):
        model(**given)
