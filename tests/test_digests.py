"""The sha256 of the small files of a folder."""

from hashlib import sha256
from pathlib import Path

from fuse.digests import small_files


def test_small_files_are_those_of_the_model(tmp_path: Path) -> None:
    """Neither weights nor the record nor the card, and nothing hidden."""
    names = ("config.json", "branches/form/config.json", "fuse.json", "README.md", "model.safetensors", "old.bin",
             ".env", ".git/config", ".cache/huggingface/a.json", "branches/.hidden/config.json")  # fmt: skip
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert small_files(tmp_path) == {name: sha256(name.encode()).hexdigest() for name in sorted(names[:2])}
