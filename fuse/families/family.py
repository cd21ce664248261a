"""What a checkpoint family is: tables that say which key on disk is which part and what its canonical name is.

The canonical name of a language tensor is its name in a text-only checkpoint of the same architecture
(`model.layers.0.self_attn.q_proj.weight`), so that the language models of two VLM classes on one base, and the base
itself, line up by name. Encoder, projector and extra tensors are canonical in the names of the current transformers
layout without its outer `model.`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Part = Literal["language", "encoder", "projector", "extra"]
PARTS: tuple[Part, ...] = ("language", "encoder", "projector", "extra")


@dataclass(frozen=True)
class Basis:
    """The numbers that two language models must share before their weights may be mixed.

    Read from the text config, with the config class's defaults where config.json leaves a value out.
    """

    family: str  # name of the TextFamily
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    norm_eps: float | None
    rope_theta: float | None
    rope_scaling: str  # canonical JSON of the scaling ("" where positions are not scaled; M-RoPE counts as "")
    activation: str
    tied: bool  # the config says that the head is the embedding
    sizes: Mapping[str, int] = field(default_factory=dict)  # further symbols used by the family's tables


@dataclass(frozen=True)
class TextFamily:
    """A language-model architecture: every tensor of its text-only checkpoint with its shape in symbols.

    Symbols: D hidden_size, V vocab_size, F intermediate_size, Q heads*head_dim, K kv_heads*head_dim, H head_dim,
    G heads, integers, sums and products of them ("Q+2*K"); a family may add its own through `symbols`.
    `{n}` in a name runs over the layers of `depth["n"]`: as many as that config key says, or those that it lists, or
    with `!` before the key those that it does not list. An optional tensor is there for every layer or for none.
    """

    name: str
    tensors: Mapping[str, str]  # canonical name -> shape, e.g. "model.layers.{n}.mlp.down_proj.weight": "D F"
    defaults: Mapping[str, Mapping[str, Any]]  # model_type -> the config class's defaults of the keys that we read
    optional: Mapping[str, str] = field(default_factory=dict)  # may be absent (biases switched on by the config)
    switches: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # config key -> optional names it switches on
    one_of: tuple[tuple[str, ...], ...] = ()  # optional names of which exactly one group is stored (gated or plain MLP)
    embedding: str = "model.embed_tokens.weight"
    head: str = "lm_head.weight"
    keys: Mapping[str, str] = field(default_factory=dict)  # our field -> config key, where not the usual one
    depth: Mapping[str, str] = field(default_factory=lambda: {"n": "num_hidden_layers"})
    symbols: Mapping[str, str] = field(default_factory=dict)  # symbol -> config key, or "key|key to use where null"
    prefixes: Mapping[str, str] = field(default_factory=dict)  # other on-disk prefix -> canonical prefix
    buffers: tuple[str, ...] = ()  # regular expressions: stored by old releases, recomputed when a model is built


@dataclass(frozen=True)
class Family:
    """A checkpoint family, by model_type: where each prefix on disk belongs, in every layout that is published.

    prefixes: on-disk prefix -> (part, canonical prefix); the longest prefix that fits wins. One that does not end in
    a dot is the name of a tensor.
    text: key of the text config inside config.json ("" where the config itself is the text config).
    ties: which config's tie_word_embeddings the class obeys: the outer one, the text config's, either, or none.
    """

    model_type: str
    prefixes: Mapping[str, tuple[Part, str]]
    text: str = ""
    text_type: str = "llama"  # model_type of the text config where config.json leaves it out
    vision: str = "vision_config"  # key of the vision config ("" where there is none)
    buffers: tuple[str, ...] = ()
    native: bool = True  # transformers has a class for it
    tied: bool = False  # the config class's default of the top-level tie_word_embeddings
    ties: Literal["outer", "text", "either", "never"] = "outer"


@dataclass(frozen=True)
class Place:
    """Where one key of a checkpoint belongs."""

    part: Part
    canonical: str
