"""`fuse inspect attention` as a user runs it: several families on one image, known answers, pictures, refusals."""

import json
import shutil
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from fuse.align.attention.maps import centre_distance, common_map, cosine, jensen_shannon
from fuse.align.attention.words import sentences
from fuse.ask import ask, inputs_of, load
from fuse.branches.places import grid_boxes
from fuse.report.attention import answer_attention
from fuse.report.overlay import MAGMA, heat, top_of_scale
from fuse.report.side_by_side import Panel, side_by_side
from tests import eval_folders, fused_members, layouts, tiny_processors, tiny_vlm
from tests.cli import Ran, fuse_here

ASK = "w5 w6 w7"
KINDS = ("llava", "llava_next", "qwen2_vl", "gemma3", "idefics3", "paligemma")
FUSED = """
members: {{a: {0}/llava, b: {0}/twin}}
language: {{method: linear, weights: 0.5}}
vision: [a, {{from: b, max_tokens: 2}}]
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Members of six families, a twin of the first, both fused, a language model, and a picture."""
    made = tmp_path_factory.mktemp("attention")
    for seed, kind in enumerate(KINDS, start=1):
        fused_members.save(kind, made / kind, seed=seed)
    fused_members.save("llava", made / "twin", seed=9, base=1)
    fused_members.save_llm(made / "llm")
    (made / "recipe.yaml").write_text(FUSED.format(made))
    assert fuse_here("merge", made / "recipe.yaml", made / "fused").code == 0
    noise = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(made / "photo.png")
    return made


def look(root: Path, *names: str, more: tuple[object, ...] = ()) -> Ran:
    folders = [root / name for name in names]
    photo = ("--image", root / "photo.png", "--question", ASK, "--max-tokens", 3, *more)
    return fuse_here("inspect", "attention", *folders, *photo)


def told(ran: Ran) -> dict[str, Any]:
    assert (ran.code, ran.err) == (0, ""), ran
    return json.loads(ran.out)


@pytest.fixture(scope="module")
def document(root: Path) -> dict[str, Any]:
    return told(look(root, *KINDS, "fused", more=("--json",)))


# What is measured


def test_a_folder_beside_itself_is_no_distance_away(root: Path) -> None:
    found = told(look(root, "llava", "llava", more=("--json",)))
    first, second = found["members"].values()
    assert list(found["members"]) == ["llava", "llava (2)"] and first == second
    (pair,) = found["pairs"]
    assert pair == {
        "a": "llava", "b": "llava (2)", "jensen_shannon": 0, "cosine": pytest.approx(1), "top_overlap": 1,
        "centre_distance": 0,
    }  # fmt: skip
    assert found["sentences"][0] == ("llava and llava (2) look at the same places (Jensen-Shannon divergence 0.000).")


def test_every_family_has_a_map_on_one_grid(document: dict[str, Any]) -> None:
    assert list(document["members"]) == [*KINDS, "fused/a", "fused/b"]
    assert document["image"]["size"] == [60, 40] and document["layers"] is None
    for name, one in document["members"].items():
        drawn = np.array(one["map"])
        assert drawn.shape == (21, 32) and drawn.sum() == pytest.approx(1, abs=1e-6), name
        assert 0 < one["share"] < 1 and one["tokens"] >= 1 and 0 < one["placed"] <= 1, name
        assert 0 <= one["from_flat"] <= 1 and all(0 < x < 1 for x in one["centre"]), name
    shares = [document["members"][name] for name in ("fused/a", "fused/b")]
    assert shares[0]["answer"] == shares[1]["answer"] and [one["tokens"] for one in shares] == [4, 2]


