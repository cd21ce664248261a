"""`fuse import` on files that are hostile or broken: one sentence, nothing run, nothing written."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests import tiny_lavin, tiny_lmeye
from tests.test_import import FIRST, MAPPER, alone, imported


class Runs:
    """A pickle of it would call a function as it is loaded."""

    def __init__(self, function: Any, *given: Any) -> None:
        self.given = function, given

    def __reduce__(self) -> Any:
        return self.given


RESAVE = "(where you trust it, save its state dict alone: torch.save(model.state_dict(), NEW_FILE))"


@pytest.mark.parametrize("how", ["zip", "old", "pickle"])
@pytest.mark.parametrize("place", ["entry", "optimizer", "key"])
def test_no_code_of_a_pickle_is_run(tmp_path: Path, how: str, place: str) -> None:
    made = tmp_path / "made_by_the_pickle"
    evil = Runs(os.mkdir, str(made))
    state: dict[Any, Any] = {**MAPPER, **({"x": evil} if place == "entry" else {})}
    whole = {"model": state, **({"optimizer": evil} if place == "optimizer" else {})}
    if place == "key":
        whole = {**whole, (evil,): 1}
    file = tmp_path / "file.pth"
    if how == "pickle":
        file.write_bytes(pickle.dumps({key: value if key != "model" else {} for key, value in whole.items()}
                                      if place != "entry" else {"x": evil}, protocol=2))  # fmt: skip
    else:
        torch.save(whole, file, _use_new_zipfile_serialization=how == "zip")
    ran = imported(file)
    assert (ran.code, ran.out) == (3, "")
    assert ran.err == (
        f"fuse: {file}: its pickle asks for posix.mkdir, which loading might run; fuse reads weights only, and "
        f"nothing was run {RESAVE}\n"
    )
    alone(tmp_path, "file.pth")


def test_the_attack_would_work(tmp_path: Path) -> None:
    """What the test above keeps from happening does happen with pickle itself."""
    pickle.loads(pickle.dumps(Runs(os.mkdir, str(tmp_path / "made"))))  # noqa: S301
    assert (tmp_path / "made").is_dir()


def cut(file: Path, keep: float) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * keep)])


@pytest.mark.parametrize("keep", [0.01, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("how", ["zip", "old", "safetensors"])
def test_truncated_files(tmp_path: Path, how: str, keep: float) -> None:
    file = tmp_path / ("file.safetensors" if how == "safetensors" else "file.pth")
    if how == "safetensors":
        save_file(MAPPER, file)
    else:
        torch.save(MAPPER, file, _use_new_zipfile_serialization=how == "zip")
    cut(file, keep)
    ran = imported(file)
    assert (ran.code, ran.out) == (3, ""), ran
    told = {"zip": "is cut off or no checkpoint of PyTorch (", "old": "is cut off or no checkpoint of PyTorch ("}
    assert ran.err.startswith(f"fuse: {file}: {told.get(how, '')}") and ran.err.count("\n") == 1, ran.err
    assert how != "safetensors" or "truncated" in ran.err or "bytes" in ran.err
    alone(tmp_path, file.name)


def write(what: Any) -> Callable[[Path], None]:
    return lambda file: torch.save(what, file)


def text(what: bytes) -> Callable[[Path], None]:
    return lambda file: file.write_bytes(what) and None


SPARSE = torch.eye(3).to_sparse()
WRONG: dict[str, tuple[str, Callable[[Path], None], int, str]] = {
    "nothing": ("file.pth", lambda file: None, 2, "there is no such file"),
    "a folder": ("file.pth", lambda file: file.mkdir(), 2, "is a folder (name the checkpoint file itself)"),
    "suffix": ("file.npz", text(b"PK\x03\x04"), 2,
               "has suffix '.npz' (fuse imports .pth, .pt, .bin, .ckpt, .safetensors)"),
    "empty": ("file.pth", text(b""), 3, "is empty"),
    "a text": ("file.pth", text(b"weights\n"), 3,
               "is no checkpoint of PyTorch: it begins neither as a zip nor as a pickle"),
    "lfs": ("file.pth", text(b"version https://git-lfs.github.com/spec/v1\n"), 3,
            "this is a git-lfs pointer, not the weights (run `git lfs pull` in that folder)"),
    "renamed": ("file.pth", lambda file: save_file(MAPPER, file), 3,
                "looks like safetensors (call it .safetensors)"),
    "a list": ("file.pth", write([torch.ones(2)]), 3, "holds a list, not a state dict"),
    "a tensor": ("file.pth", write(torch.ones(2)), 3, "holds a Tensor, not a state dict"),
    "no tensors": ("file.pth", write({"epoch": 3, "model": {}}), 3, "holds no tensors"),
    "numbers for names": ("file.pth", write({0: torch.ones(2)}), 3, "has a key 0, which is no name"),
    "twice": ("file.pth", write({**MAPPER, f"module.{FIRST}": MAPPER[FIRST]}), 3,
              f"keys '{FIRST}' and 'module.{FIRST}' are the same one"),
    "nan": ("file.pth", write({**MAPPER, FIRST: torch.full((80,), torch.nan)}), 3,
            f"tensor '{FIRST}' holds numbers that are not finite"),
    "infinite": ("file.pth", write({**MAPPER, FIRST: torch.full((80,), torch.inf)}), 3,
                 f"tensor '{FIRST}' holds numbers that are not finite"),
    "integers": ("file.pth", write({**MAPPER, FIRST: torch.ones(80, dtype=torch.int64)}), 3,
                 f"tensor '{FIRST}' has dtype int64, not floats"),
    "sparse": ("file.pth", write({**MAPPER, FIRST: SPARSE}), 3,
               f"tensor '{FIRST}' is sparse, quantised, complex or not stored"),
    "on meta": ("file.pth", write({**MAPPER, FIRST: torch.ones(80, device="meta")}), 3,
                f"tensor '{FIRST}' is sparse, quantised, complex or not stored"),
    "expanded": ("file.pth", write({**MAPPER, FIRST: torch.ones(1).expand(80)}), 3,
                 f"tensor '{FIRST}' of shape [80] is larger than what is stored"),
    "another kind": ("file.pth", write(tiny_lavin.official()), 3,
                     "is no clipcap file: it holds the tensors of lavin (fuse import lavin)"),
    "none of these": ("file.pth", write({"model.embed_tokens.weight": torch.ones(3, 2)}), 3,
                      "holds no `clip_project.*` (ClipCap saves them as coco_prefix-*.pt)"),
}  # fmt: skip


def test_tensors_without_dimensions(tmp_path: Path) -> None:
    net = {**tiny_lmeye.network(16), "promptMlp.weight": torch.tensor(1.0)}
    file = tiny_lmeye.save_pickle(net, tmp_path / "file.pth")
    ran = imported(file, "--set", "clip=.", kind="lmeye")
    told = "its tensors do not go together as those of lmeye do (len() of a 0-d tensor)"
    assert (ran.code, ran.out, ran.err) == (3, "", f"fuse: {file}: {told}\n")
    alone(tmp_path, "file.pth")


def test_a_number_without_end(tmp_path: Path) -> None:
    file = tmp_path / "file.pth"
    torch.save(MAPPER, file)
    ran = imported(file, "--set", f"prefix_length={'1' * 400}")
    assert ran.code == 3 and "cannot be cut into 111" in ran.err, ran
    alone(tmp_path, "file.pth")


@pytest.mark.parametrize("case", WRONG)
def test_files_that_are_none(tmp_path: Path, case: str) -> None:
    name, make, code, told = WRONG[case]
    file = tmp_path / name
    make(file)
    ran = imported(file)
    assert (ran.code, ran.out, ran.err) == (code, "", f"fuse: {file}: {told}\n")
    alone(tmp_path, *([name] if file.exists() else []))
