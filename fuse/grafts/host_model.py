"""The language model of an output while it is made: single tensors of it, or all of it, loaded once."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from fuse.anatomy import Member
from fuse.engine.blocks import whole
from fuse.engine.read import Reader
from fuse.fusable import host_type
from fuse.fused import FoldedGraft
from fuse.grafts.bridge_tokens import Words, of_table
from fuse.plan import Plan, Row, Source
from fuse.safetensors_header import TensorEntry


class HostModel:
    """What the rows of a host make of it.

    rows: by canonical name. folded: the grafts that are in them. stored: by name in the output, the tensors that are
    written already; others are computed when they are asked for.
    """

    def __init__(
        self, plan: Plan, rows: Mapping[str, Row], reader: Reader, folded: Sequence[FoldedGraft],
        stored: Mapping[str, TensorEntry] | None = None,
    ) -> None:  # fmt: skip
        self.reader, self._plan, self._rows, self._folded = reader, plan, rows, folded
        self._stored = stored or {}
        self._loaded: tuple[Any, Any] | None = None

    def tensor(self, canonical: str) -> torch.Tensor:
        """A tensor of the language model by its canonical name; of a tied head the embedding."""
        text = self._plan.host.text
        if canonical == text.head and canonical not in self._rows:
            canonical = text.embedding
        row = self._rows[canonical]
        if row.name in self._stored:
            return self.reader.tensor(Source("output", self._stored[row.name]))
        return whole(row, self.reader)

    def load(self) -> tuple[Any, Any]:
        """The language model with its weights in float32, in eval mode, and the host's tokenizer."""
        if self._loaded is None:
            weights = {name: self.tensor(name).float() for name in self._rows}
            self._loaded = self._model(weights), _tokenizer(self._plan.host)
        return self._loaded

    def words(self) -> Words:
        """The embedding and the host's tokenizer, without all the rest."""
        host = self._plan.host
        return of_table(self.tensor(host.text.embedding), host, _tokenizer(host))

    def _model(self, weights: Mapping[str, torch.Tensor]) -> Any:
        from transformers import AutoConfig

        from fuse import torchvision_shim
        from fuse.fused_folder import text_config
        from fuse.model.language import build_language_model

        torchvision_shim.install()
        host, fused = self._plan.host, self._plan.fused
        config = AutoConfig.for_model(**text_config(self._plan, "float32", self._folded))
        model = build_language_model(config, fused.host_type if fused else host_type(host), None, host.is_tied)
        return filled(model, weights, host)


def filled(model: Any, weights: Mapping[str, torch.Tensor], member: Member) -> Any:
    """A language model with its weights, all of them, by canonical name; in eval mode. member: whose config it has."""
    lost, extra = model.load_state_dict(weights, strict=False)  # a table that is shared has one name among the weights
    model.tie_weights()
    held = model.state_dict()
    filled_in = {held[name].data_ptr() for name in weights if name in held}
    lost = [name for name in lost if held[name].data_ptr() not in filled_in]
    if extra or lost:
        raise RuntimeError(f"{member.name} does not load: {[*lost, *extra][:3]}")
    return model.eval().requires_grad_(False)


def _tokenizer(host: Member) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(host.file("tokenizer.json").parent, trust_remote_code=False)
