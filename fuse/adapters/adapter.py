"""An opened adapter: what each of its tensors does to which tensor of its base."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fuse.adapters.update import Update
from fuse.checkpoint import Checkpoint
from fuse.safetensors_header import TensorEntry


@dataclass(frozen=True)
class Adapter:
    """checkpoint: the adapter's folder, whose config is adapter_config.json.

    updates: by the base's stored name. whole: of tensors that stand in place of the base's, or beside them, the name in
    the adapter -> the stored name in the member. displaced: the base's tensors in whose place others stand. targets: of
    the adapter's tensors that change one of the base's, that one's stored name. unused: why others go nowhere.
    tokenizer: the folder has a tokenizer, which is the member's. template: and a chat template.
    """

    checkpoint: Checkpoint
    kind: str
    updates: Mapping[str, Update]
    whole: Mapping[str, str]
    displaced: tuple[TensorEntry, ...]
    targets: Mapping[str, str]
    unused: Mapping[str, str]
    tokenizer: bool
    template: bool

    @property
    def name(self) -> str:
        return self.checkpoint.name

    @property
    def folder(self) -> Path:
        return self.checkpoint.folder
