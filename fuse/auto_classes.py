"""`import fuse` makes the Auto classes of transformers know `model_type: fuse`, without importing transformers.

Most verbs of the command line never need transformers, and importing it takes seconds. So registration waits: where
transformers' auto modules are already imported they are told at once, else each is told when it is first imported.
"""

import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

_AUTO = "transformers.models.auto."


def install() -> None:
    """Register now what is imported, and the rest when it is. Repeated calls change nothing."""
    for name, register in _REGISTER.items():
        if name in sys.modules:
            register()
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _config() -> None:
    from transformers import AutoConfig

    from fuse.model.config import FusedConfig

    AutoConfig.register("fuse", FusedConfig, exist_ok=True)


def _model() -> None:
    from transformers import AutoModelForImageTextToText

    from fuse.model.config import FusedConfig
    from fuse.model.fused import FusedForConditionalGeneration

    AutoModelForImageTextToText.register(FusedConfig, FusedForConditionalGeneration, exist_ok=True)


def _processor() -> None:
    from transformers import AutoProcessor

    from fuse.model.config import FusedConfig
    from fuse.model.processor import FusedProcessor

    AutoProcessor.register(FusedConfig, FusedProcessor, exist_ok=True)


_REGISTER: dict[str, Callable[[], None]] = {
    _AUTO + "configuration_auto": _config,
    _AUTO + "modeling_auto": _model,
    _AUTO + "processing_auto": _processor,
}


class _Finder(MetaPathFinder):
    """Finds the auto modules as everybody else does, and has them told once they have run."""

    def __init__(self) -> None:
        self._busy: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _REGISTER or fullname in self._busy:
            return None
        self._busy.add(fullname)
        try:
            spec = find_spec(fullname)
        finally:
            self._busy.discard(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, _REGISTER[fullname])
        return spec


class _Loader(Loader):
    """Another loader, with a call at the end."""

    def __init__(self, inner: Loader, after: Callable[[], None]) -> None:
        self._inner, self._after = inner, after

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        from fuse import torchvision_shim

        torchvision_shim.install()
        self._inner.exec_module(module)
        self._after()
