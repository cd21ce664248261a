"""ClipCap: both mappers and the whole model against the authors' numbers, through import, merge and answer."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, CLIPModel

import fuse  # noqa: F401 - makes the Auto classes know the folder
from fuse.ask import load, prompt_of
from fuse.branches.projector_kinds import build_projector
from fuse.importers import About, Imported
from fuse.importers.clipcap import sort_keys
from tests import recipe_members, tiny_clipcap, tiny_lmeye
from tests.cli import Ran, fuse_forked, fuse_here
from tests.members import save_tokenizer, words
from tests.original_branches import difference, golden, picture

KINDS = ("clipcap_mlp", "clipcap_transformer")
PHOTO = picture(60, 40)


def official(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key.removeprefix("param."): t for key, t in tensors.items() if key.startswith("param.")}


def mapper_of(imported: Imported) -> Any:
    piece = imported.projector
    assert piece is not None
    module = build_projector(piece.kind, piece.config)
    module.load_state_dict(dict(piece.tensors))
    return module.eval()


def merged(folder: Path, recipe: str, name: str = "out") -> Path:
    (folder / f"{name}.yaml").write_text(recipe)
    ran = fuse_here("merge", folder / f"{name}.yaml", folder / name)
    assert (ran.code, ran.err) == (0, ""), ran
    return folder / name


def opened(folder: Path) -> Any:
    model, report = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert {k: list(v) for k, v in report.items() if v} == {}
    return model.eval()


RECIPE = """
members: {gpt: clipcap/language}
language: {method: linear, weights: {gpt: 1}}
vision: [{name: clip, encoder: clip, projector: clipcap}]
"""


# The authors' numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind"), [("clipcap_mlp", "clipcap_mlp"), ("clipcap_transformer_mapper", KINDS[1])])
def test_mappers(name: str, kind: str) -> None:
    tensors, facts = golden(name)
    length = tensors["output.prefix_embeds"].shape[1]
    state = {f"clip_project.{key}": tensor for key, tensor in official(tensors).items()}
    imported = sort_keys(state, About({"prefix_length": length}))
    assert imported.projector is not None and imported.projector.kind == kind
    with torch.no_grad():
        found = mapper_of(imported)(tensors["input.prefix"][:, None])
    assert difference(found, tensors["output.prefix_embeds"]) <= float(facts["tolerance"])


@pytest.mark.parametrize("name", ["clipcap_model_mlp", "clipcap_model_transformer"])
def test_whole_models_from_import_to_logits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A loaded folder on the golden's CLIP features and words; only what the CLIP makes of pixels is put in its place."""
    tensors, facts = golden(name)
    heads, rows = facts["gpt2_config"]["n_head"], facts["gpt2_config"]["vocab_size"]
    file = tiny_clipcap.saved(tmp_path / "coco_prefix-009.pt", official(tensors))
    ran = fuse_forked("import", "clipcap", file, tmp_path / "clipcap", "--set", f"heads={heads}")
    assert (ran.code, ran.err) == (0, ""), ran
    save_tokenizer(tmp_path / "clipcap" / "language", words(rows))
    features = tensors["input.prefix"]
    tiny_lmeye.save_clip(tmp_path / "clip", width=features.shape[1])
    folder = merged(tmp_path, RECIPE)
    model, processor = opened(folder), AutoProcessor.from_pretrained(folder)
    monkeypatch.setattr(model.branches["clip"], "features", lambda pixels: features[:, None])
    batch = processor(images=[PHOTO] * len(features), text=["<image>"] * len(features), return_tensors="pt")
    length = facts["constructor"]["prefix_length"]
    (branch,) = model.config.branches
    assert (batch["input_ids"] == branch["token_id"]).sum(1).tolist() == [length] * len(features)
    batch["input_ids"] = torch.cat([batch["input_ids"], tensors["input.tokens"]], 1)
    batch["attention_mask"] = tensors["input.mask"].long()
    with torch.no_grad():
        found = model(**batch).logits[..., :rows]
    kept = tensors["input.mask"].bool()
    assert kept.any() and not kept.all()
    assert difference(found[kept], tensors["output.logits"][kept]) <= float(facts["tolerance"])


