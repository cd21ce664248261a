"""Image encoders of open_clip, timm and transformers, built from a branch's JSON up to their patch tokens.

Nothing is read from files and nothing is fetched: architectures are data. A tower built under torch.device("meta")
holds its parameters there, while what is computed from the config (rope tables, position indices, masks) is computed
for real and kept as plain attributes: `from_pretrained` fills parameters and would leave such buffers unset. Models
that other threads build meanwhile are as they would be without it, but for torch's default dtype, which is one for all
threads: where it is not float32 it is for as long as a tower is built.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from threading import RLock, local
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from fuse import torchvision_shim
from fuse.branches import timm_files, tower_types
from fuse.branches.library_names import check_name
from fuse.branches.native_towers import has_last_norm
from fuse.errors import CheckpointError, FuseError

Fixed = list[tuple[nn.Module, str, torch.Tensor]]
_building = RLock()  # two towers at once would set each other's default dtype
_this_thread = local()


def build_tower(config: Mapping[str, Any], head: int = 0) -> tuple[nn.Module, Fixed]:
    """The tower in torch's default dtype, and the tensors that it computes from its config (owner, attribute, value).

    config: the branch's JSON (`library`, `architecture`, `tower`). head: the numbers of the feature that its head
    gives, which it keeps then; 0 without head. Raises CheckpointError where the library does not build it.
    """
    library = config.get("library")
    if library not in _MAKERS:
        raise CheckpointError(f"library {library!r} is not one of {', '.join(_MAKERS)}", where="config.json: branches")
    meta = torch.empty(0).device.type == "meta"
    torchvision_shim.install()
    make = partial(_MAKERS[library], head=head)
    try:
        with _float32() as dtype:
            tower = _make_on_meta(make, config["tower"]) if meta else make(config["tower"])
    except (FuseError, MemoryError):
        raise
    except Exception as error:  # the libraries raise anything for configs that make no tower
        told = (str(error).splitlines() or [""])[0][:200]
        raise CheckpointError(
            f"{library} does not build {config.get('architecture')!r} ({type(error).__name__}: {told})",
            where="config.json: branches",
        ) from None
    fixed = _fix(tower, meta)
    return tower.to(dtype), fixed


def settle(fixed: Fixed, like: torch.Tensor) -> None:
    """Brings computed tensors to the device of `like`, and floats to its dtype."""
    for owner, name, value in fixed:
        dtype = like.dtype if value.is_floating_point() else value.dtype
        now = getattr(owner, name)
        if now.device != like.device or now.dtype != dtype:
            owner.__dict__[name] = value.to(like.device, dtype)


@contextmanager
def _float32() -> Iterator[torch.dtype]:
    """Tables are computed in float32, whatever the weights are. Gives the default dtype outside."""
    with _building:
        dtype = torch.get_default_dtype()
        if dtype == torch.float32:  # another thread may rely on it, so it is only touched where it must be
            yield dtype
            return
        torch.set_default_dtype(torch.float32)
        try:
            yield dtype
        finally:
            torch.set_default_dtype(dtype)


def _fix(tower: nn.Module, meta: bool) -> Fixed:
    fixed: Fixed = []
    for owner in tower.modules():
        for name in sorted(owner._non_persistent_buffers_set):
            value = owner._buffers.pop(name)
            owner._non_persistent_buffers_set.discard(name)
            owner.__dict__[name] = value  # setattr would make it a buffer again
            if value is not None:
                fixed.append((owner, name, value))
        if meta:
            for name, value in owner._buffers.items():
                owner._buffers[name] = value if value is None else value.to("meta")
    return fixed


def _make_on_meta(make: Callable[[Mapping[str, Any]], nn.Module], tower: Mapping[str, Any]) -> nn.Module:
    """A tower whose parameters are on meta and whose computed tensors are real, by the cheapest way that gives it.

    All of it on meta serves where nothing is computed; only the parameters on meta where nothing is computed from them
    or by running a part; else it is built whole and its parameters are dropped.
    """
    try:
        with _Unfilled():
            made = make(tower)
            if not any(_computed(owner) for owner in made.modules()):
                return made
            with torch.device("cpu"), _parameters_on_meta():
                made = make(tower)
        if not any(value.is_meta for owner in made.modules() for value in _computed(owner)):
            return made
    except FuseError:
        raise
    except Exception:  # whatever a library raises over tensors on meta: the last way tells whether the config is wrong
        pass
    with torch.device("cpu"):
        made = make(tower)
    for owner in made.modules():
        for name, value in owner._parameters.items():
            if value is not None:
                owner._parameters[name] = nn.Parameter(value.to("meta"), requires_grad=value.requires_grad)
    return made


class _Unfilled(TorchFunctionMode):
    """What this thread fills tensors on meta with is not worked out: most of the time that such a tower would take."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _FILLS and args and isinstance(args[0], torch.Tensor) and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


