"""The config of a fused folder."""

from typing import Any

from transformers.configuration_utils import PretrainedConfig
from transformers.models.auto.configuration_auto import AutoConfig

from fuse import auto_classes
from fuse.branches.budget import PRUNES
from fuse.branches.native_table import MROPE_HOSTS, NATIVE
from fuse.branches.options import (
    NORMS,
    POSITIONS,
    is_separator,
    is_shared,
    no_shared_positions,
    separator_ids,
    why_not_first,
)
from fuse.errors import CheckpointError
from fuse.names import mistake_in


class FusedConfig(PretrainedConfig):
    """One language model and its branches.

    text_config: the host's own text config. host_type: the model_type of the host's multimodal class, which decides how
    positions and attention work. branches: for each, in the order of their tokens, its `name`, its `kind` (a key of
    `fuse.branches.kinds.KINDS`), its placeholder `token` and `token_id`, its own `config`, and its budget (`max_tokens`
    or None, and how tokens are chosen: `prune`); where the recipe gave them, its `separator` (`text`, and the `ids` of
    its tokens), `positions` and `norm`. grafts: for each, in the order of the recipe, its `name`, `kind` (a key of
    `fuse.grafts.kinds.KINDS`), own `config` and `scale`, the branches that it is about (`tower`, `image`), and its
    placeholders: `tokens`, name -> how many follow an image, and their `token_ids`. image_token: what a chat template
    writes for one image. vision_dtype: "float32" where branches stay in float32 when the rest is loaded narrower.
    """

    model_type = "fuse"
    sub_configs = {"text_config": AutoConfig}  # noqa: RUF012  # pyright: ignore - transformers reads it from the class

    def __init__(
        self,
        text_config: dict[str, Any] | PretrainedConfig | None = None,
        host_type: str = "llava",
        branches: list[dict[str, Any]] | None = None,
        image_token: str = "<image>",
        image_token_id: int | None = None,
        grafts: list[dict[str, Any]] | None = None,
        **kwargs: Any,
    ) -> None:
        if text_config is None:  # transformers builds every config class once without arguments
            text_config = {"model_type": "llama"}
        if not isinstance(text_config, dict | PretrainedConfig):
            raise CheckpointError(f"config.json: text_config is {text_config!r}")
        tied = kwargs.get("tie_word_embeddings")  # of an encoder-decoder; others say it in their text config
        if isinstance(text_config, dict):
            tied = text_config.get("tie_word_embeddings", True) if tied is None else tied
            text_config = AutoConfig.for_model(**_without_kernels(text_config))
        if not text_config.is_encoder_decoder:
            tied = getattr(text_config, "tie_word_embeddings", False)
        if branches is not None and not (isinstance(branches, list) and all(isinstance(b, dict) for b in branches)):
            raise CheckpointError("config.json: branches is not a list of objects")
        if grafts is not None and not (isinstance(grafts, list) and all(isinstance(g, dict) for g in grafts)):
            raise CheckpointError("config.json: grafts is not a list of objects")
        self.text_config = text_config
        self.host_type = host_type
        self.branches = [_without_kernels(branch) for branch in branches or []]
        self.grafts = [_without_kernels(graft) for graft in grafts or []]
        self.image_token = image_token
        self.image_token_id = image_token_id
        kwargs["tie_word_embeddings"] = tied is None or bool(tied)
        kwargs["is_encoder_decoder"] = text_config.is_encoder_decoder
        super().__init__(**kwargs)
        _check(self)

    @property
    def placeholder_ids(self) -> list[int]:
        """The placeholder token of each branch, in the order of the branches."""
        return [branch["token_id"] for branch in self.branches]

    @property
    def slot_ids(self) -> list[int]:
        """The placeholder tokens of grafts."""
        return [row for graft in self.grafts for row in (graft.get("token_ids") or {}).values()]


def _without_kernels(value: Any) -> Any:
    """A nested config without the names of attention kernels, which transformers would fetch from the hub and run."""
    if isinstance(value, dict):
        return {k: _without_kernels(v) for k, v in value.items() if k not in _KERNELS}
    return [_without_kernels(one) for one in value] if isinstance(value, list) else value


ORIGINALS = frozenset({"llava_original", "mgm", "slime"})
MROPE_TEXTS = frozenset({"qwen2_vl_text", "qwen2_5_vl_text"})
_KERNELS = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal", "_experts_implementation")


def _check(config: FusedConfig) -> None:
    """Refuse what cannot be: a folder may come from anybody, and its names become parts of paths."""
    for branch in config.branches:
        name = branch.get("name")
        if lacking := {"name", "kind", "token", "token_id", "config"} - branch.keys():
            raise CheckpointError(f"config.json: branch {name!r} has no {', '.join(sorted(lacking))}")
        if wrong := mistake_in(name):
            raise CheckpointError(f"config.json: a branch cannot be called {name!r}: {wrong}")
        rows = config.text_config.vocab_size
        if type(branch["token_id"]) is not int or not 0 <= branch["token_id"] < rows:
            raise CheckpointError(
                f"config.json: branch {name!r} has token_id {branch['token_id']!r}, and the embedding has {rows} rows"
            )
        budget = branch.get("max_tokens")
        checks = {
            "kind": isinstance(branch["kind"], str),
            "token": isinstance(branch["token"], str) and bool(branch["token"]),
            "config": isinstance(branch["config"], dict),
            "max_tokens": budget is None or (type(budget) is int and budget > 0),
            "prune": branch.get("prune") in (None, *PRUNES),
            "separator": branch.get("separator") is None or is_separator(branch["separator"], rows),
            "positions": branch.get("positions") in (None, *POSITIONS),
            "norm": branch.get("norm") in (None, *NORMS),
        }
        for key, good in checks.items():
            if not good:
                raise CheckpointError(f"config.json: branch {name!r} has {key} {branch[key]!r}")
    names = [branch["name"] for branch in config.branches]
    if len(set(names)) < len(names) or len(set(config.placeholder_ids)) < len(names):
        raise CheckpointError("config.json: two branches have one name or one token_id")
    text = config.text_config.model_type
    if config.host_type not in {*NATIVE, *ORIGINALS, text} or (config.host_type in MROPE_HOSTS) != (
        text in MROPE_TEXTS
    ):
        raise CheckpointError(f"config.json: host_type is {config.host_type!r} and the text model is {text!r}")
    for key in ("host_type", "image_token"):
        if not isinstance(getattr(config, key), str) or not getattr(config, key):
            raise CheckpointError(f"config.json: {key} is {getattr(config, key)!r}")
    for branch in config.branches:
        _check_options(config, branch)
    if config.grafts:
        from fuse.model.graft_config import check_grafts

        check_grafts(config)


def _check_options(config: FusedConfig, branch: dict[str, Any]) -> None:
    """What a branch asks for among the others has a meaning there."""
    name = branch["name"]
    if branch is config.branches[0] and (found := why_not_first(branch)):
        raise CheckpointError(f"config.json: {found[0]} of branch {name!r}: {found[1]}")
    if held := set(separator_ids(branch)) & set(config.placeholder_ids):
        raise CheckpointError(f"config.json: the separator of branch {name!r} holds the placeholder {min(held)}")
    if is_shared(branch) and (why := no_shared_positions(config.host_type)):
        raise CheckpointError(f"config.json: positions of branch {name!r}: {why}")


auto_classes.register(FusedConfig)