# From a checkpoint to a caption --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP, a file of each mapper beside one GPT-2, and what `fuse import` makes of them."""
    folder = tmp_path_factory.mktemp("clipcap")
    recipe_members.save_encoder(folder / "clip")
    for kind in KINDS:
        file = tiny_clipcap.saved(folder / f"{kind}.pt", tiny_clipcap.official(kind))
        ran = fuse_forked("import", "clipcap", file, folder / kind, "--set", "heads=4")
        assert (ran.code, ran.err) == (0, ""), ran
        save_tokenizer(folder / kind / "language", words(64))
    PHOTO.save(folder / "photo.png")
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_a_caption_is_what_gpt_2_says_behind_the_prefix(place: Path, kind: str) -> None:
    folder = merged(place, RECIPE.replace("clipcap", kind), f"{kind}_out")
    state = tiny_clipcap.official(kind)
    clip, gpt = CLIPModel.from_pretrained(place / "clip").eval(), AutoModelForCausalLM.from_pretrained(
        place / kind / "language")  # fmt: skip
    assert difference(gpt.lm_head.weight, state["gpt.lm_head.weight"]) == 0
    answerer = load(folder)
    assert answerer.processor is not None
    batch = answerer.processor(images=[PHOTO], text=["<image>"], return_tensors="pt")
    with torch.no_grad():
        pooled: Any = clip.get_image_features(pixel_values=batch["branches.clip.pixel_values"][0][None])
        pooled = getattr(pooled, "pooler_output", pooled)
        prefix = mapper_of(sort_keys(state, About({"heads": 4})))(pooled[:, None])
        seen = answerer.model.read(**batch).embeds
        assert difference(seen, prefix) <= 1e-6
        wanted = gpt.generate(inputs_embeds=prefix, max_new_tokens=6, do_sample=False, pad_token_id=0)
    ran = fuse_here("ask", folder, "", "--image", place / "photo.png", "--max-tokens", 6, "--json")
    assert (ran.code, ran.err) == (0, ""), ran
    assert json.loads(ran.out)["answer"] == answerer.tokenizer.decode(wanted[0], skip_special_tokens=True)
    assert prompt_of(answerer, "", 1) == "<image>"  # a space behind it would be a token of GPT-2's
    assert prompt_of(answerer, "w5", 2) == "<image> <image> w5"


def test_features_of_length_1_where_the_mapper_was_trained_so(place: Path) -> None:
    """`--normalize_prefix` of the authors' train.py."""
    state = tiny_clipcap.official()
    plain, normal = (mapper_of(sort_keys(state, About({"heads": 4, "normalize": on}))) for on in (False, True))
    feature = torch.randn(2, 1, tiny_clipcap.WIDTH, generator=torch.Generator().manual_seed(1)) * 3
    with torch.no_grad():
        assert difference(normal(feature), plain(feature / feature.norm(dim=-1, keepdim=True))) <= 1e-6
        assert difference(normal(feature), plain(feature)) > 0.01
        assert torch.equal(normal(feature), normal(feature * 2))
    ran = fuse_forked("import", "clipcap", place / "clipcap_mlp.pt", place / "normal", "--set", "heads=4", "--set",
                    "normalize=true")  # fmt: skip
    assert (ran.code, ran.err) == (0, ""), ran
    assert json.loads((place / "normal" / "projector.json").read_text())["config"]["normalize"] is True


# What import writes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_has_its_place(place: Path, kind: str) -> None:
    state = tiny_clipcap.official(kind)
    projector = load_file(place / kind / "projector.safetensors")
    language = load_file(place / kind / "language" / "model.safetensors")
    for key, tensor in state.items():
        owner, _, name = key.partition(".")
        kept = (projector if owner == "clip_project" else language).get(name)
        if kept is None:
            assert name == "lm_head.weight" or name.endswith((".attn.bias", ".attn.masked_bias")), key
        else:
            assert torch.equal(kept, tensor), key
    told = json.loads((place / kind / "projector.json").read_text())
    assert (told["kind"], told["config"]["prefix_length"]) == (kind, tiny_clipcap.LENGTH)
    assert told["host"] == {
        "model": "", "model_type": "gpt2", "hidden_size": 32, "layers": 2, "norm": "layer", "norm_eps": 1e-05,
        "embedding": None,
    }  # fmt: skip


