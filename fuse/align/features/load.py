"""One branch or bare tower with its weights, without the language model that it belongs to."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from fuse.branches.encoder_features import patch_map
from fuse.branches.encoder_towers import build_tower, settle
from fuse.branches.kinds import build_branch
from fuse.errors import CheckpointError
from fuse.quiet import quiet_loading
from fuse.safetensors_header import TensorEntry

NAME = "eyes"


class BareTower(nn.Module):
    """An encoder without a projector, as the JSON of an encoder branch describes it."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.config = dict(config)
        self.encoder, self._fixed = build_tower(config)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Patch tokens [B, n, width] or a map [B, h, w, width] of images [B, 3, H, W]."""
        settle(self._fixed, pixels)
        return patch_map(self.config, self.encoder, pixels)


class _HolderConfig(PretrainedConfig):
    model_type = "fuse_eyes"

    def __init__(self, branch: dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.branch = branch


class _Holder(PreTrainedModel):
    """A model that is one branch, so that transformers fills it as it fills a fused folder, old names and all."""

    config_class = _HolderConfig
    _supports_sdpa = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        branch = config.branch
        made = BareTower(branch["config"]) if branch["kind"] == "bare" else build_branch(branch, "sdpa")
        self.branches = nn.ModuleDict({NAME: made})
        self.post_init()


def load_branch(branch: Mapping[str, Any], tensors: Mapping[str, TensorEntry], where: object) -> nn.Module:
    """The module of a branch in float32, in eval mode.

    branch: `kind` and `config` as config.json of a fused folder has them, or kind "bare" for a tower alone. tensors: by
    name inside the branch. Raises CheckpointError where a tensor is missing, unknown or of another shape.
    """
    from fuse.engine.read import Reader
    from fuse.plan import Source

    with Reader() as reader, quiet_loading():
        state = {f"branches.{NAME}.{name}": reader.tensor(Source("", entry)) for name, entry in tensors.items()}
        try:
            loaded: Any = _Holder.from_pretrained(
                None, config=_HolderConfig(branch=dict(branch)), state_dict=state, dtype=torch.float32,
                output_loading_info=True, ignore_mismatched_sizes=True,
            )  # fmt: skip
        except (OSError, ValueError) as error:
            told = (str(error).splitlines() or [""])[0]
            raise CheckpointError(f"transformers cannot load its encoder: {told}", where=where) from None
        model, report = loaded
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if found := sorted(str(key[0] if isinstance(key, tuple) else key) for key in report.get(what) or ()):
            first = found[0].removeprefix(f"branches.{NAME}.")
            raise CheckpointError(f"{what.replace('_', ' ')}: {len(found)}, the first is {first}", where=where)
    return model.eval().requires_grad_(False).branches[NAME]
