"""LLaMA-Adapter v1 (arXiv 2303.16199) and v2 (arXiv 2304.15010) inside a host: gated prompts, and changes beside them.

Prompts go through the host's own key and value projections, without positions, norms or LoRA, into a softmax of their
own; a gate for each head says how much of the result joins what the head gives. Gates of 0 leave attention as it is.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from fuse.errors import RecipeError
from fuse.grafts.graft import Graft, Reading, Sight, State
from fuse.grafts.llama_adapter_files import prompted
from fuse.grafts.llama_adapter_visual import VisualPrompts
from fuse.grafts.low_rank import LowRank
from fuse.grafts.slots import Beside, KeyValue, Prefix, Slots


class LlamaAdapterGraft(Graft):
    """`scale` multiplies gates and changes of projections, and says how far norms go to the adapter's."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        depth, width = config["depth"], config["hidden_size"]
        self.query = nn.Parameter(torch.empty(config["rows"], width))
        self.gate = nn.Parameter(torch.empty(depth, config["heads"]))
        self.new_gate = nn.Parameter(torch.empty(depth)) if config["new_gate"] else None
        linears: Mapping[str, Any] = config["linears"]
        changed = {name: row for name, row in linears.items() if row["rank"] or row["bias"]}
        self.layers = nn.ModuleList(
            nn.ModuleDict({n: LowRank(r["rank"], r["in"], r["out"], r["bias"]) for n, r in changed.items()})
            for _ in range(depth if changed else 0)
        )
        names = [f"{layer}.{name}" for layer in range(depth) for name in config["norms"] if name != "final"]
        self.norms = _Gains([*names, *(["final"] if "final" in config["norms"] else [])], width)
        visual = config["visual"]
        self.visual = VisualPrompts(visual, config["length"], width) if visual else None

    @property
    def looks(self) -> bool:
        """Only version 2 looks at images; the prompts of version 1 are always the same."""
        return self.visual is not None

    def attach(self, slots: Mapping[str, Slots]) -> None:
        language = slots["language"]
        for layer in prompted(self.config):
            language.attention_prefix(layer, self._prefix(layer))
        for layer, linears in enumerate(self.layers):
            for name, change in linears.named_children():
                language.linear(layer, name, self._changed(change))  # pyright: ignore[reportArgumentType]
        for name in self.norms.names:
            layer, _, which = name.rpartition(".")
            language.norm(int(layer) if layer else None, which, self._normed(name))  # pyright: ignore[reportArgumentType]

    def read(self, reading: Reading) -> State:
        """{"visual": [B, length, D]}, what the image of each prompt adds to the learned prompts; nothing in version 1.

        A prompt without an image keeps the learned prompts alone (our choice: in the authors' training a text without
        an image comes with one whose normalised pixels are all 0). Raises RecipeError for a prompt with two images.
        """
        if self.visual is None:
            return {}
        sights = self._sights(reading)
        rows = [sight.row for sight in sights]
        if twice := sorted({row for row in rows if rows.count(row) > 1}):
            told = f"prompt {twice[0] + 1} has {rows.count(twice[0])} images, and LLaMA-Adapter v2 reads one"
            raise RecipeError(told, hint="ask about one image at a time")
        query = self.visual.query
        seen = query.new_zeros(len(reading.input_ids), len(query), self.query.shape[1])
        for sight in sights:
            seen[sight.row] = self.visual(sight.features[None].to(query))[0]
        return {"visual": seen}

    def _sights(self, reading: Reading) -> list[Sight]:
        """What the branch saw that the recipe names, else the first branch whose features have the right width."""
        if reading.image:
            return reading.sights.get(reading.image, [])
        wanted = self.config["visual"]["features"]
        fitting = (seen for seen in reading.sights.values() if seen and seen[0].features.shape[-1] == wanted)
        return next(fitting, [])

    def _prefix(self, layer: int) -> Prefix:
        first, length = prompted(self.config).start, self.config["length"]
        begin = (layer - first) * length

        def prefix(q: torch.Tensor, keyvalue: KeyValue, scaling: float) -> torch.Tensor:
            """q: [B, H, L, d] -> [B, H, L, d]."""
            prompts = self.query[None, begin : begin + length]
            if "visual" in self.state:
                prompts = prompts + self.rows_of("visual", q).to(prompts)
            k, v = keyvalue(prompts.to(q))
            scores = q @ k.transpose(-1, -2) * scaling
            weights = scores.softmax(-1, torch.promote_types(q.dtype, torch.float32)).to(q)
            return self._gate(layer, q) * (weights @ v)

        return prefix

    def _gate(self, layer: int, q: torch.Tensor) -> torch.Tensor:
        """[H, 1, 1]. The second gate is read only where there are several prompts, as in the authors' code."""
        gate = self.gate[layer]
        if self.config["gate"] != "raw":
            gate = gate.tanh()
        if self.config["gate"] == "tanh_float16":
            gate = gate.half()
        gate = gate.to(q)
        if self.new_gate is not None and self.config["length"] > 1:
            gate = gate * self.new_gate[layer].to(q)
        return (self.scale * gate)[:, None, None]

    def _changed(self, change: nn.Module) -> Beside:
        return lambda x, y: y + self.scale * change(x)

    def _normed(self, name: str) -> Beside:
        def beside(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            wide = x.to(torch.promote_types(x.dtype, torch.float32))
            unit = functional.rms_norm(wide, x.shape[-1:], eps=self.config["norm_eps"]).to(x)
            own = unit * self.norms.get_parameter(name).to(x)
            return own if self.scale == 1 else y + self.scale * (own - y)

        return beside


class _Gains(nn.Module):
    """Weights [D] of norms, called `{layer}.{norm}` and `final`."""

    def __init__(self, names: list[str], width: int) -> None:
        super().__init__()
        self.names = names
        for name in names:
            owner: nn.Module = self
            *path, last = name.split(".")
            for step in path:
                if not hasattr(owner, step):
                    owner.add_module(step, nn.Module())
                owner = owner.get_submodule(step)
            owner.register_parameter(last, nn.Parameter(torch.empty(width)))
