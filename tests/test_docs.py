"""What the documents say is so: recipes, commands and Python run, files exist, tables are those of the code."""

import json
import re
import shlex
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPImageProcessor

from fuse.cli import VERBS
from fuse.families.registry import FAMILIES, ORIGINALS
from fuse.fusable import NATIVE, REFUSED
from fuse.grafts.kinds import KINDS, files_of
from fuse.methods.table import METHODS, REQUIRED
from fuse.recipe_vision import Branch
from fuse.recipe_yaml import load_recipe
from tests import (
    official_adapters,
    recipe_members,
    sessions,
    tiny_clipcap,
    tiny_grafts,
    tiny_lavin,
    tiny_lion,
    tiny_lmeye,
    tiny_mks2,
)
from tests.cli import fuse_forked, fuse_here
from tests.original_branches import picture

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted(
    p.relative_to(ROOT).as_posix() for p in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("recipes/**/*.md")]
)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_recipes_parse(name: str, tmp_path: Path) -> None:
    for block in re.findall(r"```yaml\n(.*?)```", (ROOT / name).read_text(), re.DOTALL):
        (tmp_path / "recipe.yaml").write_text(block)
        load_recipe(tmp_path / "recipe.yaml")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_verbs_and_targets_exist(name: str) -> None:
    text = (ROOT / name).read_text()
    for verb in re.findall(r"^\s*fuse (\w+)", text, re.MULTILINE):
        assert verb in VERBS
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^make (\w+)", text, re.MULTILINE)) <= targets


def told_default(value: object) -> str:
    return str(value).lower() if isinstance(value, bool | str) else f"{value:g}"


def test_table_of_methods() -> None:
    rows = re.findall(r"^\| `(\w+)` \| .* \| (.*) \|$", (ROOT / "docs/recipes.md").read_text(), re.MULTILINE)
    assert [name for name, _ in rows] == [name for name in METHODS if "/" not in name]
    for name, told in rows:
        if told.startswith("as "):
            assert METHODS[name].params.keys() == METHODS[told.split("`")[1]].params.keys()
            continue
        for field, param in METHODS[name].params.items():
            default = "" if param.default is REQUIRED else f" ({told_default(param.default)})"
            assert f"`{field}`{default}" in told, (name, field, default)


def test_table_of_grafts() -> None:
    text = (ROOT / "docs/grafts.md").read_text()
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| .* \| .* \| \[.*\]\(\w+\.md\) \|$", text, re.MULTILINE)
    assert {kind for row in rows for kind in re.findall(r"`(\w+)`", row)} == KINDS.keys()
    (donor,) = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    told = json.loads(donor)
    assert files_of(told["kind"]).shapes(told["config"])["layers.3.down.weight"] == (128, 32)


def test_every_family_is_named() -> None:
    text = re.sub(r"[^a-z0-9]", "", (ROOT / "README.md").read_text().lower())
    for name in FAMILIES:
        plain = re.sub(r"[^a-z0-9]", "", name.lower()).removesuffix("chat")
        assert plain in text, name


