"""The kinds of branch, and where each is made. Modules are imported when a folder needs them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from fuse.branches.branch import Seen
from fuse.errors import CheckpointError


@dataclass(frozen=True)
class Kind:
    """module: where it lives. build: config -> nn.Module. eyes: the class that prepares images.

    see: a function that runs the module, or "" where the module itself is called.
    """

    module: str
    build: str
    eyes: str
    see: str = ""


KINDS: dict[str, Kind] = {
    "native": Kind("native", "build", "native_eyes.NativeEyes", "see"),
    "llava_original": Kind("llava_original", "LlavaBranch", "LlavaEyes"),
    "mgm": Kind("mgm", "MgmBranch", "MgmEyes"),
    "slime": Kind("slime", "SlimeBranch", "SlimeEyes"),
    "encoder": Kind("encoder", "EncoderBranch", "EncoderEyes"),
}


def _find(kind: Kind, name: str) -> Any:
    module, _, attribute = f"{kind.module}.{name}".rpartition(".") if "." not in name else name.rpartition(".")
    return getattr(import_module(f"fuse.branches.{module}"), attribute)


def _kind(branch: Mapping[str, Any]) -> Kind:
    if branch["kind"] not in KINDS:
        known = ", ".join(KINDS)
        raise CheckpointError(f"config.json: branch {branch['name']!r} has kind {branch['kind']!r} (known: {known})")
    return KINDS[branch["kind"]]


def build_branch(branch: Mapping[str, Any], attention: str | None) -> nn.Module:
    """The module of one branch, from its entry in config.json."""
    kind = _kind(branch)
    made = _find(kind, kind.build)
    return made(branch["config"], attention) if kind.see else made(branch["config"])


def run_branch(branch: Mapping[str, Any], module: nn.Module, *args: Any, **kwargs: Any) -> list[Seen]:
    """What a branch sees; arguments as `fuse.branches.branch.Branch` takes them."""
    kind = _kind(branch)
    run: Callable[..., list[Seen]] = _find(kind, kind.see) if kind.see else module
    return run(module, *args, **kwargs) if kind.see else run(*args, **kwargs)


def open_eyes(branch: Mapping[str, Any], folder: Path) -> Any:
    """What prepares images for one branch."""
    return _find(_kind(branch), _kind(branch).eyes)(branch["config"], folder)