@pytest.mark.parametrize("kind", ["llava_next", "qwen2_vl", "idefics3"])
def test_a_member_and_its_own_eyes_in_a_fused_folder_look_alike(root: Path, tmp_path: Path, kind: str) -> None:
    """Two ways to the same map: the class of transformers with its own processor, and fuse's branch of it."""
    recipe = f"members: {{a: {root / kind}}}\nlanguage: {{method: linear, weights: {{a: 1}}}}\nvision: [a]\n"
    (tmp_path / "recipe.yaml").write_text(f"{recipe}output: {{model: fuse}}\n")
    assert fuse_here("merge", tmp_path / "recipe.yaml", tmp_path / "alone").code == 0
    found = told(look(root, kind, tmp_path / "alone", more=("--json", "--layers", "0-1")))
    native, branch = found["members"].values()
    assert list(found["members"]) == [kind, "alone/a"] and native["answer"] == branch["answer"]
    assert native["share"] == pytest.approx(branch["share"], abs=1e-5) and native["tokens"] == branch["tokens"]
    np.testing.assert_allclose(native["map"], branch["map"], atol=1e-6)
    assert found["pairs"][0]["jensen_shannon"] < 1e-9 and found["pairs"][0]["centre_distance"] < 1e-5


def test_the_pairs_are_the_measures_of_the_maps(document: dict[str, Any]) -> None:
    members = document["members"]
    assert [(pair["a"], pair["b"]) for pair in document["pairs"]] == list(combinations(members, 2))
    for pair in document["pairs"]:
        a, b = (np.array(members[pair[side]]["map"]) for side in ("a", "b"))
        assert pair["jensen_shannon"] == pytest.approx(jensen_shannon(a, b), abs=1e-6)
        assert pair["cosine"] == pytest.approx(cosine(a, b), abs=1e-6)
        assert pair["centre_distance"] == pytest.approx(centre_distance(a, b), abs=1e-6)


@pytest.mark.parametrize("layers", [None, "0", "1", "0-1"])
def test_the_attention_is_that_of_generate(root: Path, layers: str | None) -> None:
    """LLaVA from first principles: a centre crop of 2 x 2 tokens, weights as transformers itself gives them."""
    more = ("--json", *(() if layers is None else ("--layers", layers)))
    one = told(look(root, "llava", more=more))["members"]["llava"]
    answerer = load(root / "llava")
    inputs = inputs_of(answerer, ASK, (root / "photo.png",))
    answerer.model.set_attn_implementation("eager")
    with torch.no_grad():
        out = answerer.model.generate(
            **inputs, max_new_tokens=3, do_sample=False, output_attentions=True, return_dict_in_generate=True
        )
    steps = out.attentions
    if layers not in (None, "0-1"):
        steps = [[step[int(layers)]] for step in steps]
    paid = answer_attention(steps, inputs["input_ids"].shape[1])[inputs["input_ids"][0].numpy() == 80]
    assert one["share"] == pytest.approx(paid.sum(), abs=1e-6) and one["tokens"] == len(paid) == 4
    wide = 40 / 60  # what a centre crop leaves of the width
    boxes = grid_boxes(2, 2, ((1 - wide) / 2, 0, (1 + wide) / 2, 1))
    wanted = common_map(paid, boxes, (60, 40))
    np.testing.assert_allclose(one["map"], wanted / wanted.sum(), atol=1e-6)
    assert one["answer"] == ask(load(root / "llava"), ASK, images=(root / "photo.png",), max_tokens=3)


def test_padding_is_no_part_of_the_map(document: dict[str, Any]) -> None:
    """llava_next's tiles reach over the image, and its lines end in a break; llava's crop leaves the margins out."""
    crop = np.array(document["members"]["llava"]["map"])
    assert not crop[:, :5].any() and not crop[:, -5:].any() and crop[:, 6:-6].all()
    assert document["members"]["llava"]["placed"] == pytest.approx(1)
    assert document["members"]["llava"]["seen"] == pytest.approx(2 / 3)
    for name in set(document["members"]) - {"llava", "fused/a", "fused/b"}:
        assert document["members"][name]["seen"] == pytest.approx(1), name
    assert (
        "llava has visual tokens of 67% of the image only (a crop or a budget), which is a part of its distances."
        in (document["sentences"])
    )
    assert document["members"]["llava_next"]["placed"] < 0.99