def test_a_host_gives_config_and_tokenizer(place: Path, tmp_path: Path) -> None:
    host = place / "clipcap_mlp" / "language"
    ran = fuse_forked("import", "clipcap", place / "clipcap_transformer.pt", tmp_path / "out", "--host", host, "--json")
    assert (ran.code, ran.err) == (0, ""), ran
    told = json.loads(ran.out)
    assert set(told["went"]) | set(told["dropped"]) == set(tiny_clipcap.official("clipcap_transformer"))
    assert not set(told["went"]) & set(told["dropped"])
    assert {what: (p["kind"], p["tensors"]) for what, p in told["pieces"].items()} == {
        "projector": ("clipcap_transformer", 27), "language": ("gpt2", 28),
    }  # fmt: skip
    assert json.loads((tmp_path / "out/language/config.json").read_text())["n_head"] == 4
    assert (tmp_path / "out/language/tokenizer.json").read_bytes() == (host / "tokenizer.json").read_bytes()
    record = json.loads((tmp_path / "out/projector.json").read_text())["host"]
    assert record["embedding"]["shape"] == [64, 32]


def test_a_mapper_alone_asks_its_host_how_wide_a_token_is(place: Path, tmp_path: Path) -> None:
    """The authors' `--only_prefix` trains the mapper and leaves GPT-2 alone."""
    state = {**tiny_clipcap.mapper("clipcap_mlp", 32)}
    file = tiny_clipcap.saved(tmp_path / "prefix_only.pt", state)
    ran = fuse_forked("import", "clipcap", file, tmp_path / "out", "--host", place / "clipcap_mlp" / "language")
    assert (ran.code, ran.err) == (0, ""), ran
    assert not (tmp_path / "out" / "language").exists()
    assert json.loads((tmp_path / "out/projector.json").read_text())["config"]["prefix_length"] == tiny_clipcap.LENGTH


def test_captions_end_with_a_full_stop_where_the_words_are_gpt_2s_own() -> None:
    """As the authors' generate functions do; token 13 is "." and 50256 the end of a text."""
    state = {**tiny_clipcap.mapper("clipcap_mlp", 64)}
    gpt = tiny_clipcap.tiny_text.build("gpt2", n_embd=64, n_layer=1, vocab_size=50257)
    state |= {f"gpt.{name}": tensor for name, tensor in gpt.state_dict().items()}
    imported = sort_keys(state, About())
    assert imported.language is not None
    assert imported.generation == {"bos_token_id": 50256, "eos_token_id": [50256, 13]}
    assert (imported.language.config["n_head"], imported.language.config["eos_token_id"]) == (1, 50256)
    assert sort_keys(tiny_clipcap.official(), About({"heads": 4})).generation == {}


# Refusals ------------------------------------------------------------------------------------------------------------


