"""`fuse inspect encoders` on tiny members: known answers, what cannot be measured, and bad input."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from fuse.align.encoders.compare import Options, compare, labels
from fuse.errors import RecipeError
from tests import fused_members, tiny_encoders
from tests.cli import Ran, fuse, fuse_here

N = 14


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> Path:
    """Members a, b (one base), other (another language model), wide (another width), tower; a text-only one; images."""
    folder = tmp_path_factory.mktemp("given")
    fused_members.save("llava", folder / "a", 1)
    fused_members.save("llava", folder / "b", 2)
    fused_members.save("idefics3", folder / "other", 3, base=9)
    text = {"model_type": "llama", **fused_members.tiny_vlm.GROUPED, "hidden_size": 16, "intermediate_size": 24}
    fused_members.save("llava", folder / "wide", 4, {"text_config": text})
    fused_members.save_llm(folder / "text")
    tiny_encoders.write_transformers("siglip", folder / "tower")
    draw(folder / "images", N)
    return folder


def draw(folder: Path, count: int) -> None:
    folder.mkdir()
    random = np.random.default_rng(0)
    for i in range(count):
        pixels = random.integers(0, 256, (40 + i % 3, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels, "RGB").save(folder / f"{i:02}.png")


def inspect(given: Path, *members: str, images: str = "images", **options: object) -> Ran:
    flags = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value) if part != ""]
    return fuse_here("inspect", "encoders", *(given / name for name in members), "--images", given / images, *flags)


def document(given: Path, *members: str, **options: object) -> dict:
    ran = inspect(given, *members, quiet="", json="", **options)
    assert ran.code == 0, ran.err
    return json.loads(ran.out)


def test_a_member_beside_itself(given):
    told = document(given, "a", "a")
    assert list(told["members"]) == ["a", "a (2)"] and told["images"] == N and told["skipped"] == []
    (pair,) = told["pairs"]
    for kind in ("biased", "unbiased"):
        np.testing.assert_allclose(np.diag(pair["layers"][kind]), 1, atol=1e-9)
        assert abs(pair["layers"][kind][0][1]) < 1
    assert pair["layers"]["a"] == [0, 1] and pair["layers"]["samples"] == 4 * N
    for place in ("encoder", "projector"):
        values = pair[place]["values"]
        expected = {"cka": 1, "cka_biased": 1, "rbf_cka": 1, "procrustes": 0, "knn": 1}
        for measure, value in expected.items():
            assert values[measure] == pytest.approx(value, abs=1e-6), measure
    assert pair["projector"]["values"]["cosine_of_means"] == pytest.approx(1)
    assert abs(pair["projector"]["values"]["mmd"]) <= 3 * pair["projector"]["details"]["mmd"]["null"]
    assert pair["projector"]["embeddings_cosine"] == pytest.approx(1)
    assert "a and a (2) see nearly the same: CKA 1.00 at their last layers, at least 0.9." in pair["sentences"]
    assert f"{N} images." in told["sentences"]


def test_the_numbers_are_those_of_the_definitions(given):
    """Linear CKA from kernels with H = I - 11'/n, of features that transformers gives."""
    told = document(given, "a", "b")
    features = []
    for name in ("a", "b"):
        from transformers import AutoModelForImageTextToText, AutoProcessor

        model = AutoModelForImageTextToText.from_pretrained(given / name).eval()
        processor = AutoProcessor.from_pretrained(given / name)
        images = [Image.open(file) for file in sorted((given / "images").iterdir())]
        pixels = processor.image_processor(images=images, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            states = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[1:]
            tokens = model.model.get_image_features(pixel_values=pixels, return_dict=True).pooler_output
            tokens = torch.stack(list(tokens))
        features.append(
            [*(s[:, 1:].flatten(0, 1).double().numpy() for s in states), tokens.flatten(0, 1).double().numpy()]
        )

    def cka(x: np.ndarray, y: np.ndarray) -> float:
        h = np.eye(len(x)) - 1 / len(x)
        k, l = h @ x @ x.T @ h, h @ y @ y.T @ h  # noqa: E741
        return float((k * l).sum() / np.sqrt((k * k).sum() * (l * l).sum()))

    (pair,) = told["pairs"]
    expected = [[cka(x, y) for y in features[1][:2]] for x in features[0][:2]]
    np.testing.assert_allclose(pair["layers"]["biased"], expected, atol=1e-5)
    assert pair["projector"]["values"]["cka_biased"] == pytest.approx(cka(features[0][2], features[1][2]), abs=1e-5)
    norms = np.linalg.norm(features[0][2], axis=1).mean()
    assert told["members"]["a"]["projector"]["norm"] == pytest.approx(norms, rel=1e-5)
    assert told["members"]["a"]["projector"]["norm_ratio"] == pytest.approx(norms / mean_word(given / "a"), rel=1e-5)


def mean_word(folder: Path) -> float:
    (table,) = (value for key, value in load_file(folder / "model.safetensors").items() if "embed_tokens" in key)
    norms = table.double().norm(dim=1)
    return float(norms[norms > 0].mean())


def test_batches_and_draws_do_not_change_what_is_measured(given):
    one = document(given, "a", "b", batch_size=1)
    many = document(given, "a", "b", batch_size=N)
    first, second = (np.array(told["pairs"][0]["layers"]["unbiased"]) for told in (one, many))
    np.testing.assert_allclose(first, second, atol=1e-5)
    few = document(given, "a", "b", limit=20)
    assert few["pairs"][0]["encoder"]["samples"] == 20 and few["pairs"][0]["layers"]["samples"] == 4 * N
    assert few["pairs"][0]["encoder"]["images"] == N
    np.testing.assert_allclose(few["pairs"][0]["layers"]["unbiased"], second, atol=1e-5)


def test_layers_and_cells_that_are_asked_for(given):
    told = document(given, "a", "b", layers="-1", cells=1)
    assert told["members"]["a"]["layers"] == [1] and told["pairs"][0]["layers"]["samples"] == N
    assert told["common_grid"]["encoder"] == {
        "grid": [1, 1],
        "sentence": "tokens are averaged over the cells of a 1 x 1 grid, of at most 1 cell, from a (2 x 2) and b (2 x 2)",
    }


def test_language_models_too(given, tmp_path):
    texts = tmp_path / "texts"
    texts.write_text("w7 w8\n\nw9\n")
    told = document(given, "a", "b", "tower", llm="", texts=texts)
    ab, at, _ = told["pairs"]
    assert told["members"]["a"]["llm"] == {"blocks": 2, "width": 32, "images": N}
    assert told["members"]["tower"]["llm"] is None
    assert np.shape(ab["llm"]["layers"]["unbiased"]) == (2, 2) and ab["llm"]["samples"] == N
    assert ab["llm"]["values"]["cka"] == ab["llm"]["layers"]["unbiased"][1][1]
    assert at["llm"] == {"unmeasured": {"cka": "tower has no language model"}}
    assert "Not measured at the llm of a and tower: cka (tower has no language model)." in at["sentences"]
    same = document(given, "a", "a", llm="")["pairs"][0]["llm"]
    np.testing.assert_allclose(np.diag(same["layers"]["unbiased"]), 1, atol=1e-9)


def test_what_cannot_be_measured_is_left_out_in_words(given):
    told = document(given, "a", "other", "wide", "tower")
    pairs = {(pair["a"], pair["b"]): pair for pair in told["pairs"]}
    foreign = pairs["a", "other"]["projector"]
    assert abs(foreign["embeddings_cosine"]) < 0.5 and "mmd" not in foreign["values"]
    assert foreign["unmeasured"]["mmd"].startswith(
        "needs a common space, and the embeddings of a and other have a mean cosine of "
    )
    wide = pairs["a", "wide"]["projector"]
    assert wide["unmeasured"] == dict.fromkeys(
        ("mmd", "cosine_of_means"), "needs a common space, and tokens have 32 and 16 numbers"
    )
    assert set(wide["values"]) == {"cka", "cka_biased", "rbf_cka", "svcca", "procrustes", "knn"}
    assert (
        "Not measured at the projector of a and wide: mmd, cosine_of_means (needs a common space, and tokens have 32 "
        "and 16 numbers)." in pairs["a", "wide"]["sentences"]
    )
    bare = pairs["a", "tower"]
    assert bare["projector"] is None and "cka" in bare["encoder"]["values"]
    assert "tower has no projector to compare behind." in bare["sentences"]
    assert told["common_grid"]["encoder"]["grid"] == [2, 2]  # the tower's 4 x 4 is pooled
    assert pairs["other", "tower"]["layers"]["samples"] == 4 * N


def test_images_that_are_all_the_same_do_not_end_it(given, tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(5):
        Image.new("RGB", (40, 40), "red").save(tmp_path / "images" / f"{i}.png")
    told = document(given, "a", "b", images=tmp_path / "images", cells=1)
    (pair,) = told["pairs"]
    assert pair["layers"]["unmeasured"] == "the features of a at layer 0 do not vary over 5 samples"
    assert pair["encoder"]["values"] == {} and told["members"]["a"]["effective_rank"] is None
    assert pair["encoder"]["unmeasured"]["procrustes"] == "the features of a do not vary over 5 samples"
    (pair,) = document(given, "a", "b", images=tmp_path / "images")["pairs"]
    about = pair["encoder"]["details"]["cka"]
    assert about["other_images"] == pytest.approx(pair["encoder"]["values"]["cka"], abs=1e-6)  # of places alone


def test_fewer_images_than_a_measure_needs(given, tmp_path):
    draw(tmp_path / "images", 3)
    told = document(given, "a", "b", images=tmp_path / "images", cells=1)
    (pair,) = told["pairs"]
    assert pair["layers"]["unmeasured"] == "CKA needs at least 4 samples, not 3"
    assert pair["encoder"]["unmeasured"]["knn"] == "agreement of 10 nearest neighbours needs at least 12 samples, not 3"
    assert "procrustes" in pair["encoder"]["values"]


def test_images_that_cannot_be_read(given, tmp_path):
    draw(tmp_path / "images", 5)
    (tmp_path / "images" / "02.png").write_bytes(b"broken")
    ran = inspect(given, "a", "b", images=tmp_path / "images")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.splitlines()[-1] == (
        f"fuse: {tmp_path}/images/02.png: is not an image that fuse can read (--skip-bad leaves it out)"
    )
    told = document(given, "a", "b", images=tmp_path / "images", skip_bad="")
    assert told["images"] == 4
    assert told["skipped"] == [{"file": "02.png", "why": "is not an image that fuse can read"}]
    assert told["sentences"][:2] == ["4 images.", "1 skipped: 02.png (is not an image that fuse can read)."]
    for file in (tmp_path / "images").iterdir():
        file.write_bytes(b"broken")
    ran = inspect(given, "a", "b", images=tmp_path / "images", skip_bad="")
    assert ran.code == 2 and ran.err.splitlines()[-1] == f"fuse: {tmp_path}/images: none of its 5 images can be read"


REFUSED = {
    "alone": (["a"], {}, 2, "{given}/a: one encoder has none to be compared with (name two members)"),
    "text-only": (["a", "text"], {}, 2, "{given}/text: has no image encoder (fuse inspect encoders compares eyes)"),
    "not there": (
        ["a", "none"], {}, 2,
        "{given}/none: there is no such folder (members are FOLDER, hub id ORG/NAME, timm:ARCHITECTURE=FILE.safetensors "
        "or open_clip:ARCHITECTURE[:TAG]=FILE.safetensors)",
    ),
    "a file": (
        ["a", "images/00.png"], {}, 2,
        "{given}/images/00.png: is a file, not a folder (members are FOLDER, hub id ORG/NAME, timm:ARCHITECTURE=FILE."
        "safetensors or open_clip:ARCHITECTURE[:TAG]=FILE.safetensors)",
    ),
    "too many": (["a"] * 65, {}, 2, "65 members are more than the 64 that are compared at once"),
    "no such layer": (
        ["a", "b"], {"layers": "2"}, 2, "a: has 2 layers, and no layer 2 (--layers takes 0 to 1, or -1 for the last)",
    ),
    "layers in words": (
        ["a", "b"], {"layers": "all"}, 2, "--layers is 'all', not numbers between commas (such as 0,5,-1)",
    ),
    "questions for nobody": (
        ["a", "b"], {"texts": "x"}, 2, "--texts is what language models are asked (give --llm too)",
    ),
    "no such questions": (["a", "b"], {"texts": "x", "llm": ""}, 2, "x: there is no such file"),
    "no images": (["a", "b"], {"images": "a"}, 2, "{given}/a: holds no images (PNG, JPEG, WebP, GIF, BMP and TIFF are read)"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(REFUSED))
def test_bad_input_is_one_sentence(given, name):
    members, options, code, sentence = REFUSED[name]
    ran = inspect(given, *members, quiet="", **options)
    assert (ran.code, ran.out, ran.err) == (code, "", f"fuse: {sentence.format(given=given)}\n")


def test_a_member_whose_class_has_no_visual_tokens(given, tmp_path):
    from tests import tiny_vlm

    tiny_vlm.build("mllama").save_pretrained(tmp_path / "m")
    ran = inspect(given, "a", tmp_path / "m", quiet="")
    assert (ran.code, ran.err) == (2, (
        f"fuse: {tmp_path}/m: its encoder (mllama) cannot be inspected: it reads images through cross-attention, so "
        "there are no visual tokens to concatenate\n"
    ))  # fmt: skip


def test_questions_from_a_pipe_are_not_waited_for(given, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    ran = inspect(given, "a", "b", llm="", texts=tmp_path / "pipe")
    assert (ran.code, ran.err) == (2, f"fuse: {tmp_path}/pipe: is not a plain file\n")


@pytest.mark.parametrize(
    ("lost", "told"),
    [
        ("*processor_config.json", "processor_config.json or preprocessor_config.json"),
        ("tokenizer.json", "tokenizer.json or tokenizer.model"),
    ],
)
def test_what_a_processor_needs(given, tmp_path, lost, told):
    shutil.copytree(given / "a", tmp_path / "x")
    for file in (tmp_path / "x").glob(lost):
        file.unlink()
    ran = inspect(given, "b", tmp_path / "x", quiet="")
    assert (ran.code, ran.err) == (3, f"fuse: {tmp_path}/x: its processor does not load: there is no {told}\n")


def test_a_projector_of_zeros_has_no_ratio(given, tmp_path):
    shutil.copytree(given / "a", tmp_path / "x")
    file = tmp_path / "x" / "model.safetensors"
    tensors = {k: v.zero_() if "projector" in k else v for k, v in load_file(file).items()}
    save_file(tensors, file, {"format": "pt"})
    (pair,) = document(given, "a", tmp_path / "x")["pairs"]
    assert "Tokens of x are all zeros behind its projector." in pair["sentences"]
    assert not any("times as long" in sentence for sentence in pair["sentences"])


def test_a_language_model_that_does_not_run_is_told_before_features(given, monkeypatch):
    def refused(folder, *, images):
        raise RecipeError("only the code it came from loads it", where=folder)

    monkeypatch.setattr("fuse.align.encoders.compare.check_folder", refused)
    monkeypatch.setattr("fuse.align.encoders.compare.Run", None)
    ran = inspect(given, "a", "b", llm="", quiet="")
    assert (ran.code, ran.err) == (2, f"fuse: {given}/a: only the code it came from loads it\n")


def test_a_tensor_that_is_missing(given, tmp_path):
    shutil.copytree(given / "tower", tmp_path / "tower")
    file = tmp_path / "tower" / "model.safetensors"
    tensors = load_file(file)
    del tensors["vision_model.post_layernorm.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    # in a process of its own, whose stderr transformers' log knows
    ran = fuse("inspect", "encoders", given / "a", tmp_path / "tower", "--images", given / "images", "--quiet")
    assert (ran.code, ran.err) == (
        3, f"fuse: {tmp_path}/tower: missing keys: 1, the first is encoder.post_layernorm.weight\n",
    )  # fmt: skip


def test_the_tables_and_sentences_for_people(given):
    ran = inspect(given, "a", "b", "tower")
    assert ran.code == 0, ran.err
    lines = [" ".join(line.split()) for line in ran.out.splitlines()]
    assert any(line.startswith("a llava 2 last layer 16 2x2") for line in lines)
    assert any(line.startswith("a, b layers") for line in lines)
    assert "pair place CKA RBF SVCCA Procr kNN MMD² cos" in lines
    assert f"{N} images." in lines
    assert any(line.startswith("Most alike are ") for line in lines)
    assert all(len(line) <= 80 for line in ran.out.splitlines()[:15])


def test_an_image_that_a_member_does_not_take(given, tmp_path):
    fused_members.save("qwen2_vl", tmp_path / "q", 5)
    draw(tmp_path / "images", 5)
    Image.new("RGB", (900, 2)).save(tmp_path / "images" / "01.png")
    ran = inspect(given, "a", tmp_path / "q", images=tmp_path / "images", quiet="")
    assert (ran.code, ran.err) == (2, (
        f"fuse: {tmp_path}/images/01.png: qwen2_vl takes no image of 900x2 pixels: absolute aspect ratio must be "
        "smaller than 200, got 450.0 (--skip-bad leaves it out)\n"
    ))  # fmt: skip
    told = document(given, "a", tmp_path / "q", images=tmp_path / "images", skip_bad="")
    assert told["images"] == 4 and [one["file"] for one in told["skipped"]] == ["01.png"]


def test_weights_that_are_not_numbers(given, tmp_path):
    shutil.copytree(given / "tower", tmp_path / "tower")
    file = tmp_path / "tower" / "model.safetensors"
    tensors = load_file(file)
    tensors["vision_model.encoder.layers.1.mlp.fc2.bias"][3] = torch.nan
    save_file(tensors, file, metadata={"format": "pt"})
    ran = inspect(given, "a", tmp_path / "tower", quiet="")
    assert (ran.code, ran.err) == (
        3, f"fuse: {tmp_path}/tower: the features of block 1 are not all finite numbers\n",
    )  # fmt: skip


def test_a_device_that_is_not_there(given):
    ran = inspect(given, "a", "b", quiet="", device="cuda:77")
    assert (ran.code, ran.out) == (4, "")
    assert ran.err.startswith("fuse: device 'cuda:77': ") and ran.err.endswith(" (cpu works everywhere)\n")


def test_labels_are_short_and_one_to_one():
    assert labels(["zoo/hue/", "zoo/form", "zoo/hue/", "old/hue"]) == ["zoo/hue", "form", "zoo/hue (2)", "old/hue"]
    assert labels(["x/fused/form", "y/form"], {"x/fused/form"}) == ["fused/form", "form"]
    assert labels(["timm:vit=w/1.safetensors", "timm:vit=w/2.safetensors", "open_clip:RN50:openai=w/3.safetensors"]) == [
        "timm:vit=w/1.safetensors", "timm:vit=w/2.safetensors", "open_clip:RN50:openai",
    ]  # fmt: skip


def test_samples_for_pictures_are_the_same_cells_of_every_member(given):
    found = compare([str(given / "a"), str(given / "a")], given / "images", Options(limit=9))
    first, second = (found.samples[name]["projector"] for name in ("a", "a (2)"))
    assert first.rows.shape == (9, 32) and first.means.shape == (9, 32)
    assert torch.equal(first.rows, second.rows) and torch.equal(first.means, second.means)


def test_sums_that_do_not_fit_are_averaged_over_mixed_batches(given, tmp_path):
    draw(tmp_path / "images", 150)
    exact = compare([str(given / "a"), str(given / "b")], tmp_path / "images").document["pairs"][0]
    some = Options(memory=1, batch=128)
    about = compare([str(given / "a"), str(given / "b")], tmp_path / "images", some).document["pairs"][0]
    assert about["layers"]["how"] == (
        "averaged over 1 batch of 512 samples; 88 samples that fill no batch are left out"
    )  # fmt: skip
    np.testing.assert_allclose(about["layers"]["unbiased"], exact["layers"]["unbiased"], atol=0.1)
    assert f"Their CKA is {about['layers']['how']}: exact sums would not fit into memory." in about["sentences"]
    assert not any("would not fit" in sentence for sentence in exact["sentences"])
