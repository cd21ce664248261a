"""Official checkpoints of the five systems, sorted into donor folders: `fuse import KIND FILE OUT`.

One module for each kind, with `HELP` (one line: which files), where it takes any `OPTIONS` (option of `--set` -> the
values it may have; `()` for any text or number), and

    def sort_keys(state: Mapping[str, torch.Tensor], about: About) -> Imported

The framework (`fuse.importers.read`, `fuse.importers.run`) has then unpickled the file without running anything in it,
unwrapped `net`, `model` and `state_dict`, dropped the state of optimizers and stripped `module.`. `sort_keys` raises
CheckpointError (problem and hint; the framework puts the file in front) for what is no such checkpoint. Every key of
`state` must be an origin of a tensor or be dropped with a reason; the framework refuses anything less.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Piece:
    """What goes into one folder: tensors by their new names, and the keys of the file that each was made of.

    kind: of graft or projector, as a recipe's plan will look it up; for a language model its model_type. config: what
    `shapes(config)` of that kind needs, and every number that shapes do not tell; for a language model its config.json.
    A projector of plain linear layers has kind `linear` and no config. host: what is known of the language model that
    it was cut from (`model_type`, `hidden_size`, `layers`, `norm`, `norm_eps`); hidden_size and layers are taken from
    config where they stand there, and all of it from `--host` where that is given.
    """

    kind: str
    config: dict[str, Any]
    tensors: Mapping[str, Tensor]
    origins: Mapping[str, tuple[str, ...]]
    host: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def renamed(
        cls, kind: str, config: dict[str, Any], state: Mapping[str, Tensor], names: Mapping[str, str],
        host: Mapping[str, Any] | None = None,
    ) -> Piece:  # fmt: skip
        """A piece whose tensors are those of the file under other names. names: key of the file -> new name."""
        tensors = {name: state[key] for key, name in names.items()}
        return cls(kind, config, tensors, {name: (key,) for key, name in names.items()}, host or {})


@dataclass(frozen=True)
class Imported:
    """A file sorted. dropped: key of the file -> why it is not needed, in words that follow "left out: ".

    generation: what generation_config.json of the language model says, besides what that of `--host` does. beside:
    further JSON files of the folder, by name.
    """

    graft: Piece | None = None
    projector: Piece | None = None
    language: Piece | None = None
    dropped: Mapping[str, str] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)
    beside: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def pieces(self) -> dict[str, Piece]:
        """The pieces there are, by `graft`, `projector` and `language`."""
        found = {"graft": self.graft, "projector": self.projector, "language": self.language}
        return {what: piece for what, piece in found.items() if piece is not None}


@dataclass(frozen=True)
class About:
    """What is known besides the tensors.

    options: of `--set`, checked against OPTIONS. beside: the JSON objects in the file's folder by file name, where
    there are any (`params.json`, `adapter_config.json`, `config.json`). host: config.json of `--host`, its text config
    where it has one; empty without. args: texts and numbers of the training script's options, where the file has them.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    beside: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    host: Mapping[str, Any] = field(default_factory=dict)
    args: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Importer:
    """module: under `fuse.importers`. marks: a regular expression that a key of such a file, and of no other kind's,
    holds. files: where FILE may be a folder, the names that are read from it together, those of them that are there.
    """

    module: str
    marks: str
    files: tuple[str, ...] = ()


IMPORTERS: dict[str, Importer] = {
    "lion": Importer("lion", r"(^|\.)(fusion_adapter\.|adapter\.adapters\.\d|router_ratio\d|soft_prompt_hint$)"),
    "lmeye": Importer("lmeye", r"(^|\.)(imgdLinear|llm2clip|promptMlp|instruction_(blip22clip|imgdLinear))\."),
    "clipcap": Importer("clipcap", r"^clip_project\."),
    "llama_adapter": Importer("llama_adapter", r"^(adapter_query\.weight|visual_query\.weight|visual_blocks\.)"),
    "lavin": Importer("lavin", r"(^|\.)adapter_(attn|mlp|modality_embedding|proj\.conv_[AB])\."),
    "llava_lora": Importer(
        "llava_lora", r"\.lora_[AB]\.",
        ("adapter_model.safetensors", "adapter_model.bin", "non_lora_trainables.bin"),
    ),
}  # fmt: skip


def kinds_of(keys: Iterable[str]) -> list[str]:
    """The kinds of file that have such keys, after unwrapping and stripping."""
    names = list(keys)
    return [kind for kind, row in IMPORTERS.items() if any(re.search(row.marks, name) for name in names)]
