"""A model in memory whose merge can be changed in place: what `fuse search` asks again and again.

The numbers are those of `fuse merge` of the same recipe, loaded: the same plan, the same kernels, the same rounding.
Sources stay memory-mapped, and only rows that differ from those in the model are computed, block by block, into the
parameters themselves. So memory holds the sources (pages that the system may drop and read again), the model, and the
blocks of one row (`Plan.memory`). Arithmetic runs on the CPU wherever the model is.
"""

import gc
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fuse.ask import Answerer, load
from fuse.engine.blocks import blocks
from fuse.engine.read import Reader
from fuse.errors import FuseError
from fuse.live_places import check_places, places
from fuse.merge import merge
from fuse.plan import Plan, Row
from fuse.planner import make_plan
from fuse.recipe_yaml import LoadedRecipe


class Live:
    """A recipe's model, loaded, whose recipe may change.

    answerer: the model with its tokenizer and processor; new ones after `remix` returned True. plan: what the model
    holds. The members' folders must not change meanwhile.
    """

    answerer: Answerer
    plan: Plan

    def __init__(self, loaded: LoadedRecipe, *, device: str = "cpu") -> None:
        """Merge into a temporary folder and load it from there. Errors are those of `fuse merge` and `ask.load`."""
        self._device = device
        self._build(make_plan(loaded))

    def remix(self, loaded: LoadedRecipe) -> bool:
        """Make the model that of another recipe of the same members.

        False where only numbers changed, which are overwritten in place. True where the model had to be built anew,
        with a merge and a load: other branches or another order of them, another template, dtype, host or tokens, or
        tensors that are computed from the merged host.
        Raises RecipeError for a recipe that cannot be planned and CheckpointError for numbers that are not finite in
        the output's dtype; the model then is what it was before.
        """
        plan = make_plan(loaded)
        if self._rows is None or _frame(plan) != _frame(self.plan) or _needs_host(plan):
            self._build(plan)
            return True
        try:
            self._write(plan)
        except FuseError:
            self._write(self.plan)
            raise
        self.plan = plan
        return False

    def _write(self, plan: Plan) -> None:
        """Compute the rows that are not in the model. What is in it is known also when this is interrupted."""
        assert self._rows is not None
        with torch.no_grad():
            for row in plan.rows:
                if self._rows.get(row.name) == row:
                    continue
                self._rows.pop(row.name, None)
                place, start = self._places[row.name].view(-1), 0
                check = not self._finite.issuperset(row.reads)
                for block in blocks(row, self._reader, check=check):
                    place[start : start + len(block)].copy_(block)
                    start += len(block)
                self._rows[row.name] = row
                self._finite.update(row.reads if row.host is None else ())  # of a table, only some rows are looked at

    def _build(self, plan: Plan) -> None:
        """Merge, then let go of the model that was there, then load."""
        with tempfile.TemporaryDirectory(prefix="fuse-") as scratch:
            folder = Path(scratch) / "model"
            merge(plan, folder)
            self._rows: dict[str, Row] | None = None
            self._places, self._reader = {}, Reader()
            self.__dict__.pop("answerer", None)
            gc.collect()
            answerer = load(folder, device=self._device)
            _own_memory(answerer.model)
            self._places = places(answerer.model, [row.name for row in plan.rows], folder)
            check_places(self._places, folder)
        self._finite = {source for row in plan.rows if row.host is None for source in row.reads}
        self.answerer, self.plan, self._rows = answerer, plan, {row.name: row for row in plan.rows}


def _own_memory(model: Any) -> None:
    """Copy what lies in the mapped file, which otherwise keeps its room on the disk after it is deleted."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu":
            tensor.data = tensor.data.clone()


def _needs_host(plan: Plan) -> bool:
    """Whether tensors are computed from the merged host as a whole: a router's rows, routes of a fold."""
    return any(row.action == "make" for row in plan.rows) or any(one.whole for one in plan.folded)


def _frame(plan: Plan) -> tuple[Any, ...]:
    """All of a plan but the numbers of its tensors: what the folder's small files and the model are made from."""
    tensors = {row.name: (row.shape, row.dtype) for row in plan.rows}
    folds = [(one.graft.lender, one.changes) for one in plan.folded]
    small = replace(plan, rows=(), drops=(), verdicts=(), shards=(), recipe_text="", recipe_file=Path(), folded=())
    return small, tensors, folds
