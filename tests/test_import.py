"""`fuse import`: what every kind shares. Wrappers and prefixes, coverage, files that are hostile or broken, the output."""

import argparse
import errno
import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fuse.errors import CheckpointError
from fuse.importers import IMPORTERS, About, Imported, Piece, child, kinds_of
from fuse.importers import write as writing
from fuse.importers.read import open_source
from tests import official_adapters, tiny_clipcap, tiny_lavin, tiny_lmeye
from tests.cli import Ran, fuse, fuse_forked, fuse_here
from tests.test_lion_import import official as lion

MAPPER = tiny_clipcap.mapper("clipcap_mlp", 32)
FIVE = ("--set", "prefix_length=5")
FIRST = "clip_project.model.0.bias"


def imported(file: Path, *extra: object, kind: str = "clipcap") -> Ran:
    return fuse_forked("import", kind, file, file.parent / "out", *(extra or FIVE))


def imported_here(file: Path, *extra: object) -> Ran:
    """In this process, where a test has changed the importers; the reader of pickles is a fork, whatever threads run."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(child, "may_fork", lambda: True)
        return fuse_here("import", "clipcap", file, *(extra or (file.parent / "out", *FIVE)))


def alone(folder: Path, *names: str) -> None:
    """Nothing else lies there: no output, whole or partial."""
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)


# How files are wrapped ------------------------------------------------------------------------------------------------


WRAPPED: dict[str, Callable[[dict[str, torch.Tensor]], Any]] = {
    "bare": lambda state: state,
    "of several GPUs": lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
    "compiled": lambda state: {f"_orig_mod.module.{name}": tensor for name, tensor in state.items()},
    "model": lambda state: {"model": state, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}, "epoch": 3},
    "net": lambda state: {"net": state, "scaler": None},
    "state_dict": lambda state: {"state_dict": {"module": state}, "global_step": 7},
    "with options": lambda state: {"model": state, "args": argparse.Namespace(lr=0.1, out=Path("x").name)},
    "parameters": lambda state: {name: torch.nn.Parameter(tensor) for name, tensor in state.items()},
}


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("how", WRAPPED)
def test_wrappers(tmp_path: Path, how: str, old: bool) -> None:
    """In torch's zip format and in the older one."""
    file = tmp_path / "file.pth"
    torch.save(WRAPPED[how](MAPPER), file, _use_new_zipfile_serialization=not old)
    ran = imported(file, *FIVE, "--json")
    assert (ran.code, ran.err) == (0, ""), ran
    told = json.loads(ran.out)
    assert set(told["went"]) == set(MAPPER)
    stored = load_file(tmp_path / "out" / "projector.safetensors")
    assert all(torch.equal(stored[name.removeprefix("clip_project.")], MAPPER[name]) for name in MAPPER)
    beside = {key for key in WRAPPED[how](MAPPER) if isinstance(key, str)} & {
        "optimizer", "epoch", "scaler", "global_step", "args"}  # fmt: skip
    assert told["dropped"] == dict.fromkeys(beside, "of the training, not of the model")


def test_safetensors_and_dtypes(tmp_path: Path) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        state = {name: tensor.to(dtype) for name, tensor in MAPPER.items()}
        save_file(state, tmp_path / f"{dtype}.safetensors")
        ran = fuse_here("import", "clipcap", tmp_path / f"{dtype}.safetensors", tmp_path / f"{dtype}", *FIVE)
        assert (ran.code, ran.err) == (0, ""), ran
        stored = load_file(tmp_path / f"{dtype}" / "projector.safetensors")
        assert all(torch.equal(stored[name.removeprefix("clip_project.")], state[name]) for name in state)


def test_tensors_that_share_their_storage(tmp_path: Path) -> None:
    """torch.save keeps one storage for views; each tensor of the output has its own."""
    whole = torch.randn(2, 80)
    state = {**MAPPER, FIRST: whole[0]}
    torch.save({**state, "optimizer_view": whole[1]}, tmp_path / "file.pt")
    ran = imported(tmp_path / "file.pt")
    assert (ran.code, ran.err) == (0, ""), ran
    assert torch.equal(load_file(tmp_path / "out" / "projector.safetensors")["model.0.bias"], whole[0])


