"""The kinds of graft, and where each is made. Modules are imported when a recipe or a folder needs them."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from fuse.errors import CheckpointError


@dataclass(frozen=True)
class Kind:
    """files: the module that knows the donor's tensors from headers alone. build: module and class of the graft."""

    files: str
    build: str


KINDS: dict[str, Kind] = {
    "lavin": Kind("lavin_files", "lavin.LavinGraft"),
    "lion": Kind("lion_files", "lion.LionGraft"),
    "llama_adapter": Kind("llama_adapter_files", "llama_adapter.LlamaAdapterGraft"),
    "lmeye": Kind("lmeye_files", "lmeye.LmeyeGraft"),
    "lmeye_blip2": Kind("lmeye_blip2_files", "lmeye_blip2.LmeyeBlip2Graft"),
    "lora": Kind("lora_files", "lora.LoraGraft"),
    "mks2": Kind("mks2_files", "mks2.Mks2Graft"),
}


def files_of(kind: str) -> Any:
    """The module of a kind that knows its files: `OPTIONS`, `shapes`, `why_not`, `configured`, `tokens`."""
    return import_module(f"fuse.grafts.{KINDS[kind].files}")


def build_graft(entry: Mapping[str, Any]) -> Any:
    """The module of one graft, with its bridge where it has one, from its entry in config.json."""
    if entry["kind"] not in KINDS:
        known = ", ".join(KINDS)
        raise CheckpointError(f"config.json: graft {entry['name']!r} has kind {entry['kind']!r} (known: {known})")
    module, _, name = KINDS[entry["kind"]].build.rpartition(".")
    graft = getattr(import_module(f"fuse.grafts.{module}"), name)(entry["config"])
    if not entry.get("bridge"):
        return graft
    from fuse.grafts.bridge import bridged

    return bridged(graft, entry["bridge"])
