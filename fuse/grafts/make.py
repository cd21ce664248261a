"""Tensors of grafts that no donor holds: computed from the host, once its weights are written."""

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from fuse.engine.read import TORCH, Reader
from fuse.engine.write import ShardWriter, stored_order
from fuse.errors import CheckpointError, RecipeError
from fuse.fused import LANGUAGE, FusedGraft
from fuse.plan import Plan, Row, Source
from fuse.recipe_graft import Graft
from fuse.safetensors_header import read_header


def make(plan: Plan, folder: Path, progress: Callable[[int], None]) -> dict[str, str]:
    """Compute the rows to make and write their files into `folder`, which holds all others; sha256 by file name.

    Raises RecipeError for what the recipe gives that makes nothing, CheckpointError for values that are not finite.
    """
    assert plan.fused is not None
    made: dict[str, torch.Tensor] = {}
    with Reader() as reader:
        host = _Host(plan, folder, reader)
        for graft, entry in zip(plan.fused.grafts, plan.grafts, strict=True):
            if graft.made:
                made |= {graft.prefix + name: tensor for name, tensor in _of(graft, entry, plan, host).items()}
    digests = {}
    for name, numbers in plan.shards:
        rows = [plan.rows[i] for i in numbers]
        if rows[0].action != "make":
            continue
        rows = [rows[i] for i in stored_order(rows)]
        with ShardWriter(folder / name, rows) as writer:
            for row in rows:
                data = _stored(row, made[row.name]).contiguous().view(torch.uint8).numpy().data
                writer.write(data)
                progress(len(data))
        digests[name] = writer.sha256
    return digests


def _of(graft: FusedGraft, entry: Graft, plan: Plan, host: "_Host") -> dict[str, torch.Tensor]:
    """What one graft's kind makes of the host."""
    maker = import_module(f"fuse.grafts.{graft.kind}_rows")
    tensors = {key: host.reader.tensor(Source(graft.lender.name, e)) for key, e in graft.donor.tensors.items()}
    try:
        return maker.make_rows(graft.config, entry.options, tensors, plan.host.basis, host.tensor, host.load)
    except ValueError as error:
        raise RecipeError(f"grafts: {graft.name}: {error}", where=plan.recipe_file.name) from None


def _stored(row: Row, tensor: torch.Tensor) -> torch.Tensor:
    if tuple(tensor.shape) != row.shape:
        raise RuntimeError(f"{row.name} was planned as {list(row.shape)} and made as {list(tensor.shape)}")
    if not bool(torch.isfinite(tensor).all()):
        raise CheckpointError(f"tensor {row.name!r} that was made from the host holds values that are not finite")
    return tensor.detach().cpu().to(TORCH[row.dtype])


class _Host:
    """The language model of a folder that is being written: single tensors of it, or all of it, loaded once."""

    def __init__(self, plan: Plan, folder: Path, reader: Reader) -> None:
        self.reader, self._plan = reader, plan
        files = [folder / name for name, numbers in plan.shards if plan.rows[numbers[0]].action != "make"]
        self._stored = {name: entry for file in files for name, entry in read_header(file).items()}
        self._loaded: tuple[Any, Any] | None = None

    def tensor(self, canonical: str) -> torch.Tensor:
        """A tensor of the language model by its canonical name; of a tied head the embedding."""
        text = self._plan.host.text
        if canonical == text.head and LANGUAGE + canonical not in self._stored:
            canonical = text.embedding
        return self.reader.tensor(Source("output", self._stored[LANGUAGE + canonical]))

    def load(self) -> tuple[Any, Any]:
        """The language model with its weights in float32, in eval mode, and the host's tokenizer."""
        if self._loaded is None:
            self._loaded = _language_model(self._plan, self._weights()), _tokenizer(self._plan.host.folder)
        return self._loaded

    def _weights(self) -> Mapping[str, torch.Tensor]:
        found = {name: entry for name, entry in self._stored.items() if name.startswith(LANGUAGE)}
        return {
            name.removeprefix(LANGUAGE): self.reader.tensor(Source("output", e)).float() for name, e in found.items()
        }


def _language_model(plan: Plan, weights: Mapping[str, torch.Tensor]) -> Any:
    from transformers import AutoConfig

    from fuse import torchvision_shim
    from fuse.fused_folder import text_config
    from fuse.model.language import build_language_model

    torchvision_shim.install()
    assert plan.fused is not None
    config = AutoConfig.for_model(**text_config(plan, "float32"))
    model = build_language_model(config, plan.fused.host_type, None)
    lost, extra = model.load_state_dict(weights, strict=False)
    tied = {plan.host.text.head} if plan.host.is_tied else set()
    if extra or set(lost) - tied - {name for name in lost if name.endswith("embed_tokens.weight")}:
        raise RuntimeError(f"the host does not load: {[*lost, *extra][:3]}")
    model.tie_weights()
    return model.eval().requires_grad_(False)


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