def test_what_a_source_is_told(tmp_path: Path) -> None:
    from hashlib import sha256

    file = tiny_clipcap.saved(tmp_path / "file.pt", MAPPER)
    assert imported(file).code == 0
    told = json.loads((tmp_path / "out" / "projector.json").read_text())
    assert told["source"] == {
        "file": "file.pt", "sha256": sha256(file.read_bytes()).hexdigest(), "tool": "fuse import clipcap",
    }  # fmt: skip
    assert (
        imported(file).err == f"fuse: {tmp_path}/out: the output already exists (choose another folder, or --force)\n"
    )
    assert imported(file, *FIVE, "--force").code == 0


def test_the_table_says_where_everything_went(tmp_path: Path) -> None:
    torch.save({"model": {**MAPPER, "logit_scale": torch.ones(1)}, "epoch": 3}, tmp_path / "file.pt")
    ran = imported(tmp_path / "file.pt")
    assert ran.out == (
        f"{tmp_path}/out: clipcap from file.pt\n"
        "  projector: clipcap_mlp, 4 tensors, 54.7 kB\n"
        "  clip_project.model.*.weight  -> projector model.*.weight (2)\n"
        "  clip_project.model.*.bias    -> projector model.*.bias (2)\n"
        "  epoch                        left out: of the training, not of the model\n"
        "  logit_scale                  left out: no part of ClipCap\n"
    )


# The command line and the output --------------------------------------------------------------------------------------


def test_options_and_kinds(tmp_path: Path) -> None:
    file = tiny_clipcap.saved(tmp_path / "file.pt", MAPPER)
    assert imported(file, kind="clipcup").err.startswith("fuse: there is no kind 'clipcup' of checkpoint (")
    assert imported(file, "--set", "heads").err == "fuse: --set: 'heads' is not KEY=VALUE, once for each key\n"
    twice = imported(file, "--set", "heads=1", "--set", "heads=2")
    assert (twice.code, twice.err) == (2, "fuse: --set: 'heads=2' is not KEY=VALUE, once for each key\n")
    ran = imported(file, *FIVE, "--host", tmp_path / "nowhere")
    told = f"fuse: '{tmp_path}/nowhere' does not exist (a folder or a hub id org/name)\n"
    assert (ran.code, ran.err) == (2, told)
    alone(tmp_path, "file.pt")


