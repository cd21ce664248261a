"""What `fuse inspect encoders` was given: members with eyes, fused folders by branch, and bare vision encoders."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from fuse import torchvision_shim
from fuse.align.features.blocks import blocks_of, tower_of
from fuse.align.features.load import BareTower, load_branch
from fuse.align.features.original import open_original
from fuse.anatomy import Member, assemble
from fuse.branches import encoder_libraries
from fuse.branches.encoder_libraries import Tower, Wanted
from fuse.branches.encoder_preprocess import preprocess
from fuse.branches.kinds import open_eyes
from fuse.branches.tower_types import TOWER_TYPES
from fuse.checkpoint import SINGLE, Checkpoint, open_checkpoint
from fuse.errors import CheckpointError, RecipeError
from fuse.families.registry import text_module
from fuse.fusable import NATIVE, REFUSED
from fuse.hub import HUB_ID
from fuse.safetensors_header import TensorEntry, read_header
from fuse.stores.address import is_store

LIBRARIES = {"timm": encoder_libraries.timm, "open_clip": encoder_libraries.open_clip}
FORMS = "FOLDER, hub id ORG/NAME, timm:ARCHITECTURE=FILE.safetensors or open_clip:ARCHITECTURE[:TAG]=FILE.safetensors"
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


def open_encoders(location: str, *, whole: bool = False) -> list[Encoder]:
    """The encoders of what was given: one, or one for each branch of a fused folder.

    location: FORMS. Of a member that is elsewhere the files with its eyes are fetched, and all its weights where it is
    wanted whole. Raises RecipeError for what is not there or has no image encoder, CheckpointError for one that does
    not load or whose class is not known, and MachineError where what is elsewhere cannot be reached.
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
    if not (Path(location).is_dir() or is_store(location) or HUB_ID.fullmatch(location.removeprefix("hf://"))):
        told = "is a file, not a folder" if Path(location).is_file() else "there is no such folder"
        raise RecipeError(told, where=location, hint=f"members are {FORMS}")
    checkpoint = open_checkpoint(location, location, revision=None, relative_to=None)
    if whole:
        _bring(checkpoint, checkpoint.tensors.values())
    config, folder = checkpoint.config, checkpoint.folder
    kind = config.get("model_type")
    if kind == "fuse":
        return _fused(location, checkpoint)
    if kind in TOWER_TYPES:  # also BLIP-2 and InstructBLIP, whose Q-Former is no branch
        tower = encoder_libraries.transformers(location, location, Path(), Wanted())
        return [_bare(location, folder, tower, checkpoint)]
    if "architecture" in config and kind is None:  # as timm writes it
        file, name = folder / SINGLE, config["architecture"]
        tower = encoder_libraries.timm(name, checkpoint.tensors, file, location, Wanted())
        return [_bare(location, folder, tower, checkpoint)]
    return [_member(location, assemble(checkpoint))]


def _bring(checkpoint: Checkpoint, entries: Iterable[TensorEntry]) -> None:
    """Fetch the files of these tensors where they are elsewhere."""
    if checkpoint.repository is not None:
        checkpoint.repository.fetch(list(entries))


def _bare(name: str, folder: Path, tower: Tower, checkpoint: Checkpoint | None = None) -> Encoder:
    encoder_libraries.check_rows(tower)
    branch = {"name": name, "kind": "bare", "config": tower.config}
    entries = {row.name: row.entry for row in tower.rows if row.name}
    if checkpoint is not None:
        _bring(checkpoint, entries.values())
    module = load_branch(branch, entries, tower.where)
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
    tensors = {**member.parts["encoder"], **member.parts["projector"], **member.parts["extra"]}
    table = member.language[member.text.embedding]
    _bring(member.checkpoint, [*tensors.values(), table])
    if member.family.native:
        module = load_branch(branch, tensors, member.folder)
        prepare = partial(open_eyes(branch, member.folder).prepare, guest=False)  # as a host: without a guest's markers
    else:
        branch, eyes, module = open_original(member)
        prepare = eyes.prepare
    return Encoder(
        name, member.folder, kind, branch, prepare, module, tuple(blocks_of(tower_of(module))),
        _table(table), _scale(member.text.name, member.basis.hidden_size),
        member.folder,
    )  # fmt: skip


def _fused(name: str, checkpoint: Checkpoint) -> list[Encoder]:
    folder, config, tensors = checkpoint.folder, checkpoint.config, checkpoint.tensors
    text = text_module(str((config.get("text_config") or {}).get("model_type")), str(folder))
    stored = tensors.get(f"language_model.{text.embedding}")
    if stored is None:
        raise CheckpointError(f"has no tensor 'language_model.{text.embedding}'", where=folder)
    _bring(checkpoint, [stored, *(entry for key, entry in tensors.items() if key.startswith("branches."))])
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