def test_the_cells_of_the_grid(root: Path) -> None:
    found = told(look(root, "qwen2_vl", more=("--json", "--cells", 6)))
    assert np.array(found["members"]["qwen2_vl"]["map"]).shape == (4, 6) and found["pairs"] == []


OTHERS = [kind for kind in eval_folders.NATIVE if kind not in {*KINDS, "mllama"}]
NOWHERE = {"idefics2", "blip-2", "blip-2 with T5", "instructblip", "instructblip with T5"}  # resamplers


@pytest.mark.parametrize("kind", OTHERS)
def test_every_other_family(root: Path, tmp_path: Path, kind: str) -> None:
    tiny_vlm.build(kind, 1).save_pretrained(tmp_path / "it")
    known = kind in tiny_processors.PROCESSORS
    (tiny_processors.processor(kind) if known else eval_folders._processor(kind)).save_pretrained(tmp_path / "it")
    found = told(look(root, tmp_path / "it", more=("--json", "--layers", "1")))
    one = found["members"]["it"]
    assert 0 < one["share"] < 1 and one["tokens"] > 0
    if kind not in NOWHERE:
        assert np.array(one["map"]).shape == (21, 32) and 0 < one["placed"] <= 1, one
        return
    assert one["map"] is one["placed"] is one["centre"] is one["from_flat"] is one["seen"] is None
    assert found["sentences"] == [
        f"it looks through a {'perceiver resampler' if kind == 'idefics2' else 'Q-Former'}, which makes each of its 4 "
        "visual tokens of the whole image, so it has no map and no distances."
    ]


def test_attention_that_is_no_number(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "llava", tmp_path / "x")
    file = tmp_path / "x" / "model.safetensors"
    save_file(
        {k: v.fill_(torch.nan) if "q_proj" in k else v for k, v in load_file(file).items()}, file, {"format": "pt"}
    )
    ran = look(root, tmp_path / "x")
    assert (ran.code, ran.out) == (3, "")
    assert ran.err == f"fuse: {tmp_path}/x: its attention is not all finite numbers\n"


# What is shown


def test_the_tables(root: Path) -> None:
    ran = look(root, "llava", "qwen2_vl", "fused")
    assert (ran.code, ran.err) == (0, "")
    head = ran.out.splitlines()[0].split()
    assert head == ["member", "answer", "on", "image", "tokens", "from", "flat", "centre"]
    assert "llava, fused/b" in ran.out and "Jensen-Shannon" in ran.out and "Closest: " in ran.out


def test_the_picture(root: Path, tmp_path: Path) -> None:
    ran = look(root, "llava", "fused", more=("--out", tmp_path / "look.png", "--json"))
    found = told(ran)
    with Image.open(tmp_path / "look.png") as page:
        assert page.mode == "RGB" and page.width == 24 + 4 * 444
        answers = [one["answer"] for one in found["members"].values()]
        assert page.text == {"question": ASK, **{f"answer {n}": text for n, text in enumerate(answers, 1)}}
        pixels = np.asarray(page)
    photo = Image.open(root / "photo.png").resize((420, 280), Image.Resampling.LANCZOS)
    top = 24 + 22 + 12 + 28
    np.testing.assert_array_equal(pixels[top : top + 280, 24:444], np.asarray(photo))
    for number, one in enumerate(found["members"].values(), 1):
        left, values = 24 + 444 * number, np.array(one["map"])
        panel = pixels[top : top + 280, left : left + 420].astype(int)
        assert np.abs(panel - np.asarray(heat(photo, values / top_of_scale(values)))).max() <= 1, number
    assert (pixels[:20] == 255).all() and (pixels[-8:] == 255).all()


