"""`fuse export --to native`: the class that transformers has computes what the fused folder did, or every reason why not."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

import fuse  # noqa: F401 - makes the Auto classes know fused folders
from fuse.branches.native_table import NATIVE
from fuse.export.native_why import why_no_class
from tests import folds, tiny_processors, tiny_vlm
from tests.cli import Ran, fuse_here
from tests.original_branches import picture

ALONE = "members: {m: m}\nlanguage: {method: linear, weights: {m: 1}}\nvision: [m]\noutput: {model: fuse}\n"
SEEING = "members: {vlm: @vlm}\nlanguage: {method: linear, weights: {vlm: 1}}\nvision: [vlm]\n"
INSTEAD = "(--to portable runs anywhere)"


def export(folder: Path, out: Path) -> Ran:
    return fuse_here("export", folder, "--to", "native", out)


def read(folder: Path, name: str = "config.json") -> Any:
    return json.loads((folder / name).read_text())


def seen(folder: Path, word: str, rows: int) -> torch.Tensor:
    """Logits of a prompt with an image, of the first rows of the vocabulary."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    processor: Any = AutoProcessor.from_pretrained(folder)
    given = processor(images=[picture(60, 40)], text=[f"{word} w5 w6"], return_tensors="pt")
    with torch.no_grad():
        return model(**given).logits[..., :rows]


@pytest.mark.parametrize("kind", ["llava", "idefics3", "qwen2_vl", "gemma3"])
def test_one_member_comes_back_as_it_was(kind: str, tmp_path: Path) -> None:
    member = tiny_processors.save(tiny_vlm.build(kind), tmp_path / "m")
    (tmp_path / "recipe.yaml").write_text(ALONE)
    assert fuse_here("merge", tmp_path / "recipe.yaml", tmp_path / "fused").code == 0
    ran = export(tmp_path / "fused", tmp_path / "native")
    (name,) = read(member)["architectures"]
    assert ran == Ran(0, f"{tmp_path}/native is native: {name}\n", "")
    weights = "model.safetensors"
    back, own = load_file(tmp_path / "native" / weights), load_file(member / weights)
    assert back.keys() == own.keys() and all(torch.equal(back[key], own[key]) for key in own)
    for file in ("tokenizer.json", "tokenizer_config.json", "processor_config.json"):
        assert read(tmp_path / "native", file) == read(member, file), file
    told, was = read(tmp_path / "native"), read(member)
    assert {key: value for key, value in told.items() if key != "text_config"} == {
        key: value for key, value in was.items() if key != "text_config"
    }
    assert {**told["text_config"], **was["text_config"]} == told["text_config"]
    assert "suppress_tokens" not in read(tmp_path / "native", "generation_config.json")
    fused = read(tmp_path / "fused")
    word = {"qwen2_vl": "<|image_pad|>", "gemma3": "<start_of_image>"}.get(kind, "<image>")
    assert fused["image_token"] == word and NATIVE[kind].written in ("image_token", "boi_token")
    assert torch.equal(seen(tmp_path / "fused", word, 96), seen(tmp_path / "native", word, 96))


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folds.furnish(tmp_path_factory.mktemp("parts"))


