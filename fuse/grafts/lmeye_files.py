"""What is known of LMEye's interactive perception network from its config alone (arXiv 2305.03701, section 3).

A network has three linear maps, a learned offset and the frozen text tower of a CLIP. config: `hidden_size` (d, of the
language model), `width` (c, of the CLIP's text tower and of its projected features), `prompts` (p, soft prompts made of
the image), `slots` (q, tokens `<img-d>` that the answer is put into), `place` (where they stand) and `clip` (`layers`,
`heads`, `intermediate`, `activation`, `eps` of the text tower).
"""

from collections.abc import Mapping
from typing import Any

from fuse.branches.projector_kinds import describe
from fuse.families import Basis

PLACES = ("question", "image")
OPTIONS: Mapping[str, tuple[str, ...]] = {"place": PLACES}
SLOTS = ("two_pass", "input_embeds")

NUMBERS = ("hidden_size", "width", "prompts", "slots")
ACTIVATIONS = ("quick_gelu", "gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "relu", "silu")
CLIP_NUMBERS = ("layers", "heads", "intermediate")
LAYER = {
    "self_attn.q_proj": ("c", "c"), "self_attn.k_proj": ("c", "c"), "self_attn.v_proj": ("c", "c"),
    "self_attn.out_proj": ("c", "c"), "mlp.fc1": ("f", "c"), "mlp.fc2": ("c", "f"), "layer_norm1": ("c",),
    "layer_norm2": ("c",),
}  # fmt: skip


def shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of graft.safetensors. Raises KeyError and ValueError for a config that is none."""
    d, c, p, q = numbers(config, NUMBERS)
    return {
        "embedding_imgd.weight": (1, d),
        **linear("llm2clip", d, c),
        **linear("promptMlp", c, p * c),
        **linear("imgdLinear", c, q * d),
        **clip_shapes(config["clip"], c),
    }


def why_not(config: Mapping[str, Any], host: Basis) -> str:
    """Why a language model cannot take it; "" where it can. Its depth and heads do not matter: only its width does."""
    if host.hidden_size == config["hidden_size"]:
        return ""
    return f"its hidden size is {host.hidden_size}, and the network reads and writes {config['hidden_size']}"


def configured(config: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the output. options: `place`, where the slots stand: behind the question, as LMEye writes its
    prompts (the donor's, where left out), or behind the image.
    """
    return {**config, **options}


def tokens(config: Mapping[str, Any]) -> dict[str, int]:
    """How many slots follow every image; none where they stand behind the question, which `behind` writes."""
    return {"imgd": config["slots"] if config["place"] == "image" else 0}


def behind(config: Mapping[str, Any], images: int, written: Mapping[str, str]) -> str:
    """What stands behind a question about so many images: the slots of each, where the config puts them there.

    written: placeholder name -> how a text writes it. As in LMEye's own prompts, but without spaces between the slots,
    which some tokenizers would make tokens of.
    """
    return "" if config["place"] != "question" else " " + written["imgd"] * config["slots"] * images


def why_no_image(config: Mapping[str, Any], branch: Mapping[str, Any]) -> str:
    """Why the network cannot look through a branch; "" where it can. branch: its JSON, as `EncoderBranch` takes it."""
    projector: Any = branch.get("projector")
    described = describe(projector["kind"], projector["config"], "") if _is_kind(projector) else None
    if described is None or described.reads.what != "pooled":
        return "it gives no image as one vector, as a projector that `fuse import lmeye` makes reads it"
    wide = described.width
    return "" if wide == config["width"] else f"its vector has {wide} numbers, and the network takes {config['width']}"


def _is_kind(projector: Any) -> bool:
    """Whether a branch's projector is more than linear layers."""
    return isinstance(projector, Mapping) and "kind" in projector and "config" in projector


def numbers(config: Mapping[str, Any], names: tuple[str, ...]) -> list[int]:
    """The sizes that a config states. Raises KeyError where one is missing, ValueError for what is no size."""
    for name in names:
        if type(config[name]) is not int or not 0 < config[name] < 1 << 31:
            raise ValueError(f"{name} is {config[name]!r}, not a size")
    if config["place"] not in PLACES:
        raise ValueError(f"place is {config['place']!r} (known: {', '.join(PLACES)})")
    return [config[name] for name in names]


def linear(name: str, fan_in: int, fan_out: int) -> dict[str, tuple[int, ...]]:
    """Weight and bias of one linear map."""
    return {f"{name}.weight": (fan_out, fan_in), f"{name}.bias": (fan_out,)}


def clip_shapes(clip: Mapping[str, Any], c: int) -> dict[str, tuple[int, ...]]:
    """The frozen text tower, of which two tokens are kept: those that begin and end a text, with their positions."""
    for name in CLIP_NUMBERS:
        if type(clip[name]) is not int or not 0 < clip[name] < 1 << 16 or (name == "layers" and clip[name] > 1000):
            raise ValueError(f"clip: {name} is {clip[name]!r}, not a size")
    if c % clip["heads"]:
        raise ValueError(f"clip: a width of {c} does not divide by {clip['heads']} heads")
    if clip["activation"] not in ACTIVATIONS:
        raise ValueError(f"clip: activation is {clip['activation']!r}, not one of {', '.join(ACTIVATIONS)}")
    if type(clip["eps"]) is not float or not 0 < clip["eps"] < 1:
        raise ValueError(f"clip: eps is {clip['eps']!r}, not a small number")
    sizes = {"c": c, "f": clip["intermediate"]}
    found: dict[str, tuple[int, ...]] = {
        "clip.text_model.embeddings.token_embedding.weight": (2, c),
        "clip.text_model.embeddings.position_embedding.weight": (2, c),
        "clip.text_model.final_layer_norm.weight": (c,),
        "clip.text_model.final_layer_norm.bias": (c,),
        "clip.text_projection.weight": (c, c),
    }
    for n in range(clip["layers"]):
        for name, symbols in LAYER.items():
            shape = tuple(sizes[s] for s in symbols)
            found[f"clip.text_model.encoder.layers.{n}.{name}.weight"] = shape
            found[f"clip.text_model.encoder.layers.{n}.{name}.bias"] = shape[:1]
    return found
