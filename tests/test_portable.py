"""`fuse export --to portable`: the folder says the same, to the bit, where there is no `fuse`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

import fuse  # noqa: F401 - makes the Auto classes know the folders
from tests import recipe_members
from tests.cli import fuse_here
from tests.original_branches import picture
from tests.test_recipes import DONORS, KINDS, ROOT

RECIPES = [
    "visionfuse_llava_pair.yaml", "visionfuse_mgm_slime.yaml", "visionfuse_qwen2.yaml", "clipcap.yaml", "lavin.yaml",
    "lion.yaml", "lion_with_lmeye.yaml", "llama_adapter.yaml", "llama_adapter_v2.yaml", "lmeye.yaml", "lora.yaml",
    "mks2_mixture.yaml",
]  # fmt: skip
NAMES = [Path(recipe).stem for recipe in RECIPES]


def made(recipe: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """The recipe merged and exported into the folder; what it says with `fuse`."""
    text = (ROOT / recipe).read_text()
    recipe_members.furnish([text], KINDS[recipe], folder, monkeypatch, DONORS.get(recipe))
    (folder / "recipe.yaml").write_text(recipe_members.stand_in(text))
    for verb in (("merge", folder / "recipe.yaml"), ("export", folder / "out", "--to", "portable")):
        ran = fuse_here(*verb, folder / ("out" if verb[0] == "merge" else "portable"))
        assert (ran.code, ran.err) == (0, ""), ran
    model = AutoModelForImageTextToText.from_pretrained(folder / "out").eval()
    processor = AutoProcessor.from_pretrained(folder / "out")
    images = bool(model.config.branches)
    prompt = f"{processor.image_token} w5 w6" if images else "w5 w6"
    batch = processor(images=[picture(60, 40)] if images else None, text=[prompt])
    extra = {"decoder_input_ids": torch.zeros(1, 1, dtype=torch.long)} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        logits = model(**batch, **extra).logits
        said = model.generate(**batch, max_new_tokens=6, do_sample=False)
    return {
        "prompt": prompt, "images": images, "input_ids": batch["input_ids"], "logits": logits, "said": said,
    }  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every recipe in a folder of its name: members, `out` and `portable`; what they say in wanted.pt."""
    where = tmp_path_factory.mktemp("portable")
    picture(60, 40).save(where / "photo.png")
    wanted = {}
    with pytest.MonkeyPatch.context() as patch:
        for recipe, name in zip(RECIPES, NAMES, strict=True):
            (where / name).mkdir()
            wanted[name] = made(recipe, where / name, patch)
    torch.save(wanted, where / "wanted.pt")
    return where


@pytest.fixture(scope="module")
def without(root: Path) -> dict:
    """What a process without `fuse` finds, by folder."""
    probe = Path(__file__).with_name("portable_probe.py").read_text()
    (root / "probe.py").write_text(probe)  # so that neither the project nor the tests are on its path
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    ran = subprocess.run(
        [sys.executable, root / "probe.py", str(root), str(torch.get_num_threads()), *NAMES],
        cwd=root, capture_output=True, text=True, check=False, timeout=240,
        env=env | {"HF_MODULES_CACHE": str(root / "modules"), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", NAMES)
def test_says_the_same_without_fuse(without: dict, name: str) -> None:
    assert without[name] == {"input_ids": True, "logits": True, "said": True}


def test_nothing_of_fuse_was_imported(without: dict) -> None:
    assert without["fuse"] == []