def test_where_the_output_goes(tmp_path: Path) -> None:
    file = tiny_clipcap.saved(tmp_path / "file.pt", MAPPER)

    def into(out: Path, *extra: str) -> str:
        ran = fuse_forked("import", "clipcap", file, out, *FIVE, *extra)
        assert ran.code == 2 and ran.out == ""
        return ran.err

    assert (
        into(tmp_path / "a" / "b")
        == f"fuse: {tmp_path}/a/b: the folder '{tmp_path}/a' does not exist (make it first)\n"
    )
    (tmp_path / "taken").write_text("mine")
    assert into(tmp_path / "taken", "--force").startswith(f"fuse: {tmp_path}/taken: the output already exists")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert into(tmp_path / "link") == f"fuse: {tmp_path}/link: the output is a link (name the folder itself)\n"
    assert into(tmp_path, "--force") == f"fuse: {tmp_path}: the output and file.pt would lie in each other\n"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    hint = "(choose another folder, or remove it yourself)"
    told = f"fuse: {tmp_path}/full: the output exists and fuse import did not make it {hint}\n"
    assert into(tmp_path / "full", "--force") == told
    assert into(Path(".."), "--force") == (
        "fuse: ..: the output has no name of its own (name a folder, such as ../out)\n"
    )  # fmt: skip
    assert (tmp_path / "taken").read_text() == (tmp_path / "full" / "mine").read_text() == "mine"
    alone(tmp_path, "file.pt", "taken", "link", "full")


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And with --force, the folder that was there stays."""
    file = tiny_clipcap.saved(tmp_path / "file.pt", MAPPER)
    assert imported(file).code == 0
    before = (tmp_path / "out" / "projector.json").read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writing, "write_json", full)
    ran = imported_here(file, tmp_path / "out", *FIVE, "--force")
    assert (ran.code, ran.err) == (4, f"fuse: {tmp_path}/out: No space left on device; nothing was written\n")
    assert (tmp_path / "out" / "projector.json").read_bytes() == before
    alone(tmp_path, "file.pt", "out")
    monkeypatch.setattr(writing, "free_bytes", lambda _: 10)
    ran = imported_here(file, tmp_path / "other", *FIVE)
    assert ran.code == 4 and " bytes and the disk has 10 free" in ran.err
    alone(tmp_path, "file.pt", "out")


def test_a_tensor_without_a_place_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever an importer forgets, the framework does not."""
    file = tiny_clipcap.saved(tmp_path / "file.pt", {**MAPPER, "a": torch.ones(1), "b": torch.ones(1)})
    clipcap = import_module("fuse.importers.clipcap")
    honest = clipcap.sort_keys

    def forgets(state: Any, about: About) -> Imported:
        made = honest(state, about)
        return Imported(made.graft, made.projector, made.language, {})

    monkeypatch.setattr(clipcap, "sort_keys", forgets)
    ran = imported_here(file)
    assert ran.err == f"fuse: {file}: tensor 'a' has no place in what is imported (2 such tensors)\n"
    monkeypatch.setattr(clipcap, "sort_keys", lambda state, about: Imported(dropped=dict.fromkeys(state, "all of it")))
    assert imported_here(file).err == f"fuse: {file}: holds nothing that can be imported\n"
    alone(tmp_path, "file.pt")


def test_files_of_every_kind_are_told_apart() -> None:
    peft = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(2, 2)}
    files = {
        "lion": [lion()], "lmeye": [tiny_lmeye.network(16), tiny_lmeye.second(16)], "clipcap": [MAPPER],
        "llama_adapter": [official_adapters.first(), official_adapters.second()], "lavin": [tiny_lavin.official()],
        "llava_lora": [peft],
    }  # fmt: skip
    assert files.keys() == IMPORTERS.keys()
    for kind, states in files.items():
        for state in states:
            assert kinds_of(state) == [kind]


def test_help_names_every_kind_and_imports_no_torch() -> None:
    ran = fuse("import", "--help")
    assert ran.code == 0
    for kind, row in IMPORTERS.items():
        module = import_module(f"fuse.importers.{row.module}")
        told = " ".join(ran.out.split())
        assert f"{kind} {module.HELP}." in told
        assert all(option in told for option in getattr(module, "OPTIONS", ()))
    code = (
        "import sys\nfrom fuse.commands.import_ import command\nfrom click.testing import CliRunner\n"
        "assert 'lavin' in CliRunner().invoke(command, ['--help']).output\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    import subprocess
    import sys

    subprocess.run([sys.executable, "-c", code], check=True, timeout=240)


def test_pieces_are_renamed_tensors() -> None:
    piece = Piece.renamed("linear", {}, {"a.weight": torch.ones(2, 3)}, {"a.weight": "weight"})
    assert piece.origins == {"weight": ("a.weight",)} and torch.equal(piece.tensors["weight"], torch.ones(2, 3))
    assert Imported(None, piece).pieces == {"projector": piece}


def test_open_source_names_the_files_of_a_folder(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "one.safetensors")
    save_file({"b": torch.ones(1)}, tmp_path / "two.safetensors")
    (tmp_path / "params.json").write_text('{"dim": 8}')
    found = open_source(tmp_path, ("one.safetensors", "two.safetensors", "three.bin"))
    assert set(found.state) == {"a", "b"} and found.beside == {"params.json": {"dim": 8}}
    save_file({"a": torch.ones(1)}, tmp_path / "two.safetensors")
    with pytest.raises(CheckpointError) as error:
        open_source(tmp_path, ("one.safetensors", "two.safetensors"))
    assert str(error.value) == f"{tmp_path}/two.safetensors: tensor 'a' is in another file of the folder too"
