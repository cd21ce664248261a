"""Formats that fuse does not read: pickles, archives, other libraries' files."""

from pathlib import Path

import pytest

from tests.attacks.harness import Attack, hold
from tests.attacks.making import Make, both, directory, fifo, file, link, member, recipe, sparse

EVIL = b"cos\nsystem\n(S'touch pwned'\ntR."
ZIP_BOMB = b"PK\3\4" + bytes(26) + b"\0" * 1000
GRAFT = "members: {a: a}\nlanguage: {method: linear, weights: 1}\ngrafts: [{kind: lion, from: g}]\n"
EYE = "members: {a: a}\nlanguage: {method: linear, weights: 1}\nvision: [{name: c, open_clip: ViT-B-32, weights: %s, projector: p}]\n"


HOLDS = (
    "a: holds {} but no safetensors; fuse does not read pickles and other formats "
    "(load it with transformers where you trust it, and `save_pretrained`)"
)
NEITHER = "a: holds neither model.safetensors nor model.safetensors.index.json"
IS = "a/model.safetensors: this is {}, not safetensors ({})"
CONVERT = "load it with transformers where you trust it, and `save_pretrained`"


def only(name: str, data: bytes) -> Make:
    return member(file(f"a/{name}", data))


CASES = [
    *(
        Attack(f"only {name}", only(name, data), 3, sentence.format(name))
        for name, data, sentence in (
            ("pytorch_model.bin", EVIL, HOLDS),
            ("pytorch_model-00001-of-00002.bin", EVIL, HOLDS),
            ("consolidated.00.pth", EVIL, HOLDS),
            ("model.pt", ZIP_BOMB, HOLDS),
            ("model.ckpt", EVIL, HOLDS),
            ("tf_model.h5", b"\x89HDF\r\n\x1a\n", HOLDS),
            ("flax_model.msgpack", b"\x80", HOLDS),
            ("model.gguf", b"GGUF\3\0\0\0", HOLDS),
            ("model.tar", b"x" * 512, NEITHER),
            ("model.npz", ZIP_BOMB, NEITHER),
            ("model.onnx", b"\x08\7", NEITHER),
            ("model.SAFETENSORS", b"x", NEITHER),
        )
    ),
    *(
        Attack(f"{name} called model.safetensors", only("model.safetensors", data), 3, sentence)
        for name, data, sentence in (
            ("torch.save's archive", ZIP_BOMB, IS.format("a zip archive, as torch.save makes it", CONVERT)),
            ("HDF5", b"\x89HDF\r\n\x1a\n" + bytes(64), IS.format("an HDF5 file", CONVERT)),
            ("GGUF", b"GGUF\3\0\0\0" + bytes(64), IS.format("a GGUF file", "merge the checkpoint that it was made of")),
            ("gzip", b"\x1f\x8b\x08\0\0\0\0\0\0\3" + bytes(64), IS.format("a gzip archive", "unpack it")),
            ("a script", b"#!/bin/sh\ntouch pwned\n", "a/model.safetensors: a header of 8,299,974,037,164,990,755 bytes is more than 100,000,000"),
        )
    ),
    Attack("an adapter in place of a member", recipe("members: {a: a}\nlanguage: {method: linear, weights: 1}\n", file("a/adapter_config.json", {}), file("a/adapter_model.bin", EVIL)), 3, "a: this is an adapter, not a whole checkpoint (name its base too: {base: FOLDER, adapter: FOLDER})"),
    Attack("an evil pickle beside good names", member(file("a/pytorch_model.bin", EVIL), file("a/pytorch_model.bin.index.json", {"weight_map": {}})), 3, "a: holds pytorch_model.bin but no safetensors; fuse does not read pickles and other formats (load it with transformers where you trust it, and `save_pretrained`)"),
    Attack("code beside no weights", member(file("a/modeling_evil.py", b"import os; os.system('touch pwned')")), 3, "a: holds neither model.safetensors nor model.safetensors.index.json"),
    Attack("a pickle of a terabyte", member(sparse("a/pytorch_model.bin", 1 << 40)), 3, "a: holds pytorch_model.bin but no safetensors; fuse does not read pickles and other formats (load it with transformers where you trust it, and `save_pretrained`)"),
    Attack("a pickle that is a FIFO", member(fifo("a/pytorch_model.bin")), 3, "a: holds pytorch_model.bin but no safetensors; fuse does not read pickles and other formats (load it with transformers where you trust it, and `save_pretrained`)"),
    Attack("a pickle that is a folder", member(directory("a/pytorch_model.bin")), 3, "a: holds pytorch_model.bin but no safetensors; fuse does not read pickles and other formats (load it with transformers where you trust it, and `save_pretrained`)"),
    Attack("a pickle whose name drives the terminal", member(file("a/\x1b[31m\nfuse: done.bin", EVIL)), 3, "a: holds \\x1b[31m\\nfuse: done.bin but no safetensors; fuse does not read pickles and other formats (load it with transformers where you trust it, and `save_pretrained`)"),
    Attack("a folder of 20,000 files", member(both(*(file(f"a/{i}.bin", b"") for i in range(20_000)))), 3, "a: holds 0.bin but no safetensors; fuse does not read pickles and other formats (load it with transformers where you trust it, and `save_pretrained`)"),
    Attack("weights that are a link to a pickle", member(file("a/pytorch_model.bin", EVIL), link("a/model.safetensors", "pytorch_model.bin")), 3, "a/model.safetensors: a header of 8,391,184,065,724,903,267 bytes is more than 100,000,000"),
    Attack("an encoder's weights as a pickle", recipe(EYE % "w.bin", file("w.bin", EVIL), file("a/config.json", {"model_type": "llama"})), 3, "a: holds neither model.safetensors nor model.safetensors.index.json", "plan recipe.yaml"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_refuses(case: Attack, tmp_path: Path) -> None:
    hold(case, tmp_path)
    assert not (tmp_path / "pwned").exists()