# grafts, the recipe before them
FOLD: dict[str, tuple[str, str]] = {
    "three kinds in a llama": (
        "{from: @lavin, modality: image, fold: FOLD}, {from: @mks2, scale: 0.5, fold: FOLD}, "
        "{from: @wide_lora, scale: 0.6, fold: FOLD}", folds.HEAD,
    ),
    "a memory and LaVIN in a LLaVA": (
        "{from: @vlm_mks2, scale: 0.5, fold: FOLD}, "
        "{from: @seeing_lavin, parts: language, modality: image, fold: FOLD}", SEEING,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FOLD)
def test_grafts_that_fold_are_folded_as_a_recipe_folds_them(case: str, parts: Path, tmp_path: Path) -> None:
    grafts, head = FOLD[case]
    for fold, out in (("false", "heard"), ("true", "folded")):
        assert folds.run("merge", parts, tmp_path, grafts.replace("FOLD", fold), out, head=head).code == 0
    assert export(tmp_path / "heard", tmp_path / "native").err == ""
    assert fuse_here("verify", tmp_path / "native").err == ""
    weights = "model.safetensors"
    assert (tmp_path / "native" / weights).read_bytes() == (tmp_path / "folded" / weights).read_bytes()
    told, wanted = read(tmp_path / "native"), read(tmp_path / "folded")
    for key in ("model_type", "architectures", "attention_bias", "mlp_bias", "intermediate_size"):
        inner = (told.get("text_config", told), wanted.get("text_config", wanted))
        assert inner[0].get(key) == inner[1].get(key) and told.get(key) == wanted.get(key), key
    folded = [one["name"] for one in read(tmp_path / "native", "fuse.json")["exported"]["folded"]]
    assert folded == [one["name"] for one in read(tmp_path / "folded", "fuse.json")["folded"]]
    card = (tmp_path / "native" / "README.md").read_text()
    assert f"`{told['architectures'][0]}` by `fuse export --to native`" in card
    assert all(f"- graft `{name}` " in card for name in folded)


def test_eyes_on_a_language_model_of_its_own(parts: Path, tmp_path: Path) -> None:
    """The host is a text-only llama; a graft that is not heard is left out."""
    head = "members: {vlm: @vlm, one: @one}\nlanguage: {method: linear, weights: {one: 1}}\nvision: [vlm]\n"
    more = "model: fuse, host: one, dtype: float32"
    ran = folds.run("merge", parts, tmp_path, "{from: @lion, scale: 0}", "fused", head=head, more=more)
    assert ran.code == 0, ran
    assert export(tmp_path / "fused", tmp_path / "native").err == ""
    told, fused = read(tmp_path / "native"), read(tmp_path / "fused")
    vocabulary = AutoProcessor.from_pretrained(tmp_path / "native").tokenizer.get_vocab()
    assert told["image_token_index"] == vocabulary["<image>"] == 96
    assert (told["text_config"]["vocab_size"], fused["text_config"]["vocab_size"]) == (97, 98 + len(fused["grafts"]))
    assert not any("<|fuse:" in token for token in vocabulary)
    assert "suppress_tokens" not in read(tmp_path / "native", "generation_config.json")
    assert read(tmp_path / "native", "fuse.json")["exported"]["not_heard"] == ["lion"]
    rows = told["text_config"]["vocab_size"]
    assert torch.equal(seen(tmp_path / "fused", "<image>", rows), seen(tmp_path / "native", "<image>", rows))
    again = export(tmp_path / "native", tmp_path / "again")
    said = "transformers has the class of 'llava' itself: the folder is native as it is"
    assert again == Ran(2, "", f"fuse: {tmp_path}/native: {said}\n")


def test_what_people_wrote_in_the_card_stays(parts: Path, tmp_path: Path) -> None:
    head = "members: {vlm: @vlm}\nlanguage: {method: linear, weights: {vlm: 1}}\nvision: [vlm]\n"
    graft = "{from: @seeing_lavin, parts: language, modality: image}"
    assert folds.run("merge", parts, tmp_path, graft, "fused", head=head).code == 0
    card = tmp_path / "fused" / "README.md"
    merged = card.read_text()
    assert "## Branches\n" in merged and "## Grafts\n" in merged
    card.write_text(merged.replace("# A fused model", "# A fused model\n\nOf mine.") + "\n## Mine\n\nFor the cat.\n")
    assert export(tmp_path / "fused", tmp_path / "native").err == ""
    told = (tmp_path / "native" / "README.md").read_text()
    assert "\n# A merged model\n\nOf mine.\n\nMade without training: " in told and told.endswith("\nFor the cat.\n")
    assert told.partition("---\n\n")[0] == merged.partition("---\n\n")[0]
    for heading in ("Recipe", "Licences", "SHA-256", "Form", "Load", "Known limits", "Mine"):
        assert told.count(f"\n## {heading}\n") == 1, heading
    assert "## Branches" not in told and "## Grafts" not in told and "import fuse" not in told
    hashes = read(tmp_path / "native", "fuse.json")["sha256"]
    assert "".join(f"| this folder | {file} | `{sha256}` |\n" for file, sha256 in hashes.items()) in told
    assert told.count("| this folder |") == len(hashes)
    assert fuse_here("verify", tmp_path / "native", "--no-load").code == 0


def test_weights_that_are_not_as_recorded(parts: Path, tmp_path: Path) -> None:
    head = "members: {vlm: @vlm}\nlanguage: {method: linear, weights: {vlm: 1}}\nvision: [vlm]\n"
    assert folds.run("merge", parts, tmp_path, "", "fused", head=head, more="model: fuse").code == 0
    file = tmp_path / "fused" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-4] ^= 1
    file.write_bytes(data)
    told = "is not as fuse.json records it (`fuse verify` tells where it differs)"
    assert export(tmp_path / "fused", tmp_path / "native") == Ran(3, "", f"fuse: {file}: {told}\n")
    assert not (tmp_path / "native").exists()
    file.rename(tmp_path / "fused" / "other.safetensors")
    assert export(tmp_path / "fused", tmp_path / "native").code == 3


