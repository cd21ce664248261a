"""Where the rows of a plan lie in a loaded model: stored names are not the names of parameters."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fuse.checkpoint import read_tensors
from fuse.engine.read import Reader
from fuse.errors import CheckpointError, MachineError
from fuse.plan import Source


def places(model: Any, names: Iterable[str], where: object) -> dict[str, Tensor]:
    """The tensor of the model that each stored tensor was loaded into; writing to it changes the model.

    Asked of transformers' own tables, as its loader asks them. Raises CheckpointError for a name that is no parameter
    or that the loader rearranges, and for a parameter that comes from no name; MachineError for one that is on disk.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    state = model.state_dict()
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    found: dict[str, Tensor] = {}
    for name in sorted(names, key=dot_natural_key):  # some renamings count on the loader's order
        key, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, state)
        if key not in state and name in state:
            key, pattern = name, None
        if pattern is not None:
            raise CheckpointError(f"transformers rearranges tensor {name!r} as it loads it", where=where)
        if key not in state:
            raise CheckpointError(f"tensor {name!r} is no parameter of {type(model).__name__}", where=where)
        if state[key].is_meta:
            raise MachineError(f"parameter {key!r} has no room in memory", hint="a search keeps the whole model there")
        found[name] = state[key]
    reached = {_memory(tensor) for tensor in found.values()}
    if len(reached) < len(found):
        raise CheckpointError(f"two tensors are one parameter of {type(model).__name__}", where=where)
    if missed := [key for key, tensor in state.items() if tensor.numel() and _memory(tensor) not in reached]:
        raise CheckpointError(f"parameter {missed[0]!r} comes from no stored tensor", where=where)
    return found


def check_places(found: dict[str, Tensor], folder: Path) -> None:
    """Compare each place with what the folder stores, bit for bit after the loader's rounding; CheckpointError."""
    with Reader() as reader:
        for name, entry in read_tensors(folder).items():
            stored, place = reader.tensor(Source("output", entry)), found[name]
            if stored.shape != place.shape or not torch.equal(stored.to(place.dtype).to(place.device), place):
                raise CheckpointError(f"tensor {name!r} is another one in the loaded model", where=folder)


def _memory(tensor: Tensor) -> tuple[str, int, torch.Size, tuple[int, ...]]:
    """What two names of one tied parameter have in common."""
    return str(tensor.device), tensor.data_ptr(), tensor.shape, tensor.stride()
