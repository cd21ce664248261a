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
from tests import recipe_members, tiny_processors, tiny_vlm
from tests.cli import fuse_here
from tests.original_branches import picture
from tests.test_recipes import DONORS, KINDS, ROOT

RECIPES = [
    "visionfuse_llava_pair.yaml", "visionfuse_mgm_slime.yaml", "visionfuse_qwen2.yaml", "clipcap.yaml", "lavin.yaml",
    "lion_with_lmeye.yaml", "lion_decoder.yaml", "llama_adapter_v2.yaml", "lmeye.yaml", "mks2_mixture.yaml",
    "vlm_with_open_clip_encoder.yaml",
]  # fmt: skip
TIMM = """
members: {llava: llava-hf/llava-1.5-7b-hf}
language: {method: linear, weights: {llava: 1}}
vision:
  - llava
  - {name: vit, timm: test_vit, weights: vit.safetensors, projector: from_vit.safetensors, max_tokens: 3}
  - {name: convnext, timm: test_convnext, weights: convnext.safetensors, projector: from_convnext.safetensors}
"""
NAMES = [Path(recipe).stem for recipe in RECIPES] + ["timm_encoders"]


def made(recipe: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """The recipe merged and exported into the folder; what it says with `fuse`."""
    text = (ROOT / recipe).read_text() if recipe else TIMM
    kinds = KINDS[recipe] if recipe else {"llava": "llava"}
    recipe_members.furnish([text], kinds, folder, monkeypatch, DONORS.get(recipe))
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
        for recipe, name in zip([*RECIPES, ""], NAMES, strict=True):
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


def test_what_is_saved_again_says_the_same(root: Path, without: dict) -> None:
    """`save_pretrained` of model and processor takes the code along; a tokenizer is one of transformers' own."""
    assert without["saved"] == {"input_ids": True, "logits": True, "said": True}
    name = NAMES[1]
    told = json.loads((root / name / "saved" / "processor_config.json").read_text())
    assert told == {
        "auto_map": {"AutoProcessor": "processing_fuse.FusedProcessor"},
        "processor_class": "FusedProcessor",
    }
    ours = AutoProcessor.from_pretrained(root / name / "out").tokenizer
    assert without["words"] == ours("w5 w6")["input_ids"]


def test_nothing_of_fuse_was_imported(without: dict) -> None:
    assert without["fuse"] == []


@pytest.mark.parametrize("name", ["visionfuse_mgm_slime", "lavin"])
def test_verify_accepts_the_code_that_is_recorded(root: Path, name: str) -> None:
    ran = fuse_here("verify", root / name / "portable", "--json")
    assert (ran.code, ran.err) == (0, ""), ran
    record = json.loads((root / name / "portable" / "fuse.json").read_text())
    assert {"configuration_fuse.py", "modeling_fuse.py", "processing_fuse.py"} <= set(record["code"])
    assert set(record["code"]) == {path.name for path in (root / name / "portable").glob("*.py")}


def test_weights_are_the_same_files(root: Path) -> None:
    for file in (root / "lavin" / "out").glob("*.safetensors"):
        assert file.samefile(root / "lavin" / "portable" / file.name)


def test_a_folder_is_exported_once(root: Path, tmp_path: Path) -> None:
    folder = root / "lavin" / "portable"
    ran = fuse_here("export", folder, "--to", "portable", tmp_path / "again")
    told = f"fuse: {folder}: the folder has its code already: it is portable as it is\n"
    assert (ran.code, ran.err) == (2, told)
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    ("out", "told"),
    [
        ("portable", "the output already exists (choose another folder, or --force)"),
        ("out", "the output already exists (choose another folder, or --force)"),
        ("out/inner", "the output and the folder would lie in each other"),
        ("none/there", "the folder {parent!r} does not exist (make it first)"),
    ],
)
def test_where_it_cannot_be_written(root: Path, out: str, told: str) -> None:
    target = root / "lavin" / out
    ran = fuse_here("export", root / "lavin" / "out", "--to", "portable", target)
    assert (ran.code, ran.err) == (2, f"fuse: {target}: {told.format(parent=str(target.parent))}\n")


