"""LION's mixture of adapters (arXiv 2311.11860, section 3.2): beside every feed-forward layer, chosen by the task.

    out = h + FFN(norm(h)) + scale * sum_k ratio_k[task] * H_k(h),   H(h) = s * (W_up relu(W_down h + b_down) + b_up)

h is the residual stream before the norm; `ratio_k` has a row for each task and a number for each channel, and does not
depend on the input. The placeholder `hint` is replaced by one learned vector (section 3.3), whatever the scale: half a
word says nothing (our choice).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fuse.errors import CheckpointError, RecipeError
from fuse.grafts.graft import Graft, Reading, State
from fuse.grafts.lion_files import HINT, TASKS, checked, sides
from fuse.grafts.slots import Slots


class Adapter(nn.Module):
    """[..., D] -> [..., D], through `bottleneck` numbers."""

    def __init__(self, width: int, bottleneck: int, norm: str = "none", scale: float | str = "learned") -> None:
        """norm: `in` normalises what goes in, `out` what comes out. scale: `learned`, a parameter; or a number."""
        super().__init__()
        self.norm = norm
        if norm != "none":
            self.adapter_layer_norm_before = nn.LayerNorm(width)  # the authors' name, also of the one behind
        self.down_proj, self.up_proj = nn.Linear(width, bottleneck), nn.Linear(bottleneck, width)
        self.scale: Any = nn.Parameter(torch.empty(1)) if scale == "learned" else scale

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        if self.norm == "in":
            h = self.adapter_layer_norm_before(h)
        out = self.up_proj(self.down_proj(h).relu()) * self.scale
        return self.adapter_layer_norm_before(out) if self.norm == "out" else out


class AdapterRouter(nn.Module):
    """The adapters of one layer: one alone, or two, each heard by channel as the task's row of its ratio says."""

    router_ratio1: nn.Parameter
    router_ratio2: nn.Parameter

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        width, inner = config["width"], config["bottleneck"]
        self.adapters = nn.ModuleList(
            Adapter(width, inner, config["adapter_norm"], config["adapter_scale"]) for _ in range(config["adapters"])
        )
        if config["adapters"] == 2:
            self.router_ratio1 = nn.Parameter(torch.empty(len(TASKS), width))
            self.router_ratio2 = nn.Parameter(torch.empty(len(TASKS), width))

    def forward(self, h: torch.Tensor, task: torch.Tensor | int) -> torch.Tensor:
        """h: [B, L, D]. task: one for all, or [B]."""
        if len(self.adapters) == 1:
            return self.adapters[0](h)
        ratios = self.router_ratio1[task], self.router_ratio2[task]
        first, second = (ratio[:, None] if ratio.ndim == 2 else ratio for ratio in ratios)
        return self.adapters[0](h) * first + self.adapters[1](h) * second


def is_task(value: Any) -> bool:
    """Whether a caller may ask for it: a task, or one for each prompt of the batch."""
    several = value if isinstance(value, list | tuple) else [value]
    return bool(several) and all(isinstance(one, str) and one in TASKS for one in several)


class LionGraft(Graft):
    """`encoder.N.*` and `decoder.N.*`, or `language.N.*`, the adapters by stack and layer; `soft_prompt_hint` [D]."""

    ASKED = {"task": is_task}  # noqa: RUF012 - a table of the class
    soft_prompt_hint: nn.Parameter

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Raises CheckpointError for a config that is none."""
        super().__init__(config)
        try:
            self.config = checked(config)
        except (KeyError, ValueError) as error:
            told = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise CheckpointError(f"config.json: config of a lion graft: {told}") from None
        self._sides = sides(self.config)
        for side in self._sides:
            layers = self.config["stacks"][side]
            self.add_module(side, nn.ModuleList(AdapterRouter(self.config) for _ in range(layers)))
        if self.config["hint"]:
            self.soft_prompt_hint = nn.Parameter(torch.empty(self.config["width"]))

    def attach(self, slots: Mapping[str, Slots]) -> None:
        """`ffn_residual` of every layer or of those in `onto`; one side of an encoder-decoder may go to a decoder."""
        for side in self._sides:
            stack = slots[side] if side in slots else slots["language"]
            routers = list(self.get_submodule(side).children())
            onto = self.config["onto"][side] if self.config["onto"] else range(len(routers))
            for layer, router in zip(onto, routers, strict=True):
                stack.ffn_residual(layer, lambda h, y, router=router: y + self.scale * router(h, self._task(h)))

    def read(self, reading: Reading) -> State:
        """The task of every prompt, and the hint where a prompt announces tags.

        Raises RecipeError for a list of tasks that is not one for each prompt, and where no
        router would hear it.
        """
        rows = reading.input_ids.shape[0]
        if "task" in reading.options and self.config["adapters"] == 1:
            raise RecipeError("a task was asked for, and these adapters have no router")
        asked = reading.options.get("task", self.config["task"])
        tasks = [asked] * rows if isinstance(asked, str) else list(asked)
        if len(tasks) != rows:
            raise RecipeError(f"there are {len(tasks)} tasks for {rows} prompts", hint="one for all, or one for each")
        if "hint" in reading.ids and self.config["hint"]:
            here = (reading.input_ids == reading.ids["hint"])[..., None].to(reading.embeds.device)
            reading.embeds = torch.where(here, getattr(self, HINT).to(reading.embeds), reading.embeds)
        return {"task": torch.tensor([TASKS.index(task) for task in tasks], device=reading.embeds.device)}

    def _task(self, h: torch.Tensor) -> torch.Tensor | int:
        """The task of every row of a pass [B, L, D]; the config's where no prompt was read."""
        return self.rows_of("task", h) if "task" in self.state else TASKS.index(self.config["task"])
