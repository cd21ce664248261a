"""BLIP-2's Q-Former with LMEye's projection behind it, known from its config alone (arXiv 2301.12597, section 3.1).

config: `hidden_size` (d, of the language model), `vision` (v, of the tower), `vision_eps` (of its last norm), and
of the Q-Former `width` (w), `queries`, `layers`, `heads`, `intermediate`, `every` (blocks between two that look at the
image), `activation`, `eps`.
"""

from collections.abc import Mapping
from typing import Any

from fuse.branches.encoder_reads import Reads

SIZES = ("hidden_size", "vision", "width", "queries", "layers", "heads", "intermediate", "every")
ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "quick_gelu", "relu", "silu")
MOST_LAYERS = 1000


def reads(config: Mapping[str, Any]) -> Reads:
    """The last block of the vision tower; the norm behind it stands in front of the Q-Former here."""
    del config
    return Reads("blocks", (-1,))


def widths(config: Mapping[str, Any]) -> tuple[int, int]:
    """Numbers of one of the tower's tokens, and of a visual token."""
    return config["vision"], config["hidden_size"]


def tokens(config: Mapping[str, Any], given: int) -> int:
    """Visual tokens of one image: one for every query."""
    del given
    return config["queries"]


def shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of projector.safetensors. Raises KeyError and ValueError for a config that is none."""
    for name in SIZES:
        most = MOST_LAYERS if name == "layers" else 1 << 31
        if type(config[name]) is not int or not 0 < config[name] < most:
            raise ValueError(f"{name} is {config[name]!r}, not a size")
    for name in ("eps", "vision_eps"):
        if type(config[name]) is not float or not 0 < config[name] < 1:
            raise ValueError(f"{name} is {config[name]!r}, not a small number")
    if config["activation"] not in ACTIVATIONS:
        raise ValueError(f"activation is {config['activation']!r}, not one of {', '.join(ACTIVATIONS)}")
    d, v, w, f = (config[name] for name in ("hidden_size", "vision", "width", "intermediate"))
    if w % config["heads"]:
        raise ValueError(f"a width of {w} does not divide by {config['heads']} heads")
    found: dict[str, tuple[int, ...]] = {
        **_norm("post_layernorm", v), "query_tokens.weight": (config["queries"], w), **_norm("qformer.layernorm", w),
        "language_projection.weight": (d, w), "language_projection.bias": (d,),
    }  # fmt: skip
    for n in range(config["layers"]):
        block = f"qformer.encoder.layer.{n}."
        found |= _attention(f"{block}attention.", w, w)
        if n % config["every"] == 0:
            found |= _attention(f"{block}crossattention.", w, v)
        found |= _linear(f"{block}intermediate_query.dense", w, f)
        found |= {**_linear(f"{block}output_query.dense", f, w), **_norm(f"{block}output_query.LayerNorm", w)}
    return found


def _linear(name: str, fan_in: int, fan_out: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (fan_out, fan_in), f"{name}.bias": (fan_out,)}


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _attention(name: str, width: int, of: int) -> dict[str, tuple[int, ...]]:
    found = _linear(f"{name}attention.query", width, width)
    found |= {**_linear(f"{name}attention.key", of, width), **_linear(f"{name}attention.value", of, width)}
    return {**found, **_linear(f"{name}output.dense", width, width), **_norm(f"{name}output.LayerNorm", width)}
