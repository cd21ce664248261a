"""The tensors of a bridge: two language models read the same texts, and the maps between them are fitted."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from fuse.anatomy import Member
from fuse.engine.read import Reader
from fuse.errors import CheckpointError
from fuse.fused import Fit
from fuse.grafts.bridge_files import EMBEDDING, FINAL, has_gains, is_layer, is_shared, shapes
from fuse.grafts.bridge_fit import fit, fits, held_out
from fuse.grafts.bridge_states import pair, states
from fuse.grafts.bridge_tokens import Words, named, of_embeddings
from fuse.grafts.host_model import filled
from fuse.grafts.hosts import Stack, stacks_of
from fuse.plan import Source

Loaded = tuple[Any, Any]  # a language model and its tokenizer


def make_bridge(
    bridge: Mapping[str, Any], donor: Loaded, host: Loaded, texts: Sequence[str]
) -> tuple[dict[str, torch.Tensor], list[Fit]]:
    """The tensors that `bridge_files.shapes` names, in float64, and how well each map fits.

    bridge: as `bridge_files.bridge_config` makes it. donor: the language model that the graft was cut from; host: the
    new one. texts: read by both; every fifth is held out for R2. Method `embedding` reads none, and every fifth of the
    tokens that both vocabularies have is held out. Raises CheckpointError where nothing can be paired.
    """
    method, made = bridge["method"], dict[str, torch.Tensor]()
    found: list[Fit] = []
    anchors = None
    if EMBEDDING in bridge["maps"] or method == "embedding":
        anchors, how = of_embeddings(method, _words(donor), _words(host))
        made |= named(EMBEDDING, anchors)
        found.append(how)
    inner = [name for name in bridge["maps"] if name != EMBEDDING]
    theirs, ours, test = (
        _states(bridge, inner, donor, host, texts) if inner and method != "embedding" else ({}, {}, None)
    )
    for name in inner:
        sizes = 1.0
        if not is_shared(bridge, name):
            y, x = theirs[name], ours[_onto(bridge, name)]
            if name == FINAL:
                y, x = unit(y, bridge["norm"], bridge["norm_eps"]), unit(x, bridge["host_norm"], bridge["norm_eps"])
            assert test is not None
            own = fit(y[~test], x[~test], method, centred=name != FINAL)
            made |= named(name, own)
            found.append(Fit(name, *fits(own, y[test], x[test]), int((~test).sum())))
            sizes = float(y.square().mean().sqrt() / x.square().mean().sqrt())
        elif anchors is not None and anchors.size is not None:
            sizes = anchors.size * (bridge["host_width"] / bridge["width"]) ** 0.5
        if has_gains(bridge, name):
            made |= _gains(bridge, name, donor[0], host[0], 1.0 if name == FINAL else sizes)
    wanted = shapes(bridge)
    return {key: made[key].reshape(shape) for key, shape in wanted.items()}, found


def why_poor(found: Sequence[Fit], least: float) -> str:
    """ "" where every map has R2 `least` or more in both directions, else one sentence about the worst."""
    worst = min(found, key=lambda one: one.r2)
    if worst.r2 >= least:
        return ""
    way = "reading" if worst.read <= worst.write else "writing"
    return f"the bridge for {worst.name} has R2 {worst.r2:.3f} on held-out data ({way}), and {least:g} is asked for"


def unit(x: torch.Tensor, kind: str, eps: float) -> torch.Tensor:
    """What a norm of kind `rms` or `layer` gives before its gain. x: [n, width]."""
    if kind == "layer":
        x = x - x.mean(-1, keepdim=True)
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def load(member: Member) -> Loaded:
    """The language model of a member (of a multimodal one too) with its weights in float32, and its tokenizer."""
    from transformers import AutoConfig, AutoTokenizer

    from fuse import families, torchvision_shim
    from fuse.model.language import build_language_model

    torchvision_shim.install()
    config, where = member.checkpoint.config, str(member.folder)
    told = dict(families.text_config(config, member.family, where))
    kind = families.text_type_of(config, member.family, where)
    kept = {key: value for key, value in told.items() if key not in ("model_type", "dtype", "torch_dtype")}
    model = build_language_model(AutoConfig.for_model(kind, **kept), member.family.model_type, None).float()
    with Reader() as reader:
        weights = {name: reader.tensor(Source.of(member, entry)).float() for name, entry in member.language.items()}
    tokenizer = AutoTokenizer.from_pretrained(member.folder, trust_remote_code=False)
    return filled(model, weights, member), tokenizer


def _words(loaded: Loaded) -> Words:
    embedding = loaded[0].get_input_embeddings()
    return Words(loaded[1], lambda ids: embedding(ids.to(embedding.weight.device)), embedding.weight.shape[0])


def _states(
    bridge: Mapping[str, Any], names: Iterable[str], donor: Loaded, host: Loaded, texts: Sequence[str]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], torch.Tensor]:
    """(donor's states by map, new host's by where its map reads, which pairs are held out)."""
    names = list(names)
    pairs = pair(donor[1], host[1], texts)
    test = held_out(pairs.text)
    if not (bool(test.any()) and bool((~test).any())):
        told = f"{len(test)} tokens end at the same character in both tokenizers, in {len(texts)} texts"
        raise CheckpointError(f"there is nothing to fit a bridge to: {told}", hint="give five texts or more")
    theirs = states(donor[0], pairs.source, [[a for a, _ in places] for places in pairs.places], names)
    onto = list(dict.fromkeys(_onto(bridge, name) for name in names))
    return theirs, states(host[0], pairs.target, [[b for _, b in places] for places in pairs.places], onto), test


def _onto(bridge: Mapping[str, Any], name: str) -> str:
    """Where the new host is read for a map."""
    if not is_layer(name):
        return name
    stack, layer, place = name.split(".")
    return f"{stack}.{bridge['stacks'][stack]['onto'][int(layer)]}.{place}"


def _gains(bridge: Mapping[str, Any], name: str, donor: Any, host: Any, sizes: float) -> dict[str, torch.Tensor]:
    """Gains and biases of the norms of both sides. sizes: how much larger a number of the donor's states is: behind
    norms it is as large, and the way back divides by it."""
    found = {}
    for model, key, at, factor in ((donor, "", name, 1.0), (host, "host_", _onto(bridge, name), sizes)):
        norm: Any = _norm(model, at)
        gain = norm.weight.detach().double().cpu()
        plus = 1.0 if model.config.model_type == "gemma" else 0.0  # its norms multiply by 1 + weight
        found[f"bridge.{name}.{key}gain"] = (gain + plus) * factor
        if getattr(norm, "bias", None) is not None:
            found[f"bridge.{name}.{key}bias"] = norm.bias.detach().double().cpu()
    return found


def _norm(model: Any, name: str) -> Any:
    stacks: Mapping[str, Stack] = stacks_of(model.config.to_dict())
    if name == FINAL:
        return model.get_submodule(next(iter(stacks.values())).final)
    stack, layer, place = name.split(".")
    own: Any = stacks[stack]
    return model.get_submodule(f"{own.blocks}.{layer}.{own.norms[place]}")