# by numbers, so neither shape nor dtype changes
_FILLS = frozenset({
    torch.Tensor.uniform_, torch.Tensor.normal_, torch.Tensor.erfinv_, torch.Tensor.clamp_, torch.Tensor.zero_,
    torch.Tensor.fill_,
})  # fmt: skip


def _computed(owner: nn.Module) -> list[torch.Tensor]:
    """The tensors of a module that no checkpoint fills."""
    held = [owner._buffers[name] for name in owner._non_persistent_buffers_set]
    return [value for value in (*held, *vars(owner).values()) if isinstance(value, torch.Tensor)]


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Modules that this thread builds inside hold their parameters on meta, whatever device is set."""
    _this_thread.on_meta = True
    try:
        yield
    finally:
        _this_thread.on_meta = False


def _to_meta(module: nn.Module, name: str, param: nn.Parameter) -> nn.Parameter | None:
    if getattr(_this_thread, "on_meta", False) and param.device.type != "meta":
        return nn.Parameter(param.to("meta"), requires_grad=param.requires_grad)
    return None  # as it is


# For good: to remove it could stumble over another thread that goes through the hooks. Its stub wants None of them.
register_module_parameter_registration_hook(_to_meta)  # pyright: ignore[reportArgumentType]


def _open_clip(tower: Mapping[str, Any], head: int = 0) -> nn.Module:
    from open_clip.model import _build_vision_tower

    vision: Any = {**tower["vision_cfg"], "timm_model_pretrained": False}
    if name := vision.get("timm_model_name"):
        check_name(name)
    visual: Any = _build_vision_tower(int(tower["embed_dim"]), vision, bool(tower.get("quick_gelu")))
    if head:
        return visual
    if name:
        return _without_head(visual.trunk)
    if hasattr(visual, "attnpool"):
        visual.attnpool = None
        return visual
    visual.proj = visual.attn_pool = visual.attn_pool_contrastive = None
    if not has_last_norm(vision):
        visual.ln_post = nn.Identity()
    return visual


def _timm(tower: Mapping[str, Any], head: int = 0) -> nn.Module:
    import timm

    if head:
        raise CheckpointError("timm's encoders have no head of CLIP's", where="config.json: branches")
    check_name(tower["name"])
    return _without_head(timm.create_model(tower["name"], pretrained=False, num_classes=0))


def _without_head(trunk: nn.Module) -> nn.Module:
    """Without the modules after `forward_features`, whose weights the branch does not hold."""
    for name in timm_files.HEADS:
        if isinstance(getattr(trunk, name, None), nn.Module):
            setattr(trunk, name, nn.Identity())
    return trunk


def _transformers(tower: Mapping[str, Any], head: int = 0) -> nn.Module:
    import transformers
    from transformers import CONFIG_MAPPING, AutoModel

    kind = tower["model_type"]
    if kind not in tower_types.TOWER_TYPES or tower_types.TOWER_TYPES[kind].composite:
        raise CheckpointError(f"model_type {kind!r} is no image encoder that can be a branch")
    kept = {key: value for key, value in tower.items() if key not in tower_types.FORGET}
    config = CONFIG_MAPPING[kind].from_dict({**kept, "vision_use_head": False, "use_head": False})
    if name := tower_types.TOWER_TYPES[kind].model:  # a tower that AutoModel does not know alone
        model: Any = getattr(transformers, name)._from_config(config, dtype=torch.float32)
    else:
        model = AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False)
    model = getattr(model, "vision_model", model)  # a wrapper that later versions of transformers no longer have
    if isinstance(getattr(model, "pooler", None), nn.Module) and [*model.pooler.parameters()]:
        model.pooler = None
    if head:
        model.visual_projection = nn.Linear(config.hidden_size, head, bias=False)
    for name in tower_types.TOWER_TYPES[kind].unused:
        owner, _, last = name.rpartition(".")
        module = model.get_submodule(owner)
        if getattr(module, last) is not None:  # not None afterwards: transformers 5.10 sets it to zero as it loads
            delattr(module, last)
            module.register_buffer(last, torch.zeros(1), persistent=False)
    return model


_MAKERS = {"open_clip": _open_clip, "timm": _timm, "transformers": _transformers}