# grafts, the recipe before them -> what is said
REFUSED: dict[str, tuple[str, str, str]] = {
    "one reason": (
        "{from: @lion}", folds.HEAD,
        f": graft lion (lion) does not fold: it reads the residual before the norm, where no layer of the host does {INSTEAD}\n",
    ),
    "three reasons": (
        "{from: @seeing_lavin, tower: vlm, modality: image}, {from: @vlm_mks2, router: token_type, name: memory}",
        SEEING.replace("[vlm]", "[{from: vlm, max_tokens: 3}]"),
        f", for 3 reasons {INSTEAD}\n"
        "  1. branch vlm keeps at most 3 visual tokens (pool)\n"
        "  2. graft lavin (lavin) does not fold: the adapters of a vision tower stay: their routes follow every token\n"
        "  3. graft memory (mks2) does not fold: it has router token_type, whose shares differ from token to token\n",
    ),
    "two that do not fold together": (
        "{from: @lavin, name: a, modality: image}, {from: @lavin, name: b, modality: text}, {from: @llama_adapter}",
        folds.HEAD,
        f", for 2 reasons {INSTEAD}\n"
        "  1. graft llama_adapter (llama_adapter) does not fold: each token weighs its prompts by a softmax of its own\n"
        "  2. graft b (lavin) does not fold: its routes are those of a host without a\n",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_every_reason_is_told(case: str, parts: Path, tmp_path: Path) -> None:
    grafts, head, told = REFUSED[case]
    assert folds.run("merge", parts, tmp_path, grafts, "fused", head=head).code == 0
    start = f"fuse: {tmp_path}/fused: no class of transformers computes what it does"
    assert export(tmp_path / "fused", tmp_path / "native") == Ran(2, "", start + told)
    assert not (tmp_path / "native").exists()


LLAVA = {"name": "a", "kind": "native", "config": {"model_type": "llava"}}
TEXT = {"model_type": "llama", "dtype": "bfloat16"}
# changes of a fused config with one LLaVA branch on a llama -> the reasons
WHY: list[tuple[dict[str, Any], list[str]]] = [
    ({}, []),
    ({"host_type": "llava_next"}, []),
    ({"branches": []}, []),
    ({"branches": [], "text_config": {"model_type": "qwen2_vl_text"}},
     ["it has no branch, and qwen2_vl_text has no class of its own"]),
    ({"branches": [LLAVA, {**LLAVA, "name": "b", "norm": "match", "positions": "shared", "separator": {"text": "\n"}}]},
     ["it has 2 branches (a, b), and such a class has one pair of eyes", "branch b stands behind the separator '\\n'",
      "branch b has positions shared", "branch b has norm match"]),
    ({"branches": [{**LLAVA, "kind": "encoder"}]},
     ["branch a is an encoder and a projector from files, and has no class"]),
    ({"branches": [{**LLAVA, "kind": "slime"}]}, ["branch a follows the code of SliME, and has no class"]),
    ({"host_type": "llava_original"},
     ["its host (llava_original) tokenizes the text around an image in pieces, and llava does not"]),
    ({"host_type": "qwen2_vl"}, ["its positions are those of qwen2_vl, and llava counts others"]),
    ({"host_type": "gemma3"}, ["its tokens attend to each other as in gemma3, and in llava otherwise"]),
    ({"host_type": "gpt2", "text_config": {"model_type": "gpt2"}},
     ["its language model is a gpt2, which llava does not hold"]),
    ({"host_type": "cohere", "text_config": {"model_type": "cohere", "logit_scale": 0.0625}},
     ["its language model has logit_scale 0.0625, which llava leaves out"]),
    ({"vision_dtype": "float32"},
     ["its branch computes in float32 beside a language model in bfloat16, and such a class has one dtype"]),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "reasons"), WHY, ids=lambda value: next(iter(value), "none") if value else "none")
def test_what_no_class_has(changes: dict[str, Any], reasons: list[str]) -> None:
    config = {"host_type": "llama", "text_config": TEXT, "branches": [LLAVA]}
    assert why_no_class({**config, **changes}) == reasons
