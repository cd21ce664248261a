"""Which slots of a prompt belong to which image, and putting vectors there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from fuse.errors import CheckpointError, RecipeError
from fuse.grafts.graft import Reading, Sight


@dataclass(frozen=True)
class Group:
    """The slots of one image in one prompt. columns: placeholder name -> where, on the CPU."""

    row: int
    columns: Mapping[str, torch.Tensor]
    sight: Sight


def groups_of(reading: Reading, counts: Mapping[str, int]) -> list[Group]:
    """Every group of slots in a batch, in the order of rows and columns.

    counts: placeholder name -> how many make one group. The groups of a prompt belong to its images in order; all
    belong to the image where there is only one, so that every question of a conversation may ask anew. Raises
    RecipeError for slots that are no whole groups, and for groups that cannot be told apart (our choice: the source has
    one image).
    """
    ids = reading.input_ids.cpu()
    sights = reading.sights[reading.image or next(iter(reading.sights))] if reading.sights else []
    found: list[Group] = []
    for row, line in enumerate(ids):
        at = {name: (line == reading.ids[name]).nonzero()[:, 0] for name in counts}
        several = {name: len(columns) / counts[name] for name, columns in at.items()}
        here = [sight for sight in sights if sight.row == row]
        many = max(several.values())
        if not many:
            continue
        if len(set(several.values())) > 1 or many % 1:
            told = ", ".join(f"{len(columns)} of {name}" for name, columns in at.items())
            want = ", ".join(f"{count} of {name}" for name, count in counts.items())
            raise RecipeError(f"prompt {row + 1} has slots {told}", hint=f"an image has {want}")
        if not here or (len(here) > 1 and len(here) != many):
            told = f"prompt {row + 1} has {len(here) or 'no'} images, and slots for {int(many)}"
            raise RecipeError(told, hint="the processor writes the slots of every image")
        for number in range(int(many)):
            columns = {name: at[name][number * n : (number + 1) * n] for name, n in counts.items()}
            found.append(Group(row, columns, here[number if len(here) > 1 else 0]))
    return found


def stacked(groups: Sequence[Group], count: int | None, width: int, like: torch.Tensor) -> torch.Tensor:
    """What the branch knows of every group's image, [n, m, width] on the device of `like`, in its dtype.

    count: the m that there must be. Raises CheckpointError where the branch gives something else.
    """
    features = [group.sight.features for group in groups]
    shapes = {tuple(one.shape) for one in features}
    wrong = next((s for s in shapes if len(s) != 2 or s[1] != width or count not in (None, s[0])), None)
    if wrong is not None or len(shapes) > 1:
        told = " x ".join(map(str, wrong or max(shapes)))
        want = f"{count or 'equally many'} x {width}"
        raise CheckpointError(f"LMEye reads {want} features of an image, and the branch gives {told}")
    return torch.stack([one.to(like) for one in features])


def put(embeds: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """A copy of embeds [B, L, D] with vectors [.., .., D] at rows [n, 1] and columns [n, m]."""
    where = (rows.to(embeds.device), columns.to(embeds.device))
    return embeds.index_put(where, vectors.to(embeds).expand(*columns.shape, -1))
