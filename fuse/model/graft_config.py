"""The grafts of a fused config, checked: a folder may come from anybody."""

import sys
from typing import Any

from fuse.errors import CheckpointError
from fuse.grafts.kinds import KINDS, files_of
from fuse.names import mistake_in


def check_grafts(config: Any) -> None:
    """Refuse entries of `grafts` that cannot be: names, kinds, scales, placeholders, branches that are not there."""
    rows = config.text_config.vocab_size
    branches = [branch["name"] for branch in config.branches]
    for graft in config.grafts:
        name = graft.get("name")
        if lacking := {"name", "kind", "config", "scale"} - graft.keys():
            raise CheckpointError(f"config.json: graft {name!r} has no {', '.join(sorted(lacking))}")
        if wrong := mistake_in(name):
            raise CheckpointError(f"config.json: a graft cannot be called {name!r}: {wrong}")
        ids, counts = graft.get("token_ids") or {}, graft.get("tokens") or {}
        checks = {
            "kind": isinstance(graft["kind"], str) and graft["kind"] in KINDS,
            "config": isinstance(graft["config"], dict),
            "bridge": graft.get("bridge") is None or isinstance(graft["bridge"], dict),
            "scale": type(graft["scale"]) in (int, float) and abs(graft["scale"]) <= sys.float_info.max,
            "tower": graft.get("tower") in (None, *branches),
            "image": graft.get("image") in (None, *branches),
            "token_ids": isinstance(ids, dict) and all(type(n) is int and 0 <= n < rows for n in ids.values()),
            "tokens": isinstance(counts, dict) and counts.keys() == ids.keys()
            and all(type(n) is int and 0 <= n < 1 << 16 for n in counts.values()),
        }  # fmt: skip
        for key, good in checks.items():
            if not good:
                raise CheckpointError(f"config.json: graft {name!r} has {key} {graft.get(key)!r}")
        _check_kind(name, graft["kind"], graft["config"])
    names = [graft["name"] for graft in config.grafts]
    if len(set(names)) < len(names):
        raise CheckpointError("config.json: two grafts have one name")
    ids = [*config.placeholder_ids, *config.slot_ids]
    if len(set(ids)) < len(ids):
        raise CheckpointError("config.json: two placeholders have one token_id")


def _check_kind(name: str, kind: str, config: dict[str, Any]) -> None:
    """The config describes a graft of its kind."""
    files = files_of(kind)
    try:
        getattr(files, "checked", files.shapes)(config)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        problem = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(f"config.json: config of graft {name!r}: {problem}") from None
