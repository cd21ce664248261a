"""A checkpoint file to import under faults, the folder it should give, and an older one that it may replace."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.faults.harness import command, digests
from tests.faults.scene import Scene


@dataclass(frozen=True)
class ImportScene(Scene):
    """As Scene, of `fuse import`; folder: holds the file."""

    @property
    def file(self) -> Path:
        return self.folder / "coco.pt"

    def words(self, force: bool = False) -> list[object]:
        return _words(self.file, 5, force=force)


def make_import(folder: Path) -> ImportScene:
    """A mapper of ClipCap in a zip of torch, imported as it is; the older output has another length."""
    import torch

    from tests import tiny_clipcap

    shutil.rmtree(folder, ignore_errors=True)
    members = folder / "members"
    members.mkdir(parents=True)
    torch.save({"model": tiny_clipcap.mapper("clipcap_mlp", 32), "epoch": 3}, members / "coco.pt")
    for name, length in (("whole", 5), ("old", 2)):
        (folder / name).mkdir()
        ran = command(_words(members / "coco.pt", length), folder / name)
        assert (ran.code, ran.err) == (0, ""), ran
    found = [digests(folder / name) for name in ("whole/out", "old/out", "members")]
    return ImportScene(members, *found)


def _words(file: Path, length: int, *, force: bool = False) -> list[object]:
    return ["import", "clipcap", file, "out", "--set", f"prefix_length={length}", "--json", *(["--force"] * force)]


def living(group: int) -> list[int]:
    """The processes of a group that have not ended."""
    found = []
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            try:
                state, _, pgrp = (place / "stat").read_text().rpartition(")")[2].split()[:3]
            except OSError:  # it has ended
                continue
            if int(pgrp) == group and state not in "ZX":
                found.append(int(place.name))
    return [pid for pid in found if pid != os.getpid()]
