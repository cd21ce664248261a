"""`import fuse` makes the Auto classes of transformers know `model_type: fuse`, without importing transformers.

Most verbs of the command line never need transformers, and importing it takes seconds. So registration waits: an auto
module that is already imported is told at once, any other when it has run. That may be in the middle of an import of
transformers' own, so nothing of theirs may be imported there but what an auto module has imported itself: the config is
a light class, and model and processor are registered as stand-ins that fetch the real class when they are first used.
"""

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from fuse.class_names import list_names

_CONFIG, _MODEL, _PROCESSOR = (
    f"transformers.models.auto.{name}_auto" for name in ("configuration", "modeling", "processing")
)
_OURS = "fuse.model.config"
_ran: set[str] = set()  # auto modules that are ready to be told


def install() -> None:
    """Register now what is imported, and the rest when it is. Repeated calls change nothing."""
    _ran.update(name for name in (_CONFIG, _MODEL, _PROCESSOR) if name in sys.modules and not _half_imported(name))
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    _tell()


def register(config_class: type) -> None:
    """Tell every auto module that is ready. `fuse.model.config` calls it when its class is there."""
    for name in (_CONFIG, _MODEL, _PROCESSOR):
        if name not in _ran:
            continue
        module: Any = sys.modules[name]
        if name == _CONFIG:
            module.AutoConfig.register("fuse", config_class, exist_ok=True)
        elif name == _MODEL:
            FusedForConditionalGeneration.config_class = config_class
            for auto in (module.AutoModelForImageTextToText, module.AutoModelForMultimodalLM):
                auto.register(config_class, FusedForConditionalGeneration, exist_ok=True)
            list_names()
        else:
            module.AutoProcessor.register(config_class, FusedProcessor, exist_ok=True)


class FusedForConditionalGeneration:
    """Stands for the model class in the auto mapping."""

    config_class: type = object

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        from fuse.model.fused import FusedForConditionalGeneration as Real

        return Real.from_pretrained(*args, **kwargs)

    @classmethod
    def _from_config(cls, *args: Any, **kwargs: Any) -> Any:
        from fuse.model.fused import FusedForConditionalGeneration as Real

        return Real._from_config(*args, **kwargs)


class FusedProcessor:
    """Stands for the processor class in the auto mapping."""

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        from fuse.model.processor import FusedProcessor as Real

        return Real.from_pretrained(*args, **kwargs)


def _tell() -> None:
    if _CONFIG not in _ran or _half_imported(_OURS):
        return  # what is being imported calls `register` at its end
    from fuse.model.config import FusedConfig

    register(FusedConfig)


def _half_imported(name: str) -> bool:
    return bool(getattr(getattr(sys.modules.get(name), "__spec__", None), "_initializing", False))


class _Finder(MetaPathFinder):
    """Finds the auto modules as everybody else does, and has them told once they have run.

    torchvision is looked after too: beside a CPU build of torch it needs `torchvision_shim` before it can be imported.
    """

    def __init__(self) -> None:
        self._busy: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in (_CONFIG, _MODEL, _PROCESSOR, "torchvision") or fullname in self._busy:
            return None
        self._busy.add(fullname)
        try:
            spec = find_spec(fullname)
        finally:
            self._busy.discard(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, fullname)
        return spec


class _Loader(Loader):
    """Another loader, with something to do before and after the module runs."""

    def __init__(self, inner: Loader, name: str) -> None:
        self._inner, self._name = inner, name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)  # get_data, get_resource_reader ... of packages

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        from fuse import torchvision_shim

        torchvision_shim.install()
        self._inner.exec_module(module)
        module.__loader__ = self._inner  # which also gives resources
        if module.__spec__ is not None:
            module.__spec__.loader = self._inner
        if self._name != "torchvision":
            _ran.add(self._name)
            _tell()
