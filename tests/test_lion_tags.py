"""Tags by a CLIP of open_clip: its own scores on random weights, what it chooses, what it refuses."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file

from fuse.branches import open_clip_files
from fuse.errors import CheckpointError, FuseError, RecipeError
from fuse.grafts.lion_tags import Tagger, words_of
from tests import tiny_encoders
from tests.original_branches import picture

TEXT = {"width": 16, "heads": 2, "layers": 2, "context_length": 20, "vocab_size": 49408}
WORDS = ["dog", "red car", "tree", "house", "boat"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An open_clip package with a tiny architecture, and weights of it."""
    folder = tmp_path_factory.mktemp("clip")
    package = tiny_encoders.install(folder)
    file = package / "model_configs" / "plain.json"
    file.write_text(file.read_text().replace('"text_cfg": {}', f'"text_cfg": {TEXT}'.replace("'", '"')))
    save_file(state(model()), folder / "clip.safetensors")
    torch.save({"state_dict": {f"module.{key}": value for key, value in state(model()).items()}}, folder / "clip.pt")
    return folder


@pytest.fixture(autouse=True)
def installed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_clip_files, "_package", lambda: place / "open_clip")


def model() -> Any:
    made: Any = tiny_encoders.randomise(open_clip.CLIP(16, dict(tiny_encoders.OPEN_CLIP["plain"]), dict(TEXT)))
    made.logit_scale.data.fill_(4.0)
    return made


def state(made: Any) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in made.state_dict().items() if key != "attn_mask"}


@torch.no_grad()
@pytest.mark.parametrize("name", ["clip.safetensors", "clip.pt"])
def test_shares_are_those_of_clip(place: Path, name: str) -> None:
    clip, image = model(), picture(30, 20)
    transform: Any = open_clip.image_transform(16, is_train=False)
    words = open_clip.SimpleTokenizer(context_length=20)([f"a photo of a {word}." for word in WORDS])
    seen, read = clip.encode_image(transform(image)[None]), clip.encode_text(words)
    cosine = torch.nn.functional.cosine_similarity(seen, read).double().numpy()
    wanted = np.exp(cosine * np.exp(4.0))
    found = Tagger("plain", place / name, WORDS).shares(image)
    assert np.abs(np.array(found) - wanted / wanted.sum()).max() < 1e-5
    assert max(found) > 2 * min(found)  # the words do differ


def test_the_likeliest_words_are_the_tags(place: Path) -> None:
    tagger = Tagger("plain", place / "clip.safetensors", [*WORDS, " dog ", ""])
    assert tagger.words == WORDS
    image = picture(30, 20)
    shares = dict(zip(WORDS, tagger.shares(image), strict=True))
    ranked = sorted(WORDS, key=lambda word: -shares[word])
    assert tagger.tags(image, least=0) == ranked
    assert tagger.tags(image, most=2, least=0) == ranked[:2]
    least = (shares[ranked[1]] + shares[ranked[2]]) / 2
    assert tagger.tags(image, least=least) == ranked[:2]
    assert tagger.tags(image, least=1) == []


@pytest.mark.parametrize(
    ("architecture", "words", "kind", "told"),
    [
        ("plain", ["", " "], RecipeError,
         "there are no words to choose tags from (one word or phrase on each line)"),
        ("siglip", WORDS, RecipeError, "tags: the towers of siglip are not CLIP's own (such as ViT-B-32)"),
        ("wide", WORDS, CheckpointError,
         "FILE: is no wide: tensor 'positional_embedding' has shape [20, 16], not [77, 512]"),
    ],
)  # fmt: skip
def test_refusals(place: Path, architecture: str, words: list[str], kind: type[FuseError], told: str) -> None:
    with pytest.raises(kind) as caught:
        Tagger(architecture, place / "clip.safetensors", words)
    assert str(caught.value) == told.replace("FILE", str(place / "clip.safetensors"))


def test_an_architecture_that_is_not_there(place: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        Tagger("plane", place / "clip.safetensors", WORDS)
    assert str(caught.value).startswith("tags: open_clip has no architecture 'plane' (")


def test_words_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("dog\nred car\n")
    assert words_of(tmp_path / "words.txt") == ["dog", "red car"]
    with pytest.raises(RecipeError) as caught:
        words_of(tmp_path / "no.txt")
    assert str(caught.value) == f"{tmp_path / 'no.txt'}: there is no such list of words"


def test_the_command_says_one_sentence(tmp_path: Path) -> None:
    picture(30, 20).save(tmp_path / "photo.png")
    ran = subprocess.run(
        [sys.executable, "-m", "fuse.grafts.lion_tags", "ViT-B-32", "clip.safetensors", "words.txt", "photo.png"],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120,
        env={"PYTHONPATH": str(Path(__file__).parent.parent)},
    )  # fmt: skip
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == "fuse: words.txt: there is no such list of words\n"


def test_the_command_prints_tags(place: Path, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from fuse.grafts.lion_tags import command

    picture(30, 20).save(tmp_path / "photo.png")
    (tmp_path / "words.txt").write_text("\n".join(WORDS))
    files = place / "clip.safetensors", tmp_path / "words.txt", tmp_path / "photo.png"
    ran = CliRunner().invoke(
        command,
        ["plain", *map(str, files), "--most", "2", "--least", "0"],
    )
    assert ran.exit_code == 0, ran
    tagger = Tagger("plain", place / "clip.safetensors", WORDS)
    assert ran.stdout == ", ".join(tagger.tags(picture(30, 20), most=2, least=0)) + "\n"
