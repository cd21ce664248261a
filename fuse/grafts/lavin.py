"""LaVIN in a language model and in a vision tower: adapters behind norms, and a router by the prompt's modality.

The authors put a modality token in front of every prompt: one of two learned embeddings, "text only" and "with an
image". The weights of a layer's two paths are chosen by what this token has become there, for the whole prompt and for
every word that follows (arXiv 2305.15023). In their mask nothing else attends to it, and it stands first:
it attends only to itself. So its stream through the host depends on no prompt, and it needs no place in one: `read`
runs it alone, a prompt of one token, and keeps the weights of every layer. All words then see each other exactly as in
the authors' training forward, where they stand one position later: rotary attention knows only distances. (A host with
learned positions counts words from 0 here: our choice.) The authors' cached decoding differs from their own training
forward: generated words get the position of the word before them, and routes of `block` come from the layer's input.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from fuse.errors import CheckpointError
from fuse.grafts import lavin_files
from fuse.grafts.graft import Graft, Reading, State
from fuse.grafts.slots import Slots


class LavinGraft(Graft):
    """Adapters `layers.{l}.adapter_attn`, with `adapter_type: block` also `adapter_mlp`; `tower.{l}.*` likewise.

    scale multiplies what an adapter adds; one of `visual_adapter_type: normal`, which adds to nothing, is mixed with
    its input: x + scale * (adapter(x) - x). A pass whose prompt was not read is the host's own: so are those that
    another LaVIN graft asks for first (our choice for two of them in one model).
    """

    RUNS = 1  # it asks for a pass of the language model with a token of its own
    ASKED: Mapping[str, Callable[[Any], bool]] = {"modality": lambda value: value in lavin_files.MODALITIES}

    def __init__(self, config: Mapping[str, Any]) -> None:
        """config: as `lavin_files.configured` gives it. Raises CheckpointError for one that describes no adapters."""
        try:
            config = lavin_files.checked(config)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            told = f"a graft of kind lavin has a config that cannot be: {error}"
            raise CheckpointError(told, where="config.json") from None
        super().__init__(config)
        self.rounds = config["rounding"] == "float16"
        self._found: dict[tuple[int, int], torch.Tensor] | None = None  # routes, while the modality token is run
        if lavin_files.has_language(config):
            places = lavin_files.PLACES[config["adapter_type"]]
            self.adapter_modality_embedding = nn.Embedding(2, config["hidden_size"])
            self.layers = _stack(config, config["hidden_size"], places, routed=True)
        if tower := lavin_files.tower_of(config):
            places = lavin_files.TOWER_PLACES[tower["visual_adapter_type"]]
            self.tower = _stack(tower, tower["width"], places, lavin_files.is_routed(tower))

    @property
    def looks(self) -> bool:
        """Whether there are adapters for the language model, whose routes follow the prompt."""
        return lavin_files.has_language(self.config)

    def attach(self, slots: Mapping[str, Slots]) -> None:
        """To `language` and, where there are adapters for one, to `tower`. Raises CheckpointError for another size."""
        if self.looks:
            if "language" not in slots:
                raise CheckpointError("LaVIN's adapters belong to one stack of blocks, and the host has two")
            _same_size(slots["language"], self.layers, self.config["hidden_size"], "the language model")
            for layer, place, name, adapter in _each(self.layers):
                change = partial(self._by_modality, layer, place, adapter)
                slots["language"].norm_output(layer, lavin_files.NORMS[name], change)
        if tower := lavin_files.tower_of(self.config):
            if "tower" not in slots:
                raise CheckpointError("the graft has adapters for a vision tower, and no branch is named as its tower")
            _same_size(slots["tower"], self.tower, tower["width"], "the vision tower")
            for layer, _, name, adapter in _each(self.tower):
                slots["tower"].norm_output(layer, lavin_files.NORMS[name], partial(self._by_token, adapter))

    def read(self, reading: Reading) -> State:
        """`routes` [B, layers, places, 2]: the weights of both paths for every prompt, from its modality's token alone.

        The pass has a row for every prompt and one token in it, so that the states of other grafts fit its rows.
        """
        if not self.looks:
            return {}
        modality = self._modality(reading)
        token = self.adapter_modality_embedding(modality)[:, None].to(reading.embeds)
        self._found = {}
        try:
            reading.run(token, torch.ones_like(reading.attention_mask[:, :1]))
            found = self._found
        finally:
            self._found = None
        routes = [found[layer, place].to(token.device) for layer, place, *_ in _each(self.layers)]
        return {"routes": torch.stack(routes, 1).unflatten(1, (len(self.layers), -1))}

    def _modality(self, reading: Reading) -> torch.Tensor:
        """[B] 1 where a prompt has an image, or as the caller or the recipe says."""
        asked = reading.options.get("modality", self.config["modality"])
        has = reading.numbers.ne(0).any(1).long()
        if asked != "auto":
            return torch.full_like(has, int(asked == "image"))
        for sight in (one for sights in reading.sights.values() for one in sights):
            has[sight.row] = 1  # a branch may look at an image and write no token
        return has

    def _by_modality(self, layer: int, place: int, adapter: "RepAdapter", x: torch.Tensor) -> torch.Tensor:
        if self._found is not None:
            route = self._found[layer, place] = adapter.route(x[:, 0], self.config["temperature"], self.rounds)
        elif "routes" in self.state:
            route = self.rows_of("routes", x)[:, layer, place]
        else:
            return x
        return adapter(x, route[:, None], self.scale * self.config["adapter_scale"])

    def _by_token(self, adapter: "RepAdapter", x: torch.Tensor) -> torch.Tensor:
        """x: [images, tokens, width]."""
        if not adapter.routed:
            return torch.lerp(x, adapter.path(x), self.scale) if self.scale != 1 else adapter.path(x)
        choosing = x[:1] if self.config["tower"].get("route") == "official" else x
        route = adapter.route(choosing, self.config["temperature"], self.rounds)
        return adapter(x, route, self.scale * self.config["adapter_scale"])


class RepAdapter(nn.Module):
    """One adapter of two linear layers without an activation; routed ones have two upper layers, B and D.

    Only the smallest modules touch weights, in their `forward`, so that weights may lie on another device or on disk.
    """

    def __init__(self, width: int, dim: int, groups: int, routed: bool) -> None:
        super().__init__()
        self.routed = routed
        self.conv_A = Pointwise(width, dim, 1)
        self.conv_B = Pointwise(dim, width, groups)
        if routed:
            self.conv_D = Pointwise(dim, width, groups)
            self.expert_weights = Scores(width)

    def forward(self, x: torch.Tensor, route: torch.Tensor, scale: float) -> torch.Tensor:
        """x + scale * (route_0 * B(A(x)) + route_1 * D(A(x))). x: [B, L, width]; route: [B or 1, L or 1, 2]."""
        hidden, route = self.conv_A(x), route.to(x)
        added = route[..., :1] * self.conv_B(hidden).to(x) + route[..., 1:] * self.conv_D(hidden).to(x)
        return x + scale * added

    def path(self, x: torch.Tensor) -> torch.Tensor:
        """B(A(x)): the adapter that has no router, no residual and no scale in the authors' code."""
        return self.conv_B(self.conv_A(x)).to(x)

    def route(self, x: torch.Tensor, temperature: float, rounds: bool) -> torch.Tensor:
        """softmax(scores(x) / temperature) [..., 2] of the tokens x [..., width], at least in float32."""
        weights = torch.softmax(self.expert_weights(x) / temperature, -1)
        return weights.half().to(weights.dtype) if rounds else weights


