"""Tensors that accelerate keeps elsewhere (`device_map` with `cpu` or `disk`), brought where they are read.

accelerate fetches the tensors of a module when the module itself is called, and puts them away behind the call.
Branches and grafts also read tensors in other methods, and those of modules that they do not call.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def at_hand(*modules: nn.Module, lazily: tuple[type, ...] = ()) -> Iterator[None]:
    """All tensors of the modules are real meanwhile. Nested calls fetch nothing twice.

    lazily: classes whose own tensors accelerate fetches still, since nobody reads them but their own `forward`.
    """
    held: list[tuple[Any, nn.Module]] = []
    try:
        for part in (part for module in modules for part in module.modules() if type(part) not in lazily):
            for hook in _hooks(part):
                hook.pre_forward(part)
                hook.offload = False  # or the part's own call would put them away again
                held.append((hook, part))
        yield
    finally:
        for hook, part in reversed(held):
            hook.offload = True
            hook.post_forward(part, None)


def _hooks(part: nn.Module) -> list[Any]:
    """accelerate's hooks on a module that put its tensors away."""
    hook: Any = getattr(part, "_hf_hook", None)
    return [one for one in getattr(hook, "hooks", (hook,)) if getattr(one, "offload", False)]
