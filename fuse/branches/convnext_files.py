"""The files of a ConvNeXt tower, as open_clip or timm store it: header, config from shapes, names. Needs no torch."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from fuse.checkpoint import SINGLE, Checkpoint, fetch_entries, locate
from fuse.errors import CheckpointError
from fuse.repository import Repository
from fuse.safetensors_header import TensorEntry, read_header

OPEN_CLIP = "open_clip_model.safetensors"
FILES = (OPEN_CLIP, SINGLE)
XXLARGE = 384  # channels of the first stage of the one size whose norms have another epsilon (timm, convnext_xxlarge)
_BLOCK = ("gamma", *(f"{m}.{k}" for m in ("conv_dw", "norm", "mlp.fc1", "mlp.fc2") for k in ("weight", "bias")))


def open_convnext(name: str, location: str, *, relative_to: Path) -> Checkpoint:
    """Open a folder (relative to the recipe's) or hub id that holds open_clip_model.safetensors or model.safetensors.

    Raises RecipeError when there is no such folder, CheckpointError when it holds neither, MachineError offline.
    """
    hint = "a tower is the folder that holds its safetensors"
    folder, repository, commit = locate(location, None, relative_to, hint)
    return Checkpoint(name, folder, {}, _header(folder, repository), location, commit, repository)


def _header(folder: Path, repository: Repository | None) -> dict[str, TensorEntry]:
    for file in FILES:
        if (folder / file).exists() and not (repository and repository.etags):
            return read_header(folder / file)
        if repository and file in repository.names:
            return repository.header(file, folder / file)
    raise CheckpointError(
        f"holds neither {' nor '.join(FILES)}",
        where=folder,
        hint="open_clip's pickle is not read: load it where you trust it, and save its state_dict as safetensors",
    )


def fetch_convnext(checkpoint: Checkpoint, wanted: Collection[TensorEntry] | None = None) -> None:
    """Bring the weights of a tower that is elsewhere to this machine, as fuse.checkpoint.fetch does for members."""
    if checkpoint.repository is None:
        return
    fetch_entries(checkpoint, list(checkpoint.tensors.values()), wanted)
    files = checkpoint.weight_files
    if {k: e for file in files for k, e in read_header(file).items()} != checkpoint.tensors:
        raise CheckpointError("the weights changed while they were read", where=checkpoint.folder)


def unwrapped(opened: Checkpoint) -> dict[str, tuple[int, ...]]:
    """The shapes of the tower's tensors under MGM's names (`vision_stem`, `vision_stages`)."""
    found = {}
    for key, entry in opened.tensors.items():
        inner = key.removeprefix("visual.").removeprefix("trunk.")
        if re.match(r"(stem|stages)\.", inner):
            found[f"vision_{inner}"] = entry.shape
    return found


def convnext_config(shapes: Mapping[str, tuple[int, ...]], where: object) -> dict[str, Any]:
    """Blocks and channels of each stage, from the tensors' shapes; CheckpointError where they are not a ConvNeXt's."""
    blocks: dict[int, set[int]] = {}
    for name in shapes:
        if found := re.search(r"\.vision_stages\.(\d+)\.blocks\.(\d+)\.gamma$", name):
            blocks.setdefault(int(found[1]), set()).add(int(found[2]))
    stages = range(len(blocks))
    if not blocks or set(blocks) != set(stages) or any(found != set(range(len(found))) for found in blocks.values()):
        raise CheckpointError("holds no ConvNeXt of open_clip or timm (stem, stages of blocks)", where=where)
    gammas = {name: shape for name, shape in shapes.items() if name.endswith(".blocks.0.gamma")}
    dims = [next(s[0] for n, s in gammas.items() if f".vision_stages.{stage}." in n) for stage in stages]
    eps = 1e-5 if dims[0] == XXLARGE else 1e-6
    return {"model_type": "convnext", "depths": [len(blocks[n]) for n in stages], "dims": dims, "norm_eps": eps}


def convnext_names(config: Mapping[str, Any]) -> list[str]:
    """Every tensor of the tower as a branch builds it, under canonical names."""
    pairs = [f"vision_stem.{n}" for n in (0, 1)]
    pairs += [f"vision_stages.{stage}.downsample.{n}" for stage in range(1, len(config["depths"])) for n in (0, 1)]
    rows = [f"{pair}.{kind}" for pair in pairs for kind in ("weight", "bias")]
    for stage, depth in enumerate(config["depths"]):
        rows += [f"vision_stages.{stage}.blocks.{n}.{row}" for n in range(depth) for row in _BLOCK]
    return [f"vision_tower_aux.{row}" for row in rows]