def test_a_folder_gets_the_picture(root: Path, tmp_path: Path) -> None:
    for _ in range(2):
        ran = look(root, "llava", more=("--out", tmp_path / "new"))
        assert (ran.code, ran.err) == (0, f"attention: {tmp_path / 'new' / 'attention.png'}\n")
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["attention.png"]


def test_the_report(root: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    ran = look(root, "llava", "fused", more=("--report", tmp_path / "page"))
    assert ran.code == 0 and f"report: {tmp_path / 'page' / 'report.html'}\n" in ran.out
    text = (tmp_path / "page" / "report.html").read_text()
    assert "fused/b" in text and ASK in text


def test_many_models_and_long_answers_in_a_picture(tmp_path: Path) -> None:
    grey = Image.new("RGB", (50, 100), (200, 200, 200))
    panels = [Panel(f"m{i}", np.ones((4, 2)), "note", "word " * 300) for i in range(5)]
    side_by_side(grey, [*panels, Panel("blind", None, "", "")], tmp_path / "look.png", question="w " * 400)
    with Image.open(tmp_path / "look.png") as page:
        pixels = np.asarray(page)
        assert page.width == 24 + 4 * 444 and page.text["answer 1"] == "word " * 300
        rows = [
            y for y in range(page.height) if (pixels[y, 24 + 444 + 100] == np.round(0.4 * 200 + 0.6 * MAGMA[-1])).all()
        ]
    assert len(rows) == 2 * 420  # two rows of panels, all of them hot at that place
    assert (pixels == 200).all(-1).sum() >= 2 * 420 * 210  # the image, and the model without a map in grey


# Sentences


def member(**changes: Any) -> dict[str, Any]:
    return {"model_type": "llava", "share": 0.4, "tokens": 16, "map": [[1.0]], "from_flat": 0.2, "seen": 0.95} | changes


def pair(a: str, b: str, value: float) -> dict[str, Any]:
    return {"a": a, "b": b, "jensen_shannon": value}


def test_sentences_of_pairs() -> None:
    members = {name: member() for name in "abc"}
    pairs = [pair("a", "b", 0.2), pair("a", "c", 0.0499), pair("b", "c", 0.05)]
    assert sentences({"members": members, "pairs": pairs}) == [
        "a and c look at the same places (Jensen-Shannon divergence 0.050).",
        "b and c look at partly different places (Jensen-Shannon divergence 0.050).",
        "a and b look at different places (Jensen-Shannon divergence 0.200).",
    ]
    assert sentences({"members": members, "pairs": [*pairs, pair("c", "d", 0.9)]}) == [
        "Closest: a and c look at the same places (Jensen-Shannon divergence 0.050).",
        "Farthest: c and d look at different places (Jensen-Shannon divergence 0.900).",
        "2 of the 4 pairs look at different places (Jensen-Shannon divergence 0.2 or more).",
    ]


def test_sentences_of_members() -> None:
    members = {
        "a": member(share=0.02), "b": member(map=None, from_flat=None), "c": member(from_flat=0.001, tokens=33, seen=0.9499),
        "d": member(map=None, from_flat=None, share=0.0),
    }  # fmt: skip
    assert sentences({"members": members, "pairs": []}) == [
        "The members have 16 to 33 visual tokens: coarser maps are flatter, which is a part of these distances.",
        "a hardly looks at the image: 2.0% of its attention.",
        "b has 16 visual tokens whose places on the image are not known, so it has no map and no distances.",
        "c has visual tokens of 95% of the image only (a crop or a budget), which is a part of its distances.",
        "c looks at the whole image evenly (0.0010 from flat).",
        "d hardly looks at the image: 0.0% of its attention.",
        "d paid nothing to the image, so it has no map and no distances.",
    ]


# What is refused, before a model is loaded


def unreachable(*_: Any, **__: Any) -> None:
    raise AssertionError("a model is loaded")


REFUSED = [
    (("no",), (), 2, "{root}/no: there is no such folder"),
    (("llava", "llm"), (), 2, "{root}/llm: sees no images, so there is nothing to draw its attention on"),
    (("llava",), ("--image", "no.png"), 2, "no.png: there is no such file"),
    (("llava",), ("--question", " "), 2, "--question is empty"),
    (("llava",), ("--layers", "3-2"), 2, "--layers is '3-2', not one layer or a range of them (such as 10-20)"),
    (("llava",), ("--layers", "-1"), 2, "--layers is '-1', not one layer or a range of them (such as 10-20)"),
    (("llava",), ("--layers", "1-2"), 2, "{root}/llava: --layers is 1-2, and its language model has layers 0 to 1"),
    (("fused",), ("--layers", "7"), 2, "{root}/fused: --layers is 7, and its language model has layers 0 to 1"),
    (("llava",), ("--out", "x.jpg"), 2, "x.jpg: the attention picture is a PNG (name it x.png)"),
    (("llava",), ("--out", "no/x.png"), 2, "no: there is no such folder for the attention picture"),
    (
        ("llava",), ("--out", "{root}/photo.png"), 2,
        "{root}/photo.png: the attention picture would be written over the image (name another)",
    ),
    (("mllama",), (), 2, "{root}/mllama: mllama reads images through cross-attention, and its prompt has no visual "
     "tokens to draw (leave it out)"),
    (("eyeless",), (), 3, "{root}/eyeless: has no image processor, so it cannot be shown an image"),
    (("original",), (), 3, "{root}/original: has the original layout of llava_llama, which only the code it came from "
     "loads (a recipe with `output: {{model: fuse}}` makes a folder of it that runs)"),
]  # fmt: skip


@pytest.fixture(scope="module")
def broken(root: Path) -> Path:
    """Folders that cannot be shown an image."""
    tiny_vlm.build("mllama").save_pretrained(root / "mllama")
    (root / "mllama" / "preprocessor_config.json").write_text("{}")
    tiny_vlm.build("llava").save_pretrained(root / "eyeless")
    layouts.build_original("llava", root / "original")
    return root


@pytest.mark.parametrize(("names", "more", "code", "sentence"), REFUSED)
def test_refused_before_a_model_is_loaded(
    broken: Path,
    monkeypatch: pytest.MonkeyPatch,
    names: tuple[str, ...],
    more: tuple[str, ...],
    code: int,
    sentence: str,
) -> None:
    monkeypatch.setattr("fuse.align.attention.members.load", unreachable)
    before = (broken / "photo.png").read_bytes()
    ran = look(broken, *names, more=tuple(one.format(root=broken) for one in more))
    assert (ran.code, ran.out, ran.err) == (code, "", f"fuse: {sentence.format(root=broken)}\n")
    assert (broken / "photo.png").read_bytes() == before


def test_an_image_that_is_none(root: Path, tmp_path: Path) -> None:
    (tmp_path / "words.png").write_text("no picture")
    ran = look(root, "llava", more=("--image", tmp_path / "words.png"))
    assert (ran.code, ran.out) == (2, "") and ran.err.startswith(f"fuse: {tmp_path / 'words.png'}: ")
    assert ran.err.count("\n") == 1


def test_a_folder_where_a_picture_cannot_be(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ran = look(root, "llava", more=("--out", tmp_path / "file"))
    assert ran.err == f"fuse: {tmp_path / 'file'}: is a file, not a folder for the attention picture\n"
    (tmp_path / "x.png").mkdir()
    (tmp_path / "x.png" / "attention.png").mkdir()
    ran = look(root, "llava", more=("--out", tmp_path / "x.png"))
    where = tmp_path / "x.png" / "attention.png"
    assert ran.err == f"fuse: {where}: the attention picture would be written over a folder (name another)\n"