# documents whose commands and Python run: kind of tiny model by member ("base" for the base)
MEMBERS = {
    "README.md": {"base": "llama", "vlm": "llava_next", "math": "llama", "qwen": "qwen2_vl", "onevision": "llava_onevision"},
    "docs/clients.md": {"llava": "llava", "next": "llava_next"},
    "docs/python.md": {"llava": "llava", "next": "llava_next"},
    "docs/tokens.md": {"base": "llama", "llava": "llava", "next": "llava_next"},
    "docs/vision.md": {"base": "llama", "llava": "llava", "mgm": "mgm", "slime": "slime"},
    "docs/inspect.md": {"base": "llama", "llava": "llava", "next": "llava_next"},
    "docs/evaluation.md": {"llava": "llava", "next": "llava_next"},
    "docs/grafts.md": {"vlm": "llava"},
    "docs/grafts_fold.md": {"vlm": "llava"},
    "docs/grafts_lavin.md": {"llama": "llama"},
    "docs/grafts_clipcap.md": {"gpt2": "gpt2", "a": "gpt2", "b": "gpt2"},
    "docs/grafts_lion.md": {"t5": "t5"},
    "docs/grafts_lmeye.md": {"llm": "llama"},
    "docs/grafts_mks2.md": {"vlm": "llava"},
    "docs/grafts_llama_adapter.md": {"llama": "llama"},
    "docs/grafts_lora.md": {"llama": "llama", "vicuna": "llama"},
    "docs/search.md": {"base": "llama", "vlm": "llava_next", "math": "llama"},
    "docs/verify.md": {"base": "llama", "vlm": "llava_next", "math": "llama"},
    "docs/scale.md": {"base": "llama", "vlm": "llava_next", "math": "llama"},
}  # fmt: skip
# what writes each donor that a document names, by the last part of its path
DONORS: dict[str, dict[str, recipe_members.Donor]] = {
    "README.md": {"lora": lambda folder, text: tiny_grafts.donor(folder, "lora", text)},
    "docs/grafts_clipcap.md": {
        "donors": lambda folder, text: folder.mkdir(),
        "coco_prefix-009.pt": tiny_clipcap.of_host,
        **dict.fromkeys(("clipcap", "clipcap_a", "clipcap_b"), tiny_clipcap.donor),
    },
    "docs/grafts_fold.md": {"style": official_adapters.peft_folder, "memory": tiny_mks2.memory},
    "docs/grafts_lavin.md": {
        "donors": lambda folder, text: folder.mkdir(),
        "checkpoint-19.pth": tiny_lavin.checkpoint,
        "lavin": tiny_lavin.donor,
    },
    "docs/grafts_lion.md": {"lion": tiny_lion.of_checkpoint, "lmeye": tiny_lion.with_qformer},
    "docs/grafts_lmeye.md": {"lmeye": tiny_lmeye.write_donor},
    "docs/grafts_mks2.md": {"memory": tiny_mks2.memory},
    "docs/grafts_llama_adapter.md": {
        "donors": lambda folder, text: folder.mkdir(),
        "llama_adapter_len10_layer30_release.pth": official_adapters.save_first,
        "BIAS-7B.pth": lambda file, text: official_adapters.save_multimodal(file, text, inside=32),  # of 16 heads
        "llama_adapter": official_adapters.first_donor,
        "llama_adapter_v2": official_adapters.multimodal_donor,
    },
    "docs/grafts_lora.md": {
        "donors": lambda folder, text: folder.mkdir(),
        "style": official_adapters.peft_folder,
        "domain": official_adapters.peft_folder,
        "llava-v1.5-7b-lora": official_adapters.llava_folder,
        "llava_lora": official_adapters.llava_donor,
    },
    "docs/grafts.md": {
        "memory": lambda folder, text: tiny_grafts.donor(folder, "mks2", text),
        "adapter": lambda folder, text: tiny_grafts.donor(folder, "llama_adapter", text),
    },
}
LIBRARIES = {
    "BitsAndBytesConfig": "bitsandbytes",
    "TorchAoConfig": "torchao",
    "peft": "peft",
}  # optional ones, by what a block imports


