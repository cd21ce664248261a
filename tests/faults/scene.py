"""Members and a recipe to merge under faults, the output it should give, and an older one that it may replace."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from tests.faults.harness import command, digests

RECIPE = (
    "base: base\nmembers: {{a: a, b: b}}\nlanguage: {{method: task_arithmetic, weights: {weights}, embeddings: base}}\n"
    "output: {{shard_size: {size}}}\n"
)

ROOM = 200 << 20  # bytes: a merge asks for 64 MB more than it writes


@dataclass(frozen=True)
class Scene:
    """folder: the members and both recipes. whole: digests of the recipe's output, by file. old: of an older output."""

    folder: Path
    whole: dict[str, str]
    old: dict[str, str]
    inputs: dict[str, str]

    @property
    def recipe(self) -> Path:
        return self.folder / "recipe.yaml"

    def words(self, force: bool = False) -> list[object]:
        return ["merge", self.recipe, "out", "--json", "--quiet", *(["--force"] if force else [])]

    def root(self, name: str, *, force: bool = False) -> Path:
        """A fresh folder to merge in, with the older output in it where that is to be replaced."""
        root = self.folder.parent / name
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        if force:
            shutil.copytree(self.folder.parent / "old" / "out", root / "out")
        return root

    def copy(self, name: str) -> "Scene":
        """The same with members of its own, to be damaged."""
        members = self.folder.parent / name / "members"
        shutil.rmtree(members.parent, ignore_errors=True)
        shutil.copytree(self.folder, members)
        return replace(self, folder=members)


@contextmanager
def in_memory() -> Iterator[Path]:
    """A folder where a thousand fsyncs take no time, where there is one; faults are the same everywhere."""
    shared = Path("/dev/shm")
    fits = shared.is_dir() and os.access(shared, os.W_OK) and shutil.disk_usage(shared).free > ROOM
    with tempfile.TemporaryDirectory(prefix="faults", dir=shared if fits else None) as folder:
        yield Path(folder)


def make_scene(folder: Path, *, hidden: int = 32, layers: int = 2, size: str = "40KB") -> Scene:
    """Three Llamas of one base; with the figures given three shards of 80 kB in all, in float32."""
    from tests.members import save_family

    shape = {"hidden_size": hidden, "intermediate_size": hidden * 3 // 2, "num_hidden_layers": layers}
    members = save_family(folder / "members", "base", "a", "b", num_key_value_heads=2, **shape)
    (members / "recipe.yaml").write_text(RECIPE.format(weights=0.5, size=size))
    (members / "old.yaml").write_text(RECIPE.format(weights=0.25, size=size))
    for name, recipe in (("whole", "recipe.yaml"), ("old", "old.yaml")):
        (folder / name).mkdir()
        ran = command(["merge", members / recipe, "out", "--quiet"], folder / name)
        assert (ran.code, ran.err) == (0, ""), ran
    return open_scene(folder)


def open_scene(folder: Path) -> Scene:
    """A scene that was made."""
    members = folder / "members"
    return Scene(members, digests(folder / "whole" / "out"), digests(folder / "old" / "out"), digests(members))
