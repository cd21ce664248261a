"""`fuse inspect pairs` on tiny members: the order, the numbers behind it, what is missing, and bad input."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests import fused_members, recipe_members
from tests.cli import Ran, fuse_here
from tests.test_branch_towers import clip_folder

PREFIX, META = "language_model.", {"format": "pt"}
N = 14


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """near, like, copy (of near): from `base`; far: another language model; wide: of another width; blind: no eyes."""
    folder = tmp_path_factory.mktemp("given")
    fused_members.save("llava", folder / "seed", 5)
    weights = load_file(folder / "seed" / "model.safetensors")
    language = {k.removeprefix(PREFIX): v for k, v in weights.items() if k.startswith(PREFIX)}
    fused_members.save_llm(folder / "base")
    own = load_file(folder / "base" / "model.safetensors")
    assert {k: v.shape for k, v in own.items()} == {k: v.shape for k, v in language.items()}
    save_file(language, folder / "base" / "model.safetensors", metadata=META)
    for seed, name in enumerate(("near", "like", "blind"), 1):
        kind = "base" if name == "blind" else "seed"
        shutil.copytree(folder / kind, folder / name)
        moved(folder / name, seed, 0.002)
    shutil.copytree(folder / "near", folder / "copy")
    shutil.copytree(folder / "seed", folder / "far")
    moved(folder / "far", 9, 0.5)
    text = {"model_type": "llama", **fused_members.tiny_vlm.GROUPED, "hidden_size": 16, "intermediate_size": 24}
    fused_members.save("llava", folder / "wide", 4, {"text_config": text})
    (folder / "images").mkdir()
    random = np.random.default_rng(0)
    for i in range(N):
        Image.fromarray(random.integers(0, 256, (40, 40, 3), dtype=np.uint8), "RGB").save(
            folder / "images" / f"{i}.png"
        )
    return folder


def moved(folder: Path, seed: int, scale: float) -> None:
    """Add noise to every weight of a folder, eyes too."""
    random = torch.Generator().manual_seed(seed)
    file = folder / "model.safetensors"
    tensors = {k: v + scale * torch.randn(v.shape, generator=random) for k, v in load_file(file).items()}
    save_file(tensors, file, metadata=META)


def inspect(given: Path, *members: str, base: str = "base", images: str | None = "images", flags: tuple = ()) -> Ran:
    shown = ("--images", given / images) if images else ()
    return fuse_here("inspect", "pairs", *(given / one for one in members), "--base", given / base, *shown, "--quiet",
                     *flags)  # fmt: skip


def document(given: Path, *members: str, **options: Any) -> dict[str, Any]:
    ran = inspect(given, *members, flags=("--json",), **options)
    assert (ran.code, ran.err) == (0, "")
    return json.loads(ran.out)


def values(pair: dict[str, Any]) -> dict[str, float | None]:
    return {name: part["value"] for name, part in pair["parts"].items()}


def test_the_order(given: Path) -> None:
    found = document(given, "far", "near", "copy", "like")
    pairs = [(pair["a"], pair["b"]) for pair in found["pairs"]]
    assert found["inspect"] == "pairs" and found["images"] == N
    assert set(pairs[:2]) == {("near", "like"), ("copy", "like")} and pairs[2] == ("near", "copy")
    assert all("far" in pair for pair in pairs[3:])
    scores = [pair["score"] for pair in found["pairs"]]
    assert scores == sorted(scores, reverse=True) and scores[1] > 0 and scores[3:] == [0, 0, 0]
    assert [pair["weights"] is None for pair in found["pairs"]] == [False] * 3 + [True] * 3


def test_a_copy_fits_and_brings_nothing(given: Path) -> None:
    (pair,) = document(given, "near", "copy")["pairs"]
    told = values(pair)
    assert told["distance"] is not None and 0.8 < told.pop("distance") < 1  # type: ignore[operator]
    assert told == {"tokens": 1, "size": 1, "signs": 1, "space": pytest.approx(1), "new": pytest.approx(0, abs=1e-6)}
    assert pair["score"] == pytest.approx(0, abs=1e-6) and pair["weakest"] == "distance" and pair["missing"] == []
    assert "they see nearly the same, so fusing them gains little" in pair["verdict"]
    assert pair["verdict"].endswith("their task vectors are nearly one (cosine 1.000)")
    assert pair["weights"]["balanced"]["weights"] == {"near": pytest.approx(0.5), "copy": pytest.approx(0.5)}


def test_parts_are_those_of_the_other_kinds(given: Path, tmp_path: Path) -> None:
    (pair,) = document(given, "near", "like")["pairs"]
    told = values(pair)
    seen = fuse_here(
        "inspect", "encoders", given / "near", given / "like", "--images", given / "images", "--json", "--quiet"
    )
    (both,) = json.loads(seen.out)["pairs"]
    assert told["new"] == pytest.approx(1 - both["encoder"]["values"]["cka"])
    assert told["space"] == pytest.approx(both["projector"]["values"]["cosine_of_means"])
    (tmp_path / "r.yaml").write_text(
        f"base: {given}/base\nmembers: {{near: {given}/near, like: {given}/like}}\nvision: [near]\n"
        "language: {method: task_arithmetic, weights: 1.0}\noutput: {model: fuse}\n"
    )
    moved = json.loads(fuse_here("inspect", "deltas", tmp_path / "r.yaml", "--json").out)["parts"]
    (language,) = [part for part in moved if part["part"] == "language"]
    assert told["distance"] == pytest.approx(1 - max(language["relative"]))
    assert told["size"] == pytest.approx(min(language["norm"]) / max(language["norm"]))
    assert told["signs"] == pytest.approx(min(1, 2 * language["weighted_agreement"][0][1]))
    assert pair["fit"] == min(value for name, value in told.items() if name != "new" and value is not None)
    assert pair["score"] == pytest.approx(pair["fit"] * (told["new"] or 0))


def test_another_language_model_does_not_fit(given: Path) -> None:
    (pair,) = document(given, "near", "far")["pairs"]
    assert values(pair)["distance"] == 0 and pair["score"] == 0
    assert pair["verdict"].startswith("near and far do not fit (distance is 0.00: ")


def test_what_is_missing_is_named(given: Path) -> None:
    (pair,) = document(given, "near", "blind")["pairs"]
    assert pair["missing"] == ["space", "new"] and pair["score"] == pair["fit"] > 0
    assert pair["parts"]["new"] == {"value": None, "why": "blind sees nothing"}
    (pair,) = document(given, "near", "like", images=None)["pairs"]
    assert pair["parts"]["space"] == {"value": None, "why": "no --images were given"}
    assert pair["verdict"].endswith("; not measured: space, new (no --images were given)")


def test_a_member_that_is_the_base(given: Path, tmp_path: Path) -> None:
    shutil.copytree(given / "base", tmp_path / "same")
    (pair,) = document(given, "near", str(tmp_path / "same"), images=None)["pairs"]
    assert pair["missing"] == ["size", "signs", "space", "new"] and pair["weakest"] == "distance"
    assert pair["weights"]["equal"]["weights"] == {"near": 1.0}


def test_a_member_that_is_refused_scores_nothing(given: Path) -> None:
    found = document(given, "near", "wide", "like")
    assert list(found["members"]) == ["near", "wide", "like"]
    why = found["members"]["wide"]["refused"]
    assert "hidden_size" in why and found["members"]["near"]["refused"] is None
    best, *rest = found["pairs"]
    assert (best["a"], best["b"]) == ("near", "like") and best["score"] > 0
    for pair in rest:
        assert (pair["score"], pair["weakest"], pair["parts"]["tokens"]["why"]) == (0, "tokens", why)
        assert pair["verdict"].startswith(f"{pair['a']} and {pair['b']} do not fit (tokens is 0.00: {why})")


def test_a_member_whose_encoder_cannot_be_inspected_leaves_the_others_their_images(given: Path, tmp_path: Path) -> None:
    fused_members.tiny_vlm.build("mllama").save_pretrained(tmp_path / "cross")
    found = document(given, "near", str(tmp_path / "cross"), "like")
    why = (
        "its encoder (mllama) cannot be inspected: it reads images through cross-attention, so there are no visual "
        "tokens to concatenate"
    )
    assert found["images"] == N and {name: one["unseen"] for name, one in found["members"].items()} == {
        "near": None, "cross": why, "like": None,
    }  # fmt: skip
    best, *rest = found["pairs"]
    assert (best["a"], best["b"], best["missing"]) == ("near", "like", []) and best["score"] > 0
    for pair in rest:
        assert {"space", "new"} <= set(pair["missing"])
        assert pair["parts"]["space"] == pair["parts"]["new"] == {"value": None, "why": f"cross: {why}"}
    ran = inspect(given, "near", str(tmp_path / "cross"))
    assert (ran.code, ran.err) == (0, "") and f"cross did not look at images: {why}." in ran.out.splitlines()


def test_a_member_in_its_authors_layout_has_its_tower_beside_it(given: Path, tmp_path: Path) -> None:
    recipe_members.save("slime", tmp_path / "slime", 1)
    clip_folder(tmp_path / "clip")
    found = document(given, "near", str(tmp_path / "slime"))
    assert found["members"]["slime"]["unseen"] is None and found["pairs"][0]["parts"]["new"]["value"] is not None
    found = document(given, str(tmp_path / "slime"), "near")
    assert found["members"]["slime"]["refused"] is None


def test_images_are_asked_for_before_anything_is_measured(given: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuse.align.pairs.rank.measure", None)
    (given / "empty").mkdir(exist_ok=True)
    ran = inspect(given, "near", "like", images="empty")
    assert (ran.code, ran.out) == (2, "") and ran.err.startswith(f"fuse: {given}/empty: holds no images (")


def test_the_table(given: Path) -> None:
    ran = inspect(given, "near", "like", "blind")
    assert (ran.code, ran.err) == (0, "")
    lines = [" ".join(line.split()) for line in ran.out.splitlines()]
    assert lines[0] == "pair score fit tokens distance size signs space new weights"
    assert "score: fit x new." in ran.out and f"{N} images." in lines
    rows = {" ".join(line.split()[:2]): line.split()[2:] for line in lines[2:5]}
    assert set(rows) == {"near, like", "near, blind", "like, blind"}
    assert rows["near, blind"][0].startswith("≤0.") and rows["near, blind"][6:8] == ["-", "-"]
    assert len(rows["near, like"]) == 10 and sum(" and " in line and " fit" in line for line in lines[6:]) >= 3


def test_images_that_cannot_be_read(given: Path, tmp_path: Path) -> None:
    shutil.copytree(given / "images", tmp_path / "images")
    (tmp_path / "images" / "0.png").write_bytes(b"broken")
    ran = inspect(given, "near", "like", images=str(tmp_path / "images"))
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.splitlines()[-1] == (
        f"fuse: {tmp_path}/images/0.png: is not an image that fuse can read (--skip-bad leaves it out)"
    )
    ran = inspect(given, "near", "like", images=str(tmp_path / "images"), flags=("--skip-bad",))
    assert f"{N - 1} images; skipped: 0.png (is not an image that fuse can read)." in ran.out


@pytest.mark.parametrize(
    ("members", "code", "sentence"),
    [
        (["near"], 2, "pairs are of two members or more (fuse inspect pairs A B --base BASE)"),
        (["near", "like", "near"], 2, "'{given}/near' is given twice"),
        (["near", "none"], 2, "'{given}/none' does not exist (a folder or a hub id org/name)"),
    ],
)
def test_bad_input_is_one_sentence(given: Path, members: list[str], code: int, sentence: str) -> None:
    ran = inspect(given, *members)
    assert (ran.code, ran.out) == (code, "") and ran.err.startswith(f"fuse: {sentence.format(given=given)}"), ran.err
    assert ran.err.count("\n") == 1


def test_a_base_that_is_not_there(given: Path) -> None:
    ran = inspect(given, "near", "like", base="nobase")
    assert ran.code in (2, 3) and ran.out == "" and f"{given}/nobase" in ran.err and ran.err.count("\n") == 1
