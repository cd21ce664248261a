"""Whether a language model has the basis that a donor was cut from."""

import hashlib
import json
import subprocess
import sys
from base64 import b64decode, b64encode
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from fuse.anatomy import Member, open_member
from fuse.errors import CheckpointError
from fuse.grafts.basis import fingerprint, host_of, is_told, likeness, sample, why_another_basis
from tests import tiny_text
from tests.members import save_member, words

ROWS = 200


def member(
    folder: Path,
    kind: str = "llama",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    tokens: Any = None,
    **settings: Any,
) -> Member:
    folder.mkdir(exist_ok=True)
    model = tiny_text.build(kind, vocab_size=ROWS, **settings)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed)
        weight = model.get_input_embeddings().weight
        weight.copy_(torch.randn(weight.shape, generator=generator))
    save_member(model, folder / "m", tokens or words(ROWS), dtype=dtype)
    return open_member(folder.name, str(folder / "m"), revision=None, relative_to=Path())


def moved(folder: Path, like: Member, change: Any) -> Member:
    """A member whose embedding is that of another, changed."""
    own = member(folder)
    model = tiny_text.CLASSES["llama"][1].from_pretrained(own.folder)
    old = torch.from_numpy(table(like))
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(change(old))
    model.save_pretrained(own.folder)
    return open_member(folder.name, str(own.folder), revision=None, relative_to=Path())


def table(of: Member) -> np.ndarray:
    return load_file(of.folder / "model.safetensors")[of.text.embedding].astype(np.float32)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "t5", "qwen3"])
def test_a_record_tells_the_host(tmp_path: Path, kind: str) -> None:
    host = member(tmp_path / "host", kind)
    found = json.loads(json.dumps(host_of(host)))
    stored = load_file(host.folder / "model.safetensors")[host.text.embedding]
    assert found["hidden_size"] == 32
    assert (found["model"], found["model_type"], found["layers"]) == ("host", kind, 2)
    assert found["norm"] == ("layer" if kind in ("gpt2", "opt") else "rms")
    assert found["embedding"]["shape"] == [ROWS, 32]
    assert found["embedding"]["sha256"] == hashlib.sha256(stored.tobytes()).hexdigest()
    rows = found["embedding"]["rows"]
    assert (len(rows), rows[0], rows[-1]) == (64, 0, ROWS - 1)
    assert found["embedding"]["tokens"][5] == words(ROWS)[rows[5]]
    values = np.frombuffer(b64decode(found["embedding"]["values"]), "<f4").reshape(64, -1)
    assert np.array_equal(values, stored[rows])
    assert why_another_basis(found, host) == ""
    assert is_told(found)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_sample_in_every_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    host = member(tmp_path / "host", dtype=dtype, hidden_size=160)
    columns = np.unique(np.linspace(0, 159, 64).round().astype(int))
    generator = torch.Generator().manual_seed(0)
    wanted = torch.randn(ROWS, 160, generator=generator).to(dtype).float().numpy()
    entry = host.language[host.text.embedding]
    assert np.array_equal(sample(entry, [3, 199]), wanted[[3, 199]][:, columns])
    other = member(tmp_path / "other", dtype=torch.float32, hidden_size=160)
    assert likeness(fingerprint(host), other)[0] > 0.9999


def test_a_fine_tune_has_the_basis_and_another_model_has_not(tmp_path: Path) -> None:
    host = member(tmp_path / "host")
    record = host_of(host)
    noise = torch.randn(ROWS, 32, generator=torch.Generator().manual_seed(5))
    tuned = moved(tmp_path / "tuned", host, lambda old: old + 0.2 * noise)
    cosine, found, asked = likeness(record["embedding"], tuned)
    assert (found, asked) == (64, 64)
    old, new = table(host)[record["embedding"]["rows"]], table(tuned)[record["embedding"]["rows"]]
    wanted = (old * new).sum(1) / np.linalg.norm(old, axis=1) / np.linalg.norm(new, axis=1)
    assert cosine == pytest.approx(wanted.mean(), abs=1e-6)
    assert why_another_basis(record, tuned) == ""
    turn = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(3)))[0]
    turned = moved(tmp_path / "turned", host, lambda old: old @ turn)
    cosine = likeness(record["embedding"], turned)[0]
    assert why_another_basis(record, turned) == (
        "the embedding of turned has another basis than that of host: 64 rows that both have agree with cosine "
        f"{cosine:.2f}, and 0.9 is asked for"
    )
    assert abs(cosine) < 0.5