def without(state: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    return {key: tensor for key, tensor in state.items() if key != name}


MLP, TRANSFORMER = tiny_clipcap.official(), tiny_clipcap.official("clipcap_transformer")
ALONE = tiny_clipcap.mapper("clipcap_mlp", 32)
FEW = "(--set heads=N, or --host FOLDER)"
WRONG: dict[str, tuple[dict[str, torch.Tensor], tuple[str, ...], str]] = {
    "heads": (MLP, (), f"FILE: does not tell how many heads GPT-2 has, and 32 numbers are no heads of 64 {FEW}"),
    "no heads": (MLP, ("heads=5",), "--set: heads is 5, and does not divide 32"),
    "heads of a host": (MLP, ("heads=4", "HOST"), "--set: heads is what --host says (leave one of the two out)"),
    "prefix": (
        ALONE, (), "FILE: its prefix of 160 numbers may be cut into tokens in several ways (--host FOLDER of the GPT-2, "
        "or --set prefix_length=10)",
    ),
    "cut": (ALONE, ("prefix_length=7",), "FILE: its prefix of 160 numbers cannot be cut into 7 tokens"),
    "cut otherwise": (
        MLP, ("heads=4", "prefix_length=4"), "FILE: its prefix of 160 numbers cannot be cut into 4 tokens of 32",
    ),
    "length": (
        TRANSFORMER, ("heads=4", "prefix_length=4"), "FILE: its prefix is 5 tokens of 32 numbers, and not 4 of 32",
    ),
    "no mapper": (
        {k: t for k, t in MLP.items() if k.startswith("gpt.")}, (),
        "FILE: holds no `clip_project.*` (ClipCap saves them as coco_prefix-*.pt)",
    ),
    "half a mapper": (without(ALONE, "clip_project.model.2.bias"), ("prefix_length=5",),
                      "FILE: holds nothing for 'model.2.bias' of clipcap_mlp"),
    "half a block": (
        without(TRANSFORMER, "clip_project.transformer.layers.1.norm2.weight"), ("heads=4",),
        "FILE: holds nothing for 'transformer.layers.1.norm2.weight' of clipcap_transformer",
    ),
    "bias": (
        {**ALONE, "clip_project.model.0.bias": torch.ones(3)}, ("prefix_length=5",),
        "FILE: tensor 'clip_project.model.0.bias' has shape [3], and the others make it [80]",
    ),
    "more": (
        {**ALONE, "clip_project.model.4.weight": torch.ones(3, 3)}, ("prefix_length=5",),
        "FILE: tensor 'clip_project.model.4.weight' is no part of clipcap_mlp as the others make it",
    ),
    "half a GPT-2": (
        without(MLP, "gpt.transformer.h.1.mlp.c_proj.bias"), ("heads=4",),
        "FILE: tensor 'transformer.h.1.mlp.c_proj.bias' is missing: config.json promises 2 layers of gpt2\n",
    ),
    "normalize": (ALONE, ("normalize=maybe",), "--set: normalize is 'maybe', not one of false, true"),
    "option": (ALONE, ("lenght=4",), "--set: the import of clipcap has no option 'lenght' ("),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_refusals(place: Path, tmp_path: Path, case: str) -> None:
    state, options, told = WRONG[case]
    file = tiny_clipcap.saved(tmp_path / "coco.pt", state)
    given: list[object] = []
    for option in options:
        given += ["--host", place / "clipcap_mlp" / "language"] if option == "HOST" else ["--set", option]
    ran: Ran = fuse_forked("import", "clipcap", file, tmp_path / "out", *given)
    assert ran.out == "" and ran.code in (2, 3)
    assert ran.err.startswith("fuse: " + told.replace("FILE", str(file))), ran.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["coco.pt"]


def test_a_projector_of_another_width_or_encoder(place: Path, tmp_path: Path) -> None:
    tiny_clipcap.donor(tmp_path / "wide", {"n_embd": 48})
    for projector, encoder, told in (
        (tmp_path / "wide", place / "clip", "the projector of clip gives tokens of 48 numbers, and gpt reads 32 "),
        (place / "clipcap_mlp", tiny_lmeye.save_clip(tmp_path / "other", width=12), "takes tokens of 8 numbers but "),
    ):
        (tmp_path / "recipe.yaml").write_text(
            f"members: {{gpt: {place}/clipcap_mlp/language}}\nlanguage: {{method: linear, weights: 1}}\n"
            f"vision: [{{name: clip, encoder: {encoder}, projector: {projector}}}]\n"
        )
        ran = fuse_here("merge", tmp_path / "recipe.yaml", tmp_path / "out")
        assert (ran.code, ran.out) == (3, "")
        assert ran.err.startswith(f"fuse: {projector / 'projector.json'}: {told}"), ran.err
        assert not (tmp_path / "out").exists()


def test_an_answer_ends_with_the_last_position(tmp_path: Path) -> None:
    """GPT-2's positions are rows of a table, and there is none behind the last."""
    recipe_members.save("gpt2", tmp_path / "gpt2", 0)
    folder = tmp_path / "gpt2"
    config = json.loads((folder / "config.json").read_text())
    model = load_file(folder / "model.safetensors")
    model["transformer.wpe.weight"] = model["transformer.wpe.weight"][:16].clone()
    save_file(model, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**config, "n_positions": 16, "eos_token_id": None}))
    ran = fuse_here("ask", folder, "w5 w6 w7")
    assert (ran.code, len(ran.out.split())) == (0, 13), ran
    ran = fuse_here("ask", folder, " ".join(f"w{n}" for n in range(5, 25)))
    assert ran.code == 2
    assert (
        ran.err == f"fuse: {folder}: the prompt has 20 tokens, and gpt2 has positions for 16 (fewer words or images)\n"
    )
