"""Functions that run around a module, without touching it: one forward hook per module calls all of them in order.

torch calls hooks in the order in which they were registered. Grafts come in any order, but what a projection's own
low-rank part adds must be seen by whoever looks at the finished query: functions therefore have a rank.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

Before = Callable[[tuple[Any, ...], dict[str, Any]], torch.Tensor | None]  # a new first argument, or None
After = Callable[[torch.Tensor, torch.Tensor], torch.Tensor | None]  # (what goes in, comes out) -> instead, or None

OWN, BEHIND, LOOK = range(3)  # ranks: part of the module itself; what follows it; only looks


class Around:
    """The functions around one module; the hooks are there as long as there are functions."""

    def __init__(self) -> None:
        self.before: list[Before] = []
        self.after: list[tuple[int, After]] = []
        self.handles: list[RemovableHandle] = []

    def hook(self, module: nn.Module) -> None:
        """Register the two hooks, or remove them where no function is left."""
        if not self.handles:
            before = module.register_forward_pre_hook(self.run_before, with_kwargs=True)
            self.handles = [before, module.register_forward_hook(self.run_after)]
        elif not self.before and not self.after:
            for handle in self.handles:
                handle.remove()
            self.handles = []

    def run_before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        del module
        for function in self.before:
            changed = function(args, kwargs)
            if changed is not None:
                args = (changed.to(args[0]), *args[1:])
        return args, kwargs

    def run_after(self, module: nn.Module, args: tuple[Any, ...], out: torch.Tensor) -> torch.Tensor:
        del module
        for _, function in self.after:
            changed = function(args[0] if args else out, out)
            if changed is not None:
                out = changed.to(out)
        return out


def before(module: nn.Module, function: Before) -> Callable[[], None]:
    """Call `function(args, kwargs)` before a module; what it returns replaces the first argument.

    Functions run in the order in which they came, each on what the former gave. Returns what takes it off again.
    """
    return _put(module, lambda around: around.before, function)


def after(module: nn.Module, function: After, rank: int = OWN) -> Callable[[], None]:
    """Call `function(x, y)` behind a module, x what went in, y what came out of it and of the functions before.

    Functions run by rank, and within a rank in the order in which they came. What they return is brought to the device
    and the dtype of what the module gave. Returns what takes it off again.
    """
    return _put(module, lambda around: around.after, (rank, function))


def _put(module: nn.Module, of: Callable[[Around], list[Any]], entry: Any) -> Callable[[], None]:
    around = module.__dict__.setdefault("_fuse_around", Around())  # beside the module's own hooks
    of(around).append(entry)
    around.after.sort(key=lambda ranked: ranked[0])
    around.hook(module)

    def take_off() -> None:
        held = of(around)
        held[:] = [other for other in held if other is not entry]
        around.hook(module)

    return take_off