def test_rows_are_matched_by_token(tmp_path: Path) -> None:
    host = member(tmp_path / "host")
    record = host_of(host)
    order = [0, 1, 2, *reversed(range(3, ROWS))]
    names = words(ROWS)
    own = member(tmp_path / "own", tokens=[names[i] for i in order])
    assert "another basis" in why_another_basis(record, own)  # same rows, other tokens
    model = tiny_text.CLASSES["llama"][1].from_pretrained(own.folder)
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(torch.from_numpy(table(host)[order]))
    model.save_pretrained(own.folder)
    again = open_member("own", str(own.folder), revision=None, relative_to=Path())
    assert why_another_basis(record, again) == ""


def test_without_a_tokenizer_rows_are_matched_by_number(tmp_path: Path) -> None:
    host, twin = member(tmp_path / "host"), member(tmp_path / "twin")
    for file in twin.folder.glob("tokenizer*"):
        file.unlink()
    bare = open_member("twin", str(twin.folder), revision=None, relative_to=Path())
    assert bare.vocabulary is None
    assert likeness(fingerprint(host), bare) == (pytest.approx(1), 64, 64)
    assert fingerprint(bare)["tokens"] is None
    assert likeness(fingerprint(bare), host) == (pytest.approx(1), 64, 64)


def test_another_vocabulary(tmp_path: Path) -> None:
    host = member(tmp_path / "host")
    other = member(tmp_path / "other", tokens=["<unk>", "<s>", "</s>", *(f"x{i}" for i in range(3, ROWS))])
    assert why_another_basis(host_of(host), other) == (
        "1 of 64 tokens sampled from host are in the vocabulary of other: another basis"
    )


def test_empty_rows_count_on_no_side(tmp_path: Path) -> None:
    host = member(tmp_path / "host")
    record = host_of(host)
    kept = torch.zeros(ROWS, 1)
    kept[record["embedding"]["rows"][:40]] = 1
    half = moved(tmp_path / "half", host, lambda old: old * kept)
    assert likeness(record["embedding"], half) == (pytest.approx(1), 40, 64)
    assert why_another_basis(record, half) == ""


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("hidden_size", 64, "it was cut from a language model of width 64, and host has 32"),
        ("layers", 3, "it was cut from a language model of depth 3, and host has 2"),
        ("norm", "layer", "it was cut from a language model of norms of kind layer, and host has rms"),
        ("norm_eps", 1e-5, "it was cut from a language model of norms with eps 1e-05, and host has 1e-06"),
    ],
)
def test_numbers_that_differ(tmp_path: Path, key: str, value: Any, told: str) -> None:
    host = member(tmp_path / "host")
    record = host_of(host)
    assert why_another_basis({**record, key: value}, host) == told
    for unknown in (None, ""):
        assert why_another_basis({**record, key: unknown, "embedding": None}, host) == ""
    assert not is_told({**record, "embedding": None})


@pytest.mark.parametrize(
    "change",
    [
        {"values": "no base64!"},
        {"values": b64encode(b"\0" * 12).decode()},
        {"rows": ["a"] * 64},
        {"tokens": ["a"]},
        {"values": b64encode(np.full((64, 32), np.nan, "<f4").tobytes()).decode()},
        {"rows": 3},
    ],
)
def test_a_broken_record(tmp_path: Path, change: dict[str, Any]) -> None:
    host = member(tmp_path / "host")
    record = host_of(host)
    record["embedding"] = record["embedding"] | change
    with pytest.raises(CheckpointError) as error:
        why_another_basis(record, host)
    assert str(error.value) == "graft.json: host: embedding is no sample of an embedding"


def test_no_torch_is_imported() -> None:
    code = (
        "import sys, fuse.grafts.basis, fuse.grafts.hosts; print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "False False\n"
    )
