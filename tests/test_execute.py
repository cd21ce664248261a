"""The engine alone: blocks of any size give the same bytes, for whole tensors and for tables matched by token."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fuse.engine import device
from fuse.engine import execute as engine
from fuse.methods.table import METHODS
from fuse.plan import Row, Source
from fuse.rows import Added, Run
from fuse.safetensors_header import read_header

GIVEN = {"weights": [0.3, 0.7], "density": [0.5, 0.4], "t": 0.3}
PARAMETERS = {
    "linear": {"weights": [0.3, 0.7], "normalize": True},
    "passthrough": {"scale": 0.3},
    "slerp": {"t": 0.3},
    "task_arithmetic": {"weights": [0.3, 0.7], "lambda": 0.9, "normalize": False},
    "ties": {"weights": [0.3, 0.7], "density": [0.5, 0.4], "lambda": 1.0, "normalize": True},
    "dare_linear": {"weights": [0.3, 0.7], "density": [0.5, 0.4], "seed": 3},
    "dare_ties": {"weights": [0.3, 0.7], "density": [0.5, 0.4], "seed": 3},
}


def parameters(method: str) -> dict:
    """Values for two members: those above, else what is required."""
    row = METHODS[method].params
    return PARAMETERS.get(method) or {key: GIVEN[key] for key in GIVEN if key in row}


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Source]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"host": (23, 6), "a": (20, 6), "b": (25, 6), "base": (21, 6)}
    for name, shape in shapes.items():
        save_file({"t": torch.randn(shape, generator=generator).bfloat16()}, tmp_path / f"{name}.safetensors")
    return {name: Source(name, read_header(tmp_path / f"{name}.safetensors")["t"]) for name in shapes}


def run(row: Row, folder: Path, name: str) -> bytes:
    engine.execute([row], [(name, [0])], folder, lambda _: None)
    return (folder / name).read_bytes()


@pytest.mark.parametrize("method", [name for name in METHODS if "/" not in name])
def test_tables_in_blocks(
    sources: dict[str, Source], tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    uses_base = METHODS[method].base == "required"
    runs = (Run(0, 5, (2, 0, 4)), Run(7, 6, (8, 9, 11)), Run(20, 2, (18, 22, 19)))
    guests, most = (sources["a"], sources["b"]), METHODS[method].inputs[1]
    of_base = (2,) if uses_base else ()
    runs = tuple(Run(r.host, r.length, tuple(r.sources[i] for i in (*range(most or 2), *of_base))) for r in runs)
    row = Row(
        "t", "merge", "t", "language", (26, 6), "BF16", guests[:most], sources["base"] if uses_base else None,
        method, parameters(method), sources["host"], runs, (Added(23, 1, 24), Added(6, 0, 1)),
        donors=guests[most:] if most else (),
    )  # fmt: skip
    whole = run(row, tmp_path, "whole.safetensors")
    for block in (1, 12, 40, 90):
        monkeypatch.setattr(device.Memory, "block", block)
        assert run(row, tmp_path, f"{block}.safetensors") == whole
    out, host = load_file(tmp_path / "whole.safetensors")["t"], load_file(tmp_path / "host.safetensors")["t"]
    b = load_file(tmp_path / "b.safetensors")["t"]
    kept = [5, *range(13, 20), 22]
    assert torch.equal(out[kept], host[kept])
    assert torch.equal(out[23], b[24]) and not out[24:].any()
    assert not torch.equal(out[:5], host[:5])


@pytest.mark.parametrize("method", [name for name in METHODS if "/" not in name])
def test_tensors_in_blocks(tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    for name in ("a", "b", "base"):
        save_file({"t": torch.randn(17, 9, generator=generator).half()}, tmp_path / f"{name}.safetensors")
    of = {name: Source(name, read_header(tmp_path / f"{name}.safetensors")["t"]) for name in ("a", "b", "base")}
    base = of["base"] if METHODS[method].base == "required" else None
    sources = (of["a"], of["b"])[: METHODS[method].inputs[1]]
    row = Row("t", "merge", "t", "language", (17, 9), "F32", sources, base, method, parameters(method))
    whole = run(row, tmp_path, "whole.safetensors")
    for block in (1, 7, 64):
        monkeypatch.setattr(device.Memory, "block", block)
        assert run(row, tmp_path, f"{block}.safetensors") == whole


@pytest.mark.parametrize("action", ["merge", "copy"])
def test_rows_of_donors_and_zero_rows(
    sources: dict[str, Source], tmp_path: Path, action: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A donor lends a row and takes no part in the merge; an added row of nobody is zero, inside the table too."""
    inputs = (sources["a"], sources["b"]) if action == "merge" else (sources["host"],)
    runs = (Run(0, 5, (2, 0)),) if action == "merge" else ()
    lender = len(inputs)
    row = Row(
        "t", action, "t", "language", (26, 6), "BF16", inputs, None, "linear" if action == "merge" else "",
        PARAMETERS["linear"] if action == "merge" else {}, sources["host"], runs,
        (Added(23, lender, 4), Added(25, None), Added(7, None), Added(24, lender - 1, 3)), (sources["base"],),
    )  # fmt: skip
    assert sources["base"] in row.reads
    whole = run(row, tmp_path, "whole.safetensors")
    for block in (1, 12, 40, 90):
        monkeypatch.setattr(device.Memory, "block", block)
        assert run(row, tmp_path, f"{block}.safetensors") == whole
    of = {name: load_file(tmp_path / f"{name}.safetensors")["t"] for name in ("host", "a", "b", "base")}
    wanted = torch.cat([of["host"], torch.zeros(3, 6)]).float()
    if action == "merge":
        wanted[:5] = 0.3 * of["a"][2:7].float() + 0.7 * of["b"][:5].float()
    wanted[23], wanted[24], wanted[7] = of["base"][4], of["b" if action == "merge" else "host"][3], 0
    assert torch.equal(load_file(tmp_path / "whole.safetensors")["t"], wanted.bfloat16())
