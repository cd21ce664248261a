"""`fuse export --to gguf`: what is asked of llama.cpp's converter, and what is said when it will not.

A small script stands for the converter: it answers and fails as that does. `tools/gguf_real.py` takes the real one.
"""

import json
import re
import shutil
import struct
from hashlib import sha256
from pathlib import Path

import pytest

from fuse.card_use import BEGIN, END
from fuse.evaluate import card_table
from fuse.export.gguf_converter import architecture
from tests import folds
from tests.cli import Ran, fuse_forked, fuse_here

FAKE = """
import argparse, json, logging, struct, sys
from pathlib import Path

TEXT, MMPROJ = ["LlamaForCausalLM", "Qwen2ForCausalLM"], ["LlavaForConditionalGeneration"]
parser = argparse.ArgumentParser()
parser.add_argument("--print-supported-models", action="store_true")
parser.add_argument("--outfile", type=Path)
parser.add_argument("--outtype")
parser.add_argument("--mmproj", action="store_true")
parser.add_argument("model", nargs="?")
args = parser.parse_args()
logging.basicConfig(level=logging.INFO)
logger = logging.getLogger("hf-to-gguf")
if args.print_supported_models:
    logger.error("Supported models:")
    for title, names in (("TEXT", TEXT), ("MMPROJ", MMPROJ)):
        logger.error(f"{title} models:")
        for name in names:
            logger.error(f"  - {name}")
    sys.exit(0)
config = json.loads((Path(args.model) / "config.json").read_text())
said = FAILS.get(args.outtype)
if said:
    if said != "nothing":
        print("INFO: begun", file=sys.stderr)
        print(said, file=sys.stderr)
    sys.exit(0 if said == "nothing" else 7)
outfile = args.outfile.with_name(args.outfile.name.replace("{ftype}", "F16" if args.outtype == "auto" else args.outtype))
half = json.dumps(["mmproj" if args.mmproj else "text", config["model_type"], args.outtype]).encode()
tensors = 0 if args.outtype == "bf16" else 3
outfile.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, tensors, 0) + half)
"""
FAILS = {"q8_0": "NotImplementedError: BPE pre-tokenizer was not recognized", "f32": "nothing"}


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converter; a merged llama and a merged LLaVA, and a fused one."""
    folder = tmp_path_factory.mktemp("gguf")
    folds.furnish(folder)
    (folder / "convert.py").write_text(f"FAILS = {FAILS!r}\n{FAKE}")
    assert folds.run("merge", folder, folder, "", "llama").code == 0
    head = "members: {vlm: @vlm}\nlanguage: {method: linear, weights: {vlm: 1}}\nvision: [vlm]\n"
    assert folds.run("merge", folder, folder, "", "llava", head=head).code == 0
    text = json.loads((folder / "llava" / "config.json").read_text())
    text["text_config"]["architectures"] = ["LlamaForCausalLM"]
    (folder / "llava" / "config.json").write_text(json.dumps(text))
    record = json.loads((folder / "llava" / "fuse.json").read_text())
    record["files"]["config.json"] = sha256((folder / "llava" / "config.json").read_bytes()).hexdigest()
    (folder / "llava" / "fuse.json").write_text(json.dumps(record))
    assert folds.run("merge", folder, folder, "{from: @lion}", "fused").code == 0
    return folder


def export(room: Path, name: str, out: Path, *more: object) -> Ran:
    return fuse_here("export", room / name, "--to", "gguf", out, "--converter", room / "convert.py", *more)


def test_a_file(room: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    assert export(room, "llama", out, "--outtype", "f16") == Ran(0, f"{out}: 48 bytes\n", "")
    assert json.loads(out.read_bytes()[24:]) == ["text", "llama", "f16"]
    assert export(room, "llama", out).err == (
        f"fuse: {out}: the output already exists (choose another file, or --force)\n"
    )
    assert export(room, "llava", out, "--mmproj", "--force").code == 0
    assert json.loads(out.read_bytes()[24:]) == ["mmproj", "llava", "auto"]
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]


@pytest.mark.parametrize("out", ["out.gguf", "out"])
def test_killed_while_it_converts(room: Path, tmp_path: Path, out: str) -> None:
    """What is left is beside the target, is told, and is gone after the next run."""
    killer = tmp_path / "killer.py"
    text = (room / "convert.py").read_text()
    killer.write_text(text.replace("outfile.write_bytes", "import os; outfile.touch(); os.kill(os.getppid(), 9)\n#"))
    words = ("export", room / "llama", "--to", "gguf", tmp_path / out, "--outtype", "f16")
    assert fuse_forked(*words, "--converter", killer).code == -9
    assert {path.name for path in tmp_path.iterdir()} == {"killer.py", f".{out}.partial"}
    assert fuse_forked(*words, "--converter", room / "convert.py").code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"killer.py", out}


def test_what_the_converter_adds_to_a_name(room: Path, tmp_path: Path) -> None:
    assert export(room, "llama", tmp_path / "{ftype}.gguf", "--outtype", "f16").code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["{ftype}.gguf"]


def test_a_file_that_appears_is_not_replaced(room: Path, tmp_path: Path) -> None:
    out, late = tmp_path / "out.gguf", tmp_path / "late.py"
    late.write_text((room / "convert.py").read_text() + f"\nPath({str(out)!r}).write_text('mine')\n")
    ran = fuse_here("export", room / "llama", "--to", "gguf", out, "--converter", late)
    told = "the output appeared while it was being made; nothing was written"
    assert ran == Ran(2, "", f"fuse: {out}: {told}\n") and out.read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"out.gguf", "late.py"}


def test_a_folder_with_language_model_and_eyes(room: Path, tmp_path: Path) -> None:
    ran = export(room, "llava", tmp_path / "out", "--mmproj")
    files = [tmp_path / "out" / name for name in ("model-F16.gguf", "mmproj-F16.gguf")]
    assert ran == Ran(0, f"{files[0]}: 49 bytes\n{files[1]}: 51 bytes\n", "")
    assert [json.loads(file.read_bytes()[24:])[0] for file in files] == ["text", "mmproj"]
    record = json.loads((tmp_path / "out" / "fuse.json").read_text())
    assert record["files"] == {file.name: sha256(file.read_bytes()).hexdigest() for file in files}
    told = record["exported"]
    assert told["converter"] == sha256((room / "convert.py").read_bytes()).hexdigest()
    assert told["architectures"] == {"TEXT": "LlamaForCausalLM", "MMPROJ": "LlavaForConditionalGeneration"}
    assert told["from"] == json.loads((room / "llava" / "fuse.json").read_text())["sha256"]
    assert "members" in record and "recipe" in record


def test_the_card_of_a_folder(room: Path, tmp_path: Path) -> None:
    """What people wrote stays; how it is used and its hashes are those of the files, and it was not evaluated."""
    shutil.copytree(room / "llava", tmp_path / "llava")
    card = tmp_path / "llava" / "README.md"
    scores = f"{card_table.BEGIN}\nscores\n{card_table.END}\n"
    card.write_text(f"{card.read_text()}\n## Mine\n\nFor the cat.\n\n{scores}")
    assert "library_name: transformers\n" in card.read_text()
    ran = fuse_here("export", tmp_path / "llava", "--to", "gguf", tmp_path / "out", "--converter", room / "convert.py",
                    "--mmproj")  # fmt: skip
    assert ran.code == 0, ran
    told = (tmp_path / "out" / "README.md").read_text()
    before, use, after = re.split(f"{BEGIN}\n|{END}\n", told)
    assert before == card.read_text().partition(BEGIN)[0].replace("library_name: transformers\n", "")
    assert use == (
        "## Form\n\nGGUF, by `fuse export --to gguf` and llama.cpp's converter (`--outtype auto`): `model-F16.gguf` the "
        "language model (LlamaForCausalLM) and `mmproj-F16.gguf` encoder and projector (LlavaForConditionalGeneration).\n\n"
        "## Load\n\n```\nllama-server -m path/to/this/folder/model-F16.gguf --mmproj "
        "path/to/this/folder/mmproj-F16.gguf\n```\n\n"
        "## Known limits\n\n- Nothing was trained, and nothing was run in llama.cpp: what it can do there was not "
        "measured.\n"
    )
    rows = "".join(
        f"| this folder | {name}.gguf | `{sha256((tmp_path / 'out' / f'{name}.gguf').read_bytes()).hexdigest()}` |\n"
        for name in ("model-F16", "mmproj-F16")
    )
    assert after.endswith(f"{rows}\n## Mine\n\nFor the cat.\n\n") and after.count("| this folder |") == 2
    (tmp_path / "llava" / "README.md").unlink()
    again = tmp_path / "again"
    ran = fuse_here("export", tmp_path / "llava", "--to", "gguf", again, "--converter", room / "convert.py")
    assert ran.code == 0, ran
    told = (again / "README.md").read_text()
    assert "- It sees nothing: encoder and projector were not converted (`--mmproj`).\n" in told
    assert rows.splitlines()[0] in told and told.startswith("# A merged model\n\n| member | origin |")


@pytest.mark.parametrize("out", ["out.gguf", "out"])
def test_weights_that_are_not_as_recorded(room: Path, tmp_path: Path, out: str) -> None:
    shutil.copytree(room / "llama", tmp_path / "llama")
    file = tmp_path / "llama" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-4] ^= 1
    file.write_bytes(data)
    ran = fuse_here("export", tmp_path / "llama", "--to", "gguf", tmp_path / out, "--converter", room / "convert.py")
    told = "is not as fuse.json records it (`fuse verify` tells where it differs)"
    assert ran == Ran(3, "", f"fuse: {file}: {told}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["llama"]


# folder, options -> exit code, what is said behind the name
KNOWS = "which its --print-supported-models lists"
REFUSED: dict[str, tuple[str, tuple[str, ...], int, str]] = {
    "a fused folder": (
        "fused", (), 2, "{room}/fused: llama.cpp has no architecture for a fused folder (`fuse export --to native` makes "
        "one of a class, where one fits)\n",
    ),
    "eyes that are not there": ("llama", ("--mmproj",), 2, "{room}/llama: the folder has no encoder (leave --mmproj out)\n"),
    "a converter that fails": (
        "llama", ("--outtype", "q8_0"), 4,
        "{room}/convert.py: ended with exit code 7: NotImplementedError: BPE pre-tokenizer was not recognized\n"
        "  INFO: begun\n",
    ),
    "a converter that writes nothing": ("llama", ("--outtype", "f32"), 4, "{room}/convert.py: ended well and wrote nothing\n"),
    "a file without tensors": (
        "llama", ("--outtype", "bf16"), 4, "{room}/convert.py: ended well and wrote no GGUF with tensors\n",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str, room: Path, tmp_path: Path) -> None:
    name, more, code, told = REFUSED[case]
    for out in ("out.gguf", "out"):
        ran = export(room, name, tmp_path / out, *more)
        said = ran.err.replace("; nothing was written", "")
        assert (ran.code, ran.out, said) == (code, "", "fuse: " + told.format(room=room))
        assert list(tmp_path.iterdir()) == []


def test_an_architecture_that_is_not_known(room: Path, tmp_path: Path) -> None:
    narrow = tmp_path / "narrow.py"
    narrow.write_text((room / "convert.py").read_text().replace('["LlamaForCausalLM", ', "["))
    ran = fuse_here("export", room / "llama", "--to", "gguf", tmp_path / "out", "--converter", narrow)
    said = f"narrow.py does not convert LlamaForCausalLM as a language model (it knows 1, {KNOWS})"
    assert ran == Ran(2, "", f"fuse: {room}/llama: {said}\n")
    silent = tmp_path / "silent.py"
    silent.write_text("")
    ran = fuse_here("export", room / "llama", "--to", "gguf", tmp_path / "out", "--converter", silent)
    said = "tells no supported models (newer ones have --print-supported-models)"
    assert ran == Ran(4, "", f"fuse: {silent}: {said}\n")


def test_a_converter_that_is_not_there(room: Path, tmp_path: Path) -> None:
    hint = "(--converter LLAMA_CPP/convert_hf_to_gguf.py, of your llama.cpp)"
    ran = fuse_here("export", room / "llama", "--to", "gguf", tmp_path / "out")
    assert ran == Ran(2, "", f"fuse: llama.cpp's converter is not named {hint}\n")
    none = tmp_path / "none.py"
    ran = fuse_here("export", room / "llama", "--to", "gguf", tmp_path / "out", "--converter", none)
    assert ran == Ran(2, "", f"fuse: {none}: there is no such converter {hint}\n")
    ran = export(room, "llama", tmp_path / "out", "--python", tmp_path / "python")
    assert ran == Ran(4, "", f"fuse: {tmp_path}/python: cannot be started (No such file or directory)\n")


def test_which_architecture_counts() -> None:
    outer = {"architectures": ["LlavaForConditionalGeneration"]}
    assert architecture(outer, "TEXT") == architecture(outer, "MMPROJ") == "LlavaForConditionalGeneration"
    inner = {**outer, "text_config": {"architectures": ["LlamaForCausalLM"]}, "vision_config": {}}
    assert architecture(inner, "TEXT") == "LlamaForCausalLM"
    assert architecture(inner, "MMPROJ") == "LlavaForConditionalGeneration"
    assert architecture({}, "TEXT") == ""
    assert struct.calcsize("<IQQ") == 20