def blocks(name: str) -> list[tuple[str, str]]:
    """(language, text) of every fenced block, in order."""
    return re.findall(r"```(\w*)\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)


def commands(name: str) -> list[str]:
    """Every line of a document that runs `fuse`, in order."""
    return [
        line for language, text in blocks(name) if not language for line in text.splitlines() if line[:5] == "fuse "
    ]


# pages that show a terminal: their commands run on the members of recipes/zoo, and print what the page says
EXTENDING = "docs/extend.md"  # tests/test_extend.py
SHOWN = [name for name in DOCUMENTS if name != EXTENDING]
SESSIONS = [name for name in SHOWN if name not in MEMBERS and sessions.sessions((ROOT / name).read_text())]
PYTHON = [(name, text) for name in SHOWN for language, text in blocks(name) if language == "python"]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    """A document's folder: tiny members, its recipes (`# NAME` in their first line), and what its commands wrote."""
    made: dict[str, Path] = {}
    with pytest.MonkeyPatch.context() as patch:

        def folder_of(name: str) -> Path:
            if name not in made:
                folder = tmp_path_factory.mktemp("document")
                patch.chdir(folder)
                _furnish(name, folder, patch)
                made[name] = folder
            patch.chdir(made[name])
            return made[name]

        yield folder_of


def _furnish(name: str, folder: Path, patch: pytest.MonkeyPatch) -> None:
    if name in SESSIONS:
        text = (ROOT / name).read_text()
        sessions.furnish(text, folder)
        for step in sessions.sessions(text):
            printed = sessions.ran(step.command)
            assert sessions.agrees(step.said, printed), f"{printed}\n\nto renew: python -m tests.sessions {name}"
        return
    recipes = [text for language, text in blocks(name) if language == "yaml"]
    recipe_members.furnish(recipes, MEMBERS[name], folder, patch, DONORS.get(name))
    recipe_members.save_encoder(folder / "clip-with-bin")
    weights = folder / "clip-with-bin" / "model.safetensors"
    torch.save(load_file(weights), weights.with_name("pytorch_model.bin"))
    weights.unlink()
    assert CLIPImageProcessor.from_pretrained(folder / "clip-with-bin").crop_size["height"] == 56
    for suffix in ("png", "jpg"):
        picture(60, 40).save(folder / f"photo.{suffix}")
    if "photos" in (ROOT / name).read_text():
        (folder / "photos").mkdir()
        for number in range(24):
            picture(60 + number, 40 + 2 * number).save(folder / "photos" / f"{number}.png")
    for text in recipes:
        title = re.match(r"# (\w+\.yaml)\n", text)
        (folder / (title[1] if title else "recipe.yaml")).write_text(recipe_members.stand_in(text))
    for language, text in blocks(name):
        if language == "jsonl":
            (folder / "questions.jsonl").write_text(text)
    for line in commands(name):
        verb, *args = shlex.split(line, comments=True)[1:]
        ran = (fuse_forked if verb == "import" else fuse_here)(verb, *args)
        assert ran.code == 0, (line, ran.err)
        if line.startswith("fuse eval"):
            assert all(" questions" in said for said in ran.err.splitlines()), (line, ran.err)
            continue
        if line.startswith("fuse search"):
            assert all(said.startswith("trial ") for said in ran.err.splitlines()), (line, ran.err)
            continue
        if line.startswith("fuse inspect"):
            assert ran.out, line
            continue
        assert ran.err == ("attention: seen.png\n" if "--attention" in line else ""), (line, ran.err)


@pytest.mark.parametrize("name", SESSIONS)
def test_sessions_are_what_comes_out(name: str, folder_of: Callable[[str], Path]) -> None:
    assert any(folder_of(name).glob("*/fuse.json"))


@pytest.mark.parametrize("name", MEMBERS)
def test_commands_run(name: str, folder_of: Callable[[str], Path]) -> None:
    assert any(folder_of(name).glob("deltas/report.html" if name == "docs/inspect.md" else "*/fuse.json"))


@pytest.mark.parametrize(("name", "text"), PYTHON)
def test_python_runs(
    name: str, text: str, folder_of: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for needed, library in LIBRARIES.items():
        if needed in text and find_spec(library) is None:
            pytest.skip(f"{library} is not installed")
    folder_of(name)
    exec(compile(text, name, "exec"), {})
    if name in SESSIONS:  # its members were trained, so that the page can tell what comes out
        printed = capsys.readouterr().out.splitlines()
        assert [line for line in printed if line] == re.findall(r"^print\(.*\)  # (.*)$", text, re.MULTILINE)


def test_every_document_with_commands_is_run() -> None:
    # tests/test_store_docs.py, tests/test_mergekit_recipes.py, tests/test_push.py
    elsewhere = {"docs/stores.md", "docs/mergekit.md", "docs/share.md"}
    assert {name for name in DOCUMENTS if commands(name)} - elsewhere == set(MEMBERS)


def test_table_of_fusable_families() -> None:
    """docs/vision.md: every family that can be fused, or cannot, has its row."""
    rows = re.findall(r"^\| [^|]*\|([^|]*)\|([^|]*)\|([^|]*)\|$", (ROOT / "docs/vision.md").read_text(), re.MULTILINE)
    told = {kind: branch.strip() for kinds, branch, _ in rows for kind in re.findall(r"`([\w-]+)`", kinds)}
    for kind in NATIVE:
        assert told[kind].startswith("yes"), kind
    for kind in REFUSED:
        assert told[kind].startswith("no: "), kind
    for kind in ORIGINALS:
        assert told[kind].startswith("yes"), kind
    assert set(told) == {*NATIVE, *REFUSED, *ORIGINALS, "t5", "model_type"}


def test_table_of_prune_rules_and_encoder_keys() -> None:
    text = (ROOT / "docs/vision.md").read_text() + (ROOT / "docs/tokens.md").read_text()
    first = set(re.findall(r"^\| `(\w+)`", text, re.MULTILINE))
    rules = get_args(Branch.model_fields["prune"].annotation)
    assert {*rules, "encoder", "open_clip", "timm", "weights", "projector", "layer"} <= first
