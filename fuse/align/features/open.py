"""What `fuse inspect encoders` was given: members with eyes, fused folders by branch, and bare vision encoders."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from fuse import strict_json, torchvision_shim
from fuse.align.features.blocks import blocks_of, tower_of
from fuse.align.features.load import BareTower, load_branch
from fuse.align.features.original import open_original
from fuse.anatomy import Member, open_member
from fuse.branches import encoder_libraries
from fuse.branches.encoder_libraries import Tower, Wanted
from fuse.branches.encoder_preprocess import preprocess
from fuse.branches.kinds import open_eyes
from fuse.branches.tower_types import TOWER_TYPES
from fuse.checkpoint import SINGLE, read_tensors
from fuse.errors import CheckpointError, RecipeError
from fuse.families.registry import text_module
from fuse.fusable import NATIVE, REFUSED
from fuse.safetensors_header import TensorEntry, read_header

LIBRARIES = {"timm": encoder_libraries.timm, "open_clip": encoder_libraries.open_clip}
FORMS = "FOLDER, timm:ARCHITECTURE=FILE.safetensors or open_clip:ARCHITECTURE[:TAG]=FILE.safetensors"
VIEWS_LAST = frozenset({"internvl", "aya_vision", "idefics2", "idefics3", "smolvlm", "mgm"})  # the whole picture's


@dataclass(frozen=True)
class Encoder:
    """One vision encoder, with the projector behind it where it has one.

    name: as it was given, `FOLDER/BRANCH` in a fused folder. architecture: the member's model_type, or the encoder's.
    branch: what `run_branch` takes; kind "bare" for an encoder without a projector. prepare: makes of one image a
    `Prepared`, or pixels [3, H, W] for a bare one. blocks: of its tower. words: the embedding table [V, D] of the
    language model that it belongs to, and scale: what the model multiplies its rows by; None for a bare one. host: the
    folder with that language model.
    """

    name: str
    folder: Path
    architecture: str
    branch: Mapping[str, Any]
    prepare: Callable[[Image.Image], Any]
    module: nn.Module
    blocks: tuple[nn.Module, ...]
    words: torch.Tensor | None = None
    scale: float = 1.0
    host: Path | None = None

    @property
    def projects(self) -> bool:
        return self.branch["kind"] != "bare"

    @property
    def whole_view(self) -> int:
        """Which of an image's views shows the whole of it."""
        kind = self.branch["kind"]
        return -1 if (self.architecture if kind == "native" else kind) in VIEWS_LAST else 0

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """What the language model reads for words."""
        assert self.words is not None
        return self.words[ids].float() * self.scale


def open_encoders(location: str) -> list[Encoder]:
    """The encoders of what was given: one, or one for each branch of a fused folder.

    location: FORMS. Raises RecipeError for what is not there or has no image encoder, and CheckpointError for one that
    does not load or whose class is not known.
    """
    torchvision_shim.install()
    library, _, rest = location.partition(":")
    if library in LIBRARIES and not Path(location).is_dir():
        architecture, _, file = rest.rpartition("=")
        if not architecture or not file:
            raise RecipeError(f"{location!r} names no file of weights", hint=f"members are {FORMS}")
        if not Path(file).is_file():
            raise RecipeError("there is no such file", where=file, hint=f"members are {FORMS}")
        tower = LIBRARIES[library](architecture, read_header(Path(file)), Path(file), location, Wanted())
        return [_bare(location, Path(file).parent, tower)]
    folder = Path(location)
    if not folder.is_dir():
        raise RecipeError("there is no such folder", where=location, hint=f"members are {FORMS}")
    config = strict_json.read_object(folder / "config.json")
    kind = config.get("model_type")
    if kind == "fuse":
        return _fused(location, folder, config)
    if kind in TOWER_TYPES:  # also BLIP-2 and InstructBLIP, whose Q-Former is no branch
        return [_bare(location, folder, encoder_libraries.transformers(location, location, Path(), Wanted()))]
    if "architecture" in config and kind is None:  # as timm writes it
        file, name = folder / SINGLE, config["architecture"]
        return [_bare(location, folder, encoder_libraries.timm(name, read_header(file), file, location, Wanted()))]
    return [_member(location, open_member(location, location, revision=None, relative_to=Path()))]


def _bare(name: str, folder: Path, tower: Tower) -> Encoder:
    encoder_libraries.check_rows(tower)
    branch = {"name": name, "kind": "bare", "config": tower.config}
    module = load_branch(branch, {row.name: row.entry for row in tower.rows if row.name}, tower.where)
    assert isinstance(module, BareTower)
    prepare, _ = preprocess(tower.config, folder)
    blocks = tuple(blocks_of(module.encoder))
    return Encoder(name, folder, str(tower.config["architecture"]), branch, prepare, module, blocks)


def _member(name: str, member: Member) -> Encoder:
    kind = member.family.model_type
    if not member.sees:
        raise RecipeError("has no image encoder", where=member.folder, hint="fuse inspect encoders compares eyes")
    if kind in REFUSED or (member.family.native and kind not in NATIVE):
        why = REFUSED.get(kind, "no branch is known for it")
        raise RecipeError(f"its encoder ({kind}) cannot be inspected: {why}", where=member.folder)
    branch: dict[str, Any] = {"name": name, "kind": "native", "config": dict(member.checkpoint.config)}
    if member.family.native:
        tensors = {**member.parts["encoder"], **member.parts["projector"], **member.parts["extra"]}
        module = load_branch(branch, tensors, member.folder)
        prepare = partial(open_eyes(branch, member.folder).prepare, guest=False)  # as a host: without a guest's markers
    else:
        branch, eyes, module = open_original(member.folder)
        prepare = eyes.prepare
    return Encoder(
        name, member.folder, kind, branch, prepare, module, tuple(blocks_of(tower_of(module))),
        _table(member.language[member.text.embedding]), _scale(member.text.name, member.basis.hidden_size),
        member.folder,
    )  # fmt: skip


def _fused(name: str, folder: Path, config: Mapping[str, Any]) -> list[Encoder]:
    tensors = read_tensors(folder, None)
    text = text_module(str((config.get("text_config") or {}).get("model_type")), str(folder))
    stored = tensors.get(f"language_model.{text.embedding}")
    if stored is None:
        raise CheckpointError(f"has no tensor 'language_model.{text.embedding}'", where=folder)
    found = []
    for branch in config.get("branches") or ():
        inner = f"branches.{branch['name']}."
        mine = {key.removeprefix(inner): entry for key, entry in tensors.items() if key.startswith(inner)}
        module = load_branch(branch, mine, folder)
        eyes = open_eyes(branch, folder / "branches" / branch["name"])
        kind = branch["config"].get("architecture" if branch["kind"] == "encoder" else "model_type", branch["kind"])
        table, scale = _table(stored), _scale(text.name, stored.shape[1])
        blocks = tuple(blocks_of(tower_of(module)))
        given = f"{name.rstrip('/')}/{branch['name']}"
        found.append(Encoder(given, folder, kind, branch, eyes.prepare, module, blocks, table, scale, folder))
    if not found:
        raise RecipeError("has no image encoder", where=folder, hint="fuse inspect encoders compares eyes")
    return found


def _table(entry: TensorEntry) -> torch.Tensor:
    """An embedding, mapped: nothing is read before it is used."""
    from fuse.engine.read import Reader
    from fuse.plan import Source

    return Reader().tensor(Source("", entry))


def _scale(text: str, width: int) -> float:
    """What a language model multiplies the rows of its embedding by: Gemmas by the root of their width."""
    return width**0.5 if text.startswith("gemma") else 1.0
