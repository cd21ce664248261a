"""What of our own code a fused folder runs: its config, its model, its processor, and the kinds that it names."""

from collections.abc import Iterator, Mapping
from typing import Any

from fuse.branches import kinds as branch_kinds
from fuse.branches.projector_kinds import PROJECTORS
from fuse.export.portable_reach import Name, read_module
from fuse.grafts import kinds as graft_kinds

ENTRY_ROOTS = (
    ("fuse.model.config", "FusedConfig"),
    ("fuse.model.fused", "FusedForConditionalGeneration"),
    ("fuse.model.processor", "FusedProcessor"),
)
GRAFT_FILES = ("shapes", "checked", "behind", "phrase")  # what is asked of a graft's files when a folder runs
PROJECTOR_FILES = ("reads", "widths", "shapes", "tokens")
BRANCHES, GRAFTS, PROJECTOR_TABLE = "fuse.branches.kinds", "fuse.grafts.kinds", "fuse.branches.projector_kinds"


def by_name(config: Mapping[str, Any]) -> dict[str, list[Name]]:
    """What the tables of kinds import for a folder, by the module that holds the table.

    config: the folder's config.json. Raises KeyError for a kind that there is none of.
    """
    found: dict[str, list[Name]] = {BRANCHES: [], GRAFTS: [], PROJECTOR_TABLE: []}
    for branch in config.get("branches") or ():
        found[BRANCHES] += _branch(branch["kind"])
        projector = branch["config"].get("projector")
        if isinstance(projector, Mapping):
            found[PROJECTOR_TABLE] += _projector(projector["kind"])
    for graft in config.get("grafts") or ():
        kind = graft_kinds.KINDS[graft["kind"]]
        found[GRAFTS] += _of(f"fuse.grafts.{kind.files}", GRAFT_FILES)
        found[GRAFTS].append(_named("fuse.grafts", kind.build))
    return {table: sorted(set(names)) for table, names in found.items()}


def _branch(name: str) -> Iterator[Name]:
    kind = branch_kinds.KINDS[name]
    for what in filter(None, (kind.build, kind.eyes, kind.see)):
        yield _named("fuse.branches", what if "." in what else f"{kind.module}.{what}")


def _projector(name: str) -> Iterator[Name]:
    kind = PROJECTORS[name]
    yield from _of(f"fuse.branches.{kind.files}", PROJECTOR_FILES)
    yield _named("fuse.branches", kind.build)


def _of(module: str, names: tuple[str, ...]) -> list[Name]:
    """Those of the names that a module has."""
    source = read_module(module)
    return [(module, name) for name in names if name in source.definitions or name in source.ours]


def _named(room: str, path: str) -> Name:
    module, _, name = path.rpartition(".")
    return f"{room}.{module}", name
