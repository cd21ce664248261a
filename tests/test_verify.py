"""`fuse verify`: whole folders pass, and every damage is told in one sentence that names the file and the tensor."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests import tiny_processors, tiny_vlm, verified
from tests.cli import fuse
from tests.members import perturbed, save_member
from tests.test_fused_model import own
from tests.verified import edited, flip, outcomes, plant, tensor, verify

CHECKS = ["files", "headers", "config", "sha256", "finite", "loads", "answers"]
NORM = "model.layers.1.input_layernorm.weight"
SHARDS = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """llama-0, llama-1: tiny language models; llava: one that sees."""
    root = tmp_path_factory.mktemp("members")
    torch.manual_seed(0)
    text = {key: value for key, value in tiny_vlm.GROUPED.items() if key != "pad_token_id"}
    base = LlamaForCausalLM(LlamaConfig(**text))
    for seed in (0, 1):
        save_member(perturbed(base, seed), root / f"llama-{seed}")
    tiny_processors.save(own("llava", 1)[0], root / "llava")
    return root


@pytest.fixture(scope="module")
def language(members: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A merged language model in three files."""
    recipe = f"members: {{a: {members}/llama-0, b: {members}/llama-1}}\n" + (
        "language: {method: linear, weights: {a: 0.5, b: 0.5}}\noutput: {shard_size: 35KB}\n"
    )
    return verified.merged(tmp_path_factory.mktemp("language"), recipe)


