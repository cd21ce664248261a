"""The config of a fused folder."""

from typing import Any

from transformers.configuration_utils import PretrainedConfig
from transformers.models.auto.configuration_auto import AutoConfig

from fuse import auto_classes
from fuse.errors import CheckpointError


class FusedConfig(PretrainedConfig):
    """One language model and its branches.

    text_config: the host's own text config. host_type: the model_type of the host's multimodal class, which decides how
    positions and attention work. branches: for each, in the order of their tokens, its `name`, its `kind` (a key of
    `fuse.branches.kinds.KINDS`), its placeholder `token` and `token_id`, its own `config`, and its budget (`max_tokens`
    or None, and how tokens are chosen: `prune`). image_token: what a chat template writes for one image.
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
        **kwargs: Any,
    ) -> None:
        if text_config is None:
            text_config = {"model_type": "llama"}
        if isinstance(text_config, dict):
            text_config = AutoConfig.for_model(**text_config)
        self.text_config = text_config
        self.host_type = host_type
        self.branches = [dict(branch) for branch in branches or []]
        self.image_token = image_token
        self.image_token_id = image_token_id
        kwargs["tie_word_embeddings"] = bool(getattr(text_config, "tie_word_embeddings", False))
        super().__init__(**kwargs)
        _check(self)

    @property
    def placeholder_ids(self) -> list[int]:
        """The placeholder token of each branch, in the order of the branches."""
        return [branch["token_id"] for branch in self.branches]


def _check(config: FusedConfig) -> None:
    names = [branch.get("name") for branch in config.branches]
    for branch in config.branches:
        if lacking := {"name", "kind", "token", "token_id", "config"} - branch.keys():
            raise CheckpointError(f"config.json: branch {branch.get('name')!r} has no {', '.join(sorted(lacking))}")
        rows = config.text_config.vocab_size
        if type(branch["token_id"]) is not int or not 0 <= branch["token_id"] < rows:
            raise CheckpointError(
                f"config.json: branch {branch['name']!r} has token_id {branch['token_id']!r}, "
                f"and the embedding has {rows} rows"
            )
    if len(set(names)) < len(names) or len(set(config.placeholder_ids)) < len(names):
        raise CheckpointError("config.json: two branches have one name or one token_id")


auto_classes.register(FusedConfig)
