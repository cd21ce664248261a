"""Why a fused folder is no class of transformers: every reason, told from its config alone."""

from collections.abc import Iterator, Mapping
from typing import Any

from fuse.branches.native_table import MROPE_HOSTS, NATIVE
from fuse.sizes import counted

OWN_MASKS = frozenset({"paligemma", "gemma3"})  # classes whose visual tokens attend in both directions
PIECEWISE = frozenset({"llava_original", "mgm", "slime"})  # hosts whose code tokenizes the text around an image apart
OTHER_NAMES = frozenset({"gpt2", "opt", "t5"})  # text models that no multimodal class with a plain head holds
HEADLESS = frozenset({"qwen2_vl_text", "qwen2_5_vl_text"})  # text models that have no class of their own
OTHER_HEADS = ("logit_scale", "final_logit_softcapping", "logits_scaling")  # what a text model's own head does besides
KINDS = {
    "llava_original": "follows the code of the original LLaVA",
    "mgm": "follows the code of MGM",
    "slime": "follows the code of SliME",
    "encoder": "is an encoder and a projector from files",
}


def why_no_class(config: Mapping[str, Any]) -> list[str]:
    """Every reason why no class of transformers computes what language model and branches do; [] where one does.

    config: config.json of a fused folder. Grafts are asked about elsewhere.
    """
    branches = config.get("branches") or []
    if not branches:
        return list(_without_eyes(config))
    if len(branches) > 1:
        names = ", ".join(str(branch["name"]) for branch in branches)
        told = f"it has {len(branches)} branches ({names}), and such a class has one pair of eyes"
        return [told, *(why for branch in branches for why in _options(branch))]
    return [*_eyes(config, branches[0]), *_options(branches[0]), *_dtypes(config)]


def _without_eyes(config: Mapping[str, Any]) -> Iterator[str]:
    kind = config["text_config"].get("model_type")
    if kind in HEADLESS:
        yield f"it has no branch, and {kind} has no class of its own"


def _eyes(config: Mapping[str, Any], branch: Mapping[str, Any]) -> Iterator[str]:
    """Whether the class of the branch holds the host's language model as it is computed here."""
    name, host, text = branch["name"], config.get("host_type"), config["text_config"]
    if branch["kind"] != "native":
        yield f"branch {name} {KINDS.get(branch['kind'], branch['kind'])}, and has no class"
        return
    own = branch["config"].get("model_type")
    if own not in NATIVE:
        yield f"branch {name} has model_type {own!r}, which fuse does not know"
        return
    if host == own:
        return
    if host in PIECEWISE:
        yield f"its host ({host}) tokenizes the text around an image in pieces, and {own} does not"
    if host in MROPE_HOSTS or own in MROPE_HOSTS:
        yield f"its positions are those of {host}, and {own} counts others"
    if host in OWN_MASKS or own in OWN_MASKS:
        yield f"its tokens attend to each other as in {host}, and in {own} otherwise"
    kind = text.get("model_type")
    if kind in OTHER_NAMES:
        yield f"its language model is a {kind}, which {own} does not hold"
    elif host == kind and (heads := [key for key in OTHER_HEADS if text.get(key) not in (None, 1, 1.0)]):
        yield f"its language model has {heads[0]} {text[heads[0]]}, which {own} leaves out"


def _options(branch: Mapping[str, Any]) -> Iterator[str]:
    """What a branch asks for, and no class of transformers does."""
    name = branch["name"]
    if branch.get("max_tokens") is not None:
        most = counted(branch["max_tokens"], "visual token")
        yield f"branch {name} keeps at most {most} ({branch.get('prune') or 'pool'})"
    if branch.get("separator"):
        yield f"branch {name} stands behind the separator {branch['separator'].get('text')!r}"
    if branch.get("positions") not in (None, "continued"):
        yield f"branch {name} has positions {branch['positions']}"
    if branch.get("norm") not in (None, "none"):
        yield f"branch {name} has norm {branch['norm']}"


def _dtypes(config: Mapping[str, Any]) -> Iterator[str]:
    wide, dtype = config.get("vision_dtype"), config["text_config"].get("dtype")
    if wide and wide != dtype:
        yield f"its branch computes in {wide} beside a language model in {dtype}, and such a class has one dtype"