@pytest.fixture(scope="module")
def fused(members: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fused model with one branch."""
    recipe = f"members: {{a: {members}/llava}}\nlanguage: {{method: linear, weights: {{a: 1}}}}\nvision: [a]\n"
    return verified.merged(tmp_path_factory.mktemp("fused"), recipe + "output: {model: fuse}\n")


def copy(folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(folder, tmp_path / "x")


# Whole folders --------------------------------------------------------------------------------------------------------


def test_a_whole_language_model(language: Path) -> None:
    assert sorted(file.name for file in language.glob("*.safetensors")) == SHARDS
    ran = verify(language)
    assert (ran.code, ran.err) == (0, "")
    lines = dict(line.split(": ", 1) for line in ran.out.splitlines())
    assert list(lines) == CHECKS
    assert lines["config"] == "a llama with 2 layers, every tensor in its place"
    assert lines["sha256"].startswith("3 files as recorded, ")
    assert re.fullmatch(r"[\d,]+ numbers in 21 tensors", lines["finite"])
    assert lines["loads"].startswith("LlamaForCausalLM, ")
    assert lines["answers"] == "finite logits for a question, 5 tokens"


def test_a_whole_vlm_of_transformers(members: Path, tmp_path: Path) -> None:
    recipe = f"members: {{a: {members}/llava}}\nlanguage: {{method: linear, weights: {{a: 1}}}}\nvision: [a]\n"
    ran = verify(verified.merged(tmp_path, recipe), "--json")
    assert (ran.code, outcomes(ran)) == (0, dict.fromkeys(CHECKS, "passed")), ran
    assert json.loads(ran.out)["checks"][-1]["told"].startswith("finite logits for a question about a picture, ")


def test_a_whole_fused_model(fused: Path) -> None:
    ran = verify(fused, "--json")
    assert (ran.code, outcomes(ran)) == (0, dict.fromkeys(CHECKS, "passed")), ran
    told = {row["check"]: row["told"] for row in json.loads(ran.out)["checks"]}
    assert told["config"] == "a fused model on llama with 1 branch, every tensor in its place"
    assert told["answers"].startswith("finite logits for a question about a picture, ")


def test_the_record_is_made_anew_from_the_files(language: Path, fused: Path, tmp_path: Path) -> None:
    """What merge writes while it writes is what reading gives."""
    for number, folder in enumerate((language, fused)):
        again = shutil.copytree(folder, tmp_path / str(number))
        verified.hashed(again)
        told, found = (json.loads((where / "fuse.json").read_text()) for where in (folder, again))
        assert {key: told[key] for key in ("sha256", "marks", "files")} == {key: found[key] for key in
                                                                           ("sha256", "marks", "files")}  # fmt: skip


def test_files_only_and_quiet(language: Path) -> None:
    ran = verify(language, "--no-load", "--json")
    assert outcomes(ran) == dict.fromkeys(CHECKS, "passed") | dict.fromkeys(("loads", "answers"), "skipped")
    ran = verify(language, "--no-load", "--quiet")
    assert (ran.code, ran.out, ran.err) == (0, "", "")


def test_a_folder_without_hashes_is_not_called_verified(members: Path, tmp_path: Path) -> None:
    recipe = f"members: {{a: {members}/llama-0}}\nlanguage: {{method: linear, weights: {{a: 1}}}}\n"
    out = verified.merged(tmp_path, recipe, "--no-hash")
    ran = verify(out)
    assert ran.code == 0
    assert "sha256: not checked: fuse.json holds no hashes (fuse merge --no-hash)\n" in ran.out
    (out / "fuse.json").unlink()
    assert "sha256: not checked: no fuse.json: there is nothing to compare the bytes with\n" in verify(out).out


@pytest.mark.parametrize("more", [(), ("--no-load",)])
def test_eyes_without_an_image_processor(members: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    """transformers loads the folder and answers a question, and no picture can be given to it."""
    folder = copy(members / "llava", tmp_path)
    told = json.loads((folder / "processor_config.json").read_text())
    image = told.pop("image_processor")
    for left in (None, told):
        (folder / "processor_config.json").unlink(missing_ok=True)
        if left is not None:
            (folder / "processor_config.json").write_text(json.dumps(left))
        ran = verify(folder, *more)
        assert (ran.code, ran.err) == (
            3,
            f"fuse: {folder}: has no image processor, so the llava in it cannot see (copy preprocessor_config.json or "
            "processor_config.json from the member whose eyes it has)\n",
        )
        assert ran.out.startswith("files: ") and "\nconfig: " not in ran.out
    (folder / "preprocessor_config.json").write_text(json.dumps(image))
    assert verify(folder, *more).code == 0


def test_a_folder_without_tokenizer(members: Path, tmp_path: Path) -> None:
    folder = copy(members / "llama-0", tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    ran = verify(folder)
    assert (ran.code, ran.err) == (0, ""), ran.err
    assert ran.out.endswith("answers: finite logits for a few tokens (the folder has no tokenizer), 8 tokens\n")


def test_what_is_added_without_harm(language: Path, tmp_path: Path) -> None:
    folder = copy(language, tmp_path)
    (folder / "README.md").write_text("another card")
    (folder / "picture.png").write_bytes(b"")
    (folder / ".gitattributes").write_text("")
    assert verify(folder, "--no-load").code == 0


# Damage ---------------------------------------------------------------------------------------------------------------

Damage = Callable[[Path], object]


def bit_of_a_weight(folder: Path) -> None:
    entry = tensor(folder, NORM)
    flip(entry.file, entry.begin + 5)


def bit_of_the_first_weight(folder: Path) -> None:
    file = folder / SHARDS[0]
    flip(file, min(e.begin for e in verified.read_header(file).values()))


def bit_of_the_last_weight(folder: Path) -> None:
    flip(folder / SHARDS[2], -1, 7)


def padding_of_a_header(folder: Path) -> None:
    """A header that says the same in other bytes."""
    file = folder / SHARDS[1]
    data = file.read_bytes()
    at = data.index(b'"__metadata__"')
    file.write_bytes(data[:at] + data[at:].replace(b'"format":"pt"', b'"format":"tf"', 1))


def names_of_a_header(folder: Path) -> None:
    file = folder / SHARDS[1]
    data = file.read_bytes()
    file.write_bytes(data.replace(b'"dtype"', b'"dtypo"', 1))


def two_files(folder: Path) -> None:
    bit_of_a_weight(folder)
    bit_of_the_last_weight(folder)


def without_marks(folder: Path) -> None:
    verified.unrecorded(folder, "marks")
    bit_of_a_weight(folder)


def a_nan(folder: Path) -> None:
    plant(tensor(folder, NORM), 3, float("nan"))
    verified.hashed(folder)


def an_infinity(folder: Path) -> None:
    plant(tensor(folder, "lm_head.weight"), 1000, float("-inf"))
    verified.hashed(folder)


def add(name: str, text: str = "x") -> Damage:
    return lambda folder: (folder / name).write_text(text)


def remove(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def change(name: str, act: Callable[[dict], object], *, record: bool = True) -> Damage:
    """record: fuse.json says nothing of small files, as if it knew the change."""

    def act_on(folder: Path) -> None:
        edited(folder / name, act)
        if record:
            verified.unrecorded(folder, "files")

    return act_on


def linked(folder: Path) -> None:
    outside = folder.parent / "outside.json"
    (folder / "generation_config.json").rename(outside)
    (folder / "generation_config.json").symlink_to(outside)


INDEX = "model.safetensors.index.json"
DAMAGE: dict[str, tuple[Damage, str]] = {
    "a bit of a weight": (bit_of_a_weight, rf"{SHARDS[1]}: is not as fuse.json records it: tensor '{NORM}' differs"),
    "the first byte": (bit_of_the_first_weight, rf"{SHARDS[0]}: is not as fuse.json records it: tensor '\S+' differs"),
    "the last byte": (bit_of_the_last_weight, rf"{SHARDS[2]}: is not as fuse.json records it: tensor '\S+' differs"),
    "a bit of a header": (padding_of_a_header, rf"{SHARDS[1]}: is not as fuse.json records it: its header differs"),
    "a broken header": (
        names_of_a_header, rf"{SHARDS[1]}: tensor '\S+': the header row is not {{dtype, shape, data_offsets}}"
    ),
    "two files": (
        two_files, rf"{SHARDS[1]}: is not as fuse.json records it: tensor '{NORM}' differs \(2 of 3 files differ\)"
    ),
    "no marks": (without_marks, rf"{SHARDS[1]}: is not as fuse.json records it"),
    "a NaN": (a_nan, rf"{SHARDS[1]}: tensor '{NORM}' holds nan at element 3"),
    "an infinity": (an_infinity, r"\S+: tensor 'lm_head.weight' holds -inf at element 1,000"),
    "a bit of config.json": (lambda folder: flip(folder / "config.json", 30), "config.json: is not as fuse.json records it"),
    "a bit of the index": (lambda folder: flip(folder / INDEX, 30), f"{INDEX}: is not as fuse.json records it"),
    "a bit of the tokenizer": (
        lambda folder: flip(folder / "tokenizer.json", 90), "tokenizer.json: is not as fuse.json records it"
    ),
    "no tokenizer": (remove("tokenizer.json"), "tokenizer.json: is missing, and fuse.json records it"),
    "depth": (
        change("config.json", lambda c: c.update(num_hidden_layers=3)),
        r": tensor 'model.layers.2.\S+' is missing: config.json promises 3 layers of llama.*",
    ),
    "no shard": (remove(SHARDS[1]), rf"{SHARDS[1]}: the file is missing"),
    "one more shard": (
        lambda folder: shutil.copy(folder / SHARDS[1], folder / "model-00004-of-00004.safetensors"),
        f"{INDEX}: shard 'model-00004-of-00004.safetensors' is in the folder but not in the index",
    ),
    "other weights": (
        lambda folder: shutil.copy(folder / SHARDS[1], folder / "more.safetensors"),
        "more.safetensors: holds weights that no index names",
    ),
    "total": (
        change(INDEX, lambda c: c["metadata"].update(total_size=1)),
        rf"{INDEX}: total_size is 1, and the tensors have [\d,]+ bytes",
    ),
    "no record of a shard": (
        lambda folder: edited(folder / "fuse.json", lambda c: c["sha256"].pop(SHARDS[0])),
        rf"{SHARDS[0]}: holds weights that fuse.json does not record",
    ),
    "a record too much": (
        lambda folder: edited(folder / "fuse.json", lambda c: c["sha256"].update({"z.safetensors": "0" * 64})),
        r"z.safetensors: is missing, and fuse.json records it",
    ),
    "half-written": (add("model.safetensors.partial"), "model.safetensors.partial: is half-written .*"),
    "code": (
        add("modeling_evil.py", "raise SystemExit(9)"),
        r"modeling_evil.py: is code that fuse.json does not record \(do not load this folder with trust_remote_code\)",
    ),
    "compiled code": (add("evil.pyc"), r"evil.pyc: is code that fuse.json does not record .*"),
    "auto_map": (
        change("config.json", lambda c: c.update(auto_map={"AutoModel": "modeling_evil.Evil"})),
        "config.json: auto_map names the code 'modeling_evil.Evil', which fuse.json does not record",
    ),
    "auto_map of a repository": (
        change("tokenizer_config.json", lambda c: c.update(auto_map={"AutoTokenizer": [None, "evil/repo--tok.Evil"]})),
        "tokenizer_config.json: auto_map names the code 'evil/repo--tok.Evil', which fuse.json does not record",
    ),
    "trust_remote_code": (
        change("config.json", lambda c: c.update(deep=[{"trust_remote_code": True}])),
        r"config.json: deep\[0\].trust_remote_code asks to run code from the folder",
    ),
    "an adapter": (
        add("adapter_config.json", "{}"),
        r"adapter_config.json: is a file that fuse.json does not record \(loaders may read it; .*\)",
    ),
    "a pickle": (add("pytorch_model.bin"), "pytorch_model.bin: holds weights in a format that fuse does not write"),
    "a link": (linked, r"generation_config.json: is a link out of the folder, to \S+outside.json"),
    "two keys": (add("fuse.json", '{"sha256": {}, "sha256": {}}'), "fuse.json: key 'sha256' stands twice in one object"),
    "no table": (add("fuse.json", "{}"), "fuse.json: has no table sha256"),
    "no hash": (
        add("fuse.json", '{"sha256": {"model.safetensors": "00"}}'),
        "fuse.json: sha256 of 'model.safetensors' is '00', which is no hash",
    ),
    "a path": (
        add("fuse.json", '{"sha256": {}, "files": {"../x": ""}}'),
        "fuse.json: files names '../x', which is no file in the folder",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGE)
def test_damage(language: Path, tmp_path: Path, what: str) -> None:
    act, told = DAMAGE[what]
    folder = copy(language, tmp_path)
    act(folder)
    ran = verify(folder, "--no-load")
    assert ran.code == 3, ran
    assert re.fullmatch(rf"fuse: {re.escape(str(folder))}/?{told}\n", ran.err), ran.err
    assert [line.split(": ")[0] for line in ran.out.splitlines()] == CHECKS[: len(ran.out.splitlines())]


def test_damage_as_json(language: Path, tmp_path: Path) -> None:
    folder = copy(language, tmp_path)
    bit_of_a_weight(folder)
    ran = verify(folder, "--json")
    told = json.loads(ran.out)
    assert (ran.code, told["whole"]) == (3, False)
    assert outcomes(ran) == {"files": "passed", "headers": "passed", "config": "passed", "sha256": "failed"}
    assert told["checks"][-1]["told"] == ran.err.removeprefix("fuse: ").strip()


def test_every_bit_of_a_small_tensor_is_seen(language: Path, tmp_path: Path) -> None:
    folder = copy(language, tmp_path)
    entry = tensor(folder, NORM)
    for bit in range(0, 8 * entry.nbytes, 61):
        flip(entry.file, entry.begin + bit // 8, bit % 8)
        ran = verify(folder, "--no-load", "--quiet")
        assert (ran.code, f"tensor {NORM!r} differs" in ran.err) == (3, True)
        flip(entry.file, entry.begin + bit // 8, bit % 8)
    assert verify(folder, "--no-load", "--quiet").code == 0


@pytest.mark.parametrize(
    ("act", "told"),
    [
        (lambda c: c.pop("text_config"), "config.json: text_config is no object"),
        (lambda c: c.update(branches={}), "config.json: branches is no list of named objects"),
        (lambda c: c.update(branches=[]), ": tensor 'branches.a.*' belongs to no branch and no graft of config.json"),
        (lambda c: c["text_config"].update(num_hidden_layers=3), "config.json: tensor 'model.layers.2.*' is missing.*"),
    ],
)
def test_a_fused_config_that_describes_something_else(fused: Path, tmp_path: Path, act, told: str) -> None:
    folder = copy(fused, tmp_path)
    change("config.json", act)(folder)
    ran = verify(folder, "--no-load")
    assert ran.code == 3, ran
    assert re.fullmatch(rf"fuse: {re.escape(str(folder))}/?{told}\n", ran.err), ran.err


def test_a_fused_folder_without_record(fused: Path, tmp_path: Path) -> None:
    folder = copy(fused, tmp_path)
    (folder / "fuse.json").unlink()
    assert verify(folder, "--no-load").err == f"fuse: {folder}/fuse.json: is missing, and every fused folder has one\n"


# Code that was recorded -----------------------------------------------------------------------------------------------


def test_recorded_code_is_compared_and_never_run(language: Path, tmp_path: Path) -> None:
    folder = copy(language, tmp_path)
    file = folder / "modeling_fuse.py"
    file.write_text("raise SystemExit('run')")
    sha256 = verified.file_digest(file, (), verified.Event()).sha256
    edited(folder / "config.json", lambda c: c.update(auto_map={"AutoModel": "modeling_fuse.Model"}))
    edited(folder / "fuse.json", lambda c: c.update(code={"modeling_fuse.py": sha256}))
    verified.unrecorded(folder, "files")
    assert verify(folder).code == 0
    file.write_text("raise SystemExit('other')")
    told = f"fuse: {file}: is code, and not as fuse.json records it\n"
    assert verify(folder).err == told
    file.unlink()
    assert verify(folder).err == f"fuse: {file}: is missing, and fuse.json records it\n"


# Loading and answering ------------------------------------------------------------------------------------------------


def test_what_does_not_load(members: Path, tmp_path: Path) -> None:
    folder = copy(members / "llama-0", tmp_path)
    edited(folder / "config.json", lambda c: c.update(hidden_act="evil"))
    ran = verify(folder)
    assert ran.code == 3
    assert ran.err == f"fuse: {folder}: transformers cannot load it: 'evil'\n"


def test_logits_that_are_not_finite(members: Path, tmp_path: Path) -> None:
    """Finite weights so large that the model overflows."""
    folder = copy(members / "llama-0", tmp_path)
    entry = tensor(folder, "model.norm.weight")
    for element in range(entry.shape[0]):
        plant(entry, element, 3e38)
    ran = verify(folder)
    assert (ran.code, ran.err) == (3, f"fuse: {folder}: the logits of a question are not finite\n")
    assert "finite: " in ran.out


# What is no such folder -----------------------------------------------------------------------------------------------


def test_what_is_no_folder_to_verify(tmp_path: Path) -> None:
    ran = verify(tmp_path / "out")
    assert (ran.code, ran.err) == (2, f"fuse: {tmp_path}/out: there is no such folder\n")
    (tmp_path / ".out.partial" / "folder").mkdir(parents=True)
    hint = "(the same fuse merge goes on from there)"
    told = f"fuse: {tmp_path}/out: there is no such folder, but an unfinished merge {hint}\n"
    assert verify(tmp_path / "out").err == told
    folder = tmp_path / ".out.partial" / "folder"
    assert verify(folder).err == f"fuse: {folder}: is an unfinished merge {hint}\n"
    (tmp_path / "empty").mkdir()
    ran = verify(tmp_path / "empty")
    told = "holds nothing to verify: no config.json, graft.json, projector.json, adapter_config.json or GGUF"
    assert (ran.code, ran.err) == (2, f"fuse: {tmp_path}/empty: {told}\n")


def test_sources(members: Path, tmp_path: Path) -> None:
    for name in ("llama-0", "llama-1"):
        shutil.copytree(members / name, tmp_path / name)
    recipe = "members: {a: llama-0, b: llama-1}\nlanguage: {method: linear, weights: {a: 1, b: 1}}\n"
    out = verified.merged(tmp_path, recipe)
    ran = verify(out, "--no-load", "--sources", tmp_path)
    assert (ran.code, ran.out.splitlines()[-1]) == (0, "sources: 2 source files as recorded")
    shutil.rmtree(tmp_path / "llama-0")
    ran = verify(out, "--no-load", "--sources", tmp_path)
    gone = f"1 no longer where it was, the first {tmp_path}/llama-0/model.safetensors"
    assert ran.out.splitlines()[-1] == f"sources: 1 source file as recorded; {gone}"
    away = "1 on the hub, in a store or without a hash"
    for far in ({"origin": "hf://org/llama"}, {"origin": "s3://org/llama"}, {"origin": "org/llama", "revision": "0f"}):
        edited(out / "fuse.json", lambda c, far=far: c["members"]["a"].update(far))
        ran = verify(out, "--no-load", "--sources", tmp_path)
        assert ran.out.splitlines()[-1] == f"sources: 1 source file as recorded; {away}"
    ran = verify(out, "--no-load", "--sources", tmp_path / "out")
    gone = f"1 no longer where it was, the first {out}/llama-1/model.safetensors"
    assert ran.out.splitlines()[-1] == f"sources: not checked: no source with a hash is where it was; {gone}; {away}"
    file = tmp_path / "llama-1" / "model.safetensors"
    flip(file, -3)
    ran = verify(out, "--no-load", "--sources", tmp_path)
    assert (ran.code, ran.err) == (3, f"fuse: {file}: is not the file that the folder was made of\n")


def test_sources_of_no_folder(language: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").touch()
    for name, what in (("recipe.yaml", "is no folder"), ("none", "there is no such folder")):
        for more in ((), ("--quiet",), ("--json",)):
            ran = verify(language, "--no-load", "--sources", tmp_path / name, *more)
            hint = "--sources takes the folder that the recipe lies in"
            assert (ran.code, ran.err) == (2, f"fuse: {tmp_path}/{name}: {what} ({hint})\n")
            assert "files" not in ran.out


def test_in_a_process_of_its_own(language: Path) -> None:
    ran = fuse("verify", language, "--no-load")
    assert (ran.code, ran.err) == (0, "")
