"""Where a graft attaches to a stack of blocks: hooks on the modules that `fuse.grafts.hosts` names.

The host's weights and names are untouched. Several grafts may use one slot; their functions run in the order in which
they were attached, each on what the former gave: with `ffn` and `ffn_residual` all of them read the same x or h, and
later ones get the y that the former returned, so that functions `y + f(x)` sum up. Prefixes are summed. A function must
give the shape that it was given.

One pass at a time may run in a model with grafts, as what a block was given is kept until its MLP or attention asks.
"""

import sys
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn

from fuse.errors import CheckpointError
from fuse.grafts import hooks
from fuse.grafts.hosts import HOSTS, TOWERS, Linear, Norm, Stack, slots_in, stacks_of, why_no_slots

Change = Callable[[torch.Tensor], torch.Tensor]  # x -> x'
Beside = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (what goes in, comes out) -> what comes out instead
KeyValue = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
Prefix = Callable[[torch.Tensor, KeyValue, float], torch.Tensor]


class Slots:
    """The slots of one stack of blocks. Every function is called with tensors [B, L, width] of the running pass.

    layers, width, heads: of the stack. `remove` takes off what was attached through this object, and no more.
    All methods raise CheckpointError for a layer or a slot that the stack lacks.
    """

    def __init__(self, name: str, stack: Stack, blocks: nn.ModuleList, final: nn.Module | None, config: Any) -> None:
        """name: of the architecture, for sentences. final: the norm behind the last block, where there is one."""
        self.name, self._stack, self._blocks, self._final = name, stack, blocks, final
        self.layers = len(blocks)
        if config is None:
            self.width, self.heads = (
                int(self._at(0, stack.norms["ffn"]).weight.shape[0]),
                int(self._at(0, "attn").num_heads),
            )
        else:
            self.width, self.heads = int(config.hidden_size), int(config.num_attention_heads)
        attention = self._at(0, stack.attention) if stack.attention else None
        self._groups = self.heads // getattr(attention, "num_key_value_groups", 1)
        self._taken: list[Callable[[], None]] = []

    def norm_output(self, layer: int, which: Norm, change: Change) -> None:
        """`attention_input` and `ffn_input`: what a norm gives to attention or to the MLP goes through `change`."""
        module = self._module(layer, f"norm_output {which}", self._stack.norms[which])
        inside = self._unflat(layer, lambda _, y: change(y), self._stack.flat and which == "ffn")
        self._taken.append(hooks.after(module, inside, hooks.BEHIND))

    def norm(self, layer: int | None, which: Norm | Literal["final"], beside: Beside) -> None:
        """`norm_bias`: beside(x, y) on a norm itself, before anything that `norm_output` attached. layer: None for the
        `final` norm, behind the last block.
        """
        if which == "final":
            if self._final is None:
                raise self._lacks("norm final")
            self._taken.append(hooks.after(self._final, beside))
            return
        module = self._module(layer, f"norm {which}", self._stack.norms[which])
        inside = self._unflat(layer, beside, self._stack.flat and which == "ffn")
        self._taken.append(hooks.after(module, inside))

    def ffn(self, layer: int, beside: Beside) -> None:
        """`ffn`: beside(x, y), x what the MLP reads (behind the norm), y what it gives to the residual stream."""
        self._beside_mlp(layer, self._module(layer, "ffn", self._stack.reads), beside)

    def ffn_residual(self, layer: int, beside: Beside) -> None:
        """`ffn_residual`: beside(h, y), h the residual stream before the MLP's norm, y what the MLP gives to it."""
        self._beside_mlp(layer, self._module(layer, "ffn_residual", self._stack.norms["ffn"]), beside)

    def _beside_mlp(self, layer: int, reader: nn.Module, beside: Beside) -> None:
        """x or h is what `reader` is given, kept until the MLP has given y."""
        kept: list[torch.Tensor] = []

        def keep(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            kept[:] = [args[0] if args else next(iter(kwargs.values()))]

        inside = self._unflat(layer, beside, self._stack.flat)
        self._taken.append(hooks.before(reader, keep))
        gives = self._at(layer, self._stack.gives)
        self._taken.append(hooks.after(gives, lambda _, y: inside(kept.pop(), y), hooks.BEHIND))

    def linear(self, layer: int, which: Linear, beside: Beside) -> None:
        """`linear`: beside(x, y) on one projection, also where the host stores several in one matrix: y then is this
        projection's part, [B, L, outputs].
        """
        path = self._stack.linears.get(which, "")
        module = self._module(layer, f"linear {which}", path)
        fused = self._stack.fused.get(path)

        def part(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            assert fused is not None
            parts = self._split(layer, fused, y)
            place = fused.index(which)
            parts[place] = beside(x, parts[place]).to(y)
            return torch.cat(parts, -1)

        inside = self._unflat(layer, part if fused else beside, self._stack.flat and which in ("gate", "up", "down"))
        self._taken.append(hooks.after(module, inside))

    def attention_prefix(self, layer: int, prefix: Prefix) -> None:
        """`attention_prefix`: prefix(q, keyvalue, scaling) -> [B, H, L, d], added to each head's output before the
        output projection. In T5's decoder this is self-attention.

        q: [B, H, L, d], as attention reads it (after query norm and rotary positions), not scaled. keyvalue: prompts
        [B or 1, P, D] -> (k, v), each [B or 1, H, P, d]: the host's own projections (and key norm), without positions
        and without what grafts add to them, heads of groups repeated. scaling: what scores are multiplied by.
        """
        stack = self._stack
        attention = self._module(layer, "attention_prefix", stack.attention if stack.prefix else "")
        path = stack.linears["q"]
        source = self._at(layer, stack.query_norm or path)
        fused = stack.fused.get(path)
        size = int(getattr(attention, stack.head_dim))
        rotated = stack.rotary and getattr(attention, "use_rope", True)
        rotate = sys.modules[type(attention).__module__].__dict__["apply_rotary_pos_emb"] if rotated else None
        seen: dict[str, Any] = {}

        def positions(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen["positions"] = kwargs["position_embeddings"] if "position_embeddings" in kwargs else args[1]

        def query(_: torch.Tensor, y: torch.Tensor) -> None:
            own = self._split(layer, fused, y)[0] if fused else y
            seen["q"] = own.reshape(*own.shape[:2], self.heads, size).transpose(1, 2)

        def keyvalue(prompts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self._keyvalue(layer, prompts, size)

        def add(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
            del kwargs
            q = seen.pop("q")
            if rotate:
                q = rotate(q, q, *seen.pop("positions"))[0]
            given = prefix(q, keyvalue, _scaling(self.name, attention)).to(args[0])
            return args[0] + given.transpose(1, 2).reshape(args[0].shape)

        if rotate:
            self._taken.append(hooks.before(attention, positions))
        self._taken.append(hooks.after(source, query, hooks.LOOK))
        self._taken.append(hooks.before(self._at(layer, stack.linears["o"]), add))

    def _keyvalue(self, layer: int, prompts: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(k, v) of prompts, from `forward` of the host's modules, so that no graft's hook is called."""
        stack, found = self._stack, []
        for which in ("k", "v"):
            path = stack.linears[which]
            made = self._at(layer, path).forward(prompts)
            if fused := stack.fused.get(path):
                made = self._split(layer, fused, made)[fused.index(which)]
            made = made.reshape(*made.shape[:2], self._groups, size)
            if which == "k" and stack.key_norm:
                made = self._at(layer, stack.key_norm).forward(made)
            found.append(made.transpose(1, 2).repeat_interleave(self.heads // self._groups, 1))
        return found[0], found[1]

    def _split(self, layer: int, fused: tuple[Linear, ...], y: torch.Tensor) -> list[torch.Tensor]:
        """The parts of a matrix that holds several projections, by the stack's order of them."""
        if fused[0] != "q":
            return list(y.chunk(len(fused), -1))
        size = int(getattr(self._at(layer, self._stack.attention), self._stack.head_dim))
        return list(y.split([size * (self.heads if name == "q" else self._groups) for name in fused], -1))

    def _unflat(self, layer: int | None, beside: Beside, flat: bool) -> Beside:
        """`beside` with [B, L, width] for a module whose tensors are [B * L, width]."""
        if not flat:
            return beside
        assert layer is not None
        shape: list[int] = []

        def keep(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            shape[:] = (args[0] if args else kwargs["hidden_states"]).shape[:2]

        self._taken.append(hooks.before(self._blocks[layer], keep))
        return lambda x, y: beside(x.reshape(*shape, -1), y.reshape(*shape, -1)).reshape(y.shape)

    def _module(self, layer: int | None, slot: str, path: str) -> nn.Module:
        if slot not in slots_in(self._stack) or not path:
            raise self._lacks(slot)
        if type(layer) is not int or not 0 <= layer < self.layers:
            raise CheckpointError(f"{self.name} has {self.layers} layers, so there is no layer {layer}")
        return self._at(layer, path)

    def _at(self, layer: int, path: str) -> Any:
        return self._blocks[layer].get_submodule(path)

    def _lacks(self, slot: str) -> CheckpointError:
        return CheckpointError(f"{self.name} has no slot {slot}")

    def remove(self) -> None:
        """Take off all that was attached through this object; the host computes again what it computed before."""
        while self._taken:
            self._taken.pop()()


def _scaling(name: str, attention: Any) -> float:
    """What scores of unscaled queries are multiplied by."""
    if name == "t5":
        return 1.0
    if name == "gpt2":  # older classes keep it in these switches alone
        scaling = attention.head_dim**-0.5 if attention.scale_attn_weights else 1.0
        return scaling / (attention.layer_idx + 1 if attention.scale_attn_by_inverse_layer_idx else 1)
    return float(attention.scaling)


def slots_of(model: Any) -> dict[str, Slots]:
    """The slots of a language model by stack (`language`, or `encoder` and `decoder`), or of a vision tower (`tower`).

    model: a causal class of transformers, `fuse.model.language.HeadedModel`, T5ForConditionalGeneration; or a module
    that holds one vision tower, such as a branch. Raises CheckpointError for an architecture without a table. What is
    attached through one result is removed without touching what was attached through another.
    """
    config: Any = getattr(model, "config", None)
    kind = getattr(config, "model_type", "")
    if found := _tower(model) if kind not in HOSTS else None:
        return {"tower": found}
    told = config.to_dict() if hasattr(config, "to_dict") else {"model_type": kind or type(model).__name__}
    if why := why_no_slots(told):
        raise CheckpointError(why, hint=f"grafts attach to {', '.join(HOSTS)}")
    return {
        name: Slots(kind, stack, model.get_submodule(stack.blocks), model.get_submodule(stack.final), config)
        for name, stack in stacks_of(told).items()
    }


def _tower(model: Any) -> Slots | None:
    """The one vision tower in a module, or None. Raises CheckpointError where there are several."""
    found = []
    for module in model.modules():
        library = type(module).__module__.partition(".")[0]
        name, stack = TOWERS.get(f"{library}.{type(module).__name__}", ("", None))
        blocks: Any = getattr(module, stack.blocks, None) if stack else None
        if stack and blocks is not None and _is_whole(blocks, stack):
            found.append(Slots(name, stack, nn.ModuleList(blocks), None, getattr(module, "config", None)))
    if len(found) > 1:
        raise CheckpointError(f"{type(model).__name__} has {len(found)} towers, so a graft cannot tell which is meant")
    return found[0] if found else None


def _is_whole(blocks: Any, stack: Stack) -> bool:
    """All blocks have the modules that the table names."""
    wanted = {stack.reads, stack.gives, *stack.norms.values(), *stack.linears.values()}
    return all(wanted <= {name for name, _ in block.named_modules()} for block in blocks)
