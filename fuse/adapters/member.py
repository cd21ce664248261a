"""A base and an adapter as one member: the base's tensors, each with what the adapter makes of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fuse import strict_json
from fuse.adapters.adapter import Adapter
from fuse.adapters.config import kind_of
from fuse.adapters.folder import Folder, open_folder
from fuse.adapters.keys import Module, sort_keys
from fuse.adapters.kinds import Target, changes
from fuse.adapters.places import meanings, place_of
from fuse.adapters.update import Update
from fuse.anatomy import Member, assemble
from fuse.checkpoint import Checkpoint, check_config
from fuse.errors import CheckpointError
from fuse.grafts.lora_files import TRANSPOSED
from fuse.grafts.lora_peft import CONFIG
from fuse.safetensors_header import TensorEntry
from fuse.vocabulary import read_vocabulary

SUFFIX = ".adapter"  # of the name under which a plan reads the adapter's tensors
TIED = "the head is the embedding"


def adapted(base: Member, location: str, *, revision: str | None, relative_to: Path) -> Member:
    """The member that an adapter makes of an opened base.

    location: its folder or hub id. Raises CheckpointError for an adapter that fuse does not read or that does not fit
    the base, for a tensor of it that changes nothing of the base, and where the two together are no checkpoint;
    RecipeError where there is no such folder, MachineError when the hub cannot be reached.
    """
    name = f"{base.name}{SUFFIX}"
    folder = open_folder(name, location, base.basis, revision=revision, relative_to=relative_to)
    try:
        making = _Making(base, folder, kind_of(folder.told))
        making.read()
    except CheckpointError as error:
        if error.where:
            raise
        raise CheckpointError(error.problem, where=folder.checkpoint.folder, hint=error.hint) from None
    return making.member()


@dataclass
class _Making:
    """The member as it comes together. tensors: by stored name; own: the config of the adapter's folder, of LLaVA's."""

    base: Member
    folder: Folder
    kind: str
    tensors: dict[str, TensorEntry] = field(default_factory=dict)
    updates: dict[str, Update] = field(default_factory=dict)
    whole: dict[str, str] = field(default_factory=dict)
    targets: dict[str, str] = field(default_factory=dict)
    unused: dict[str, str] = field(default_factory=dict)
    own: Mapping[str, Any] = field(default_factory=dict)
    head: str = ""  # the stored name of a head that the base ties and the adapter unties

    def read(self) -> None:
        base, told = self.base, self.folder.told
        self.tensors = dict(base.checkpoint.tensors)
        self.own = {} if base.sees else own_config(self.folder.checkpoint)
        self.stored = {(p.part, p.canonical): key for key, p in base.places.items() if p is not None}
        tensors = self.folder.checkpoint.tensors
        found = sort_keys(self.kind, {self.folder.names[key]: entry for key, entry in tensors.items()})
        if base.is_tied:
            self._untie(found.modules, found.whole)
        for name, entry in found.whole.items():
            self._stand(name, entry)
        for module in found.modules.values():
            self._change(module, told)

    def find(self, name: str) -> str | None:
        """The stored name of what the adapter calls `name`."""
        return next((key for one in meanings(self.base.checkpoint.config, name) if (key := self.stored.get(one))), None)

    def _is_head(self, name: str) -> bool:
        return ("language", self.base.text.head) in meanings(self.base.checkpoint.config, name)

    def _untie(self, modules: Mapping[str, Module], whole: Mapping[str, TensorEntry]) -> None:
        """Give a tied base a head of its own where the adapter changes one of head and embedding and not the other."""
        told, embedding = self.folder.told, self.stored["language", self.base.text.embedding]
        heads = [name for name in (*whole, *(f"{name}.weight" for name in modules)) if self._is_head(name)]
        saved = told.get("modules_to_save") or []
        if not isinstance(saved, list):
            raise CheckpointError(f"{CONFIG}: modules_to_save is {saved!r}, not a list")
        changed = {f"{m.name}.weight" for m in modules.values() if set(m.parts) - {"rows"}}
        changed |= {name for name in whole if name.removesuffix(".weight").rpartition(".")[2] in saved}
        trained = [name for name in changed if name in heads or self.find(name) == embedding]
        if told.get("ensure_weight_tying") or not trained:
            given = [whole[name] for name in heads if name in whole]
            given += [e for m in modules.values() if f"{m.name}.weight" in heads for e in m.parts.values()]
            self.unused |= {entry.name: TIED for entry in given}
            return
        text = self.base.text
        self.head = embedding.removesuffix(text.embedding) + text.head if embedding.endswith(text.embedding) else ""
        if not self.head or place_of(self.base.checkpoint.config, self.head) is None:
            self.head = text.head
        resized = [
            entry for name, entry in whole.items() if self.find(name) == embedding and "base_layer" in entry.name
        ]
        self.tensors[self.head] = replace((resized or [self.tensors[embedding]])[0], name=self.head)
        self.stored["language", text.head] = self.head

    def _stand(self, name: str, entry: TensorEntry) -> None:
        """A whole tensor of the adapter in place of the base's, or beside them where its own config has a place."""
        if entry.name in self.unused:
            return
        key = self.find(name)
        if key is None:
            place = place_of(self.own, name) if self.own else None
            if place is None or place.part == "language":
                raise CheckpointError(f"tensor {entry.name!r} of the adapter has no place in the base")
            key = name
        if key in self.whole.values():
            raise CheckpointError(f"tensor {entry.name!r} of the adapter is there twice, for {key!r}")
        shape = self.tensors[key].shape if key in self.tensors else entry.shape
        tables = {self.stored.get(("language", one)) for one in (self.base.text.embedding, self.base.text.head)}
        if entry.shape != shape and not (key in tables and entry.shape[1:] == shape[1:]):
            raise CheckpointError(
                f"tensor {entry.name!r} has shape {list(entry.shape)}, and {key!r} of the base {list(shape)}",
                hint="is it an adapter of this base?",
            )
        self.tensors[key] = replace(entry, name=key)
        self.whole[entry.name] = key

    def _change(self, module: Module, told: Mapping[str, Any]) -> None:
        first = next(iter(module.parts.values()))
        if first.name in self.unused:
            return
        key, bias = self.find(f"{module.name}.weight"), self.find(f"{module.name}.bias")
        if key is None:
            raise CheckpointError(
                f"tensor {first.name!r} changes {module.name}, which the base does not have",
                hint="is it an adapter of this base?",
            )
        place = self.base.places.get(key)
        conv = self.base.text.name in TRANSPOSED and place is not None and ".h." in place.canonical
        target = Target(self.tensors[key], self.tensors[bias] if bias else None, module.embedding or conv)
        for what, change in changes(self.kind, module, target, told).items():
            at = key if what == "weight" else bias
            if at is None or at in self.updates:
                raise CheckpointError(f"tensor {first.name!r} of the adapter is there twice, for {at!r}")
            parts = tuple(change.parts.items())
            self.updates[at] = Update(
                self.folder.checkpoint.name, change.kind, parts, change.scale, change.transposed, change.rows
            )
            self.targets |= {entry.name: at for entry in change.parts.values() if entry.name not in self.targets}

    def member(self) -> Member:
        """The base's checkpoint with the adapter's tensors in it, checked as any other."""
        base, stored = self.base.checkpoint, self.base.checkpoint.tensors
        vocabulary = read_vocabulary(self.folder.checkpoint.folder)
        has_template = vocabulary is not None and bool(vocabulary.template)
        if vocabulary is not None and not has_template and self.base.vocabulary is not None:
            vocabulary = replace(vocabulary, template=self.base.vocabulary.template)
        config = dict(self.own) if self.own else self._resized(dict(base.config))
        copied = {self.tensors[self.head].begin} if self.head else set()
        displaced = [stored[k] for k in self.whole.values() if k in stored and stored[k].begin not in copied]
        adapter = Adapter(
            self.folder.checkpoint, self.kind, self.updates, self.whole, tuple(displaced), self.targets, self.unused,
            vocabulary is not None, has_template,
        )  # fmt: skip
        checkpoint = replace(base, config=config, tensors=self.tensors, stored=base.stored or stored)
        made = replace(assemble(checkpoint), adapter=adapter)
        made = replace(made, vocabulary=vocabulary or made.vocabulary)
        self._check_rows(made, "base" if vocabulary is None else "adapter")
        return made

    def _resized(self, config: dict[str, Any]) -> dict[str, Any]:
        """The config of the base with as many tokens as the adapter's embedding has rows."""
        key = self.stored["language", self.base.text.embedding]
        more = self.tensors[key].shape[0] - self.base.checkpoint.tensors[key].shape[0]
        if not more:
            return config
        text = self.base.family.text
        if text and isinstance(config.get(text), dict):
            config[text] = {**config[text], "vocab_size": self.base.basis.vocab_size + more}
        if not text or "vocab_size" in config or not isinstance(config.get(text), dict):
            config["vocab_size"] = self.base.basis.vocab_size + more
        return config

    def _check_rows(self, made: Member, whose: str) -> None:
        """Every token has a row, where the adapter brings tokens or rows."""
        rows = made.language[made.text.embedding].shape[0]
        resized = rows != self.base.language[self.base.text.embedding].shape[0]
        if (vocabulary := made.vocabulary) and vocabulary.size > rows and (resized or whose == "adapter"):
            raise CheckpointError(
                f"the {whose}'s {vocabulary.source} has {vocabulary.size:,} tokens, and the embedding has {rows:,} "
                f"rows", where=self.folder.checkpoint.folder,
                hint="the adapter should hold the embedding that was resized (PEFT's save_embedding_layers)",
            )  # fmt: skip


def own_config(folder: Checkpoint) -> Mapping[str, Any]:
    """The config.json of a LLaVA that was trained by LoRA: its language model is the base, its eyes lie beside it."""
    file = folder.folder / "config.json"
    if not file.is_file():
        return {}
    config = strict_json.read_object(file, max_bytes=16 << 20)
    if "mm_vision_tower" not in config:
        return {}
    check_config(config, file)
    return config