class Pointwise(nn.Module):
    """A convolution over single tokens: `weight` [gives, given / groups, 1] and `bias` [gives], as a Conv1d names them.

    The first `given / groups` channels feed the first `gives / groups`, and so on.
    """

    def __init__(self, given: int, gives: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.weight = nn.Parameter(torch.empty(gives, given // groups, 1))
        self.bias = nn.Parameter(torch.empty(gives))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., given] -> [..., gives]."""
        weight, x = self.weight.squeeze(-1), x.to(self.weight)
        if self.groups == 1:
            return functional.linear(x, weight, self.bias)
        parts = torch.einsum(
            "...gi,goi->...go", x.unflatten(-1, (self.groups, -1)), weight.unflatten(0, (self.groups, -1))
        )
        return parts.flatten(-2) + self.bias


class Scores(nn.Module):
    """The router's linear layer: `weight` [2, width], `bias` [2]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(2, width))
        self.bias = nn.Parameter(torch.empty(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., width] -> [..., 2] in float32, or in float64 where x is."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        x = x.to(self.weight.device, dtype)
        return functional.linear(x, self.weight.to(dtype), self.bias.to(dtype))


def _stack(config: Mapping[str, Any], width: int, places: Sequence[str], routed: bool) -> nn.ModuleList:
    dim, groups = config["adapter_dim"], config["groups"]
    return nn.ModuleList(
        nn.ModuleDict({place: RepAdapter(width, dim, groups, routed) for place in places})
        for _ in range(config["layers"])
    )


def _each(stack: nn.ModuleList) -> Iterator[tuple[int, int, str, RepAdapter]]:
    """(layer, number within the layer, name, adapter) of every adapter."""
    for layer, block in enumerate(stack):
        for place, (name, adapter) in enumerate(block.named_children()):
            assert isinstance(adapter, RepAdapter)
            yield layer, place, name, adapter


def _same_size(slots: Slots, adapters: nn.ModuleList, width: int, what: str) -> None:
    if (slots.width, slots.layers) != (width, len(adapters)):
        raise CheckpointError(
            f"LaVIN's adapters were made for {len(adapters)} layers of width {width}, and {what} has {slots.layers} of "
            f"width {slots.width}"
        )
