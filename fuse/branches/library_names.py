"""Names in a branch's config that a library would take for an address: a hub repository, a folder, a file of weights.

timm builds `hf-hub:OWNER/NAME` and `local-dir:/PATH` as readily as an architecture of its own, and transformers fetches
the config of a `backbone`. A fused folder is a stranger's, and nothing may be fetched or read because of it. Neither
torch nor a library is imported.
"""

from collections.abc import Mapping
from typing import Any

from fuse.branches.timm_files import NAME
from fuse.errors import CheckpointError

WHERE = "config.json: branches"
_FILES = ("checkpoint_path", "cache_dir", "pretrained")  # how timm.create_model's arguments for files begin


def check_name(name: Any, what: str = "timm") -> None:
    """Raises CheckpointError for anything but the plain name of an architecture, with or without timm's tag."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise CheckpointError(f"{what}: {name!r} is not the name of an architecture", where=WHERE)


def check_names(config: Mapping[str, Any]) -> None:
    """Raises CheckpointError for a value, at any depth of a member's config, that a library would fetch or open.

    `architecture` must be a plain name, `model_args` must name no files, and `backbone` must be empty: no family that
    can be a branch has one.
    """
    todo: list[tuple[str, Any]] = [("", config)]
    while todo:
        path, value = todo.pop()
        if isinstance(value, list | tuple):
            todo += [(f"{path}[{i}]", item) for i, item in enumerate(value)]
        if not isinstance(value, Mapping):
            continue
        for key, item in value.items():
            at = f"{path}.{key}" if path else str(key)
            if key == "architecture" and item is not None:
                check_name(item, at)
            if key == "backbone" and item:
                raise CheckpointError(f"{at}: {item!r} names a model to fetch; fuse never does", where=WHERE)
            if key == "model_args" and isinstance(item, Mapping):
                for name in sorted(name for name in map(str, item) if name.startswith(_FILES)):
                    raise CheckpointError(f"{at}.{name} names a file to open; fuse never does", where=WHERE)
            todo.append((at, item))