def test_another_folder_with_force_is_replaced_only_where_fuse_made_it(root: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    ran = fuse_here("export", root / "lavin" / "out", "--to", "portable", tmp_path / "mine", "--force")
    hint = "choose another folder, or remove it yourself"
    told = f"fuse: {tmp_path / 'mine'}: the output exists and fuse did not make it (it has no fuse.json) ({hint})\n"
    assert (ran.code, ran.err) == (2, told)
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"


def test_a_native_folder_needs_no_export(root: Path, tmp_path: Path) -> None:
    native = tmp_path / "native"
    native.mkdir()
    (native / "fuse.json").write_text('{"sha256": {}}')
    (native / "config.json").write_text('{"model_type": "llava"}')
    ran = fuse_here("export", native, "--to", "portable", tmp_path / "out")
    told = "transformers has the class of 'llava' itself: the folder is portable as it is"
    assert (ran.code, ran.err) == (2, f"fuse: {native}: {told}\n")


def test_a_folder_that_fuse_did_not_write(tmp_path: Path) -> None:
    ran = fuse_here("export", tmp_path / "none", "--to", "portable", tmp_path / "out")
    assert (ran.code, ran.err) == (2, f"fuse: {tmp_path / 'none'}: there is no such folder\n")
    (tmp_path / "bare").mkdir()
    ran = fuse_here("export", tmp_path / "bare", "--to", "portable", tmp_path / "out")
    told = f"fuse: {tmp_path / 'bare'}: the folder has no fuse.json (export what `fuse merge` wrote)\n"
    assert (ran.code, ran.err) == (2, told)


def test_hidden_files_stay_where_they_are(tmp_path: Path) -> None:
    """And what people put beside a model goes along."""
    tiny_processors.save(tiny_vlm.build("llava"), tmp_path / "m")
    recipe = "members: {m: m}\nlanguage: {method: linear, weights: {m: 1}}\nvision: [m]\noutput: {model: fuse}\n"
    (tmp_path / "recipe.yaml").write_text(recipe)
    assert fuse_here("merge", tmp_path / "recipe.yaml", tmp_path / "out").code == 0
    for name in (".env", ".git/config", ".cache/huggingface/a.json", "branches/.secret", "LICENSE"):
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text("HF_TOKEN=hf_SECRET")
    ran = fuse_here("export", tmp_path / "out", "--to", "portable", tmp_path / "portable")
    assert (ran.code, ran.err) == (0, "")
    found = {path.relative_to(tmp_path / "portable").as_posix() for path in (tmp_path / "portable").rglob("*")}
    assert not any(part.startswith(".") for name in found for part in name.split("/")) and "LICENSE" in found
    record = json.loads((tmp_path / "portable" / "fuse.json").read_text())
    assert not [name for name in record["files"] if "." in {part[0] for part in name.split("/")}]
    assert fuse_here("verify", tmp_path / "portable", "--no-load").code == 0


def test_code_that_nobody_recorded_is_not_taken_along(root: Path, tmp_path: Path) -> None:
    stray = root / "lavin" / "out" / "stray.py"
    stray.write_text("import os\n")
    try:
        ran = fuse_here("export", root / "lavin" / "out", "--to", "portable", tmp_path / "out")
    finally:
        stray.unlink()
    hint = "do not load this folder with trust_remote_code"
    assert (ran.code, ran.err) == (3, f"fuse: {stray}: is code that fuse.json does not record ({hint})\n")


def test_changed_code_is_found(root: Path) -> None:
    file = root / "lavin" / "portable" / "modeling_fuse.py"
    before = file.read_bytes()
    file.write_bytes(before + b"\nimport os\n")
    try:
        ran = fuse_here("verify", root / "lavin" / "portable", "--no-load")
    finally:
        file.write_bytes(before)
    assert (ran.code, ran.err) == (3, f"fuse: {file}: is code, and not as fuse.json records it\n")
